"""A browser with the page open, and what it reports on its console."""

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from support.processes import DEADLINE_S, Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PLUGINS = Path(__file__).parent / "page_plugins"
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


def chromium() -> str:
    """Return the path of the system's Chromium, or skip the test."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("install playwright: pip install --group dev")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("install Chromium: apt-get install chromium")
    return path


@contextlib.contextmanager
def browsing() -> Iterator["Browser"]:
    """Run a browser until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(_ARGUMENTS))
        yield browser
        browser.close()


@attrs.define
class Visit:
    """A browser page that shows xformd's page.

    Attributes:
        page: Playwright's.
        server: serves the page.
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

    def open(self, fragment: str = "") -> None:
        """Open the page, and wait for the list of transforms."""
        self.page.goto(f"{self.address}{fragment}")
        self.page.locator("#transforms .transform").first.wait_for(state="attached")

    def result(self) -> "Locator":
        """Return the result."""
        return self.page.locator("#result")

    def poem(self) -> "Locator":
        """Return the field of the poem."""
        return self.page.get_by_role("textbox", name="Poem")

    def field(self, label: str) -> "Locator":
        """Return the field of an option, by its label."""
        return self.page.locator("#steps").get_by_label(label)

    def steps(self) -> list[str]:
        """Return the names of the pipeline's steps."""
        return self.page.locator(".step-name").all_inner_texts()

    def step(self, number: int) -> "Locator":
        """Return the card of a step; the first is 1."""
        return self.page.locator(".step").nth(number - 1)

    def choose(self, name: str) -> None:
        """Click a transform."""
        self.page.locator(f'#transforms [data-name="{name}"]').click()

    def add(self, name: str) -> None:
        """Click the plus of a transform."""
        self.page.get_by_role("button", name=f"Add {name} as a step", exact=True).click()

    def write(self, poem: str) -> None:
        """Fill in a poem."""
        self.poem().fill(poem)

    def shows(self, text: str) -> None:
        """Wait until the result is this text."""
        self.becomes("#result", text)

    def becomes(self, selector: str, text: str) -> None:
        """Wait until an element's whole text is this."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_js_property("textContent", text)

    def stop_the_clock(self) -> None:
        """Stop the page's clock: from now on the test moves it."""
        self.page.clock.install(time=0)
        self.page.clock.pause_at(1)

    def expect_rejection(self, times: int = 1) -> None:
        """Expect failed requests, which the browser reports on the console by itself."""
        refused = [
            line for line in self.complaints if line.startswith("Failed to load resource") and "/transform/" in line
        ]
        assert len(refused) >= times, self.complaints
        for line in refused:
            self.complaints.remove(line)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")


def run_in_shell(command: str, folder: Path) -> str:
    """Run a copied command, and return its output."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


Opener = Callable[..., Visit]
