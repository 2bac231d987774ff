"""Fixtures that more than one test file uses."""

import signal
from collections.abc import Iterator

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


@pytest.fixture
def clock() -> Clock:
    """A reactor's clock that only the test moves."""
    return Clock()


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged during the test."""
    with captured() as events:
        yield events
