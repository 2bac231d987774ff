"""A browser with the page open, and what it reports on its console."""

import contextlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from support.processes import DEADLINE_S, Server, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route

PLUGINS = Path(__file__).parent / "page_plugins"
RESULTS = Path(__file__).parent / "result_plugins"
MANY = Path(__file__).parent / "many_plugins"
CALLS = ("curl", "xformd send", "Python")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def chromium() -> str:
    """Return the path of the system's Chromium, or skip the test."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("install playwright: pip install --group dev")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("install Chromium: apt-get install chromium")
    return path


@contextlib.contextmanager
def browsing(*arguments: str) -> Iterator["Browser"]:
    """Run a browser, with more arguments, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=[*_ARGUMENTS, *arguments])
        yield browser
        browser.close()


@attrs.define
class Visit:
    """A browser page that shows xformd's page.

    Attributes:
        address: the page's URL without a fragment.
        complaints: errors, warnings and violations of the policy, from the console.
    """

    page: "Page"
    server: Server
    address: str
    complaints: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.page.set_default_timeout(DEADLINE_S * 1000)
        self.page.on("console", lambda message: self._hear(message))  # Playwright writes into a bound method's object
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, fragment: str = "", result: str | None = None) -> None:
        """Open the page, and wait for the list of transforms, and for a result if one is given."""
        self.page.goto(f"{self.address}{fragment}")
        self.page.locator("#transforms .transform").first.wait_for(state="attached")
        if result is not None:
            self.shows(result)

    def result(self) -> "Locator":
        return self.page.locator("#result")

    def poem(self) -> "Locator":
        return self.page.get_by_role("textbox", name="Poem")

    def search(self) -> "Locator":
        return self.page.get_by_role("searchbox")

    def field(self, label: str) -> "Locator":
        """Return the field of an option, by its label."""
        return self.page.locator("#steps").get_by_label(label)

    def error(self, option: str, step: int = 1) -> "Locator":
        """Return the error at the field of an option."""
        return self.step(step).locator(f'[data-option="{option}"] .error')

    def steps(self) -> list[str]:
        """Return the names of the pipeline's steps."""
        return self.page.locator(".step-name").all_inner_texts()

    def step(self, number: int) -> "Locator":
        """Return the card of a step; the first is 1."""
        return self.page.locator(".step").nth(number - 1)

    def choose(self, name: str) -> None:
        """Click a transform."""
        self._click_in_list(name, self.page.locator(f'#transforms [data-name="{name}"]'))

    def add(self, name: str) -> None:
        """Click the + of a transform."""
        self._click_in_list(name, self.page.get_by_role("button", name=f"Add {name} as a step", exact=True))

    def _click_in_list(self, name: str, button: "Locator") -> None:
        """Click a button of a transform, in an open group: the list may be drawn anew meanwhile, and close it."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

        self.page.locator(f'#transforms [data-name="{name}"]').wait_for(state="attached")
        closed = self.page.locator(f'#transforms details:not([open]):has([data-name="{name}"])')

        def has_clicked() -> bool:
            if closed.count():
                closed.locator("summary").click()
            try:
                button.click(timeout=10_000)
            except PlaywrightTimeoutError:
                return False
            return True

        wait_until(has_clicked)

    def press(self, button: str) -> None:
        """Click a button, by its whole name."""
        self.page.get_by_role("button", name=button, exact=True).click()

    def write(self, poem: str) -> None:
        self.poem().fill(poem)

    def shows(self, text: str) -> None:
        """Wait until the result is this text."""
        self.becomes("#result", text)

    def becomes(self, selector: str, text: str) -> None:
        """Wait until an element's whole text is this."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_js_property("textContent", text)

    def text_of(self, selector: str) -> str:
        """Return an element's whole text."""
        return self.page.locator(selector).text_content() or ""

    def call(self, name: str) -> str:
        """Return the call of this name, as it is shown."""
        self.page.get_by_role("tab", name=name).click()
        return self.text_of("#call")

    def called(self, name: str, folder: Path) -> str:
        """Run the call of this name in a folder, as it is shown, and return its output."""
        text = self.call(name)
        if name == "curl":
            quietly = 'curl() { command curl --silent --fail-with-body --no-progress-meter "$@"; }'
            return run_in_shell(f"{quietly}; {text}", folder)
        if name == "xformd send":
            return run_in_shell(text, folder)
        (folder / "call.py").write_text(text)
        return run_in_shell("python call.py", folder).removesuffix("\n")  # that print adds

    def clipboard(self) -> object:
        return self.page.evaluate("navigator.clipboard.readText()")

    def axe_finds(self) -> list[str]:
        """Run axe-core in the page. The page's policy does not apply to scripts of the debugger."""
        bundled = pytest.importorskip(
            "axe_playwright_python", reason="install axe-playwright-python: pip install --group dev"
        )
        self.page.evaluate((Path(bundled.__file__).parent / "axe.min.js").read_text())
        # Not in frames: what a result holds is sandboxed, so that a message to it is an error in the console.
        found = self.page.evaluate("axe.run({iframes: false}).then(found => found.violations)")
        return [f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]

    def stop_the_clock(self) -> None:
        """Stop the page's clock: from now on the test moves it."""
        self.page.clock.install(time=0)
        self.page.clock.pause_at(1)

    def scrape(self, after_ms: int) -> None:
        """Move the page's clock, until the page has read the metrics once."""
        with self.page.expect_response("**/metrics"):
            self.page.clock.run_for(after_ms)

    def expect_rejection(self) -> None:
        """Expect failed requests, which the browser reports on the console by itself."""
        others = [
            line for line in self.complaints if "Failed to load resource" not in line or "/transform/" not in line
        ]
        assert len(others) < len(self.complaints), self.complaints
        self.complaints[:] = others

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")


def tell_address(context: "BrowserContext", page: str, address: str) -> None:
    """Let the page at a URL have this netstring address, whatever its server has written into it."""

    def fulfill(route: "Route") -> None:
        response = route.fetch()
        body = re.sub(r'(name="xformd-netstring-address" content=)"[^"]*"', rf'\1"{address}"', response.text())
        route.fulfill(response=response, body=body)

    context.route(page, fulfill)


def run_in_shell(command: str, folder: Path) -> str:
    """Run a copied command, and return its output."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={"PATH": path}, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


Opener = Callable[..., Visit]
