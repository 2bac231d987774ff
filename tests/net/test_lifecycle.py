"""The life of a server, as its service manager is told of it, on a clock that the test moves."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock

from support.deferreds import has_fired
from support.logs import Log
from xformd.limits import Limits
from xformd.net import lifecycle
from xformd.net.factory import DrainingFactory
from xformd.net.lifecycle import Lifecycle
from xformd.net.listener import ListeningService
from xformd.telemetry.reloads import ReloadOutcome


class Slow(ListeningService):
    """A server whose reload ends when the test says so."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.reloading: Deferred[ReloadOutcome] = Deferred()

    async def _reload(self) -> ReloadOutcome:
        return await self.reloading


class Site:
    """A server, and what its service manager is told."""

    def __init__(self, manager: socket.socket, drain_delay_s: float) -> None:
        self.manager = manager
        self.reactor = MemoryReactorClock()
        self.factory: DrainingFactory[Any] = DrainingFactory(Limits(drain_delay_s=drain_delay_s), self.reactor)
        self.server = Slow(("tcp:1",), self.factory, self.reactor)
        self.lifecycle = Lifecycle(self.server, self.reactor, lambda _: ["serves"], Mock(), Mock())

    def start(self) -> "Site":
        self.lifecycle.start()
        return self

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.lifecycle.stop())

    def told(self) -> list[dict[str, str]]:
        """Return what the manager has been told since it was last asked."""
        found: list[dict[str, str]] = []
        while True:
            try:
                message = self.manager.recv(10_000).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in message.split("\n")))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that waits 20 s for a sign of life."""
    monkeypatch.setattr("xformd.net.lifecycle.signal.signal", Mock())
    monkeypatch.setattr(lifecycle, "MemoryTrimmer", Mock())
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "notify"))
        receiving.setblocking(False)
        yield receiving


@pytest.fixture
def site(manager: socket.socket) -> Iterator[Site]:
    made = Site(manager, 5).start()
    yield made
    made.lifecycle.end_drain()
    assert has_fired(made.stop())


ALIVE, READY = {"WATCHDOG": "1"}, {"READY": "1", "STATUS": "serves"}


def test_a_server_is_ready_and_says_that_it_lives(site: Site) -> None:
    assert site.told() == [ALIVE, READY]
    site.reactor.pump([5] * 4)
    assert site.told() == [ALIVE, ALIVE]


def test_a_reload_is_told_of_from_its_begin_to_its_end(site: Site) -> None:
    site.told()
    before_us = time.monotonic_ns() // 1_000
    reloaded = site.lifecycle.reload()
    (begun,) = site.told()
    assert begun.pop("RELOADING") == "1"
    assert before_us <= int(begun.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1_000
    assert begun == {"STATUS": "reloading"}
    assert not has_fired(reloaded)
    site.server.reloading.callback(ReloadOutcome())
    assert has_fired(reloaded)
    assert site.told() == [READY]
    assert (site.server.reloads.succeeded, site.server.reloads.failed) == (1, 0)


def test_a_failed_reload_is_the_status_of_a_server_that_is_ready(site: Site) -> None:
    site.told()
    site.server.reloading = succeed(ReloadOutcome(errors=("the owl\nis out", "no cat")))
    assert has_fired(site.lifecycle.reload())
    assert site.told()[1:] == [READY, {"STATUS": "not reloaded: the owl is out; no cat"}]
    assert (site.server.reloads.succeeded, site.server.reloads.failed) == (0, 1)


def test_a_fault_in_a_reload_fails_it(site: Site, log: Log) -> None:
    site.server.reloading.errback(ValueError("a bug"))
    assert has_fired(site.lifecycle.reload())
    assert site.server.reloads.failed == 1
    assert len(log.tracebacks) == 1


def test_a_server_drains_before_it_stops(site: Site, log: Log) -> None:
    site.told()
    stopped = site.stop()
    drains, *_ = site.told()
    # Long enough for the delay, for the grace period of 30 s and for what comes after it.
    assert drains == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "50000000", "STATUS": "draining for 5 s"}
    assert (site.factory.will_stop, site.factory.is_stopping) == (True, False)
    site.reactor.advance(4.9)
    assert not has_fired(stopped)
    site.reactor.advance(0.1)
    assert has_fired(stopped)
    assert site.factory.is_stopping
    assert {"STATUS": "stopping: answers what it has accepted"} in site.told()
    assert log.lines == ["draining: stops in 5 s, and accepts everything until then"]


def test_the_wait_can_be_ended(site: Site) -> None:
    stopped = site.stop()
    assert not has_fired(stopped)
    site.lifecycle.end_drain()
    assert has_fired(stopped)


def test_a_server_without_a_delay_stops_at_once(manager: socket.socket) -> None:
    site = Site(manager, 0).start()
    assert has_fired(site.stop())
    assert not site.factory.will_stop


def test_a_server_that_has_never_listened_does_not_drain(manager: socket.socket) -> None:
    site = Site(manager, 5)
    assert has_fired(site.stop())
    assert [each["STATUS"] for each in site.told()] == ["draining for 0 s", "stopping: answers what it has accepted"]


def test_a_server_that_stops_is_not_said_to_be_ready_after_a_reload(site: Site) -> None:
    reloaded = site.lifecycle.reload()
    site.stop()
    site.told()
    site.server.reloading.callback(ReloadOutcome())
    assert has_fired(reloaded)
    assert site.told() == []
