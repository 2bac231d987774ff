"""What a server and its workers say to each other besides requests and replies of the session dialect. Pure.

Each message has an encoder, which returns a netstring, and a decoder, which takes the netstring's content.
"""

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
"""A plugin may bring many long examples."""

_STEP = b"step "
_TRACEBACK = b"traceback "


@attrs.frozen(kw_only=True)
class WorkerSetup:
    """What a server sends first: what the worker loads, and its limits; ``memory_bytes`` bounds its address space."""

    selection: Selection
    max_request_bytes: int
    max_result_bytes: int
    memory_bytes: int


@attrs.frozen
class WorkerHello:
    """What a worker sends first, once it has loaded its plugins.

    Args:
        pid: its process id.
        listing: its plugins and transforms, as ``xformd list-transforms --json`` prints them.
    """

    pid: int
    listing: Mapping[str, Any]


def encode_setup(setup: WorkerSetup) -> bytes:
    """Encode a setup."""
    content = attrs.asdict(setup)
    selection = content["selection"]
    for name in ("distributions", "blocked"):
        selection[name] = None if selection[name] is None else sorted(selection[name])
    selection["directories"] = [str(directory) for directory in setup.selection.directories]
    return netstring.encode(json.dumps(content).encode())


def decode_setup(string: bytes) -> WorkerSetup:
    """Decode a setup."""
    content = json.loads(string)
    selected = content.pop("selection")
    distributions = selected["distributions"]
    selection = Selection(
        distributions=None if distributions is None else frozenset(distributions),
        blocked=frozenset(selected["blocked"]),
        directories=tuple(map(Path, selected["directories"])),
        preferred=selected["preferred"],
        strict=selected["strict"],
        ignore_unknown=selected["ignore_unknown"],
    )
    return WorkerSetup(selection=selection, **content)


def encode_hello(hello: WorkerHello) -> bytes:
    """Encode a hello."""
    return netstring.encode(json.dumps([hello.pid, hello.listing]).encode())


def decode_hello(string: bytes) -> WorkerHello:
    """Decode a hello; raise ``ValueError`` if it is not one."""
    try:
        pid, listing = json.loads(string)
    except (ValueError, TypeError, RecursionError):
        pid, listing = None, None
    if not isinstance(pid, int) or not isinstance(listing, dict):
        raise ValueError("a hello is a process id and a listing")
    return WorkerHello(pid, listing)


def encode_step(index: int) -> bytes:
    """Encode that a step of the job begins, counted from 0."""
    return netstring.encode(_STEP + b"%d" % index)


def decode_step(string: bytes) -> int | None:
    """Decode the index of a step; None for any other message."""
    digits = string.removeprefix(_STEP)
    return int(digits) if digits != string and digits.isdigit() and len(digits) < 4 else None


def encode_traceback(raised: SafeTraceback) -> bytes:
    """Encode what a transform has raised; the refusal of the job follows."""
    return netstring.encode(_TRACEBACK + json.dumps(attrs.asdict(raised)).encode())


def decode_traceback(string: bytes) -> SafeTraceback | None:
    """Decode a traceback; None for any other message.

    Raises:
        ValueError: it begins like a traceback and is malformed.
    """
    content = string.removeprefix(_TRACEBACK)
    if content == string:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(content):
            case {"error": str(error), "traceback": str(traceback)}:
                return SafeTraceback(error, traceback)
    raise ValueError("a traceback message has an error and a traceback")
