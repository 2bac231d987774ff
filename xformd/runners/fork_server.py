"""The fork server of a generation: loads its plugins once, and forks its workers, which then have them already.

A worker costs a few milliseconds to start, and what the plugins hold in memory is there once for all of them. A thread
does not survive a fork: a plugin whose import leaves one is imported by each worker instead, and one whose warm-up does
is warmed up there. Invariant: a plugin that crashes or hangs is one whose import or warm-up was announced, so that the
server knows which to leave out of the next fork server.

It exchanges netstrings with the server over one socket, from the ``WorkerSetup`` to the news that all is loaded. From
then on each byte of the server's asks for a worker, and brings the worker's descriptors along. When the server closes
its half of the socket, this process runs its exit handlers and ends.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import attrs

from xformd.errors import ConfigError
from xformd.net.allocator import keep_freed_memory
from xformd.plugins import hookspecs, listing, loader
from xformd.plugins.process_state import LEFT_THREAD, child_pids, forget_exit_handlers, run_exit_handlers
from xformd.plugins.registry import Plugin, PluginKey, Registry
from xformd.runners import messages, reaper, worker
from xformd.telemetry.tracebacks import report_uncaught
from xformd.wire import netstring

DESCRIPTORS = 3  # that come with the request for a worker: its channel, its lifeline, and its standard output and error
OOM_SCORE_ADJ = 500  # added for workers: the kernel ends one of them before the server or the fork server


def main(control_descriptor: int, folder: Path) -> NoReturn:
    """Serve until the server is gone; ``folder`` is for the folders of jobs."""
    status = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        report_uncaught(lambda where, raised: print(f"{where}: {raised.error}\n{raised.traceback}", file=sys.stderr))
        control = socket.socket(fileno=control_descriptor)
        control.set_inheritable(False)
        _ForkServer(control, folder).serve()
        status = 0
    except (ConnectionError, EOFError):
        pass  # the server is gone
    except ConfigError as error:  # a folder of plugins is gone
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        run_exit_handlers()
        os._exit(status)


class _ForkServer:
    def __init__(self, control: socket.socket, folder: Path) -> None:
        self._control = control
        self._folder = folder
        self._wakeups, self._waker = reaper.catch_signals()
        reaper.default_signals_in_children()
        reaper.set_subreaper()
        self._setup = messages.decode_setup(self._receive())
        self._late: set[PluginKey] = set()  # plugins that have left threads, by their import or else by their warm-up

    def serve(self) -> None:
        """Load the plugins, then fork workers until the server wants no more."""
        keep_freed_memory()
        with hookspecs.timeouts_told_to(lambda seconds: self._tell(timeout_s=seconds)):
            registry = self._load()
            if not self._late:  # else this process will not be used
                registry = worker.warm_up(registry, self._setup, self._announced("warming_up"), in_worker=False)
        if self._late:
            self._tell(late=sorted(self._late))
            return
        listing_json = json.dumps(listing.to_json(registry))
        reaper.set_subreaper()  # a plugin may have changed that
        worker.limit_memory(worker.NO_LIMIT)
        if any(entry.transform.runs_on_asyncio for entry in registry.entries.values()):
            importlib.import_module("xformd.runners.asyncio_worker")  # asyncio takes 50 ms: once for all workers
        gc.collect()
        gc.freeze()  # the collector would write to every page, and each worker would have a copy of its own
        self._tell(loaded=True, pid=os.getpid())
        self._fork_workers(registry, listing_json)

    def _receive(self) -> bytes:
        decoder = netstring.Decoder(messages.MAX_SETUP_BYTES)
        while not (strings := decoder.decode(data := self._control.recv(65_536))):
            if not data:
                raise EOFError
        return strings[0]

    def _tell(self, **news: object) -> None:
        self._control.sendall(messages.encode_news(**news))

    # Loading.

    def _load(self) -> Registry:
        setup = self._setup
        found = {plugin.key: plugin for plugin in loader.find(setup.selection)}
        known = {
            key: attrs.evolve(found[key], state=state, reason=reason)
            for key, (state, reason) in setup.left_out.items()
            if key in found
        }
        around = self._announced("loading")
        return loader.load(
            setup.selection, known=known, only=lambda plugin: plugin.key not in setup.late, around=around
        )

    def _announced(self, what: str) -> loader.AroundPlugin:
        return worker.announced(what, self._setup, self._tell, self._note)

    def _note(self, plugin: Plugin, what: str) -> None:
        if what == LEFT_THREAD:
            self._late.add(plugin.key)
        else:
            self._tell(warning=f"plugin {plugin.label} {what}")

    # Forking.

    def _fork_workers(self, registry: Registry, listing_json: str) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wakeups, select.POLLIN)
        own = child_pids()  # of the plugins'
        reapers: set[int] = set()
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wakeups:
                    os.read(self._wakeups, 4096)
                    _end_orphans(reapers, own)
                elif (pid := self._fork_worker(registry, listing_json)) is not None:
                    reapers.add(pid)
                else:
                    return

    def _fork_worker(self, registry: Registry, listing_json: str) -> int | None:
        """Fork a reaper and its worker; return the reaper's process id, or None if no more are wanted."""
        data, descriptors, *_ = socket.recv_fds(self._control, 1, DESCRIPTORS)
        if not data:
            return None
        channel, lifeline, output = descriptors
        try:
            pid = os.fork()
        except OSError as error:
            os.write(lifeline, f"the system cannot fork: {error.strerror}".encode())
            pid = -1
        if pid == 0:
            self._become_reaper(registry, listing_json, channel, lifeline, output)
        for descriptor in descriptors:
            os.close(descriptor)
        return pid

    def _become_reaper(
        self, registry: Registry, listing_json: str, channel: int, lifeline: int, output: int
    ) -> NoReturn:
        try:
            for descriptor in (self._control.detach(), self._wakeups, self._waker):
                os.close(descriptor)
            for standard in (1, 2):
                os.dup2(output, standard)
            os.close(output)
            folder = self._folder / str(os.getpid())
            folder.mkdir(0o700)

            def become_worker() -> NoReturn:
                os.close(lifeline)
                _prefer_to_be_killed()
                forget_exit_handlers()
                worker.main(channel, registry, listing_json, self._setup, folder)

            reaper.keep_worker(lifeline, become_worker, (1, 2, channel), folder)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)


def _end_orphans(reapers: set[int], own: set[int]) -> None:
    """Reap the reapers that have ended; kill what they have left, if they were killed themselves."""
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            reapers.discard(pid)
            own.discard(pid)
    for orphan in child_pids() - reapers - own:
        reaper.kill(orphan)


def _prefer_to_be_killed() -> None:
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):  # not Linux
        file.write_text(str(min(1_000, int(file.read_text()) + OOM_SCORE_ADJ)))
