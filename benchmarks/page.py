"""The work with a browser: how soon the page is there, and how soon a click has its result on the screen."""

import contextlib
import importlib.util
import shutil
import statistics
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs

from benchmarks import servers, traffic
from benchmarks.answers import WrongAnswer
from benchmarks.plan import Plan, interleave
from benchmarks.samples import Column, Figures, Result, Row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = "Chromium"
_COMMAND = (sys.executable, "-m", "xformd", "serve", "--port", "0", "--plugins", "none")
_SERVER = servers.Server("xformd page", (*_COMMAND, "--http", "tcp:0:interface=127.0.0.1"), None)
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_INLINE = ("cummingsify", "reverse-lines")
_IN_WORKERS = ("sort-lines", "unique-lines")
_CLICKS = 10
_PATIENCE_MS = 10_000
_KB = 1_000

# A frame is on its way to the screen when its requestAnimationFrame callbacks have run and the loop has turned.
_EXPECT = f"window.told = new Promise((tell) => {{ window.tell = tell; setTimeout(tell, {_PATIENCE_MS}, 0); }}), 0"
_WATCH = """() => {
    let clicked = 0;
    addEventListener("click", (event) => { clicked = event.timeStamp; }, true);
    const result = document.querySelector("#result");
    const painted = () => window.tell(performance.now() - clicked);
    const changed = () => requestAnimationFrame(() => setTimeout(painted));
    new MutationObserver(changed).observe(result, { childList: true, characterData: true, subtree: true });
}"""


@attrs.frozen
class PageWork:
    """Opens the page, and clicks on transforms: such as run in the server, and such as run in its workers."""

    key: str
    title: str
    size: int
    columns: tuple[Column, ...] = (
        Column("paint_ms", "first paint ms", has_range=True),
        Column("click_ms", "click to result ms, inline", has_range=True),
        Column("click_worker_ms", "in a worker", has_range=True),
        Column("page_kb", "page KB"),
    )

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        row = Row(BROWSER, error=_why_not())
        if not row.error:
            with servers.running([_SERVER], plan.server_cpu) as (started, failed):
                row.error = failed.get(_SERVER.name, "")
                if started:
                    self._measure(_http_address(started[0]), row, plan)
        return Result(self.key, self.title, self.columns, {row.name: row})

    def _measure(self, address: str, row: Row, plan: Plan) -> None:
        with _browser() as browser:
            self._visit(browser, address)  # so that what the browser and the server do once is done
            interleave({row.name: row}, {row.name: lambda: self._visit(browser, address)}, plan.rounds)

    def _visit(self, browser: "Browser", address: str) -> Figures:
        poem = traffic.poems(self.size, 1)[0].decode()
        with contextlib.closing(browser.new_context(viewport={"width": 1280, "height": 800})) as context:
            page = context.new_page()
            answer = page.goto(f"{address}#{_INLINE[1]}&poem={quote(poem, safe='')}")
            assert answer is not None
            page.locator("#transforms .transform").first.wait_for()
            page.evaluate(_WATCH)
            return {
                "click_ms": statistics.median(_click(page, _INLINE[n % 2]) for n in range(_CLICKS)),
                "click_worker_ms": statistics.median(_click(page, _IN_WORKERS[n % 2]) for n in range(_CLICKS)),
                "paint_ms": page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"),
                "page_kb": len(answer.body()) / _KB,
            }


def _click(page: "Page", name: str) -> float:
    page.evaluate(_EXPECT)
    page.locator(f'#transforms [data-name="{name}"]').click()
    took_ms = float(page.evaluate("window.told"))
    if not took_ms or page.locator("#problem").is_visible():
        raise WrongAnswer(page.locator("#problem").text_content() or f"the result of {name} did not come")
    return took_ms


def _why_not() -> str:
    missing = [] if importlib.util.find_spec("playwright") else ["playwright"]
    if shutil.which("chromium") is None:
        missing.append("chromium")
    return f"not installed: {', '.join(missing)}" if missing else ""


def _http_address(running: servers.Running) -> str:
    """Read on, to where HTTP is answered; what came before was the other address."""
    assert running.process.stdout is not None
    return running.process.stdout.readline().strip().rpartition(" ")[2] + "/"


@contextlib.contextmanager
def _browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(_ARGUMENTS))
        yield browser
        browser.close()
