"""A pipeline: put together, changed, shared by its link, and called from elsewhere."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from support.reverse_proxy import proxying
from support.visits import CALLS, Opener, Visit, tell_address

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-sharing")]

HOSTILE = """it's "quoted" $HOME `date` $(date) !! \\n \\ %s %41 --data @file; # 日本 👩\u200d🚀\n'"""


def test_the_link_restores_the_pipeline(visit: Visit, opening: Opener) -> None:
    visit.open("#trim&poem=x")
    visit.choose("sort-lines")
    visit.add("number-lines")
    visit.add("upper")
    visit.field("separator").fill(". + ")
    visit.write("pear\napple")
    visit.shows("1. + APPLE\n2. + PEAR")
    visit.press("Move earlier: upper, step 3 of 3")
    visit.press("Move earlier: upper, step 2 of 3")
    assert visit.steps() == ["upper", "sort-lines", "number-lines"]
    visit.page.get_by_role("button", name="Remove: sort-lines").click()
    visit.shows("1. + PEAR\n2. + APPLE")

    other = opening()
    other.open(visit.page.evaluate("location.hash"), "1. + PEAR\n2. + APPLE")
    assert other.steps() == ["upper", "number-lines"]
    assert other.field("separator").input_value() == ". + "
    assert other.poem().input_value() == "pear\napple"


def test_the_link_and_a_call_are_copied(opening: Opener) -> None:
    visit = opening(permissions=["clipboard-read", "clipboard-write"])
    visit.open("#wrap&poem=x")
    visit.field("width").fill("9")
    visit.press("Copy link")
    visit.page.get_by_role("button", name="Copied").wait_for()
    assert visit.clipboard() == f"{visit.address}#wrap:width=9&poem=x"
    visit.page.locator("#copy-call").click()
    visit.page.locator("#copy-call", has_text="Copied").wait_for()
    assert visit.clipboard() == visit.text_of("#call")
    visit.write("a long poem " * 1_000)
    visit.page.locator("#share").click()
    visit.page.get_by_role("button", name="Copied without the poem").wait_for()
    assert visit.clipboard() == f"{visit.address}#wrap:width=9"


def test_the_back_button_restores_what_was_typed(visit: Visit) -> None:
    visit.open("#upper&poem=owl")
    visit.write("cat")
    visit.choose("reverse-lines")
    visit.add("trim")
    visit.shows("cat")
    visit.page.go_back()
    assert visit.steps() == ["reverse-lines"]
    visit.page.go_back()
    assert visit.steps() == ["upper"]
    visit.shows("CAT")
    visit.page.go_forward()
    visit.shows("cat")


def test_a_long_poem_is_restored_without_the_link(visit: Visit) -> None:
    visit.open("#upper&poem=owl")
    long = "a long poem " * 1_000
    visit.write(long)
    visit.shows(long.upper())
    visit.choose("reverse-lines")
    visit.shows(long)
    assert len(visit.page.url) < 1_000
    visit.write("cat")
    visit.shows("cat")
    visit.page.go_back()
    visit.shows(long.upper())


@pytest.mark.parametrize(
    "fragment", ["#", "#&poem=x", "#%", "#Wrap:&poem=%", "#wrap:width&poem", "#+&hex=zz", "#a:b=%ff"]
)
def test_an_invalid_link_breaks_nothing(visit: Visit, fragment: str) -> None:
    visit.open(fragment)
    visit.choose("upper")
    visit.page.get_by_role("checkbox", name="hex").uncheck()
    visit.write("owl")
    visit.shows("OWL")
    visit.complaints[:] = [line for line in visit.complaints if "Failed to load resource" not in line]


@pytest.mark.parametrize(
    ("spec", "steps", "fields"),
    [
        ("+".join(["upper"] * 20_000), 32, 0),
        ("upper:" + ",".join(f"a{number}=1" for number in range(20_000)), 1, 128),
        ("+".join(["upper:" + ",".join(f"a{number}=1" for number in range(100))] * 200), 32, 128),
    ],
    ids=["steps", "options", "both"],
)
def test_of_a_long_link_only_the_start_is_read(visit: Visit, spec: str, steps: int, fields: int) -> None:
    visit.page.goto(f"{visit.address}#{spec}&poem=owl")
    visit.page.locator("#steps .step").nth(steps - 1).wait_for()
    visit.write("cat")
    assert len(visit.steps()) == steps
    assert visit.page.locator("#steps input").count() == fields
    visit.page.goto("about:blank")  # so that no answer is on its way
    visit.complaints[:] = [line for line in visit.complaints if "Failed to load resource" not in line]


PREFIX = HOSTILE.replace("\n", "")
ODD = f"odd:text={quote(PREFIX, safe='').replace('.', '%2E')}"


@pytest.mark.parametrize(
    ("spec", "poem", "result"),
    [
        (ODD, HOSTILE, f"{HOSTILE}{PREFIX}"),
        (ODD, "", PREFIX),
        (ODD, "@file", f"@file{PREFIX}"),
        ("wrap:width=7+number-lines:separator=%2E%20", "one two three", "1. one two\n2. three"),
    ],
    ids=["hostile", "empty", "at", "several-steps"],
)
def test_a_copied_call_returns_what_the_page_shows(
    visit: Visit, spec: str, poem: str, result: str, tmp_path: Path
) -> None:
    visit.open(f"#{spec}&poem={quote(poem, safe='')}", result)
    assert [visit.called(name, tmp_path) for name in CALLS] == [result] * 3


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ("192.0.2.1:12000", "192.0.2.1:12000"),
        ("unix:/run/x.sock 192.0.2.1:12000", "unix:/run/x.sock"),
        ("0.0.0.0:12000", "localhost:12000"),
        ("[::]:12000", "localhost:12000"),
        ("[2001:db8::1]:12000 0.0.0.0:12000", "[2001:db8::1]:12000"),
    ],
)
def test_a_call_goes_to_the_address_that_the_server_tells(opening: Opener, told: str, used: str) -> None:
    visit = opening()
    visit.address = visit.address.replace("127.0.0.1", "localhost")
    tell_address(visit.page.context, visit.address, told)
    visit.open("#upper&poem=owl", "OWL")
    assert visit.call("xformd send").endswith((f" --server {used}", f" --server '{used}'"))
    assert f'TransformProxy("{used}")' in visit.call("Python")


def test_a_call_goes_to_the_default_if_the_server_tells_no_address(visit: Visit) -> None:
    tell_address(visit.page.context, visit.address, "")
    visit.open("#upper&poem=owl", "OWL")
    assert visit.call("xformd send") == "printf %s owl |\n  xformd send upper"
    assert 'TransformProxy("127.0.0.1:11000")' in visit.call("Python")


@pytest.mark.parametrize("slash", ["/", ""], ids=["slash", "no-slash"])
def test_everything_works_below_a_prefix(opening: Opener, slash: str, tmp_path: Path) -> None:
    visit = opening(permissions=["clipboard-read", "clipboard-write"])
    with proxying(visit.server.http, "/tools/xformd") as proxy:
        visit.address = f"{proxy.url}{slash}"
        visit.open("#upper&poem=owl", "OWL")
        visit.page.locator("#metrics .chart").first.wait_for()
        visit.press("Copy link")
        visit.page.get_by_role("button", name="Copied").wait_for()
        assert visit.clipboard() == f"{visit.address}#upper&poem=owl"
        assert f"{proxy.url}/transform/upper" in visit.call("curl")
        assert visit.called("curl", tmp_path) == "OWL"
        description = visit.page.get_by_role("link", name="openapi.json").evaluate("link => link.href")
        assert visit.page.request.get(description).json()["openapi"].startswith("3.1")
        assert proxy.strays == []
        visit.page.goto("about:blank")  # so that nothing is asked for while the proxy stops


@pytest.mark.parametrize("poem", ["owl\x1b[201~rm -rf", "owl\x03", "owl\u202elwo", "x" * 2_001])
def test_a_call_has_no_terminal_controls(visit: Visit, poem: str) -> None:
    visit.open(f"#upper&poem={quote(poem)}")
    for text in map(visit.call, CALLS):
        assert "poem.txt" in text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_a_call_is_short(visit: Visit) -> None:
    visit.open("#fields:number=3,loud=true,who=me,share=0%2E25&poem=owl")
    shown, spec = visit.call("Python"), "fields:loud=true,number=3,share=0%2E25,who=me"
    assert 'proxy.xform("fields", "owl", number=3, loud=True, who="me", share=0.25)' in shown
    assert visit.call("curl") == f"curl {visit.address}transform/{spec} \\\n  --data-raw owl"
    visit.page.keyboard.press("ArrowRight")
    assert visit.text_of("#call") == f"printf %s owl |\n  xformd send {spec} --server {visit.server.address}"


def test_a_rejected_poem_is_shown_and_its_option_called_timeout_is_no_keyword(visit: Visit) -> None:
    visit.open("#refuse:timeout=2&poem=owl")
    assert 'proxy.xform("refuse:timeout=2", "owl")' in visit.call("Python")
    visit.becomes("#problem .code", "gibberish")
    assert visit.page.locator("#problem").inner_text() == "gibberish\n\nrefuse finds no <b>verse</b> in it"
    visit.expect_rejection()
