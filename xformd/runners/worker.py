"""A worker process: runs one job after the other on its main thread, with the plugins of the server.

It is forked from the fork server, which has loaded them. It sends a ``WorkerHello`` to the server over one socket, and
from then on runs requests of the session dialect, one at a time. Before every step but the first it names the step, so
that the server knows which transform to blame; when a transform raises something unexpected, it sends the traceback.
When the server closes its half of the socket, this process runs its exit handlers and ends. Invariant: a job finds the
process as the first one did.
"""

import contextlib
import contextvars
import gc
import itertools
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from xformd.errors import TransformDied, Unavailable, XformError
from xformd.plugins import hookspecs, listing, loader
from xformd.plugins.process_state import (
    ProcessState,
    child_pids,
    draw_other_numbers,
    isolated_import,
    run_exit_handlers,
)
from xformd.plugins.registry import Plugin, Registry
from xformd.runners import calls, messages, reaper
from xformd.runners.calls import Call
from xformd.spec import Spec, SpecCache
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring, session

RECEIVE_BYTES = 256 * 1024

FOLDER_MODE = 0o700

MEASURE_EVERY_S = 0.02
"""How often this process's memory is measured, at most: it takes longer than the rest of a small job's isolation."""

MAX_CAUSES = 100  # of an exception; a plugin may make a circle of them

NO_LIMIT = resource.RLIM_INFINITY


def main(
    channel_descriptor: int, registry: Registry, listing_json: str, setup: messages.WorkerSetup, folder: Path
) -> NoReturn:
    """Serve until the server is gone or closes its half of the channel. Each job gets a folder in ``folder``."""
    try:
        reaper.ignore_signals()
        reaper.set_subreaper()  # what a job's children leave behind is this process's to end
        connection = socket.socket(fileno=channel_descriptor)
        connection.set_inheritable(False)  # not for processes that a plugin starts
        _serve(_Channel(connection, setup.max_request_bytes), registry, listing_json, setup, folder)
    except _Gone:
        pass  # the server is gone, or a transform has closed descriptors that are not its own
    except BaseException:
        traceback.print_exc()
    finally:
        run_exit_handlers()
        os._exit(1)  # even if a plugin has left threads running


def _serve(
    channel: "_Channel", registry: Registry, listing_json: str, setup: messages.WorkerSetup, folder: Path
) -> NoReturn:
    if setup.late:
        registry = _load_late(channel, registry, setup)
        listing_json = json.dumps(listing.to_json(registry))
        gc.freeze()  # what is loaded stays: the collector need not traverse it again and again
    channel.send(messages.encode_hello(os.getpid(), listing_json))
    runner = _JobRunner(registry, setup, channel, folder)
    while True:
        runner.run(channel.receive())


def _load_late(channel: "_Channel", registry: Registry, setup: messages.WorkerSetup) -> Registry:
    @contextlib.contextmanager
    def importing(plugin: Plugin) -> Iterator[None]:
        channel.send(messages.encode_news(loading=plugin.key))
        with isolated_import(len):  # no report: that it leaves threads is why it is loaded here
            yield

    limit_memory(data_bytes() + setup.memory_bytes)
    known = {plugin.key: plugin for plugin in registry.plugins if plugin.key not in setup.late}
    with hookspecs.timeouts_told_to(lambda seconds: channel.send(messages.encode_news(timeout_s=seconds))):
        return loader.load(setup.selection, known=known, around=importing)


class _Gone(Exception):
    """The server has closed the channel."""


class _Channel:
    """The socket to the server, a netstring at a time. Every method may raise ``_Gone``."""

    def __init__(self, connection: socket.socket, max_poem_bytes: int) -> None:
        self._connection = connection
        self._arrival = select.poll()
        self._arrival.register(connection, select.POLLIN)
        self._decoder = netstring.Decoder(max_poem_bytes + session.MAX_HEAD_BYTES)

    def receive(self) -> bytes:
        """Wait for the next netstring."""
        while True:
            # A blocking recv() is woken for nothing when the server reads the previous answer: on Linux, room to
            # write wakes every sleeper on a Unix socket. A poll() for input sleeps on.
            self._arrival.poll()
            try:
                data = self._connection.recv(RECEIVE_BYTES)
            except OSError as error:
                raise _Gone from error
            if not data:
                raise _Gone
            if strings := self._decoder.decode(data):
                (string,) = strings  # the server sends one message at a time
                return string

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise _Gone from error


class _JobRunner:
    """Runs jobs and sends their answers."""

    def __init__(self, registry: Registry, setup: messages.WorkerSetup, channel: _Channel, folder: Path) -> None:
        self._setup = setup
        self._channel = channel
        self._plans = SpecCache[Spec, list[Call]](lambda spec: [calls.prepare(step, registry) for step in spec.steps])
        self._pid = os.getpid()
        self._folders = (f"{folder}/{number}" for number in itertools.count(1))
        self._folder = ""
        self._prepare_folder()
        self._held_bytes, self._measured_at = data_bytes(), time.monotonic()
        self._children = child_pids()
        self._state = ProcessState(for_jobs=True)
        draw_other_numbers()  # than the other workers of this fork server
        self._max_descriptor = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._worn = ""

    def run(self, string: bytes) -> None:
        """Run one request and answer it."""
        request = session.decode_request(string)
        assert isinstance(request, session.Request)  # the server sends nothing else
        try:
            result = self._run_all(self._plans[request.spec], request.poem)
        except XformError as error:
            self._clean_up()
            self._channel.send(session.encode_refusal(session.Refusal(request.id, error)))
            if isinstance(error, TransformDied):
                os._exit(0)
        else:
            self._clean_up()
            self._channel.send(session.encode_reply(session.Reply(request.id, result)))
        self._prepare_folder()  # while the server is busy with the answer

    def _prepare_folder(self) -> None:
        if not self._folder:
            self._folder = next(self._folders)
            with contextlib.suppress(OSError):  # the next job says so
                os.mkdir(self._folder, FOLDER_MODE)  # noqa: PTH102 - a Path costs as much as the system call
                os.utime(self._folder, (0, 0))  # so that whatever is done in it shows

    def _leave_folder(self) -> None:
        """Rename an untouched folder for the next job: making a new one takes several times as long on a disk."""
        folder = self._folder
        try:
            status = os.stat(folder)  # noqa: PTH116
            if status.st_mtime == 0 and status.st_mode & 0o7777 == FOLDER_MODE:
                self._folder = next(self._folders)
                os.rename(folder, self._folder)  # noqa: PTH104
                return
        except OSError:
            pass
        self._folder = ""
        shutil.rmtree(folder, ignore_errors=True)

    def _enter_folder(self) -> None:
        try:
            if not os.path.isdir(self._folder):  # noqa: PTH112 - something tidies up where temporary files are
                os.makedirs(self._folder, 0o700)  # noqa: PTH103
            os.chdir(self._folder)
        except OSError as error:
            print(f"a job cannot have a folder: {error.strerror}", file=sys.stderr)  # which the server logs
            raise Unavailable("the job cannot have a folder; the server's log says why") from None

    def _run_all(self, steps: list[Call], poem: bytes) -> bytes:
        calls.check_fits(steps, len(poem), self._setup.max_result_bytes)
        for index, call in enumerate(steps):
            if index:
                self._channel.send(messages.encode_step(index))
            poem = self._run_one(call, poem)
        return poem

    def _run_one(self, call: Call, poem: bytes) -> bytes:
        own_limit, most = call.entry.transform.memory_bytes, self._setup.memory_bytes
        is_own = own_limit is not None and own_limit < most
        allowed_bytes = own_limit if is_own and own_limit is not None else most
        # Beyond what the process has now: what earlier jobs have left, such as the heaps of threads, is not this one's.
        if (now_s := time.monotonic()) - self._measured_at > MEASURE_EVERY_S:
            self._measured_at, self._held_bytes = now_s, data_bytes()
        limit_memory(self._held_bytes + allowed_bytes)
        self._enter_folder()
        try:
            # Context variables that a transform sets, such as the precision of decimals, end with it.
            return contextvars.copy_context().run(self._call, call, poem)
        except BaseException as error:  # SystemExit too: only the transform can have raised it
            limit_memory(NO_LIMIT)  # what follows needs memory
            self._end_if_forked()
            if _is_out_of_memory(error):
                limit = "its own limit" if is_own else "worker_memory_bytes"
                message = f"{call.name} ran out of memory; {limit} is {allowed_bytes} bytes"
                raise TransformDied(message) from None
            raise self._explain(call, error) from None
        finally:
            self._end_if_forked()
            limit_memory(NO_LIMIT)
            if lost := self._state.restore():
                self._worn = f"is not as it was before it ran {call.name}: {', '.join(lost)}"

    def _explain(self, call: Call, error: BaseException) -> XformError:
        if not calls.is_expected(error):
            make = SafeTraceback.unredacted if self._setup.shows_errors else SafeTraceback.redacted
            self._channel.send(messages.encode_traceback(make(error)))
        return calls.explain(call, error)

    def _call(self, call: Call, poem: bytes) -> bytes:
        transform, limit_bytes = call.entry.transform, self._setup.max_result_bytes
        result = transform.function(transform.decode(poem), **call.options)
        if isinstance(result, str) and len(result) > limit_bytes:  # to encode it would take as much memory again
            raise calls.too_large(call, len(result), limit_bytes, "has" if result.isascii() else "has at least")
        if len(encoded := transform.encode(result)) > limit_bytes:
            raise calls.too_large(call, len(encoded), limit_bytes)
        return encoded

    def _clean_up(self) -> None:
        """Remove the job's folder and the processes that it has started; ask to be replaced if something is left."""
        while left := child_pids() - self._children:
            for pid in left:
                self._kill(pid)
        self._leave_folder()
        try:
            os.close(descriptor := os.dup(0))  # the lowest that is free
        except OSError:
            descriptor = 2 * self._max_descriptor
        if descriptor > self._max_descriptor:
            self._worn = f"has {descriptor} descriptors open"
        if self._worn:
            self._channel.send(messages.encode_news(warning=self._worn))

    def _kill(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:  # a setuid program
            self._children.add(pid)
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)

    def _end_if_forked(self) -> None:
        """End this process if a transform has forked it and returned in the child too: only the parent may answer."""
        if os.getpid() != self._pid:
            os._exit(0)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception is about memory, or was raised because of one that is, unless a transform rejects a poem."""
    for _ in range(MAX_CAUSES):
        if error is None or calls.is_expected(error):
            return False
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def limit_memory(limit_bytes: int) -> None:
    """Limit the memory that this process may write to and shares with no other (RLIMIT_DATA).

    Not its address space: threads, JVMs and others reserve much of that, and use little.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # a transform may have lowered it
    if hard != NO_LIMIT and (limit_bytes == NO_LIMIT or limit_bytes > hard):
        limit_bytes = hard
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def data_bytes() -> int:
    """Return how much memory counts towards ``limit_memory`` now; 0 if the system does not say."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)  # a Path would take 20 us
    except OSError:  # not Linux
        return 0
    try:
        return int(os.read(descriptor, 200).split()[5]) * resource.getpagesize()
    finally:
        os.close(descriptor)
