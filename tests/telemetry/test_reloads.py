"""A reload's outcome reaches who has asked for it, and nobody is told that of an earlier one."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from xformd.errors import ConfigError, ConnectionFailed, TransformTimeout
from xformd.telemetry import reloads
from xformd.telemetry.reloads import ReloadFile, ReloadHistory, ReloadOutcome

OnSighup = Callable[[], object]


class Server:
    """This process, as a server that SIGHUP reloads."""

    def __init__(self, on_sighup: Callable[["Server"], object]) -> None:
        self.history, self.file = ReloadHistory(), ReloadFile()
        self.file.write(self.history)
        self._before = signal.signal(signal.SIGHUP, lambda *_: on_sighup(self))

    def begin(self) -> None:
        self.history.requested += 1
        self.file.write(self.history)

    def end(self, *errors: str, notes: tuple[str, ...] = ()) -> None:
        self.history.ended(ReloadOutcome(notes, errors))
        self.file.write(self.history)

    def close(self) -> None:
        signal.signal(signal.SIGHUP, self._before)
        self.file.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def make(on_sighup: Callable[[Server], object]) -> Server:
        started.append(Server(on_sighup))
        return started[-1]

    yield make
    for server in started:
        server.close()


def test_the_outcome_is_that_of_the_reload_that_was_asked_for(start: Callable[..., Server]) -> None:
    def reload(server: Server) -> None:
        server.end(notes=("an earlier one",))
        server.begin()
        server.end("no owl", notes=("a cat",))

    start(reload).begin()  # which runs already
    assert reloads.reload(os.getpid(), 20) == ReloadOutcome(("a cat",), ("no owl",))


def test_an_outcome_shorter_than_the_one_before_is_whole(start: Callable[..., Server]) -> None:
    server = start(lambda server: (server.begin(), server.end()))
    server.begin()
    server.end("." * 1_000)
    assert reloads.reload(os.getpid(), 20) == ReloadOutcome()


def test_an_outcome_that_does_not_come_is_not_waited_for(start: Callable[..., Server]) -> None:
    start(lambda server: (server.begin(), server.end()) if server.history.requested else server.begin())
    with pytest.raises(TransformTimeout, match=r"has not reloaded within 0\.2 s; its log says"):
        reloads.reload(os.getpid(), 0.2)


def test_no_process_is_signalled_that_is_no_server() -> None:
    signalled: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: signalled.append(number))
    try:
        with pytest.raises(ConnectionFailed, match=f"process {os.getpid()} is not a running xformd server"):
            reloads.reload(os.getpid(), 1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signalled == []


def test_a_server_is_found_by_its_file(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.getpid() not in reloads.find_servers()
    start(lambda _: None)
    assert os.getpid() in reloads.find_servers()
    monkeypatch.setattr(reloads, "find_servers", lambda: [7])
    assert reloads.the_only_server() == 7


def test_one_of_several_servers_must_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloads, "find_servers", lambda: [7, 8])
    with pytest.raises(ConfigError, match="several servers run here: choose one with --pid 7 or 8; 'ps -fp 7,8'"):
        reloads.the_only_server()
    monkeypatch.setattr(reloads, "find_servers", list)
    with pytest.raises(ConnectionFailed, match="no xformd server of this user runs here"):
        reloads.the_only_server()


def test_outcomes_are_counted() -> None:
    history = ReloadHistory(last_success_at=0)
    history.ended(ReloadOutcome(errors=("no",)))
    assert (history.succeeded, history.failed, history.last_success_at) == (0, 1, 0)
    history.ended(ReloadOutcome(("yes",)))
    assert (history.succeeded, history.failed, history.last_success_at > 0) == (1, 1, True)
