"""A worker process: runs one job, or a batch, after the other on its main thread, with the plugins of the server.

It is forked from the fork server, which has loaded them. It sends a ``WorkerHello`` to the server over one socket, and
from then on runs requests, and answers in the session dialect. Before every step but the first it names the step, so
that the server knows which transform to blame; when a transform raises something unexpected, it sends the traceback.
When the server closes its half of the socket, this process runs its exit handlers and ends. Invariant: a job finds the
process as the first one did; but from its first job on asyncio, ``asyncio_worker`` has it for that transform alone.
"""

import contextlib
import contextvars
import gc
import itertools
import json
import math
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import attrs

from xformd.errors import DefinitionError, TransformDied, Unavailable, XformError
from xformd.plugins import hookspecs, job, listing, loader
from xformd.plugins.definition import Transform
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
from xformd.telemetry.tracebacks import SafeTraceback, place_of
from xformd.wire import netstring, session

RECEIVE_BYTES = 256 * 1024

FOLDER_MODE = 0o700

MAX_CAUSES = 100  # of an exception; a plugin may make a circle of them

NO_LIMIT = resource.RLIM_INFINITY

Result = TypeVar("Result")


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
    if (loaded := _load_rest(channel, registry, setup)) is not registry:
        registry = loaded
        listing_json = json.dumps(listing.to_json(registry))
        gc.freeze()  # what is loaded stays: the collector need not traverse it again and again
    channel.send(messages.encode_hello(os.getpid(), listing_json))
    job.in_worker = setup.max_result_bytes, setup.memory_bytes
    runner = _JobRunner(registry, setup, channel, folder)
    while True:
        runner.run(channel.receive())


def _load_rest(channel: "_Channel", registry: Registry, setup: messages.WorkerSetup) -> Registry:
    """Import and warm up what the fork server has left to its workers."""

    def tell(**news: object) -> None:
        channel.send(messages.encode_news(**news))

    with hookspecs.timeouts_told_to(lambda seconds: tell(timeout_s=seconds)):
        if setup.late:
            known = {plugin.key: plugin for plugin in registry.plugins if plugin.key not in setup.late}
            registry = loader.load(setup.selection, known=known, around=announced("loading", setup, tell))
        registry = warm_up(registry, setup, announced("warming_up", setup, tell), in_worker=True)
    limit_memory(NO_LIMIT)
    return registry


def announced(
    what: str,
    setup: messages.WorkerSetup,
    tell: Callable[..., None],
    note: Callable[[Plugin, str], object] = lambda *_: None,  # that it leaves threads is why a worker loads it
) -> loader.AroundPlugin:
    """Return what makes the context for ``loading`` or ``warming_up`` a plugin: announced, limited, isolated."""

    @contextlib.contextmanager
    def around(plugin: Plugin) -> Iterator[None]:
        tell(**{what: plugin.key})
        limit_memory(data_bytes() + setup.memory_bytes)
        with isolated_import(lambda left: note(plugin, left)), _placed(is_wanted=setup.shows_errors):
            yield

    return around


@contextlib.contextmanager
def _placed(*, is_wanted: bool) -> Iterator[None]:
    """Add to the words of a definition that fails where that was."""
    try:
        yield
    except DefinitionError as error:
        if not is_wanted:
            raise
        raise DefinitionError(f"{error.message}{place_of(error.__cause__ or error)}") from error


def warm_up(
    registry: Registry, setup: messages.WorkerSetup, around: loader.AroundPlugin, *, in_worker: bool
) -> Registry:
    """Warm up the transforms whose warm-ups belong into each worker, or all the others."""

    def is_due(plugin: Plugin, transform: Transform) -> bool:
        is_workers = transform.warm_up_in == "worker" or plugin.key in setup.late | setup.late_warm_up
        return is_workers == in_worker and loader.is_warmed_up(plugin, transform, setup.warm_ups)

    return loader.warm_up(registry, setup.selection, is_due, around)


class _Gone(Exception):
    """The server has closed the channel."""


class _Channel:
    """The socket to the server, a netstring at a time. Every method may raise ``_Gone``."""

    def __init__(self, connection: socket.socket, max_poem_bytes: int) -> None:
        self._connection = connection
        self._arrival = select.poll()
        self._arrival.register(connection, select.POLLIN)
        self._decoder = netstring.Decoder(max_poem_bytes + session.MAX_HEAD_BYTES)
        self._received: deque[bytes] = deque()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._connection.fileno()

    def receive(self) -> bytes:
        """Wait for the next netstring."""
        while not self._received:
            # A blocking recv() is woken for nothing when the server reads the previous answer: on Linux, room to
            # write wakes every sleeper on a Unix socket. A poll() for input sleeps on.
            self._arrival.poll()
            self._read()
        return self._received.popleft()

    def receive_all(self) -> Iterator[bytes]:
        """Yield what has come, without waiting."""
        if self._arrival.poll(0):
            self._read()
        while self._received:
            yield self._received.popleft()

    def _read(self) -> None:
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except OSError as error:
            raise _Gone from error
        if not data:
            raise _Gone
        self._received += self._decoder.decode(data)

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise _Gone from error


class _JobRunner:
    """Runs jobs and sends their answers."""

    def __init__(self, registry: Registry, setup: messages.WorkerSetup, channel: _Channel, folder: Path) -> None:
        self.setup = setup
        self.channel = channel
        self.plans = SpecCache[Spec, list[Call]](lambda spec: [calls.prepare(step, registry) for step in spec.steps])
        self._pid = os.getpid()
        self._folders = (f"{folder}/{number}" for number in itertools.count(1))
        self._folder = ""
        self.prepare_folder()
        self._children = child_pids()
        self._state = ProcessState(for_jobs=True)
        draw_other_numbers()  # than the other workers of this fork server
        self._max_descriptor = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self.worn = ""
        self._id, self._ends_at = 0, 0.0  # of the request that runs

    def run(self, string: bytes) -> None:
        """Run one request, or the batch that it announces, and answer."""
        if (note := messages.decode_note(string)) is not None:
            self._run_batch([decode(self.channel.receive()) for _ in range(note[1])])
            return
        request = self._begin(decode(string))
        try:
            steps = self.plans[request.spec]
            if steps[0].entry.transform.runs_on_asyncio:
                from xformd.runners import asyncio_worker  # few workers need it

                asyncio_worker.serve(self, request)
            answer = session.encode_reply(session.Reply(request.id, self._run_all(steps, request.poem)))
        except XformError as error:
            self.clean_up()
            self.channel.send(session.encode_refusal(session.Refusal(request.id, error)))
            if isinstance(error, TransformDied):
                os._exit(0)
        else:
            self.clean_up()
            self.channel.send(answer)
        self.prepare_folder()  # while the server is busy with the answer

    def _begin(self, request: session.Request) -> session.Request:
        self._id, self._ends_at = request.id, time.monotonic() + timeout_s(request)
        return request

    def _run_batch(self, requests: list[session.Request]) -> None:
        """Answer each request of a batch on its own; if the call fails for all, have them run one by one."""
        answers = {request.id: messages.encode_note("return", request.id) for request in requests}
        try:
            (call,) = self.plans[requests[0].spec]
            self._begin(max(requests, key=timeout_s))
            self._guard(call, self._call_batch, call, requests, answers)
        except XformError as error:
            if isinstance(error, TransformDied):
                self.worn = "has run out of memory"
        self.clean_up()
        for answer in answers.values():
            self.channel.send(answer)
        self.prepare_folder()

    def _call_batch(self, call: Call, requests: list[session.Request], answers: dict[int, bytes]) -> None:
        limit_bytes, poems = self.setup.max_result_bytes, {}
        for request in requests:
            try:
                calls.check_fits([call], len(request.poem), limit_bytes)
                poems[request.id] = calls.argument(call, request.poem, self._folder)
            except XformError as error:
                answers[request.id] = session.encode_refusal(session.Refusal(request.id, error))
        results = calls.invoke_batch(call, [*poems.values()]) if poems else ()
        for request_id, result in zip(poems, results, strict=True):
            try:
                content = calls.content(call, result, self._folder, limit_bytes)
                answers[request_id] = session.encode_reply(session.Reply(request_id, content))
            except XformError as error:
                answers[request_id] = session.encode_refusal(session.Refusal(request_id, error))

    def prepare_folder(self) -> None:
        """Make the folder of the next job, unless there is one."""
        if not self._folder:
            self._folder = self.make_folder()
            with contextlib.suppress(OSError):  # there is none
                os.utime(self._folder, (0, 0))  # so that whatever is done in it shows

    def make_folder(self) -> str:
        """Make a folder for a job; return it."""
        folder = next(self._folders)
        with contextlib.suppress(OSError):  # the job says so
            os.mkdir(folder, FOLDER_MODE)  # noqa: PTH102 - a Path costs as much as the system call
        return folder

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

    def enter_folder(self) -> None:
        """Change to the folder of the next job; raise ``Unavailable`` if it cannot have one."""
        try:
            if not os.path.isdir(self._folder):  # noqa: PTH112 - something tidies up where temporary files are
                os.makedirs(self._folder, 0o700)  # noqa: PTH103
            os.chdir(self._folder)
        except OSError as error:
            print(f"a job cannot have a folder: {error.strerror}", file=sys.stderr)  # which the server logs
            raise Unavailable("the job cannot have a folder; the server's log says why") from None

    def _run_all(self, steps: list[Call], poem: bytes) -> bytes:
        calls.check_fits(steps, len(poem), self.setup.max_result_bytes)
        for index, call in enumerate(steps):
            if index:
                self.channel.send(messages.encode_note("step", self._id, index))
            poem = self._guard(call, self._call, call, poem)
        return poem

    def _guard(self, call: Call, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that runs a step, within the limits of its transform, and undo what it leaves behind."""
        own_limit, most = call.entry.transform.memory_bytes, self.setup.memory_bytes
        is_own = own_limit is not None and own_limit < most
        allowed_bytes = own_limit if is_own and own_limit is not None else most
        # Beyond what the process has now: what earlier jobs have left, such as the heaps of threads, is not this one's.
        limit_memory(data_bytes() + allowed_bytes)
        self.enter_folder()
        left_s = min(self._ends_at - time.monotonic(), call.entry.transform.timeout_s or math.inf)
        try:
            with job.ends_in(left_s):
                # Context variables that a transform sets, such as the precision of decimals, end with it.
                return contextvars.copy_context().run(function, *arguments)
        except BaseException as error:  # SystemExit too: only the transform can have raised it
            limit_memory(NO_LIMIT)  # what follows needs memory
            self.end_if_forked()
            if is_out_of_memory(error):
                limit = "its own limit" if is_own else "worker_memory_bytes"
                message = f"{call.name} ran out of memory; {limit} is {allowed_bytes} bytes"
                raise TransformDied(message) from None
            raise self.explain(self._id, call, error) from None
        finally:
            self.end_if_forked()
            limit_memory(NO_LIMIT)
            if lost := self._state.restore():
                self.worn = f"is not as it was before it ran {call.name}: {', '.join(lost)}"

    def explain(self, request_id: int, call: Call, error: BaseException) -> XformError:
        """Return the error for what a transform has raised, and report it to the server's log if it is unexpected."""
        if not calls.is_expected(error):
            make = SafeTraceback.unredacted if self.setup.shows_errors else SafeTraceback.redacted
            raised = calls.without_secrets(call, make(error))
            self.channel.send(messages.encode_news(raised=request_id, **attrs.asdict(raised)))
        return calls.explain(call, error)

    def _call(self, call: Call, poem: bytes) -> bytes:
        result = calls.invoke(call, calls.argument(call, poem, self._folder))
        return calls.content(call, result, self._folder, self.setup.max_result_bytes)

    def clean_up(self) -> None:
        """Remove the job's folder and the processes that it has started; ask to be replaced if something is left."""
        while left := child_pids() - self._children:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except ChildProcessError:  # it has been reaped
                    continue
                except PermissionError:  # a setuid program
                    self._children.add(pid)
        self._leave_folder()
        try:
            os.close(descriptor := os.dup(0))  # the lowest that is free
        except OSError:
            descriptor = 2 * self._max_descriptor
        if descriptor > self._max_descriptor:
            self.worn = f"has {descriptor} descriptors open"
        if self.worn:
            self.channel.send(messages.encode_news(warning=self.worn))

    def end_if_forked(self) -> None:
        """End this process if a transform has forked it and returned in the child too: only the parent may answer."""
        if os.getpid() != self._pid:
            os._exit(0)


def decode(string: bytes) -> session.Request:
    """Decode a request."""
    request = session.decode_request(string)
    assert isinstance(request, session.Request)  # the server sends nothing else
    return request


def timeout_s(request: session.Request) -> float:
    """Return how many seconds are left to a request."""
    return math.inf if request.timeout_ms is None else request.timeout_ms / 1000


def is_out_of_memory(error: BaseException | None) -> bool:
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
