"""Fixtures that more than one test file uses."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from twisted.internet.task import Clock
from twisted.logger import globalLogBeginner

from support.logs import Log, captured

pytest_plugins = ["support.process_count"]

# How long one example takes says more about the machine than about the code.
settings.register_profile("xformd", deadline=None)
settings.load_profile("xformd")

# Once for the process: else Twisted keeps what is logged for an observer that never comes, and prints failures.
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


# A shell has what it starts in the background ignore SIGINT, and so would every server that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_IS_SLOW = re.compile(r"^pytestmark = \[?pytest\.mark\.slow\b", re.MULTILINE).search
"""Whether every test of a module is slow."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import modules of which a whole suite runs nothing: each of its processes would."""
    suite = config.getoption("markexpr").split()
    is_whole = config.args_source is config.ArgsSource.TESTPATHS
    if not suite or not is_whole or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text()
    runs_nothing = _IS_SLOW(text) if suite[0] == "not" else f"pytest.mark.{suite[0]}" not in text
    return True if runs_nothing else None


LONGEST = ("test_fuzzing", "test_readme")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that share a fixture of their module in one process: each process would make another, a server say.

    Of the others those come first for which a suite would wait at its end, while one process works.
    """
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        info = getattr(item, "_fixtureinfo", None)
        scopes = {made[-1].scope for made in info.name2fixturedefs.values() if made} if info is not None else ()
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture
def clock() -> Clock:
    """A reactor's clock that only the test moves."""
    return Clock()


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged during the test."""
    with captured() as events:
        yield events
