"""The page of ``xformd dev``: it shows each change by itself, and what is wrong."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP
from support.processes import Server, serving
from support.visits import Visit, chromium
from xformd.kit.new import make_plugin

pytest.importorskip("watchfiles")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser-changes")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plugin("shout", "text", tmp_path_factory.mktemp("plugin"))[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    chromium()
    log = tmp_path_factory.mktemp("server")
    with serving(log, "--no-browser", *HTTP, str(folder), verb=("dev",), ready="following") as running:
        yield running


def test_a_change_is_shown_by_itself(visit: Visit, folder: Path) -> None:
    module = folder / "xformd_shout.py"
    whole = module.read_text()
    visit.open("#shout&poem=owl", "> owl")
    module.write_text(whole.replace("(prefix + line", "('1' + prefix + line"))
    visit.shows("1> owl")
    warnings = visit.page.locator("#warnings")
    warnings.get_by_text("an example fails: shout(").first.wait_for()
    module.write_text(whole.replace("poem.splitlines", "poem.splitline"))
    visit.page.locator("#problem").get_by_text("has no attribute 'splitline'").wait_for()
    visit.page.locator("#problem").get_by_text("return ").wait_for()
    module.write_text(whole + "whole = {}['owl']\n")
    warnings.get_by_text("KeyError: 'owl'").wait_for()
    warnings.get_by_text("whole = {}['owl']").wait_for()
    module.write_text(whole)
    visit.shows("> owl")
    warnings.wait_for(state="hidden")
    visit.complaints[:] = [line for line in visit.complaints if not line.endswith("/transform/shout")]  # what failed


def test_the_page_asks_seldom_while_its_server_drains(visit: Visit, folder: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    options = ("--no-browser", *HTTP, str(folder))
    with serving(tmp_path, *options, verb=("dev",), ready="following", XFORMD_DRAIN_DELAY_S="3") as draining:
        visit.page.on("request", lambda request: asked.append(request.url) if "/dev?" in request.url else None)
        visit.page.goto(f"{draining.http}/")
        visit.page.locator("#transforms .transform").first.wait_for(state="attached")
        draining.process.send_signal(signal.SIGTERM)
        visit.page.wait_for_timeout(1_500)
        assert draining.process.poll() is None
        assert len(asked) < 20
        visit.page.goto("about:blank")  # before the server is gone
        visit.complaints.clear()
