"""What the author of a plugin, of a link or of a poem has written stays text."""

import re
from urllib.parse import quote

import pytest

from support.page_plugins.odd import MARKUP
from support.visits import Visit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-sharing")]

COUNT_FOREIGN = (
    "document.querySelectorAll('body img, body b, body script:not(:last-of-type), body iframe, body style').length"
)


def test_markup_of_a_plugin_stays_text(visit: Visit) -> None:
    visit.open(f"#odd&poem={quote(MARKUP)}", MARKUP * 2)
    assert MARKUP.partition(">")[2] in visit.text_of(".step .summary")
    assert visit.field("text").input_value() == MARKUP
    assert visit.field("pick").locator("option").all_text_contents() == ["<b>one</b>", "two"]
    assert "<img src=x" in visit.text_of(".example")
    visit.page.locator(".example").click()
    visit.shows(MARKUP * 2)
    assert re.search(r"torn failed.*\(see the server's log\)", visit.text_of("#warnings"), re.DOTALL)
    assert "<script>" not in visit.text_of("#warnings")  # why it failed is no visitor's to know
    visit.search().fill("<script>")
    assert visit.page.locator("#transforms .name").all_inner_texts() == ["odd"]
    nothing_was_taken(visit)


@pytest.mark.parametrize("step", ["odd:pick=", f"upper:{'a' * 60}="], ids=["a value", "an unknown option"])
def test_markup_of_a_link_and_of_its_error_stays_text(visit: Visit, step: str) -> None:
    visit.open(f"#{step}{quote(MARKUP).replace('.', '%2E')}&poem={quote(MARKUP)}")
    visit.page.locator(".step .error:visible").wait_for()
    assert "odd" not in step or "<img src=x onerror=" in visit.text_of('[data-option="pick"] .error')
    nothing_was_taken(visit)
    visit.expect_rejection()


def nothing_was_taken(visit: Visit) -> None:
    assert visit.page.title() == "xformd"
    assert visit.page.evaluate(COUNT_FOREIGN) == 0


def test_a_quarantined_transform_is_marked(visit: Visit) -> None:
    listing = visit.page.request.get(f"{visit.address}transforms").json()
    for transform in listing["transforms"]:
        transform["state"] = "quarantined" if transform["name"] == "hold" else "active"
    visit.page.route("**/transforms", lambda route: route.fulfill(json=listing))
    visit.open("#hold&poem=x")
    visit.page.locator(".step .mark", has_text="quarantined").wait_for()
    assert visit.page.locator("#transforms .mark", has_text="quarantined").count() == 1


@pytest.mark.parametrize(
    "script",
    [
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title=1'}))",
        "document.body.innerHTML = '<p>'",
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))",
        "fetch('http://127.0.0.1:9/')",
        "document.body.append(Object.assign(document.createElement('iframe'), {src: '/'}))",
        "document.body.append(Object.assign(document.createElement('iframe'), {src: URL.createObjectURL(new Blob("
        "['<script>top.document.title = 1</script>'], {type: 'text/html'}))}))",
    ],
)
def test_the_browser_enforces_the_policy(visit: Visit, script: str) -> None:
    visit.open()
    with visit.page.expect_console_message(
        lambda message: "Content Security Policy" in message.text or "requires 'Trusted" in message.text
    ):
        visit.page.evaluate(f"(() => {{ try {{ {script} }} catch (error) {{ console.error(String(error)) }} }})()")
    assert visit.page.title() == "xformd"
    assert visit.complaints
    visit.complaints.clear()
