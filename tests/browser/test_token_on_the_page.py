"""The page of a server that wants to know who asks: a token is kept for the tab alone, and shown nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP
from support.processes import Server, serving
from support.visits import Opener, chromium
from xformd.access.rules import new_token

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-token")]

TOKEN, DIGEST = new_token()


@pytest.fixture(scope="module", params=["", "[identity.anonymous]\ntransforms = ['cummingsify']\n"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with an identity that has a token, and with or without an anonymous one."""
    chromium()
    folder: Path = tmp_path_factory.mktemp("server")
    file = folder / "access.toml"
    rules = f'[identity.ci]\ntoken_sha256 = "{DIGEST}"\ntransforms = ["upper"]\n'
    file.write_text(rules + request.param)
    with serving(folder, "--plugins=none", "--access", str(file), *HTTP) as running:
        yield running


def test_a_token_is_asked_for_and_stays_in_the_tab(opening: Opener, server: Server) -> None:
    visit = opening()
    visit.page.goto(f"{visit.address}#upper&poem=owl")
    visit.page.locator("#problem:visible, #result:text('owl')").first.wait_for()
    form = visit.page.locator("#token-form")
    if not form.is_visible():  # an anonymous one may do something, and need not show anything
        visit.page.get_by_role("button", name="Token…").click()
    form.get_by_label("Token").fill("xformd_wrong")
    form.get_by_role("button").click()
    visit.page.get_by_role("alert").filter(has_text="this token is not known here").wait_for()
    form.get_by_label("Token").fill(TOKEN)
    form.get_by_role("button").click()
    visit.shows("OWL")
    assert not form.is_visible()
    assert visit.page.locator("#transforms .transform .name").all_inner_texts() == ["upper"]
    for call in ("curl", "xformd send", "Python"):
        visit.page.get_by_role("tab", name=call).click()
        text = visit.page.locator("#call").inner_text()
        assert ("XFORMD_TOKEN" in text) is (call != "xformd send")  # which reads the variable by itself
        assert TOKEN not in text
    assert TOKEN not in visit.page.content()
    assert TOKEN not in visit.page.url
    visit.page.reload()
    visit.shows("OWL")  # it is the same tab
    assert visit.page.evaluate("localStorage.length") == 0
    assert visit.page.evaluate("document.cookie") == ""

    other = visit.page.context.new_page()
    other.goto(f"{visit.address}#upper&poem=owl")
    other.locator("#problem:visible").wait_for()
    other.close()
    visit.page.goto("about:blank")  # whose charts ask no more
    assert [each for each in visit.complaints if not ("status of 40" in each and server.http in each)] == []
    visit.complaints.clear()  # the browser's own words for what the server has refused
