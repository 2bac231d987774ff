"""The process's limit on open files: raised as far as it goes, and no reason to fall over once it is reached.

Connections leave room for what else needs descriptors: worker processes, logs, the files that transforms open. Where
that room is gone too, Twisted closes what comes, or cannot even do that and would try again at once, for ever.
"""

import os
import resource
from collections.abc import Callable

import attrs
from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

SPARE = 32
"""Descriptors for files that transforms open, the log, and listening sockets."""

SPARE_PER_WORKER = 8
"""Descriptors for the pipes of one worker process, and of one that takes its place."""

GUESSED_OPEN = 16

STUCK = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"})
"""Why the system keeps a new connection waiting; it would say so again at once."""


def needed(connections: int, open_now: int, workers: int) -> int:
    """Say how many descriptors a server may come to use.

    Args:
        connections: how many it may have.
        open_now: descriptors that are open before it starts.
        workers: how many worker processes it has.
    """
    return connections + open_now + SPARE + SPARE_PER_WORKER * (workers + 1)


def room(limit: int, open_now: int, workers: int) -> int:
    """Say how many connections a limit on descriptors leaves room for: at least one.

    Args:
        limit: how many descriptors there may be.
        open_now: as above.
        workers: as above.
    """
    others = open_now + min(SPARE + SPARE_PER_WORKER * (workers + 1), limit // 2)
    return max(1, limit - others)


def raise_limit(wanted: int) -> int:
    """Raise the process's limit on descriptors, as far as the system allows and it is wanted.

    Returns:
        The limit that holds then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max(soft, wanted)
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # a system that has a lower limit than it says
        return soft
    return raised


def open_descriptors() -> int:
    """Count this process's open descriptors; where the system does not tell, guess."""
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - one of them is the listing's own
    except OSError:
        return GUESSED_OPEN


@attrs.frozen
class Room:
    """What there is room for.

    Args:
        limit: how many descriptors there may be.
        connections: how many connections may be open, of those that are wanted.
    """

    limit: int
    connections: int


def make_room(connections: int, workers: int) -> Room:
    """Raise the limit as far as so many connections need, and say how many of them there is room for.

    Args:
        connections: how many are wanted.
        workers: how many worker processes there will be.
    """
    open_now = open_descriptors()
    limit = raise_limit(needed(connections, open_now, workers))
    return Room(limit, min(connections, room(limit, open_now, workers)))


@implementer(ILogObserver)
class AcceptErrors:
    """Learns from Twisted's log, which is the only place that tells, that new connections were not taken.

    Args:
        closed: is called for each that Twisted closed, for want of a descriptor.
        stuck: is called when Twisted could not take one, nor close it.
    """

    def __init__(self, closed: Callable[[], None], stuck: Callable[[str], None]) -> None:
        self._closed = closed
        self._stuck = stuck

    def __call__(self, event: LogEvent) -> None:
        """Look at what was logged."""
        if not event.get("log_namespace", "").startswith("twisted.internet."):
            return
        if event.get("acceptError") in STUCK:
            self._stuck(event["acceptError"])
        elif (event.get("log_format") or "").startswith("EMFILE recovery: Closed"):
            self._closed()
