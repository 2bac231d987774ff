"""A server that lies: each of its words may be anything."""

import json
import socket
from collections.abc import Mapping
from typing import Any

from support.poems import Talk
from support.processes import netstring

TRANSFORM: Mapping[str, Any] = {
    **dict.fromkeys(("timeout_s", "memory_bytes", "media_type")),
    **dict.fromkeys(("inline", "asynchronous", "deterministic"), False),
    "name": "owl",
    "summary": "",
    "kind": "text",
    "options": [],
    "options_schema": {},
    "examples": [],
    "state": "active",
    "plugin": "owls",
    "distribution": "owls",
    "version": "1",
}
"""A transform as a listing has it."""

PLUGIN: Mapping[str, Any] = {
    "name": "owls",
    "distribution": "owls",
    "version": "1",
    "state": "active",
    "reason": "",
    "transforms": ["owl"],
    "import_time_ms": 1.5,
}
"""A plugin as a listing has it."""


def lies(listing: Mapping[str, Any], answer: bytes = b"ok.", server: str = "xformd 0", missing: str = "") -> Talk:
    """Make a server of sessions that answers every request alike, ``!list`` and ``!ping`` apart."""
    hello = {"server": server, "max_request_bytes": 10**6, "max_in_flight": 9}
    answers = {b"!list.": b"ok." + json.dumps(listing).encode(), b"!ping.": b"ok." + missing.encode()}

    def talk(connection: socket.socket) -> None:
        connection.sendall(netstring(b"xformd/2 " + json.dumps(hello).encode()))
        stream = connection.makefile("rb")
        while (string := _read(stream)) is not None:
            number, _, words = string.partition(b" ")
            if words:
                connection.sendall(netstring(number + b" " + answers.get(words, answer)))

    return talk


def _read(stream: Any) -> bytes | None:
    digits = b""
    while (byte := stream.read(1)) != b":":
        if not byte:
            return None
        digits += byte
    string: bytes = stream.read(int(digits) + 1)[:-1]
    return string
