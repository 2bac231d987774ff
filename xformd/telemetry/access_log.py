"""The access log: one line for each request, written by a thread of its own; the log itself has such a thread too.

Invariant: nothing that the reactor calls here waits for a log. One that is slow, or a pipe that nobody reads, costs
lines, which are counted. And a line has names, sizes and times, never a poem or the value of an option.
"""

import contextlib
import json
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs

from xformd.errors import ERRORS, ConfigError, InternalError, printable
from xformd.spec import Spec
from xformd.telemetry.metrics import OK, Front
from xformd.telemetry.timing import RequestTiming, utc_time

STDERR = Path("/dev/stderr")
"""Stands for its descriptor: opening its file again fails where it is a socket, as under systemd."""

CHUNK_BYTES = select.PIPE_BUF - 1_024
"""Lines are collected up to this size. With the last one, which is shorter than 1 KiB, they fit into what a pipe takes
at once, so they are not mixed with what others write to it."""

MAX_WAITING = 10_000  # requests that wait to be written, of about 1 KiB of memory each
MAX_NAMES_CHARACTERS = 200  # of a request, which may name 32 transforms
WAIT_S = 0.1  # how often a writer that waits for a reader looks whether it has to stop, or to open another file
REPORT_S = 1.0  # how often dropped lines are reported at most
LOOK_S = 1.0  # how often a writer looks whether its file has been moved, or removed
STOP_S = 1.0  # how long a stopping server waits for the lines that are left to be written


Entry = TypeVar("Entry")
Report = Callable[..., object]


@attrs.define(kw_only=True)
class AccessEntry(RequestTiming):
    """A request that gets a line, a span, or both, and what is known of it.

    ``docs/monitoring.md`` describes the fields of the line and the attributes of the span.
    """

    log: "AccessLog | None"
    front: Front
    peer: str
    session_id: int | None = None
    identity: str | None = None
    method: str | None = None
    endpoint: str | None = None
    status: int | None = None
    spec: Spec | None = None
    names: str | None = None  # of its transforms, once it is finished
    poem_bytes: int | None = None  # of a poem that has reached the service
    result_bytes: int | None = None
    code: str = ""  # empty until it is finished
    ended_at: float = 0.0
    total_s: float = 0.0
    _started_s: float = attrs.field(factory=time.perf_counter)

    def part(self) -> "AccessEntry":
        """Return the entry of a line of this batch, with the same id."""
        trace = None if self.trace is None else self.trace.part("line")
        ids: Any = {"identity": self.identity, "traceparent": self.traceparent, "trace": trace}
        return AccessEntry(self.request_id, log=self.log, front=self.front, peer=self.peer, **ids)

    def finish(self, code: str) -> None:
        """Log it, and end its span. Only the first outcome counts: what becomes of the connection comes later."""
        if self.code:
            return
        self.code, self.ended_at, self.total_s = code, time.time(), time.perf_counter() - self._started_s
        if self.front == "http" and self.status is None:
            self.status = 200 if code == OK else ERRORS[code].http_status or InternalError.http_status
        # Not the spec itself: its options would stay in memory until the line is written.
        self.names, self.spec = None if self.spec is None else _names(self.spec), None
        if self.trace is not None:
            self.trace.finish(self)
        if self.log is not None:
            self.log.add(self)

    @property
    def name(self) -> str | None:
        """Its id: its own, or that in its session."""
        return self.request_id if self.session_id is None else str(self.session_id)

    def fields(self) -> Mapping[str, Any]:
        """Return what the line has, in its order."""
        has_run = self.poem_bytes is not None
        found = {
            "time": utc_time(self.ended_at),
            "namespace": "access",
            "peer": self.peer,
            "identity": self.identity,
            "front": self.front,
            "method": self.method,
            "endpoint": self.endpoint,
            "transform": self.names,
            "code": self.code,
            "status": self.status,
            "poem_bytes": self.poem_bytes,
            "result_bytes": self.result_bytes,
            "queue_s": round(self.queue_s, 6) if has_run else None,
            "run_s": round(self.run_s, 6) if has_run else None,
            "total_s": round(self.total_s, 6),
            "request_id": self.name,
            **self.trace_ids,
        }
        return {name: value for name, value in found.items() if value is not None}


def _names(spec: Spec) -> str:
    names = "+".join([step.name for step in spec.steps])  # which are valid names, as the spec has been parsed
    return names if len(names) <= MAX_NAMES_CHARACTERS else names[: MAX_NAMES_CHARACTERS - 3] + "..."


def as_text(fields: Mapping[str, Any]) -> str:
    """Render the fields of an entry as pairs, after its time."""
    pairs = [f"{key}={value:{'.6f' if type(value) is float else ''}}" for key, value in fields.items()]
    line = f"{fields['time']} [access] {' '.join(pairs[2:])}"
    return line if line.isprintable() else printable(line)


class LineWriter(Generic[Entry]):
    """Writes entries to a file, a FIFO or standard error.

    In its thread, ``render`` makes a line of an entry, and ``report`` logs a ``message``, and the ``count`` of dropped
    lines; it is called again if it returns False.
    """

    def __init__(self, name: str, file: Path, render: Callable[[Entry], bytes], report: Report) -> None:
        self._name, self._render, self._report = name, render, report
        self._file = file.absolute()  # twistd may change to another folder
        self._waiting: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()  # None only wakes the writer
        self._overflowed = self._unwritten = self._reported = 0
        self._why = ""
        self._reported_s = -inf
        self._must_reopen = False
        self._next_look_s = 0.0
        self._is_torn = False  # the file ends in the middle of a line
        self._stops_s = inf  # when the writer gives up, once the server stops
        self._thread = threading.Thread()
        self._descriptor = _open(self._file)

    # Called in the reactor.

    @property
    def dropped(self) -> int:
        """How many lines were not written."""
        return self._overflowed + self._unwritten  # one is counted here, the other in the writer

    def start(self) -> None:
        """Start to write, if it does not. Not before twistd goes into the background, where no thread follows it."""
        if not self._thread.is_alive():
            self._stops_s = inf
            # A daemon, for which the interpreter does not wait at its end: it may wait for a disk.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    @property
    def has_room(self) -> bool:
        """Whether another line would be written."""
        return self._waiting.qsize() < MAX_WAITING

    def add(self, entry: Entry) -> None:
        """Have an entry written, or drop it."""
        if self.has_room:
            self._waiting.put(entry)
        else:
            self._overflowed += 1

    def leave_out(self, why: str, count: int = 1) -> None:
        """Count lines that are not to be written."""
        if self.dropped == self._reported:
            self._waiting.put(None)  # so that it is reported, also if nothing follows
        self._overflowed += count
        self._why = why

    @property
    def is_stderr(self) -> bool:
        """Whether it writes to standard error."""
        return self._file == STDERR

    def reopen(self) -> None:
        """Open the file anew, at once: one that ``logrotate`` has renamed is soon noticed without."""
        self._must_reopen = True
        self._waiting.put(None)

    def move(self, file: Path) -> None:
        """Write to another file from now on; raise ``OSError`` if it cannot be opened."""
        if (file := file.absolute()) == self._file:
            return
        if (descriptor := _open(file)) != 2:  # to see that it can be: the writer opens it itself
            os.close(descriptor)
        self._file = file
        self.reopen()

    def stop(self) -> None:
        """Write what is left, for up to ``STOP_S``."""
        self._stops_s = time.monotonic() + STOP_S
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_S + 2 * WAIT_S)

    # Called in the writer.

    def _run(self) -> None:
        while self._stops_s == inf or not self._waiting.empty():
            lines = self._take_lines()
            if self._must_reopen or self._has_moved():
                self._reopen()
            if not self._write(b"".join(lines), len(lines)):
                self._unwritten += len(lines) + self._waiting.qsize()
                break
            self._report_dropped()
        self._report_dropped(at_most_every_s=0)

    def _take_lines(self) -> list[bytes]:
        """Wait for an entry, or until there is something to report; take as many lines as are there and fit."""
        lines: list[bytes] = []
        timeout_s = REPORT_S if self.dropped > self._reported else None
        with contextlib.suppress(queue.Empty):
            while sum(map(len, lines)) < CHUNK_BYTES and (entry := self._waiting.get(not lines, timeout_s)):
                lines.append(self._render(entry))
        return lines

    def _write(self, data: bytes, count: int) -> bool:
        """Write lines, or count them as dropped if that fails; return False if there was no more time."""
        if self._is_torn:
            data = b"\n" + data
        whole = len(data)
        try:
            while data:
                if not self._wait_until_writable():
                    return False
                with contextlib.suppress(BlockingIOError):  # another process has filled the pipe meanwhile
                    data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]
        except OSError as error:
            self._unwritten += count
            self._why = str(error.strerror)
        self._is_torn = 0 < len(data) < whole or (self._is_torn and len(data) == whole)
        return True

    def _wait_until_writable(self) -> bool:
        while not _is_writable(self._descriptor):
            if time.monotonic() > self._stops_s:
                return False
            if self._must_reopen:
                self._reopen()
            self._report_dropped()
        return True

    def _has_moved(self) -> bool:
        """Look whether another file, or none, has the name of the one that is open."""
        if self._descriptor == 2 or (now_s := time.monotonic()) < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        try:
            return not os.path.samestat(self._file.stat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def _reopen(self) -> None:
        self._must_reopen = False
        try:
            before, self._descriptor = self._descriptor, _open(self._file)
        except OSError as error:
            self._next_look_s = time.monotonic() + 60 * LOOK_S
            self._report(message=f"the {self._name} is not opened anew: {self._file}: {error.strerror}")
        else:
            if before != 2:
                os.close(before)

    def _report_dropped(self, at_most_every_s: float = REPORT_S) -> None:
        count, now_s = self.dropped - self._reported, time.monotonic()
        if count and now_s - self._reported_s >= at_most_every_s:
            why = self._why or "it takes them more slowly than they come"
            if self._report(message=f"dropped {count} lines of the {self._name}: {why}", count=count) is not False:
                self._reported, self._reported_s, self._why = self._reported + count, now_s, ""


class AccessLog(LineWriter[AccessEntry]):
    """Writes a line for each entry, as ``text`` or ``json``; raises ``ConfigError`` if its file cannot be opened."""

    def __init__(self, file: Path, log_format: str, report: Report) -> None:
        self._as_line = json.dumps if log_format == "json" else as_text
        try:
            super().__init__("access log", file, self._line, report)
        except OSError as error:
            raise ConfigError(f"cannot open {file.absolute()}: {error.strerror}", setting="access_log") from error

    def _line(self, entry: AccessEntry) -> bytes:
        return f"{self._as_line(entry.fields())}\n".encode()


def _open(file: Path) -> int:
    if file == STDERR:
        return 2
    # Never waits: for writing alone, a FIFO opens only once somebody reads it.
    is_fifo = file.exists() and stat.S_ISFIFO(file.stat().st_mode)
    access = os.O_RDWR if is_fifo else os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.open(file, access | os.O_NONBLOCK, 0o640)


def _is_writable(descriptor: int) -> bool:
    """Wait for up to ``WAIT_S`` until a write does not wait, or fails."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(1_000 * WAIT_S))
