"""Results by their media type: pictures, pages, files, and what is too large to be shown."""

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from support.result_plugins.results import PDF_BEGINNING, SIDE
from support.timing import assert_within
from support.visits import CALLS, PHONE, RESULTS, Opener, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-results")]

FOLDER = RESULTS
LARGE_BYTES = 5_000_000
MAX_GAP_MS = 200
NOTHING_ARRIVES_MS = 300

# Notes how long the page's thread was busy at most, without a turn for the person's input.
WATCH = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
  }).observe({ type: "longtask" });
}"""


def preview(visit: Visit) -> "Locator":
    return visit.page.locator("#preview")


def saved(visit: Visit, button: str = "Save") -> tuple[str, bytes]:
    """Save the result; return the file's name and content."""
    with visit.page.expect_download() as download:
        visit.press(button)
    return download.value.suggested_filename, download.value.path().read_bytes()


def width_of(picture: "Locator") -> int:
    return int(picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)"))


def test_a_picture_is_shown(visit: Visit) -> None:
    visit.open("#pattern&poem=owl")
    assert width_of(preview(visit).locator("img")) == SIDE
    assert not visit.result().is_visible()
    visit.press("Bytes")
    visit.result().filter(has_text="89 50 4e 47").wait_for()
    assert preview(visit).locator("img").count() == 0
    name, content = saved(visit)
    assert (name, content[:4]) == ("result.png", b"\x89PNG")
    visit.press("Picture")
    visit.write("cat")  # and the next result is shown in the same way
    assert width_of(preview(visit).locator("img")) == SIDE


def test_a_copied_call_writes_a_picture_to_a_file(visit: Visit, tmp_path: Path) -> None:
    visit.open("#upper+pattern:shade=3&poem=owl")
    _, picture = saved(visit)
    for call in CALLS:
        visit.called(call, tmp_path)
        assert (tmp_path / "result.png").read_bytes() == picture
        (tmp_path / "result.png").unlink()


def test_what_is_no_picture_after_all_is_a_file(visit: Visit) -> None:
    visit.open("#no-picture&poem=owl")
    preview(visit).get_by_text("The browser cannot show this picture.").wait_for()
    assert saved(visit, "Save as result.png") == ("result.png", b"owl")


def test_html_is_shown_as_a_page_and_as_source(visit: Visit) -> None:
    visit.open(f"#page&poem={quote('<b>Owl</b> é')}")
    frame = preview(visit).locator("iframe")
    frame.content_frame.get_by_role("heading", name="A poem").wait_for()
    assert frame.content_frame.locator("b").inner_text() == "Owl"
    assert "é" in frame.content_frame.locator("p").inner_text()
    assert frame.get_attribute("sandbox") == ""
    visit.press("Source")
    visit.result().filter(has_text="<h1>A poem</h1><p><b>Owl</b> é</p>").wait_for()
    assert saved(visit)[0] == "result.html"
    visit.write("cat")
    visit.result().filter(has_text="<p>cat</p>").wait_for()
    assert frame.count() == 0


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, socket.socket]]:
    """A port that nobody must connect to; yield its URL and the socket, whose accept() does not wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", listener


HOSTILE = """
<script>parent.document.title = 'taken'; top.document.title = 'taken'</script>
<img src="URL" onerror="top.document.title='taken'"><img src="x" onerror="fetch('URL')">
<meta http-equiv="refresh" content="0;url=URL"><base href="URL">
<link rel="stylesheet" href="URL"><link rel=preconnect href="URL"><LINK/rel=dns-prefetch href="URL"><link
rel="prefetch" href="URL"><style>@import "URL"; body { background: url(URL) }</style>
<iframe src="URL"></iframe><iframe srcdoc="<script>top.document.title='taken'</script><img src=URL>"></iframe>
<object data="URL"></object><embed src="URL"><video src="URL" autoplay></video><svg><image href="URL"/></svg>
<form action="URL" target="_top"><input name=a autofocus onfocus="top.document.title='taken'"><button>go</button></form>
<svg><a id=drawn href="URL"><text y=20>drawn</text><animate attributeName=href to="URL" /></a></svg>
<noscript><img src="URL"></noscript><math href="URL"><mi>x</mi></math>
<template shadowrootmode=open><img src="URL"></template>
<p style="background: url(URL)" background="URL">styled</p><a href="#top">within</a>
<a id=top target="_top" href="URL">top</a> <a id=self href="URL">self</a> <a id=blank target=_blank href="URL">new</a>
"""


def test_html_runs_no_script_and_loads_nothing(visit: Visit) -> None:
    with listening() as (url, listener):
        visit.open(f"#page&poem={quote(HOSTILE.replace('URL', url))}")
        frame = preview(visit).locator("iframe").content_frame
        frame.get_by_role("button", name="go").click()
        assert frame.get_by_text("within").get_attribute("title") == "#top"
        for link in ("top", "blank", "self", "drawn"):
            frame.locator(f"#{link}").click()
        visit.page.wait_for_timeout(NOTHING_ARRIVES_MS)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert visit.page.title() == "xformd"
    assert visit.page.url.startswith(visit.address)
    assert len(visit.page.context.pages) == 1
    visit.complaints[:] = [line for line in visit.complaints if not re.search("Security Policy|is sandboxed", line)]


def test_a_drawing_runs_no_script_and_loads_nothing(visit: Visit) -> None:
    with listening() as (url, listener):
        markup = f"<script>top.document.title='taken'</script><image href='{url}' width='9' height='9'/>"
        visit.open(f"#badge&poem={quote(markup)}")
        assert width_of(preview(visit).locator("img")) == 200
        visit.page.wait_for_timeout(NOTHING_ARRIVES_MS)
        with pytest.raises(BlockingIOError):
            listener.accept()
    visit.press("Source")
    visit.result().filter(has_text="<script>top").wait_for()
    assert visit.page.title() == "xformd"
    assert saved(visit)[0] == "result.svg"


def test_another_file_is_a_card(visit: Visit) -> None:
    visit.open("#pdf&poem=owl")
    card = preview(visit).locator(".file-card")
    card.wait_for()
    assert "application/pdf" in card.inner_text()
    assert f"{len(PDF_BEGINNING) + 3} bytes" in card.inner_text()
    assert saved(visit, "Save as result.pdf") == ("result.pdf", PDF_BEGINNING + b"owl")
    visit.press("Bytes")
    visit.result().filter(has_text="25 50 44 46").wait_for()


@pytest.mark.parametrize(
    ("fragment", "shown", "name"),
    [("table&poem=an%20owl", "an,owl", "result.csv"), ("upper&poem=owl", "OWL", "result.txt")],
)
def test_text_is_saved_with_its_suffix(visit: Visit, fragment: str, shown: str, name: str) -> None:
    visit.open(f"#{fragment}", shown)
    assert saved(visit) == (name, shown.encode())


def test_a_large_file_is_sent_without_freezing_the_page(visit: Visit, tmp_path: Path) -> None:
    sent = b"The owl. \xc3\xa9\n" * (LARGE_BYTES // 12)
    (tmp_path / "large poem.txt").write_bytes(sent)

    def longest_ms() -> float:
        visit.page.goto("about:blank")
        visit.open("#upper&poem=owl", "OWL")
        visit.page.evaluate(WATCH)
        visit.page.locator("#file").set_input_files(tmp_path / "large poem.txt")
        visit.page.locator("#beginning").get_by_text("The first 2,000 lines of 5 MB.").wait_for()
        visit.page.evaluate("new Promise((turned) => setTimeout(turned, 50))")
        return float(visit.page.evaluate("longest"))

    assert_within(MAX_GAP_MS, longest_ms)
    assert visit.text_of("#result") == "THE OWL. É\n" * 2_000
    assert not visit.poem().is_visible()
    assert visit.page.locator("#poem").input_value() == ""
    assert "large poem.txt" in visit.page.locator("#poem-file").inner_text()
    assert "5 MB" in visit.page.locator("#poem-file").inner_text()
    assert visit.call("curl").endswith("--data-binary '@large poem.txt'")
    assert saved(visit, "Save as result.txt") == ("result.txt", sent.decode().upper().encode())


@pytest.mark.parametrize("content", [b"\n" * 99_000, bytes(range(256)) * 380], ids=["lines", "binary"])
def test_a_file_of_many_lines_is_no_text_field_either(visit: Visit, content: bytes) -> None:
    def longest_ms() -> float:
        visit.page.goto("about:blank")
        visit.open("#pass-on&poem=owl", "owl")
        visit.page.evaluate(WATCH)
        visit.page.locator("#file").set_input_files({"name": "poem", "mimeType": "", "buffer": content})
        visit.page.locator("#poem-file").get_by_text("9").wait_for()
        visit.page.locator("#result-facts").get_by_text(f"{len(content):,} bytes").wait_for()
        visit.page.evaluate("new Promise((turned) => setTimeout(turned, 50))")
        return float(visit.page.evaluate("longest"))

    assert_within(MAX_GAP_MS, longest_ms)


def test_a_large_file_is_closed_and_comes_back(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"\0" * 200_000)
    visit.open("#pdf&poem=owl")
    visit.page.locator("#file").set_input_files(tmp_path / "large")
    preview(visit).get_by_text("200 KB").wait_for()
    visit.choose("upper")
    visit.press("Close the file")
    assert visit.poem().is_visible()
    visit.write("cat")
    visit.shows("CAT")
    visit.page.go_back()
    assert visit.steps() == ["pdf"]
    preview(visit).get_by_text("200 KB").wait_for()


def test_a_file_that_has_changed_is_not_taken_for_a_server_that_does_not_answer(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"owl" * 100_000)
    visit.open("#upper&poem=owl", "OWL")
    visit.page.locator("#file").set_input_files(tmp_path / "large")
    visit.page.locator("#beginning").get_by_text("The first 100 KB of 300 KB.").wait_for()
    (tmp_path / "large").write_bytes(b"cat")
    visit.press("Run")
    visit.becomes("#problem .code", "file-changed")
    visit.expect_rejection()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_no_violation(opening: Opener, scheme: str, screen: dict[str, object], tmp_path: Path) -> None:
    visit = opening(color_scheme=scheme, **screen)
    for fragment, shown in (("pattern", "img"), ("page", "iframe"), ("pdf", ".file-card")):
        visit.open(f"#{fragment}&poem=owl")
        preview(visit).locator(shown).wait_for()
        assert visit.axe_finds() == []
        assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    (tmp_path / "large").write_bytes(b"owl " * 100_000)
    visit.open("#upper&poem=owl", "OWL")
    visit.page.locator("#file").set_input_files(tmp_path / "large")
    visit.page.locator("#beginning").get_by_text("The first 100 KB of 400 KB.").wait_for()
    assert visit.axe_finds() == []


def test_a_dropped_file_is_opened(visit: Visit) -> None:
    visit.open("#upper&poem=owl", "OWL")
    dropped = """() => {
      const data = new DataTransfer();
      data.items.add(new File(["a cat"], "cat.txt"));
      const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      return !document.querySelector("#poem").dispatchEvent(event);
    }"""
    assert visit.page.evaluate(dropped), "the browser does not leave the page"
    visit.shows("A CAT")
