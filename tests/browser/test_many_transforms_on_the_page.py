"""More transforms than fit on a screen: grouped by plugin, and found all the same."""

import pytest

from support.visits import MANY, PHONE, Opener, Visit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-results")]

FOLDER = MANY


def groups(visit: Visit) -> list[str]:
    return [text.replace("\n", " ") for text in visit.page.locator("#transforms summary").all_inner_texts()]


def test_a_long_list_is_grouped_by_plugin(visit: Visit) -> None:
    visit.open("#upper&poem=owl", "OWL")
    first, *built_in = groups(visit)
    assert (first, [group.rpartition(" ")[0] for group in built_in]) == (
        "choir 48",
        ["data", "encodings", "lines", "poetry", "text"],
    )
    name = visit.page.locator('#transforms [data-name="tenor-7"]')
    assert not name.is_visible()
    assert visit.page.locator('#transforms [data-name="upper"]').is_visible(), "the group of a step is open"
    visit.page.locator("#transforms summary", has_text="choir").click()
    visit.choose("tenor-7")
    visit.shows("owl")
    assert name.is_visible(), "an opened group stays open"
    visit.page.locator("#transforms summary", has_text="choir").click()
    visit.press("Add a step")
    assert not name.is_visible(), "a closed group stays closed"


def test_the_search_finds_what_is_in_a_closed_group(visit: Visit) -> None:
    visit.open("#upper&poem=owl", "OWL")
    visit.search().fill("tenor")
    names = visit.page.locator("#transforms .name").all_inner_texts()
    assert set(names) == {f"tenor-{number}" for number in range(1, 13)}
    assert groups(visit) == []
    visit.search().press("Enter")
    assert visit.steps() == ["tenor-1"]


def test_the_arrow_keys_pass_the_groups(visit: Visit) -> None:
    visit.open("#upper&poem=owl", "OWL")
    visit.search().focus()
    for key in ("ArrowDown", "ArrowDown", "Enter", "ArrowDown"):  # to the second group, which opens
        visit.page.keyboard.press(key)
    assert visit.page.evaluate("document.activeElement.dataset.name") == "csv-to-json"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_violation(opening: Opener, scheme: str, screen: dict[str, object]) -> None:
    visit = opening(color_scheme=scheme, **screen)
    visit.open("#upper&poem=owl", "OWL")
    if screen:
        visit.press("Transforms")
    visit.page.locator("#transforms summary", has_text="choir").click()
    assert visit.axe_finds() == []
    assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
