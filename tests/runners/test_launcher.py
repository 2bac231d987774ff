"""The server's end of a fork server: which plugins it starts again without, and what it says of the slow ones."""

import ast
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure

from support.deferreds import has_fired, result_of
from support.live import descriptors
from support.logs import Log
from support.reactors import FakeProcess, FakeReactor
from support.registries import plugin_of
from xformd.config.resources import resident_bytes
from xformd.plugins.registry import LOADING, WARMING_UP, Plugin, PluginKey
from xformd.plugins.selection import EVERYTHING
from xformd.runners import messages
from xformd.runners.launcher import SLOW_AFTER_S, Launcher
from xformd.runners.messages import WorkerSetup
from xformd.runners.worker_handle import END_GRACE_S, WorkerHandle
from xformd.wire import netstring

SETUP = WorkerSetup(selection=EVERYTHING, max_request_bytes=1_000, max_result_bytes=1_000, memory_bytes=2**30)
TIMEOUT_S = 60.0
OWL, CAT = ("x-owl", "owl"), ("x-cat", "cat")
PLUGINS = {key: plugin_of(distribution=key[0], name=key[1], state="loading", reason=LOADING) for key in (OWL, CAT)}
LABEL = "x-owl 1.0 (owl)"


class Events:
    """A supervisor that wants one worker, and records what it hears."""

    worker_disconnected = worker_ended = Mock()

    def __init__(self) -> None:
        self.launcher: Launcher
        self.heard: list[str] = []
        self.workers: list[WorkerHandle] = []

    def can_launch(self) -> None:
        self.heard.append("can launch")
        self.launch()

    def cannot_launch(self, reason: str) -> None:
        self.heard.append(reason)

    def launch(self) -> WorkerHandle | None:
        worker = self.launcher.launch()
        if worker is not None:
            self.workers.append(worker)
        return worker


class Launching:
    """A launcher whose fork servers are played by the test."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.events = Events()
        self.slow: list[Plugin] = []
        self.launcher = Launcher(SETUP, TIMEOUT_S, PLUGINS, lambda plugin, _: self.slow.append(plugin), self.reactor)
        self.launcher.events = cast(Any, self.events)
        self.events.launcher = self.launcher
        self._asked: list[socket.socket] = []

    @property
    def process(self) -> FakeProcess:
        """The fork server that runs now."""
        return self.reactor.processes[-1]

    @property
    def setup(self) -> WorkerSetup:
        """The setup that it has been sent."""
        (string,) = netstring.Decoder(100_000).decode(self.process.channel.recv(100_000))
        return messages.decode_setup(string)

    @property
    def left_out(self) -> dict[PluginKey, str]:
        """The plugins that it does without."""
        return {key: reason for key, (_, reason) in self.setup.left_out.items()}

    def tell(self, **news: Any) -> None:
        """Say something as the fork server."""
        self.process.channel.sendall(messages.encode_news(**news))
        self.reactor.read()

    def end(self, reason: Exception | None = None) -> None:
        """End the fork server; if the launcher has killed it, by that."""
        self.process.end(reason or (ProcessTerminated(None, signal.SIGKILL) if self.process.stdin_closed else None))
        self.reactor.read()

    def fork(self) -> None:
        """Take the request for a worker, and close the worker's descriptors: it has ended at once."""
        data, forked, *_ = socket.recv_fds(self.process.channel, 1, 3)
        assert (len(data), len(forked)) == (1, 3)
        for descriptor in forked:
            os.close(descriptor)

    def close(self) -> None:
        for process in self.reactor.processes:
            process.close()
        for worker in self.events.workers:
            worker.kill("the test is over")
        for _ in range(3):
            self.reactor.read()
        for reader in [*self.reactor.readers]:
            reader.connectionLost(Failure(OSError()))


@pytest.fixture
def launching() -> Iterator[Launching]:
    """A launcher whose fork server has been started."""
    made = Launching()
    assert made.events.launch() is None
    yield made
    made.close()


@pytest.fixture
def loaded(launching: Launching) -> Launching:
    """A launcher whose fork server has loaded its plugins, and has been asked for a worker."""
    assert launching.left_out == {}
    launching.tell(loaded=True, pid=os.getpid())
    assert launching.events.heard == ["can launch"]
    launching.fork()
    launching.events.heard.clear()
    return launching


def test_a_fork_server_gets_its_setup_and_workers_are_forked_once_it_has_loaded_the_plugins(
    launching: Launching,
) -> None:
    assert launching.setup == SETUP
    assert launching.events.launch() is None
    assert len(launching.reactor.processes) == 1
    launching.tell(loading=OWL)
    launching.tell(loaded=True, pid=os.getpid())
    assert launching.events.heard == ["can launch"]
    launching.fork()
    assert launching.events.launch() is not None
    launching.fork()
    assert launching.reactor.getDelayedCalls() == []


def test_its_memory_is_known_while_it_forks_workers(loaded: Launching) -> None:
    assert loaded.launcher.resident_bytes() == pytest.approx(resident_bytes(), rel=0.1)
    loaded.end(ProcessTerminated(None, signal.SIGKILL))
    assert loaded.launcher.resident_bytes() == 0


# Plugins that crash or hang.


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (None, "ended with exit status 0 when it was imported"),
        (ProcessTerminated(3), "ended with exit status 3 when it was imported"),
        (ProcessTerminated(None, signal.SIGSEGV), "was killed by SIGSEGV when it was imported"),
    ],
)
def test_it_starts_again_without_a_plugin_that_ends_the_fork_server(
    launching: Launching, log: Log, end: Exception | None, reason: str
) -> None:
    launching.tell(loading=CAT)
    launching.tell(loading=OWL)
    launching.end(end)
    assert launching.events.heard == ["can launch"]
    assert launching.left_out == {OWL: reason}
    assert log.lines == [f"plugin {LABEL} {reason}: it is left out"]
    assert launching.reactor.getDelayedCalls() == []


def test_each_plugin_that_crashes_is_left_out(launching: Launching) -> None:
    for key in (OWL, CAT):
        launching.tell(loading=key)
        launching.end(ProcessTerminated(None, signal.SIGSEGV))
    assert set(launching.left_out) == {OWL, CAT}
    launching.tell(loaded=True, pid=os.getpid())
    launching.fork()


def test_what_is_unread_when_it_ends_says_which_plugin_it_was(launching: Launching) -> None:
    launching.tell(loading=CAT)
    launching.process.channel.sendall(messages.encode_news(loading=OWL))
    launching.end(ProcessTerminated(None, signal.SIGSEGV))
    assert set(launching.left_out) == {OWL}


def test_a_plugin_that_hangs_is_named_after_a_second_and_left_out_at_its_time_limit(
    launching: Launching, log: Log
) -> None:
    launching.tell(loading=OWL)
    launching.reactor.advance(SLOW_AFTER_S - 0.1)
    assert launching.slow == []
    launching.reactor.advance(0.1)
    assert launching.slow == [PLUGINS[OWL]]
    launching.reactor.advance(TIMEOUT_S - SLOW_AFTER_S - 0.1)
    assert not launching.process.stdin_closed
    launching.reactor.advance(0.1)
    assert launching.process.stdin_closed
    assert launching.events.heard == []
    launching.end()
    assert launching.left_out == {OWL: "was not imported within 60 s"}
    assert log.lines == [f"plugin {LABEL} was not imported within 60 s: it is left out"]
    assert launching.slow == [PLUGINS[OWL]]


@pytest.mark.parametrize("seconds", [300, 0.5])
def test_a_plugin_may_state_its_own_time(launching: Launching, seconds: float) -> None:
    launching.tell(loading=OWL)
    launching.tell(timeout_s=seconds)
    launching.reactor.advance(seconds - 0.1)
    assert launching.slow == [PLUGINS[OWL]]
    assert not launching.process.stdin_closed
    launching.reactor.advance(0.1)
    launching.end()
    assert launching.left_out == {OWL: f"was not imported within {seconds:g} s"}


def test_each_plugin_has_its_whole_time_and_one_that_asks_for_more_gives_it_to_no_other(launching: Launching) -> None:
    launching.tell(loading=CAT)
    launching.tell(timeout_s=300)
    launching.reactor.advance(200)
    launching.tell(loading=OWL)
    launching.reactor.advance(TIMEOUT_S - 0.1)
    assert not launching.process.stdin_closed
    launching.reactor.advance(0.1)
    launching.end()
    assert set(launching.left_out) == {OWL}
    assert launching.slow == [PLUGINS[CAT], PLUGINS[OWL]]


def test_a_plugin_that_was_installed_since_the_others_were_found_has_a_name(launching: Launching, log: Log) -> None:
    launching.tell(loading=("x-new", "new"))
    launching.reactor.advance(SLOW_AFTER_S)
    launching.end(ProcessTerminated(None, signal.SIGSEGV))
    assert [plugin.label for plugin in launching.slow] == ["x-new (new)"]
    assert log.lines == ["plugin x-new (new) was killed by SIGSEGV when it was imported: it is left out"]


def test_a_plugin_that_leaves_threads_is_imported_by_each_worker(launching: Launching, log: Log) -> None:
    launching.tell(loading=OWL)
    launching.tell(late=[OWL])
    launching.reactor.advance(TIMEOUT_S)
    assert launching.events.heard == []
    launching.end()
    assert launching.events.heard == ["can launch"]
    setup = launching.setup
    assert setup.late == {OWL}
    assert not setup.left_out
    assert log.lines == [f"plugin {LABEL} leaves threads running when it is imported: that is done in each worker"]


def test_a_plugin_that_fails_in_a_worker_is_left_out_too(launching: Launching, log: Log) -> None:
    launching.tell(loading=CAT)
    launching.tell(late=[OWL])
    launching.end()
    launching.process.channel.recv(100_000)
    launching.tell(loaded=True, pid=os.getpid())
    launching.fork()
    launching.events.heard.clear()
    launching.launcher.leave_out(OWL, "was killed by SIGABRT when it was imported in a worker")
    assert launching.process.stdin_closed
    assert launching.events.launch() is None  # it may live on for a moment
    launching.end()
    setup = launching.setup
    assert dict(setup.left_out) == {OWL: ("failed", "was killed by SIGABRT when it was imported in a worker")}
    assert setup.late == frozenset()  # else workers would import it all the same
    assert log.lines[1:] == [f"plugin {LABEL} was killed by SIGABRT when it was imported in a worker: it is left out"]
    assert launching.events.heard == ["can launch"]


# Warm-ups.


def test_a_warm_up_that_ends_the_fork_server_is_named_as_that(launching: Launching, log: Log) -> None:
    launching.tell(loading=OWL)
    launching.tell(loading=CAT)
    launching.tell(warming_up=OWL)
    launching.end(ProcessTerminated(None, signal.SIGSEGV))
    assert launching.left_out == {OWL: "was killed by SIGSEGV when it was warmed up"}
    assert log.lines == [f"plugin {LABEL} was killed by SIGSEGV when it was warmed up: it is left out"]


def test_a_warm_up_that_hangs_is_named_after_a_second_and_left_out_at_its_time_limit(launching: Launching) -> None:
    launching.tell(warming_up=OWL)
    launching.reactor.advance(SLOW_AFTER_S)
    assert [plugin.reason for plugin in launching.slow] == [WARMING_UP]
    launching.reactor.advance(TIMEOUT_S - SLOW_AFTER_S)
    launching.end()
    assert launching.left_out == {OWL: "was not warmed up within 60 s"}


def test_the_time_that_a_plugin_has_asked_for_at_its_import_is_also_for_its_warm_up(launching: Launching) -> None:
    launching.tell(loading=OWL)
    launching.tell(timeout_s=300)
    launching.tell(loading=CAT)
    launching.tell(warming_up=OWL)
    launching.reactor.advance(299)
    assert not launching.process.stdin_closed
    launching.reactor.advance(1)
    launching.end()
    assert launching.left_out == {OWL: "was not warmed up within 300 s"}


def test_a_warm_up_that_leaves_threads_is_left_to_each_worker(launching: Launching, log: Log) -> None:
    launching.tell(warming_up=OWL)
    launching.tell(late=[OWL])
    launching.end()
    assert launching.events.heard == ["can launch"]
    setup = launching.setup
    assert (setup.late, setup.late_warm_up) == (frozenset(), frozenset({OWL}))
    assert not setup.left_out
    assert log.lines == [f"plugin {LABEL} leaves threads running when it is warmed up: that is done in each worker"]
    launching.launcher.leave_out(OWL, "no")
    launching.end()
    assert launching.setup.late_warm_up == frozenset()


def test_a_plugin_is_named_as_slow_once_however_many_processes_it_holds_up(launching: Launching) -> None:
    for did in ("imported", "warmed up", "imported", "warmed up"):
        launching.launcher.is_slow(OWL, did)
    assert [plugin.progress for plugin in launching.slow] == ["loading", "warming up"]


def test_it_starts_again_with_the_plugins_that_are_there_then(loaded: Launching) -> None:
    loaded.launcher.end("workers have other plugins than those before")
    assert loaded.process.stdin_closed
    assert loaded.events.launch() is None
    loaded.end()
    assert loaded.events.heard == ["can launch"]
    assert len(loaded.reactor.processes) == 2
    assert loaded.left_out == {}


# Ends that no plugin is known to be the reason of.


def test_an_end_before_it_was_ready_is_reported(launching: Launching) -> None:
    launching.end(ProcessTerminated(1))
    assert launching.events.heard == ["the fork server, before it was ready, ended with exit status 1"]
    assert len(launching.reactor.processes) == 1
    assert launching.events.launch() is None
    assert launching.left_out == {}


def test_an_end_after_it_was_ready_is_reported(loaded: Launching) -> None:
    loaded.end(ProcessTerminated(None, signal.SIGKILL))
    assert loaded.events.heard == ["the fork server was killed by SIGKILL"]
    assert loaded.events.launch() is None
    assert len(loaded.reactor.processes) == 2
    assert loaded.left_out == {}


@pytest.mark.parametrize("data", [b"rubbish", netstring.encode(b"news 1"), netstring.encode(b"news [")])
def test_a_fork_server_that_sends_rubbish_is_started_again(launching: Launching, data: bytes) -> None:
    launching.process.channel.sendall(data)
    launching.reactor.read()
    assert launching.process.stdin_closed
    launching.end()
    assert launching.events.heard == ["can launch"]
    assert launching.left_out == {}


def test_a_control_socket_that_is_closed_is_not_yet_the_end(loaded: Launching) -> None:
    loaded.process.channel.close()
    loaded.reactor.read()
    assert loaded.events.heard == []
    with pytest.raises(OSError, match="its channel is closed"):
        loaded.events.launch()
    loaded.end(ProcessTerminated(1))
    assert loaded.events.heard == ["the fork server ended with exit status 1"]


# Stopping.


def test_a_launcher_that_has_started_nothing_stops_at_once() -> None:
    launching = Launching()
    assert has_fired(launching.launcher.stop())
    assert launching.events.launch() is None
    assert launching.reactor.processes == []


def test_a_fork_server_that_is_loading_is_killed(launching: Launching) -> None:
    launching.tell(loading=OWL)
    stopped = launching.launcher.stop()
    assert launching.process.stdin_closed
    assert launching.reactor.getDelayedCalls() == []
    assert not has_fired(stopped)
    launching.end()
    assert has_fired(stopped)
    assert launching.events.heard == []
    assert launching.events.launch() is None
    assert len(launching.reactor.processes) == 1


def test_a_fork_server_that_has_loaded_may_end_in_order(loaded: Launching) -> None:
    stopped = loaded.launcher.stop()
    assert loaded.process.channel.recv(1) == b""
    loaded.reactor.advance(END_GRACE_S - 0.1)
    assert not loaded.process.stdin_closed
    loaded.end()
    assert has_fired(stopped)
    assert loaded.events.heard == []
    assert loaded.reactor.getDelayedCalls() == []


def test_a_fork_server_that_does_not_end_is_killed(loaded: Launching) -> None:
    stopped = loaded.launcher.stop()
    loaded.reactor.advance(END_GRACE_S)
    assert loaded.process.stdin_closed
    assert not has_fired(stopped)
    loaded.end()
    assert has_fired(stopped)


def test_a_launcher_that_is_stopped_twice_fires_twice(loaded: Launching) -> None:
    """A generation that is being retired is stopped again when the server stops."""
    stopped = [loaded.launcher.stop() for _ in range(2)]
    assert not any(map(has_fired, stopped))
    loaded.end()
    assert [result_of(each) for each in (*stopped, loaded.launcher.stop())] == [None] * 3


# What it prints.


def test_what_it_prints_is_logged_with_the_plugin_that_is_being_loaded(launching: Launching, log: Log) -> None:
    for news, text in (({}, b"first\n"), ({"loading": OWL}, b"second\n"), ({"loaded": True, "pid": 1}, b"third\n")):
        if news:
            launching.tell(**news)
        launching.process.output.write(text)
        launching.reactor.read()
    assert log.lines == ["fork server: first", f"plugin {LABEL}: second", "fork server: third"]


def test_a_warning_of_a_plugin_is_logged(launching: Launching, log: Log) -> None:
    launching.tell(warning="plugin x-owl left a process running")
    assert log.lines == ["plugin x-owl left a process running"]


# Starting it.


def test_it_imports_what_the_server_can_and_nothing_from_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, package = tmp_path / "here", tmp_path / "there" / "xformd"
    here.mkdir()
    for name in ("__init__", "runners/__init__", "runners/reaper"):
        module = package / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("def main():\n    import sys\n    print(sys.path)\n")
    monkeypatch.syspath_prepend(package.parent)
    launching = Launching()
    launching.events.launch()
    launching.close()
    ran = subprocess.run(launching.process.args, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
    path = ast.literal_eval(ran.stdout.decode())
    assert path[: len(sys.path)] == sys.path
    assert not {"", ".", str(here)} & {*path}


def test_it_imports_what_was_installed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    launching = Launching()
    launching.events.launch()
    launching.close()
    *command, code = launching.process.args
    code = code.replace("from xformd.runners.reaper import main; main()", "print(sys.path)")
    ran = subprocess.run([*command, code], capture_output=True, timeout=90, check=True)
    assert "site-packages" in ran.stdout.decode()


def open_descriptors() -> set[int]:
    gc.collect()
    return {*descriptors(os.getpid())}


def test_a_start_that_the_system_refuses_leaves_nothing_open_and_can_be_tried_again() -> None:
    launching, before = Launching(), open_descriptors()
    spawn = launching.reactor.spawnProcess
    launching.reactor.spawnProcess = Mock(side_effect=OSError(errno.EAGAIN, "no"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no"):
        launching.events.launch()
    assert not launching.reactor.readers
    assert open_descriptors() == before
    launching.reactor.spawnProcess = spawn  # type: ignore[method-assign]
    assert launching.events.launch() is None
    launching.close()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_start_that_the_reactor_refuses_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    launching, before = Launching(), open_descriptors()
    added: list[object] = []

    def add_reader(reader: Any) -> None:
        added.append(reader)
        if len(added) == failing:
            raise OSError(errno.ENOSPC, "no")
        FakeReactor.addReader(launching.reactor, reader)

    monkeypatch.setattr(launching.reactor, "addReader", add_reader)
    with pytest.raises(OSError, match="no"):
        launching.events.launch()
    assert not launching.reactor.readers
    if failing == 2:  # it was started
        assert launching.process.channel.recv(1) == b""  # so that it ends
        launching.end(ProcessTerminated(1))
    monkeypatch.undo()
    added.clear()
    assert open_descriptors() == before
    launching.events.launch()
    assert len(launching.reactor.processes) == failing
    launching.close()


def test_a_process_that_ends_while_it_is_spawned_was_never_started() -> None:
    # Twisted says so from within spawnProcess, when nobody knows the process yet.
    launching, before = Launching(), open_descriptors()
    launching.reactor.spawning = lambda protocol: protocol.processExited(Failure(ProcessTerminated(127)))
    for _ in range(2):
        with pytest.raises(OSError, match="the fork server ended with exit status 127"):
            launching.events.launch()
    assert not launching.reactor.readers
    assert has_fired(launching.launcher.stop())
    launching.close()
    assert open_descriptors() == before
