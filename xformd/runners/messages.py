"""What a server, its fork server and its workers say to each other besides requests and replies of the session dialect.

Pure. Each message has an encoder, which returns a netstring, and a decoder, which takes the netstring's content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from xformd.plugins.registry import PluginKey, PluginState
from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table
from xformd.wire import netstring, session

MAX_SETUP_BYTES = 16 * 1024 * 1024  # a configuration has at most a million bytes, and may name files besides
MAX_HELLO_BYTES = 64 * 1024 * 1024  # a plugin may bring many long examples

_NEWS = b"news "
_SET = "\0"  # the key of an object that stands for a set: JSON has none

Note = Literal["batch", "cancel", "step", "return"]
"""``batch`` and how many requests, which follow, are one; ``cancel`` and the id of a request on asyncio, which is
answered all the same; ``step``, a request's id and the index from 0 of the step that begins; ``return`` and the id of
a request that has to run again, alone, because its batch has failed."""

_match_note = re.compile(rb"(batch|cancel|step|return) ([0-9]{1,16})(?: ([0-9]{1,3}))?").fullmatch


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
        return {_SET: sorted(value)}
    return [*map(str, value)] if isinstance(value, tuple) else value  # folders


def _from_json(found: dict[str, Any]) -> Any:
    is_set = found.keys() == {_SET}
    return frozenset(tuple(item) if isinstance(item, list) else item for item in found[_SET]) if is_set else found


def decode_setup(string: bytes) -> WorkerSetup:
    """Decode a setup."""
    content = json.loads(string, object_hook=_from_json)
    selected = content["selection"]
    for kind in ("settings", "commands"):
        selected[kind] = {name: Table(**table) for name, table in selected[kind].items()}
    selected["directories"] = tuple(map(Path, selected["directories"]))
    content["selection"] = Selection(**selected)
    content["left_out"] = {tuple(pair[:2]): tuple(pair[2:]) for pair in content["left_out"]}
    return WorkerSetup(**content)


def encode_news(**news: Any) -> bytes:
    """Encode what a process has to tell.

    While it loads plugins, that is one of ``loading=(distribution, name)``, ``warming_up=(distribution, name)``,
    ``timeout_s=seconds`` that the plugin asks for, ``late=[(distribution, name), ...]`` once all are imported, or
    warmed up, and some have left threads running, ``loaded=True, pid=process id``, and ``warning=text``.
    A worker tells why it is worn as a ``warning``, and what a transform has raised as ``raised=request id`` with the
    fields of a ``SafeTraceback``, before it refuses or returns the request.
    """
    return netstring.encode(_NEWS + json.dumps(news).encode())


def decode_news(string: bytes) -> Mapping[str, Any] | None:
    """Decode what a process has to tell; None for another message, ``ValueError`` for a malformed one."""
    if not string.startswith(_NEWS):
        return None
    try:
        news = json.loads(string[len(_NEWS) :])
    except (ValueError, RecursionError):
        news = None
    if not isinstance(news, dict):
        raise ValueError("news are an object of JSON")
    return news


def encode_hello(pid: int, listing_json: str) -> bytes:
    """Encode a hello, whose listing is JSON already: all workers of a fork server have the same."""
    return netstring.encode(b'%b{"pid": %d, "listing": %b}' % (_NEWS, pid, listing_json.encode()))


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
