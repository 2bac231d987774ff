"""A worker process: loads the server's plugins, and runs one job after the other on its main thread.

It exchanges netstrings with the server over one socket. The server sends a ``WorkerSetup``, the worker answers with a
``WorkerHello``, and from then on it runs requests of the session dialect, one at a time. Before every step but the
first it names the step, so that the server knows which transform to blame; when a transform raises something
unexpected, it sends the traceback. The server ends it by killing it.
"""

import gc
import os
import resource
import select
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from xformd.errors import TransformDied, XformError
from xformd.net.allocator import keep_freed_memory
from xformd.plugins import listing, loader
from xformd.plugins.registry import Registry
from xformd.runners import calls, messages
from xformd.runners.calls import Call
from xformd.spec import Spec, SpecCache
from xformd.telemetry.tracebacks import SafeTraceback, report_uncaught
from xformd.wire import netstring, session

RECEIVE_BYTES = 256 * 1024


def main(channel_descriptor: int) -> NoReturn:
    """Serve until the server is gone."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        report_uncaught(lambda where, raised: print(f"{where}: {raised.error}\n{raised.traceback}", file=sys.stderr))
        connection = socket.socket(fileno=channel_descriptor)
        connection.set_inheritable(False)  # not for processes that a plugin starts
        _serve(_Channel(connection))
    except _Gone:
        pass  # the server is gone, or a transform has closed descriptors that are not its own
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # even if a plugin has left threads running


def _serve(channel: "_Channel") -> NoReturn:
    keep_freed_memory()
    setup = messages.decode_setup(channel.receive())
    channel.set_max_poem_bytes(setup.max_request_bytes)
    _limit_memory(setup.memory_bytes)
    registry = loader.load(setup.selection)
    channel.send(messages.encode_hello(messages.WorkerHello(os.getpid(), listing.to_json(registry))))
    runner = _JobRunner(registry, setup, channel)
    gc.freeze()  # what is loaded stays: the collector need not traverse it again and again
    while True:
        runner.run(channel.receive())


class _Gone(Exception):
    """The server has closed the channel."""


class _Channel:
    """The socket to the server, a netstring at a time. Every method may raise ``_Gone``."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._arrival = select.poll()
        self._arrival.register(connection, select.POLLIN)
        self._decoder = netstring.Decoder(messages.MAX_SETUP_BYTES)

    def set_max_poem_bytes(self, max_poem_bytes: int) -> None:
        """Accept requests with poems of this length; until now, only a setup."""
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

    def __init__(self, registry: Registry, setup: messages.WorkerSetup, channel: _Channel) -> None:
        self._registry = registry
        self._setup = setup
        self._channel = channel
        self._plans: SpecCache[Spec, list[Call]] = SpecCache()
        self._pid = os.getpid()

    def run(self, string: bytes) -> None:
        """Run one request and answer it."""
        request = session.decode_request(string)
        assert isinstance(request, session.Request)  # the server sends nothing else
        try:
            result = self._run_all(self._plan(request.spec), request.poem)
        except XformError as error:
            self._channel.send(session.encode_refusal(session.Refusal(request.id, error)))
            if isinstance(error, TransformDied):
                os._exit(0)
        else:
            self._channel.send(session.encode_reply(session.Reply(request.id, result)))

    def _plan(self, spec: Spec) -> list[Call]:
        if (plan := self._plans.get(spec)) is None:
            plan = self._plans.remember(spec, [calls.prepare(step, self._registry) for step in spec.steps])
        return plan

    def _run_all(self, steps: list[Call], poem: bytes) -> bytes:
        for index, call in enumerate(steps):
            if index:
                self._channel.send(messages.encode_step(index))
            poem = self._run_one(call, poem)
        return poem

    def _run_one(self, call: Call, poem: bytes) -> bytes:
        own_limit = call.entry.transform.memory_bytes
        most = self._setup.memory_bytes
        limit = most if own_limit is None else min(most, _address_space_bytes() + own_limit)
        _limit_memory(limit)
        try:
            return self._call(call, poem)
        except MemoryError:
            most = resource.RLIM_INFINITY  # this process ends now, and needs memory to say why
            _limit_memory(most)
            raise TransformDied(f"{call.name} ran out of memory; its worker may use {limit} bytes") from None
        except BaseException as error:  # SystemExit too: only the transform can have raised it
            self._end_if_forked()
            if not calls.is_expected(error):
                self._channel.send(messages.encode_traceback(SafeTraceback.redacted(error)))
            raise calls.explain(call, error) from None
        finally:
            self._end_if_forked()
            _limit_memory(most)

    def _call(self, call: Call, poem: bytes) -> bytes:
        transform, limit_bytes = call.entry.transform, self._setup.max_result_bytes
        result = transform.encode(transform.function(transform.decode(poem), **call.options))
        if len(result) > limit_bytes:
            raise calls.too_large(call, len(result), limit_bytes)
        return result

    def _end_if_forked(self) -> None:
        """End this process if a transform has forked it and returned in the child too: only the parent may answer."""
        if os.getpid() != self._pid:
            os._exit(0)


def _limit_memory(limit_bytes: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY and (limit_bytes == resource.RLIM_INFINITY or limit_bytes > hard):
        limit_bytes = hard
    if limit_bytes != soft:  # a transform may have changed it
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


def _address_space_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux
        return 0
    return pages * resource.getpagesize()
