"""What a server and its workers say to each other besides the messages of the session form. Pure."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.plugins.selection import Selection
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring

MAX_SETUP_BYTES = 1024 * 1024
MAX_HELLO_BYTES = 64 * 1024 * 1024
"""A plugin may come with many long examples."""

_STEP = b"step "
_FAULT = b"fault "


@attrs.frozen(kw_only=True)
class WorkerSetup:
    """What a worker has to know before it can begin.

    Args:
        selection: which plugins to load.
        max_request_bytes: the longest poem of a request, in bytes.
        max_result_bytes: the longest result of a step, in bytes.
        memory_bytes: the largest address space.
    """

    selection: Selection
    max_request_bytes: int
    max_result_bytes: int
    memory_bytes: int


@attrs.frozen
class WorkerHello:
    """What a worker says when it is ready.

    Args:
        pid: its process id.
        listed: what it has loaded, as ``xformd list-transforms --json`` prints it.
    """

    pid: int
    listed: Mapping[str, Any]


def encode_setup(orders: WorkerSetup) -> bytes:
    """Give the bytes that a server sends first."""
    told = attrs.asdict(orders)
    selection = told["selection"]
    for name in ("distributions", "blocked"):
        selection[name] = None if selection[name] is None else sorted(selection[name])
    selection["directories"] = [str(directory) for directory in orders.selection.directories]
    return netstring.encode(json.dumps(told).encode())


def decode_setup(string: bytes) -> WorkerSetup:
    """Read what ``encode_setup`` gave."""
    told = json.loads(string)
    selected = told.pop("selection")
    distributions = selected["distributions"]
    selection = Selection(
        distributions=None if distributions is None else frozenset(distributions),
        blocked=frozenset(selected["blocked"]),
        directories=tuple(map(Path, selected["directories"])),
        preferred=selected["preferred"],
        strict=selected["strict"],
        ignore_unknown=selected["ignore_unknown"],
    )
    return WorkerSetup(selection=selection, **told)


def encode_hello(report: WorkerHello) -> bytes:
    """Give the bytes that a worker sends first."""
    return netstring.encode(json.dumps([report.pid, report.listed]).encode())


def decode_hello(string: bytes) -> WorkerHello:
    """Read what ``encode_hello`` gave.

    Raises:
        ValueError: it is something else.
    """
    try:
        pid, listed = json.loads(string)
    except (ValueError, TypeError, RecursionError):
        pid, listed = None, None
    if not isinstance(pid, int) or not isinstance(listed, dict):
        raise ValueError("a report is a process id and a listing")
    return WorkerHello(pid, listed)


def encode_step(index: int) -> bytes:
    """Give the bytes with which a worker says that it begins another step of its job, counted from 0."""
    return netstring.encode(_STEP + b"%d" % index)


def decode_step(string: bytes) -> int | None:
    """Read what ``encode_step`` gave; None for anything else."""
    digits = string.removeprefix(_STEP)
    return int(digits) if digits != string and digits.isdigit() and len(digits) < 4 else None


def encode_traceback(raised: SafeTraceback) -> bytes:
    """Give the bytes with which a worker says what its transform has raised, before it refuses the job."""
    return netstring.encode(_FAULT + json.dumps(attrs.asdict(raised)).encode())


def decode_traceback(string: bytes) -> SafeTraceback | None:
    """Read what ``encode_traceback`` gave; None for anything else.

    Raises:
        ValueError: it begins like a fault, and is none.
    """
    told = string.removeprefix(_FAULT)
    if told == string:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(told):
            case {"error": str(error), "traceback": str(traceback)}:
                return SafeTraceback(error, traceback)
    raise ValueError("a fault is an error and its traceback")
