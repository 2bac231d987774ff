"""What a server, its fork server and its workers say to each other besides requests and replies of the session dialect.

Pure. Each message has an encoder, which returns a netstring, and a decoder, which takes the netstring's content.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from xformd.plugins.registry import PluginKey, PluginState
from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring, session

MAX_SETUP_BYTES = 16 * 1024 * 1024  # a configuration has at most a million bytes, and may name files besides
MAX_HELLO_BYTES = 64 * 1024 * 1024  # a plugin may bring many long examples

_NEWS = b"news "
_TRACEBACK = b"traceback "

Note = Literal["batch", "cancel", "step", "return"]
"""``batch`` and how many requests, which follow, are one; ``cancel`` and the id of a request on asyncio, which is
answered all the same; ``step``, a request's id and the index from 0 of the step that begins; ``return`` and the id of
a request that has to run again, alone, because its batch has failed."""

_match_note = re.compile(rb"(batch|cancel|step|return) ([0-9]{1,16})(?: ([0-9]{1,3}))?").fullmatch

_match_run = re.compile(rb"ran ([0-9]{1,16}) ([0-9]{1,19}) ([0-9]{1,19})").fullmatch


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
    late_warm_up: frozenset[PluginKey] = frozenset()  # each worker warms them up, for the same reason
    warm_ups: frozenset[str] | None = None  # see ``loader.is_warmed_up``
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
    distributions, blocked, required, directories = map(
        selected.pop, ("distributions", "blocked", "required", "directories")
    )
    selection = Selection(
        distributions=None if distributions is None else frozenset(distributions),
        blocked=frozenset(blocked),
        required=frozenset(required),
        directories=tuple(map(Path, directories)),
        settings=_decode_tables(selected.pop("settings")),
        commands=_decode_tables(selected.pop("commands")),
        **selected,
    )
    left_out = {(distribution, name): (state, reason) for distribution, name, state, reason in content.pop("left_out")}
    for field in ("late", "late_warm_up"):
        content[field] = frozenset((distribution, name) for distribution, name in content[field])
    content["warm_ups"] = None if content["warm_ups"] is None else frozenset(content["warm_ups"])
    return WorkerSetup(selection=selection, left_out=left_out, **content)


def _decode_tables(content: Mapping[str, Any]) -> dict[str, Table]:
    return {name: Table(**table) for name, table in content.items()}


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
    """Decode what a process says while it loads plugins; None for another message, ``ValueError`` for a bad one.

    It is one of ``{"loading": [distribution, name]}``, ``{"warming_up": [distribution, name]}``, ``{"timeout_s":
    seconds}`` that the plugin asks for, ``{"late": [[distribution, name], ...]}`` once all are imported, or warmed up,
    and some have left threads running, ``{"loaded": true, "pid": process id}``, and ``{"warning": text}``.
    """
    wrong = "a process that loads plugins says what it is loading"
    match _decode_json(string, _NEWS, wrong):
        case None if not string.startswith(_NEWS):
            return None
        case {"loading": [str(), str()]} | {"warming_up": [str(), str()]} as news:
            return dict(news)
        case {"loaded": True, "pid": int()} | {"warning": str()} as news:
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


def encode_requests(requests: Sequence[session.Request]) -> bytes:
    """Encode a request as in the session dialect, or several as a batch."""
    batch = [encode_note("batch", len(requests))] if len(requests) > 1 else []
    return b"".join([*batch, *map(session.encode_request, requests)])


def encode_note(note: Note, *numbers: int) -> bytes:
    """Encode a note."""
    return netstring.encode(" ".join([note, *map(str, numbers)]).encode())


def decode_note(string: bytes) -> tuple[str, int, int] | None:
    """Decode a note and its numbers, the second being 0 if there is one; None for any other message."""
    if (match := _match_note(string)) is None:
        return None
    return match[1].decode(), int(match[2]), int(match[3] or 0)


def encode_run(request_id: int, start_ns: int, end_ns: int) -> bytes:
    """Encode when a step of a traced request ran, by the system's monotonic clock."""
    return netstring.encode(b"ran %d %d %d" % (request_id, start_ns, end_ns))


def decode_run(string: bytes) -> tuple[int, int, int] | None:
    """Decode a request's id, and when a step of it ran; None for any other message."""
    match = _match_run(string)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def encode_traceback(request_id: int, raised: SafeTraceback) -> bytes:
    """Encode what a transform has raised; the refusal of the request follows, or its return."""
    return netstring.encode(_TRACEBACK + json.dumps({"id": request_id, **attrs.asdict(raised)}).encode())


def decode_traceback(string: bytes) -> tuple[int, SafeTraceback] | None:
    """Decode a request's id and a traceback; None for any other message. Raise ``ValueError`` if it is malformed."""
    wrong = "a traceback message has an id, an error and a traceback"
    match _decode_json(string, _TRACEBACK, wrong):
        case None if not string.startswith(_TRACEBACK):
            return None
        case {"id": int(request_id), "error": str(error), "traceback": str(traceback), "detail": str(detail)}:
            return request_id, SafeTraceback(error, traceback, detail)
    raise ValueError(wrong)
