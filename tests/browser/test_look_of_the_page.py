"""For everybody, on every screen; and the pictures of it in the README."""

import os
from pathlib import Path

import pytest

from browser.conftest import Opener
from browser.visits import Visit

pytestmark = pytest.mark.xdist_group("browser-using")

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
TELEPHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DESK = {"viewport": {"width": 1280, "height": 800}}
SHOWN = "#wrap:width=32,indent=2+number-lines"
WRONG = "#wrap:width=wide+uper&poem=owl"


def axe_finds(visit: Visit) -> list[str]:
    """Run axe-core, which comes with its package, in the page; a policy does not hold for the one who debugs."""
    bundled = pytest.importorskip("axe_playwright_python", reason="install axe-playwright-python: pip install --group dev")
    visit.page.evaluate((Path(bundled.__file__).parent / "axe.min.js").read_text())
    found = visit.page.evaluate("axe.run().then(found => found.violations)")
    return [f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESK, TELEPHONE], ids=["desk", "telephone"])
@pytest.mark.parametrize("fragment", [SHOWN, WRONG], ids=["a result", "an error"])
def test_axe_finds_nothing(opening: Opener, scheme: str, screen: dict[str, object], fragment: str) -> None:
    visit = opening(color_scheme=scheme, **screen)
    visit.open(fragment)
    if fragment == WRONG:
        visit.page.locator(".step .error:visible").first.wait_for()
        visit.is_refused()
    else:
        visit.page.locator("#figures").wait_for()
        visit.page.locator(".example").first.wait_for()
    assert axe_finds(visit) == []


def test_axe_would_find_something(visit: Visit) -> None:
    visit.open()
    visit.page.evaluate("document.querySelector('#search-label').remove()")
    visit.page.evaluate("document.querySelector('#search').placeholder = ''")
    assert [line.partition(":")[0] for line in axe_finds(visit)] == ["label"]


@pytest.mark.parametrize("width", [320, 390, 600])
def test_a_telephone_does_not_scroll_sideways(opening: Opener, width: int) -> None:
    visit = opening(**{**TELEPHONE, "viewport": {"width": width, "height": 844}})
    long = "x" * 3_000
    visit.open(f"#fields:who={'y' * 300},number=1+wrap+number-lines+odd+sort-lines&poem={long}")
    visit.page.wait_for_function("document.querySelector('#result').textContent.includes('yyy')")
    visit.page.get_by_role("button", name="Transforms", exact=True).click()
    visit.page.get_by_role("searchbox").wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    visit.choose("upper")
    visit.shows(long.upper())
    assert not visit.page.get_by_role("searchbox").is_visible()


def test_figures_are_drawn_from_the_metrics(visit: Visit) -> None:
    page = visit.page
    page.clock.install()
    visit.open("#upper&poem=owl")
    page.clock.run_for(1_000)
    page.locator("#figures .chart").first.wait_for()
    for _ in range(4):
        page.request.post(f"{visit.address}transform/upper", data="owl")
        page.request.post(f"{visit.address}transform/refuse", data="owl")
    with page.expect_response("**/metrics"):
        page.clock.run_for(2_000)
    visit.becomes(".chart:nth-child(1) strong", "4.0/s")
    visit.becomes(".chart:nth-child(2) strong", "2.0/s")
    assert "/" in page.locator(".chart:nth-child(3) strong").inner_text()
    assert "2" in page.locator(".chart:nth-child(4) strong").inner_text()
    assert page.locator(".chart svg path").count() >= 4


def test_without_metrics_there_are_no_figures(visit: Visit) -> None:
    asked = []
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.page.route("**/metrics", lambda route: route.fulfill(status=404))
    visit.page.clock.install()
    visit.open("#upper&poem=owl")
    for _ in range(3):
        visit.page.clock.run_for(3_000)
    visit.shows("OWL")
    assert not visit.page.locator("#figures").is_visible()
    assert len([url for url in asked if url.endswith("/metrics")]) == 1
    visit.complaints[:] = [line for line in visit.complaints if not line.endswith("/metrics")]


@pytest.mark.skipif("XFORMD_PICTURES" not in os.environ, reason="make screenshots writes the pictures")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pictures_of_the_readme(opening: Opener, scheme: str) -> None:
    visit = opening(color_scheme=scheme, **DESK)
    page = visit.page
    page.clock.install()
    visit.open(SHOWN)
    for moment in range(46):
        for _ in range(2 + (moment * 7) % 5 + moment % 9):
            page.request.post(f"{visit.address}transform/wrap+number-lines", data="The Owl " * 40)
        if moment % 11 == 6:
            page.request.post(f"{visit.address}transform/refuse", data="owl")
        with page.expect_response("**/metrics"):
            page.clock.run_for(2_000)
    page.get_by_role("tab", name="xformd send").click()
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"page-{scheme}.png")
