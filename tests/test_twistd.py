"""What the arguments of the three twistd commands mean, and a server that cannot listen."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.usage import Options, UsageError

import xformd
from support.deferreds import has_fired
from support.logs import Log
from xformd import twistd
from xformd.config import Settings
from xformd.limits import MIB, Limits
from xformd.net import lifecycle
from xformd.net.listener import FailFastService
from xformd.telemetry.reloads import ReloadHistory

NOBODY = {"token": None, "tls": False, "hedge": False}
PLAIN = {"access": None, "traces": "none", "tls": None, "client": NOBODY}
"""Of a proxy: no access file, no TLS, no token."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that a server was made with; the last are its keyword arguments."""
    noted: list[Any] = []

    def note(*arguments: Any, **options: Any) -> str:
        noted.extend([*arguments, options])
        return "made"

    for name in (
        "server.app.make_server",
        "poems.proxy.CachingProxyService",
        "poems.server.PoemService",
    ):
        monkeypatch.setattr(f"xformd.{name}", note)
    monkeypatch.setattr("xformd.proxy.service.make_proxy", lambda *given, **more: note(*given, **more) and Mock())
    monkeypatch.setattr("xformd.poems.server.make_poem_server", note)
    monkeypatch.setattr(twistd, "FailFastService", lambda *_: None)
    return noted


def make(options: Any, *words: str) -> None:
    options.parseOptions(words)
    options.make("reactor")


def test_a_server_reads_the_file_and_the_environment(
    made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(twistd.ServerOptions())
    assert made[0] == Settings()
    file = tmp_path / "xformd.toml"
    file.write_text("max_queue = 1\nmax_in_flight = 1\n")
    monkeypatch.setenv("XFORMD_MAX_QUEUE", "2")
    monkeypatch.setenv("XFORMD_PLUGINS_DIR", "here")
    made.clear()
    make(twistd.ServerOptions(), "--config", str(file))
    assert (made[0].limits.max_queue, made[0].limits.max_in_flight) == (2, 1)
    assert made[0].selection.directories == (Path.cwd() / "here",)
    made.clear()
    monkeypatch.setenv("XFORMD_CONFIG", str(file))
    make(twistd.ServerOptions())
    assert made[0].limits.max_in_flight == 1


def test_a_proxy_has_the_defaults_of_the_command(made: list[Any]) -> None:
    make(twistd.ProxyOptions(), "a:1", "b:2")
    options = {**PLAIN, "cache_bytes": 64 * MIB, "ttl_s": math.inf}
    assert made == [("a:1", "b:2"), ("tcp:11001:interface=127.0.0.1",), Limits(), "reactor", options]


def test_every_option_of_a_proxy_arrives(made: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("max_queue = 7\n")
    flags = ["--cache-bytes=1MiB", "--ttl=1min", "--config", str(file)]
    make(twistd.ProxyOptions(), "--listen=tcp:1", "--listen=unix:p", *flags, "a:1")
    assert made[1:3] == [("tcp:1", "unix:p"), Limits(max_queue=7)]
    assert made[-1] == {**PLAIN, "cache_bytes": MIB, "ttl_s": 60}


def test_a_poem_is_found_from_any_folder(made: list[Any]) -> None:
    make(twistd.PoemOptions(), "serve", "--listen", "tcp:1", "--listen", "tcp:2", "--slow", "1KiB", "owl.txt")
    options = {"bytes_per_s": 1024, "tls": None, "drain_delay_s": 0.0}
    assert made == [Path.cwd() / "owl.txt", {}, "made", ("tcp:1", "tcp:2"), "reactor", options]


@pytest.mark.parametrize(
    ("flags", "options"),
    [([], {}), (["--ttl=1min", "--stale=1", "--timeout=9"], {"ttl_s": 60, "stale_s": 1, "timeout_s": 9})],
)
def test_every_option_of_a_poem_proxy_arrives(made: list[Any], flags: list[str], options: dict[str, Any]) -> None:
    make(twistd.PoemOptions(), "proxy", *flags, "owl:1")
    defaults = {"ttl_s": math.inf, "stale_s": 0, "max_bytes": 100 * MIB, "connect_timeout_s": 10, "timeout_s": 60}
    assert made[:2] == ["owl:1", {**defaults, **options, "reactor": "reactor"}]
    assert made[2:] == ["made", ("tcp:10001:interface=127.0.0.1",), "reactor", {"tls": None, "drain_delay_s": 0.0}]


@pytest.mark.parametrize(
    ("options", "words", "says"),
    [
        (twistd.ServerOptions, ("--worker", "1"), "No such option.*--worker"),
        (twistd.ProxyOptions, (), "Missing argument 'UPSTREAM...'"),
        (twistd.ProxyOptions, ("--cache-bytes", "0", "a:1"), "invalid size '0': try 100000 or 10MiB"),
        (twistd.ProxyOptions, ("--ttl", "0", "a:1"), "invalid duration '0': it must be above 0"),
        (twistd.PoemOptions, (), "name a command: 'serve FILE' or 'proxy UPSTREAM'"),
        (twistd.PoemOptions, ("serve", "a", "b"), "unexpected extra argument .*b"),
        (twistd.PoemOptions, ("proxy", "--ttl", "x", "a"), "invalid duration 'x': try 0.5, 30 or 5min"),
    ],
)
def test_wrong_arguments_are_named(options: type[Options], words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        options().parseOptions(words)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """A server that listens when the test says so."""
    monkeypatch.setattr(lifecycle, "signal", Mock())
    return Mock(listening=Deferred(), reloads=ReloadHistory(), limits=Limits(), stopService=Mock(side_effect=Deferred))


def test_where_a_server_listens_is_logged(log: Log, server: Mock) -> None:
    service = FailFastService(server, Mock())
    service.startService()
    server.listening.callback(("owl:1", "owl:2"))
    assert log.lines == ["listening on owl:1", "listening on owl:2"]
    stopped = service.stopService()
    server.stopService.assert_called_once_with()
    assert not has_fired(stopped)


def test_a_server_that_cannot_listen_does_not_start(server: Mock) -> None:
    server.startService.side_effect = lambda: server.listening.errback(Failure(xformd.ListenFailed("taken")))
    with pytest.raises(xformd.ListenFailed, match="taken"):
        FailFastService(server, Mock()).startService()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (xformd.ListenFailed("taken"), "taken"),
        (xformd.ConfigError("'owl' is invalid", setting="listen"), "a.toml, line 1: 'owl' is invalid"),
    ],
)
def test_a_server_that_fails_to_listen_later_ends_the_process(
    log: Log, server: Mock, error: xformd.XformError, line: str
) -> None:
    reactor = Mock()
    FailFastService(server, reactor, lambda error: error.located_at("a.toml, line 1")).startService()
    server.listening.errback(Failure(error))
    reactor.stop.assert_called_once_with()
    assert log.lines == [line]
