"""What a server, its fork server and its workers say to each other besides requests and replies of the session dialect.

Pure. Each message has an encoder, which returns a netstring, and a decoder, which takes the netstring's content.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.plugins.registry import PluginKey, PluginState
from xformd.plugins.selection import Selection
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring

MAX_SETUP_BYTES = 1024 * 1024
MAX_HELLO_BYTES = 64 * 1024 * 1024
"""A plugin may bring many long examples."""

_NEWS = b"news "
_STEP = b"step "
_TRACEBACK = b"traceback "


LeftOut = Mapping[PluginKey, tuple[PluginState, str]]
"""Plugins that a generation does without, with the state and the reason that are listed."""


@attrs.frozen(kw_only=True)
class WorkerSetup:
    """What a fork server is told first, for itself and its workers."""

    selection: Selection
    max_request_bytes: int  # the longest poem of a job
    max_result_bytes: int  # of a step
    memory_bytes: int  # how much loading the plugins may take, and each job besides
    left_out: LeftOut = attrs.field(factory=dict)
    late: frozenset[PluginKey] = frozenset()  # each worker imports them: their threads would not survive a fork
    shows_errors: bool = False  # what transforms raise is reported in full, for the person who runs them


@attrs.frozen
class WorkerHello:
    """What a worker sends first, once it has all of its plugins."""

    pid: int
    listing: Mapping[str, Any]  # as ``xformd list-transforms --json`` prints it


def encode_setup(setup: WorkerSetup) -> bytes:
    """Encode a setup."""
    content = attrs.asdict(setup, value_serializer=lambda _, __, value: _to_json(value))
    content["left_out"] = [[*key, *why] for key, why in setup.left_out.items()]  # JSON has no such keys
    return netstring.encode(json.dumps(content).encode())


def _to_json(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return [*map(str, value)] if isinstance(value, tuple) else value  # folders


def decode_setup(string: bytes) -> WorkerSetup:
    """Decode a setup."""
    content = json.loads(string)
    selected = content.pop("selection")
    distributions, blocked, directories = (selected.pop(name) for name in ("distributions", "blocked", "directories"))
    selection = Selection(
        distributions=None if distributions is None else frozenset(distributions),
        blocked=frozenset(blocked),
        directories=tuple(map(Path, directories)),
        **selected,
    )
    left_out = {(distribution, name): (state, reason) for distribution, name, state, reason in content.pop("left_out")}
    late = frozenset((distribution, name) for distribution, name in content.pop("late"))
    return WorkerSetup(selection=selection, left_out=left_out, late=late, **content)


def _decode_json(string: bytes, prefix: bytes, what: str) -> Any:
    """Decode what follows a prefix; None if the string begins otherwise. ``ValueError`` says what it is not."""
    if not string.startswith(prefix):
        return None
    try:
        return json.loads(string[len(prefix) :])
    except (ValueError, RecursionError):
        raise ValueError(what) from None


def encode_news(**news: Any) -> bytes:
    """Encode what a process says while it loads plugins; see ``decode_news``."""
    return netstring.encode(_NEWS + json.dumps(news).encode())


def decode_news(string: bytes) -> Mapping[str, Any] | None:
    """Decode what a process says while it loads plugins; None for any other message.

    Returns:
        One of ``{"loading": [distribution, name]}``, ``{"timeout_s": seconds}`` that the plugin asks for,
        ``{"late": [[distribution, name], ...]}`` once all are loaded and some have left threads running,
        ``{"loaded": true, "pid": process id}``, and ``{"warning": text}``.

    Raises:
        ValueError: it begins like one and is malformed.
    """
    wrong = "a process that loads plugins says what it is loading"
    match _decode_json(string, _NEWS, wrong):
        case None if not string.startswith(_NEWS):
            return None
        case {"loading": [str(), str()]} | {"loaded": True, "pid": int()} | {"warning": str()} as news:
            return dict(news)
        case {"timeout_s": int() | float() as seconds} if 0 < seconds < math.inf:
            return {"timeout_s": seconds}
        case {"late": list() as keys} if all(isinstance(key, list) and [*map(type, key)] == [str, str] for key in keys):
            return {"late": keys}
    raise ValueError(wrong)


def encode_hello(pid: int, listing_json: str) -> bytes:
    """Encode a hello, whose listing is JSON already: all workers of a fork server have the same."""
    return netstring.encode(f"[{pid}, {listing_json}]".encode())


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
    """Decode a traceback; None for any other message. Raise ``ValueError`` if it is malformed."""
    wrong = "a traceback message has an error and a traceback"
    match _decode_json(string, _TRACEBACK, wrong):
        case None if not string.startswith(_TRACEBACK):
            return None
        case {"error": str(error), "traceback": str(traceback), "detail": str(detail)}:
            return SafeTraceback(error, traceback, detail)
    raise ValueError(wrong)
