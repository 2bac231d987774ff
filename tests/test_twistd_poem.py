"""What twistd's arguments mean, and a server that cannot listen."""

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from twisted.python.usage import UsageError

import xformd
from support.deferreds import result_of
from support.logs import Log
from xformd.net.listener import FailFastService
from xformd.poems import app
from xformd.twistd_poem import Options


class Made:
    """Notes what is put together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        for name in ("make_poem_server", "make_poem_proxy"):
            monkeypatch.setattr(app, name, self._make)

    def _make(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


def made(monkeypatch: pytest.MonkeyPatch, *words: str) -> Made:
    note = Made(monkeypatch)
    options = Options()
    options.parseOptions(words)
    options.subOptions.make("reactor")
    return note


def test_a_server_listens_where_it_is_told_to_and_its_file_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = made(monkeypatch, "serve", "--listen", "tcp:1", "--listen", "tcp:2", "--slow", "1KiB", "owl.txt")
    assert note.arguments == (Path.cwd() / "owl.txt", ("tcp:1", "tcp:2"), "reactor")
    assert note.options == {"bytes_per_s": 1024}


def test_a_proxy_has_the_defaults_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    note = made(monkeypatch, "proxy", "owl:1")
    assert note.arguments == ("owl:1", ("tcp:10001:interface=127.0.0.1:backlog=1024",), "reactor")
    assert note.options == {}


def test_every_option_of_a_proxy_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--ttl=1min", "--stale=0", "--max-bytes=1MiB", "--connect-timeout=2", "--timeout=500ms"]
    note = made(monkeypatch, "proxy", *flags, "owl:1")
    assert note.options == {
        "ttl_s": 60,
        "stale_s": 0,
        "max_bytes": 1024 * 1024,
        "connect_timeout_s": 2,
        "timeout_s": 0.5,
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say 'serve FILE' or"),
        (("serve", "a", "b"), "'b' comes after FILE"),
        (("proxy", "a", "--ttl", "1"), "'--ttl' comes after UPSTREAM"),
        (("serve", "--slow", "0", "a"), "'0' is no number of bytes above 0"),
        (("proxy", "--ttl", "x", "a"), "'x' is no number of seconds"),
        (("proxy", "--timeout", "0", "a"), "'0' is no number of seconds above 0"),
    ],
)
def test_what_makes_no_sense_is_said(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options().parseOptions(words)


class Server:
    """A server that listens when the test says so."""

    def __init__(self, at_once: xformd.ListenFailed | None = None) -> None:
        self.listening: Deferred[tuple[str, ...]] = Deferred()
        self._at_once = at_once

    def startService(self) -> None:
        if self._at_once is not None:
            self.listening.errback(Failure(self._at_once))

    def stopService(self) -> Deferred[None]:
        return succeed(None)


class Reactor:
    is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True


def test_where_a_server_listens_is_logged(log: Log) -> None:
    server = Server()
    service = FailFastService(server, Reactor())  # type: ignore[arg-type]
    service.startService()
    server.listening.callback(("owl:1", "owl:2"))
    assert log.lines == ["listening on owl:1", "listening on owl:2"]
    assert result_of(service.stopService()) is None


def test_a_server_that_cannot_listen_does_not_start() -> None:
    service = FailFastService(Server(xformd.ListenFailed("taken")), Reactor())  # type: ignore[arg-type]
    with pytest.raises(xformd.ListenFailed, match="taken"):
        service.startService()


def test_a_place_that_is_none_is_named_with_its_option(log: Log) -> None:
    server = Server()
    FailFastService(server, Reactor()).startService()  # type: ignore[arg-type]
    server.listening.errback(Failure(xformd.ConfigError("'owl' is none", setting="listen")))
    assert log.lines == ["--listen: 'owl' is none"]


def test_a_server_that_finds_out_later_that_it_cannot_listen_ends_the_process(log: Log) -> None:
    server, reactor = Server(), Reactor()
    FailFastService(server, reactor).startService()  # type: ignore[arg-type]
    server.listening.errback(Failure(xformd.ListenFailed("taken")))
    assert reactor.is_stopped
    assert log.lines == ["taken"]
