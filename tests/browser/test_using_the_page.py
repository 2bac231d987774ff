"""One transform: found, configured and run; and its errors."""

import json
import re
from typing import TYPE_CHECKING

import pytest

from support.processes import wait_until
from support.visits import Opener, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-using")]


def test_a_transform_is_found_configured_and_run(visit: Visit) -> None:
    visit.open()
    visit.search().fill("in")
    assert visit.page.locator("#transforms .name").first.inner_text() == "indent", "it starts with the query"
    visit.search().press("Enter")
    assert visit.steps() == ["indent"]
    visit.search().fill("wide words")
    assert visit.page.locator("#transforms .name").all_inner_texts() == ["wrap"]
    visit.choose("wrap")
    visit.write("one two three")
    visit.field("width").fill("7")
    visit.shows("one two\nthree")
    visit.field("indent").fill("2")
    visit.shows("one two\n  three")


def test_each_option_has_a_field_of_its_type(visit: Visit) -> None:
    visit.open("#fields&poem=x")
    labels = ("who", "number", "share", "loud", "tone", "constructor")
    kinds = [visit.field(label).evaluate("field => field.type") for label in labels]
    assert kinds == ["text", "number", "number", "checkbox", "select-one", "text"]
    assert visit.field("who").get_attribute("aria-required") == "true"
    assert [visit.field(label).input_value() for label in ("share", "tone", "constructor")] == ["0.5", "low", "none"]
    visit.field("who").fill("an owl, +a cat. 100%")
    visit.field("number").fill("-3")
    visit.field("share").fill("0.25")
    visit.field("loud").check()
    visit.field("tone").select_option("high")
    visit.shows("'an owl, +a cat. 100%' -3 0.25 True high none")
    visit.expect_rejection()  # while what it needs was missing


def test_a_field_knows_its_range_and_an_optional_one_may_be_empty(visit: Visit) -> None:
    visit.open("#typed&poem=x", "1 None None None ['a', 'b']")
    kinds = [visit.field(label).evaluate("field => field.type") for label in ("width", "since", "tone", "loud", "tags")]
    assert kinds == ["number", "date", "select-one", "select-one", "text"]
    for label, limits in (("width", ("1", "10")), ("since", ("2026-01-01", None))):
        assert tuple(visit.field(label).get_attribute(end) for end in ("min", "max")) == limits
    assert visit.text_of(f"#{described_by(visit.field('width'))[0]}") == "a whole number from 1 to 10: how wide."
    assert [visit.field(label).input_value() for label in ("tone", "loud", "tags")] == ["", "", "a,b"]
    visit.field("width").fill("7")
    visit.field("since").fill("2026-01-31")
    visit.field("tone").select_option("high")
    visit.field("loud").select_option("false")
    visit.field("tags").fill("c,d e")
    visit.shows("7 2026-01-31 high False ['c', 'd e']")
    visit.field("since").fill("")
    visit.field("tone").select_option("")
    visit.shows("7 None None False ['c', 'd e']")
    visit.page.locator(".example", has_text="tags").click()
    visit.shows("1 None None None ['x,y', 'z']")
    visit.field("since").fill("2025-12-31")
    visit.error("since").wait_for()
    assert "takes a date (YYYY-MM-DD) from 2026-01-01, not '2025-12-31'" in visit.error("since").inner_text()
    visit.expect_rejection()


def test_a_click_runs_an_example(visit: Visit) -> None:
    visit.open("#sort-lines&poem=x")
    visit.page.locator(".example", has_text="ignore_case").click()
    visit.shows("a\nb\nC")
    assert visit.field("ignore_case").is_checked()
    assert visit.poem().input_value() == "b\nC\na"
    visit.choose("reverse-lines")
    visit.page.locator(".example").nth(1).click()  # its line endings reach the transform
    visit.shows("b\r\na\r\n")
    with visit.page.expect_request(re.compile("/transform/")) as again:
        visit.press("Run")
    assert again.value.post_data == "a\r\nb\r\n"


def test_a_newer_run_cancels_the_older(visit: Visit) -> None:
    visit.open("#hold&poem=x", "after 0.0")
    with visit.page.expect_request(re.compile("seconds=15")):
        visit.field("seconds").fill("15")
    with visit.page.expect_event("requestfailed", lambda request: "seconds=15" in request.url):
        visit.field("seconds").fill("0.1")
    visit.shows("after 0.1")


def test_the_last_answer_wins(visit: Visit) -> None:
    """Even where it has already arrived, so that cancelling has no effect."""
    visit.page.add_init_script("AbortController.prototype.abort = () => {}")
    visit.open("#hold&poem=x", "after 0.0")
    with visit.page.expect_request(re.compile("seconds=0%2E6")) as slow:
        visit.field("seconds").fill("0.6")
    visit.field("seconds").fill("0.1")
    visit.shows("after 0.1")
    answer = slow.value.response()
    assert answer is not None
    answer.finished()
    visit.page.evaluate("new Promise((turned) => setTimeout(turned, 50))")
    assert visit.result().text_content() == "after 0.1"


def test_a_run_says_how_long_it_takes_and_is_cancelled(visit: Visit) -> None:
    visit.open("#hold&poem=x", "after 0.0")
    visit.field("seconds").fill("15")
    visit.page.get_by_text("Running for 1 s", exact=True).wait_for()
    assert visit.page.get_by_text("previous result", exact=True).is_visible()
    assert visit.text_of("#result") == "after 0.0"
    with visit.page.expect_event("requestfailed", lambda request: "seconds=15" in request.url):
        visit.press("Cancel")
    visit.page.get_by_text(re.compile("^Cancelled after [1-9] seconds?$")).wait_for()
    assert visit.page.get_by_text("previous result", exact=True).is_visible()
    assert focused(visit) == "Run"
    wait_until(lambda: cancelled(visit) == 1)
    visit.field("seconds").fill("0.1")
    visit.shows("after 0.1")
    assert not visit.page.locator("#running").is_visible()


def cancelled(visit: Visit) -> int:
    """Count the requests that the server has cancelled."""
    metrics = visit.page.request.get(f"{visit.address}metrics").text()
    counts = re.findall(r'^xformd_requests_total{.*code="cancelled".*transform="hold".*} (\d+)', metrics, re.MULTILINE)
    return sum(map(int, counts))


def test_a_fast_run_does_not_flicker(visit: Visit) -> None:
    visit.stop_the_clock()
    visit.open("#upper&poem=x", "X")
    visit.page.evaluate("""() => {
      const running = document.querySelector("#running");
      new MutationObserver(() => (window.flickered ||= !running.hidden)).observe(running, { attributes: true });
    }""")
    for poem in "owl", "cat":
        visit.write(poem)
        visit.page.clock.run_for(300)  # half of it is the pause after typing
        visit.shows(poem.upper())
    assert not visit.page.evaluate("window.flickered")


def test_an_invalid_option_is_shown_at_its_field(visit: Visit) -> None:
    visit.open("#upper+wrap:width=7+number-lines&poem=one%20two")
    width = visit.step(2).get_by_label("width")
    width.fill("0")
    error = visit.error("width", step=2)
    error.wait_for()
    assert error.inner_text() == "wrap: option 'width' takes a whole number from 1 to 10000, not '0'"
    assert width.get_attribute("aria-invalid") == "true"
    assert error.get_attribute("id") in described_by(width)
    assert visit.page.locator("#problem").inner_text() == "bad-options\n\nSee step 2, wrap."
    width.fill("3")
    visit.shows("1. ONE\n2. TWO")
    assert not error.is_visible()
    assert width.get_attribute("aria-invalid") is None
    visit.expect_rejection()


def described_by(field: "Locator") -> list[str]:
    return (field.get_attribute("aria-describedby") or "").split()


def test_the_help_of_an_option_stands_at_its_field(visit: Visit) -> None:
    visit.open("#wrap&poem=x")
    visit.page.get_by_text("a whole number from 1 to 10000: the widest line, in columns.", exact=True).wait_for()
    first, _ = described_by(visit.field("width"))
    assert visit.text_of(f"#{first}") == "a whole number from 1 to 10000: the widest line, in columns."
    visit.choose("hold")
    assert len(described_by(visit.field("seconds"))) == 1


@pytest.mark.parametrize(
    ("fragment", "step", "option", "message"),
    [
        ("wrap:width=7%2E5", 1, "width", "not '7.5'"),
        ("wrap:width=", 1, "width", "not ''"),
        ("wrap:width=7+wrap:width=wide", 2, "width", "not 'wide'"),
        ("fields:number=1", 1, "who", "fields needs the option 'who': a string"),
    ],
)
def test_an_invalid_option_in_a_link_is_shown_at_its_field(
    visit: Visit, fragment: str, step: int, option: str, message: str
) -> None:
    visit.open(f"#{fragment}&poem=x")
    visit.error(option, step).filter(has_text=message).wait_for()
    value = visit.step(step).get_by_label(option).input_value()
    assert message.endswith((f"'{value}'", "a string"))
    assert visit.page.locator(".step .error:visible").count() == 1
    visit.expect_rejection()


def test_an_unknown_transform_suggests_the_nearest(visit: Visit) -> None:
    visit.open("#uper+trim&poem=owl")
    error = visit.step(1).locator(".step-error")
    error.wait_for()
    assert "no transform 'uper' here" in error.inner_text()
    error.get_by_role("button", name="Use upper").click()
    visit.shows("OWL")
    assert visit.steps() == ["upper", "trim"]
    visit.expect_rejection()


def test_a_busy_server_is_retried(visit: Visit) -> None:
    busy = {"code": "busy", "detail": "the queue is full", "retry_after_ms": 1200}
    answer = {"status": 429, "content_type": "application/problem+json", "body": json.dumps(busy)}
    visit.page.route(re.compile("/transform/upper"), lambda route: route.fulfill(**answer), times=1)
    visit.stop_the_clock()
    visit.open("#upper&poem=owl")
    visit.page.get_by_text("Trying again in 2 seconds.").wait_for()
    visit.page.clock.run_for(500)
    visit.page.get_by_text("Trying again in 1 second.").wait_for()
    visit.page.clock.run_for(1_000)
    visit.shows("OWL")
    assert not visit.page.locator("#problem").is_visible()
    visit.expect_rejection()


def test_an_unreachable_server_is_retried(visit: Visit) -> None:
    visit.open("#upper&poem=owl")
    visit.page.route(re.compile("/transform/"), lambda route: route.abort("connectionrefused"), times=1)
    visit.write("cat")
    visit.page.get_by_text("The server does not answer.", exact=True).wait_for()
    visit.press("Try now")
    visit.shows("CAT")
    visit.expect_rejection()


def test_bytes_are_edited_and_shown_as_hexadecimal(visit: Visit) -> None:
    visit.open("#flip&hex=00%20ff")
    assert visit.page.get_by_role("checkbox", name="hex").is_checked()
    visit.result().filter(has_text="ff 00").wait_for()
    visit.write("fe ff")  # the result is UTF-8, and no text all the same
    visit.result().filter(has_text="01 00").wait_for()
    visit.write("9e 9d 9")
    visit.page.get_by_text("Not hexadecimal").wait_for()
    visit.write("9e 9d 9c")
    visit.shows("abc")
    assert not visit.page.locator("#poem-error").is_visible()
    visit.page.get_by_role("checkbox", name="hex").uncheck()  # and what that means as text is another poem
    visit.page.locator(".example").click()
    assert visit.poem().input_value() == "ff 00"


def test_files_are_opened_and_saved_byte_for_byte(visit: Visit) -> None:
    visit.open("#flip&poem=x")
    sent = bytes(range(256))
    visit.page.locator("#file").set_input_files({"name": "poem", "mimeType": "", "buffer": sent})
    visit.page.locator("#result-facts").get_by_text(re.compile("^256 bytes .* shown as hex$")).wait_for()
    with visit.page.expect_download() as download:
        visit.press("Save")
    assert download.value.path().read_bytes() == bytes(255 - byte for byte in sent)


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    visit.open("#upper&poem=one%20two", "ONE TWO")
    keys = visit.page.keyboard
    keys.press("Tab")
    assert focused(visit) == "Skip to the poem"
    keys.press("Control+k")
    keys.type("wrap")
    keys.press("ArrowDown")
    keys.press("Enter")
    assert visit.steps() == ["wrap"]
    tab_to(visit, "Add a step")
    keys.press("Enter")
    keys.type("number")
    keys.press("Enter")
    assert visit.steps() == ["wrap", "number-lines"]
    keys.press("Shift+Tab")
    assert focused(visit).startswith("Remove: number-lines")
    keys.press("Alt+ArrowLeft")
    assert visit.steps() == ["number-lines", "wrap"]
    assert "number-lines" in focused(visit)
    visit.shows("1. one two")
    tab_to(visit, "Remove: wrap")
    keys.press("Enter")
    assert visit.steps() == ["number-lines"]
    assert focused(visit).startswith("Remove: number-lines")
    tab_to(visit, "Add a step")
    keys.press("Enter")
    keys.type("upper")
    keys.press("Enter")
    assert focused(visit).startswith("Remove: upper")  # it has no options


def focused(visit: Visit) -> str:
    element = "document.activeElement"
    return str(visit.page.evaluate(f"{element}.getAttribute('aria-label') ?? {element}.textContent"))


def tab_to(visit: Visit, name: str) -> None:
    for _ in range(60):
        if focused(visit).startswith(name):
            return
        visit.page.keyboard.press("Tab")
    raise AssertionError(f"{name} is not reached with the tabulator")


def test_the_focus_is_visible_and_the_result_announced(visit: Visit) -> None:
    visit.open("#upper&poem=owl")
    assert visit.page.locator("#announcer").get_attribute("aria-live") == "polite"
    visit.becomes("#announcer", "Result: OWL")
    for _ in range(12):
        visit.page.keyboard.press("Tab")
        outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", focused(visit)


def test_the_theme_is_remembered(opening: Opener) -> None:
    visit = opening(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    visit.open()
    light = visit.page.evaluate(background)
    visit.press("Theme: auto")
    visit.press("Theme: light")
    assert visit.page.evaluate(background) != light
    visit.open()
    assert visit.page.get_by_role("button", name="Theme: dark").is_visible()
    assert visit.page.evaluate(background) != light
