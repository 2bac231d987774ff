"""How the page looks: accessible, on every screen, with charts; and its pictures in the README."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from support.http_client import HTTP
from support.processes import serving
from support.visits import PHONE, Opener, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-using")]

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
DESK_SIZE: "ViewportSize" = {"width": 1280, "height": 800}
SHOWN = "#wrap:width=32,indent=2+number-lines"
WRONG = "#wrap:width=wide+uper&poem=owl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{"viewport": DESK_SIZE}, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_violation(opening: Opener, scheme: str, screen: dict[str, object]) -> None:
    visit = opening(color_scheme=scheme, **screen)
    visit.open(SHOWN)
    visit.page.locator("#metrics .chart").first.wait_for()
    visit.page.locator(".example").first.wait_for()
    assert visit.axe_finds() == []
    visit.open(WRONG)
    visit.page.locator(".step .error:visible").first.wait_for()
    assert visit.axe_finds() == []
    visit.expect_rejection()
    visit.open("#hold&poem=owl", "after 0.0")
    visit.field("seconds").fill("300")
    visit.page.get_by_text("Running for 1 s", exact=True).wait_for()
    assert visit.axe_finds() == []
    visit.press("Cancel")
    visit.page.get_by_text("Cancelled after").wait_for()
    assert visit.axe_finds() == []


def test_axe_would_find_something(visit: Visit) -> None:
    visit.open()
    visit.page.evaluate("document.documentElement.removeAttribute('lang')")
    assert [line.partition(":")[0] for line in visit.axe_finds()] == ["html-has-lang"]


@pytest.mark.parametrize("width", [320, 390, 600])
def test_a_phone_does_not_scroll_sideways(opening: Opener, width: int) -> None:
    visit = opening(**{**PHONE, "viewport": {"width": width, "height": 844}})
    long = "x" * 3_000
    visit.open(f"#fields:who={'y' * 300},number=1+wrap+number-lines+odd+sort-lines&poem={long}")
    visit.result().filter(has_text="yyy").wait_for()
    visit.press("Transforms")
    visit.search().wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.choose("upper")
    visit.shows(long.upper())
    assert not visit.search().is_visible()


FONT_SIZES = """() => [...document.querySelectorAll("button, input, select, textarea")]
    .filter((control) => control.checkVisibility()).map((control) => getComputedStyle(control).fontSize)"""
# How far apart the middles of the buttons in one bar are: less than a pixel if they stand in one row.
OUT_OF_ROW = """() => {
  const middle = (button) => (({ top, bottom }) => (top + bottom) / 2)(button.getBoundingClientRect());
  const bars = [...document.querySelectorAll(".bar:has(button), .top .row, .step-head")];
  const shown = (bar) => Array.from(bar.querySelectorAll("button")).filter((button) => button.checkVisibility());
  return bars.map((bar) => shown(bar).map(middle))
    .map((middles) => Math.max(...middles) - Math.min(...middles));
}"""


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_has_one_row_of_buttons_and_one_font_size(opening: Opener, width: int) -> None:
    visit = opening(**{**PHONE, "viewport": {"width": width, "height": 844}})
    visit.open("#fields:who=me,number=1+wrap&poem=owl")
    visit.result().filter(has_text="'me'").wait_for()
    assert max(visit.page.evaluate(OUT_OF_ROW)) < 1
    assert set(visit.page.evaluate(FONT_SIZES)) == {"16px"}
    visit.press("Transforms")
    visit.search().wait_for()
    assert set(visit.page.evaluate(FONT_SIZES)) == {"16px"}


def chart_shows(visit: Visit, chart: int, text: str) -> None:
    visit.becomes(f".chart:nth-child({chart}) strong", text)


def test_charts_are_drawn_from_the_metrics(visit: Visit) -> None:
    visit.stop_the_clock()
    visit.open("#upper&poem=owl")
    visit.scrape(after_ms=1_000)
    for name in ["upper", "refuse"] * 4:
        visit.page.request.post(f"{visit.address}transform/{name}", data="owl")
    visit.scrape(after_ms=2_000)
    chart_shows(visit, 1, "4.0/s")
    chart_shows(visit, 2, "2.0/s")
    _, _, latency, workers = visit.page.locator(".chart strong").all_inner_texts()
    assert re.fullmatch(r"[\d.]+ (µs|ms|s) / [\d.]+ (µs|ms|s)", latency)
    assert re.fullmatch(r"\d+ \w+(, \d+ \w+)*", workers)


def test_a_chart_shows_the_difference_of_two_scrapes(visit: Visit) -> None:
    """Of the ten runs between them, half took less than 1 ms, and all but one less than 3 ms."""
    scrapes = [metrics_text(1_000, 50, (100, 200, 300)), metrics_text(1_010, 51, (105, 209, 310))]
    restarted = metrics_text(0, 0, (0, 0, 0))
    visit.page.route("**/metrics", lambda route: route.fulfill(body=scrapes.pop(0) if scrapes else restarted))
    visit.stop_the_clock()
    visit.open("#upper&poem=owl")
    visit.scrape(after_ms=1_000)
    visit.scrape(after_ms=2_000)
    for chart, text in enumerate(["5.5/s", "0.5/s", "1.0 ms / 3.0 ms", "2 idle, 1 busy"], 1):
        chart_shows(visit, chart, text)
    visit.scrape(after_ms=2_000)
    chart_shows(visit, 1, "0/s")


def metrics_text(answered: int, failed: int, below: tuple[int, int, int]) -> str:
    """Write the metrics of a server; ``below`` are the runs of up to 1 ms, 3 ms and any time."""
    counted = [
        f'requests_total{{transform="a\\"}}b,",front="http",code="ok"}} {answered}',
        f'requests_total{{transform="wrap",front="classic",code="gibberish"}} {failed}.0',
        *(f'workers{{state="{state}"}} {count}' for state, count in (("idle", 2), ("busy", 1), ("starting", 0))),
    ]
    bounds = zip(("0.001", "0.003", "+Inf"), below, strict=True)
    counted += [f'run_seconds_bucket{{transform="wrap",le="{bound}"}} {number}' for bound, number in bounds]
    return "\n".join(["# HELP xformd_requests_total Requests.", *(f"xformd_{line}" for line in counted)])


def test_without_metrics_there_are_no_charts(visit: Visit) -> None:
    requested = []
    visit.page.on("request", lambda request: requested.append(request.url))
    visit.page.route("**/metrics", lambda route: route.fulfill(status=404))
    visit.stop_the_clock()
    with visit.page.expect_response("**/metrics"):
        visit.open("#upper&poem=owl")
        visit.page.clock.run_for(3_000)
    visit.shows("OWL")
    for _ in range(3):
        visit.page.clock.run_for(3_000)
    assert not visit.page.locator("#metrics").is_visible()
    assert len([url for url in requested if url.endswith("/metrics")]) == 1
    visit.complaints[:] = [line for line in visit.complaints if not line.endswith("/metrics")]


@pytest.mark.skipif("XFORMD_PICTURES" not in os.environ, reason="make screenshots writes the pictures")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_of_the_readme(browser: "Browser", tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    with serving(tmp_path, "--plugins=none", "--workers=2", *HTTP) as server:
        context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", viewport=DESK_SIZE)
        visit = Visit(context.new_page(), server, f"{server.http}/")
        visit.stop_the_clock()
        visit.open(SHOWN)
        for moment in range(48):
            for number in range(3 + (moment * 7) % 5 + moment % 9):
                spec = "wrap:width=0" if not number and moment % 11 == 6 else "wrap+number-lines"
                visit.page.request.post(f"{visit.address}transform/{spec}", data="The Owl " * 40)
            visit.scrape(after_ms=2_000)
        visit.page.clock.resume()
        visit.press("Run")
        visit.page.locator("#result-facts", has_not_text=" 0.0 ms").wait_for()
        visit.page.mouse.move(0, 0)
        PICTURES.mkdir(exist_ok=True)
        visit.page.screenshot(path=PICTURES / f"page-{scheme}.png")
        context.close()
