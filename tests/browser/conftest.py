"""A server and a browser for each file of tests, and a page for each test, whose console must stay empty.

They are not shared by all files: while Playwright runs, its event loop counts as this thread's, and tests of other
folders could not run one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.http_client import HTTP
from support.processes import Server, serving
from support.visits import PLUGINS, Opener, Visit, browsing, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the plugins of these tests, or of the folder that a module names as ``FOLDER``."""
    chromium()
    folder = getattr(request.module, "FOLDER", PLUGINS)
    flags = ("--plugins=none", "--plugins-dir", str(folder), "--workers=2", *HTTP)
    with serving(tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator["Browser"]:
    """A browser that is closed before the server, which would wait for it to disconnect."""
    with browsing() as running:
        yield running


@pytest.fixture
def opening(browser: "Browser", server: Server) -> Iterator[Opener]:
    """A function that makes visits; its arguments are those of a browser context."""
    made: list[Visit] = []

    def visit(**settings: Any) -> Visit:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        made.append(Visit(context.new_page(), server, f"{server.http}/"))
        return made[-1]

    yield visit
    for each in made:
        each.page.context.close()
    assert [complaint for each in made for complaint in each.complaints] == []


@pytest.fixture
def visit(opening: Opener) -> Visit:
    return opening()
