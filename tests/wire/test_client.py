"""A session's core on the client, and both sides' messages, against ``data/session.json``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import BadFrame, XformError
from xformd.spec import parse_readable
from xformd.wire.client import ClassicExchange, ClientSession, NotSent, Outcome, Pending, SpeaksClassic
from xformd.wire.netstring import encode
from xformd.wire.session import ControlRequest, Hello, Malformed, Refusal, Reply, Request, decode_reply, decode_request

VECTORS: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parents[1] / "data" / "session.json").read_text())
HELLO = b'xformd/2 {"server": "xformd 1", "max_request_bytes": 1000, "max_in_flight": 2}'


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=[vector["name"] for vector in VECTORS[kind]])


@each("to_server")
def test_what_a_client_sends_means_the_same_to_every_server(vector: dict[str, Any]) -> None:
    string = vector["string"].encode("latin-1")
    if vector.get("error") == "bad-frame":
        with pytest.raises(BadFrame):
            decode_request(string)
        return
    read = decode_request(string)
    if "request" in vector:
        wanted = {"timeout_ms": None, "client": None, **vector["request"]}
        assert isinstance(read, Request)
        steps = [[step.name, dict(step.options)] for step in read.spec.steps]
        found = {"id": read.id, "steps": steps, "poem": read.poem.decode("latin-1")}
        assert {**found, "timeout_ms": read.timeout_ms, "client": read.client} == wanted
    elif "control" in vector:
        assert isinstance(read, ControlRequest)
        assert {"token": "", **vector["control"]} == {
            "id": read.id,
            "control": read.control,
            "token": read.token.decode("latin-1"),
        }
    else:
        assert isinstance(read, Malformed)
        assert read.error.code == vector["error"]


@each("to_client")
def test_what_a_server_sends_means_the_same_to_every_client(vector: dict[str, Any]) -> None:
    string = vector["string"].encode("latin-1")
    if "error" in vector:
        with pytest.raises(BadFrame):
            decode_reply(string)
        return
    read = decode_reply(string)
    if "reply" in vector:
        assert isinstance(read, Reply)
        assert {"id": read.id, "poem": read.poem.decode("latin-1")} == vector["reply"]
    else:
        assert isinstance(read, Refusal)
        found = {"id": read.id, "code": read.error.code, "message": read.error.message}
        assert found | {"retry_after_ms": read.error.retry_after_ms} == {"retry_after_ms": None, **vector["refusal"]}


class Script:
    """Plays a vector: does to a core what the program and the connection do, and looks at what comes of it."""

    def __init__(self, split: Callable[[bytes], list[bytes]]) -> None:
        self.now = 100.0
        self.split = split
        self.pending: dict[int, Pending] = {}
        self.sent = b""
        self.outcomes: list[list[Any]] = []

    def connect(self, options: dict[str, Any]) -> None:
        self.core = ClientSession("there", 1_000, **options)
        self.core.opener = "opening"
        self.core.open()

    def request(self, what: list[str]) -> None:
        waiter: list[int] = []  # knows its id only afterwards
        pending = self.core.request(waiter, self.now, parse_readable(what[0]), what[1].encode("latin-1"))
        waiter.append(pending.message.id)
        self.pending[pending.message.id] = pending

    def cancel(self, number: int) -> None:
        self.core.cancel(self.pending[number], self.now)

    def close(self, _: bool) -> None:
        self.core.close()

    def receives(self, text: str) -> None:
        for piece in self.split(text.encode("latin-1")):
            self.core.receive(piece, self.now)

    def ends(self, how: str) -> None:
        self.core.lose("", is_clean=how == "closed")

    def wait_s(self, seconds: float) -> None:
        self.now += seconds
        while self.core.check_at <= self.now:
            self.core.check(self.now)

    def sends(self, text: str) -> None:
        self.collect()
        sent, self.sent = self.sent, b""
        assert sent == text.encode("latin-1")

    def outcome(self, wanted: list[Any]) -> None:
        self.collect()
        assert self.outcomes.pop(0) == wanted

    def closes(self, _: bool) -> None:
        assert (self.core.is_finished, self.core.is_aborted) == (True, False)

    def aborts(self, _: bool) -> None:
        assert self.core.is_aborted

    def collect(self) -> None:
        self.sent += self.core.data_to_send()
        for waiter, value in self.core.outcomes():
            self.outcomes.append([waiter[0] if isinstance(waiter, list) else waiter, *said(value)])


def said(value: object) -> list[str]:
    if isinstance(value, bytes):
        return ["ok", value.decode("latin-1")]
    if isinstance(value, XformError):
        return [value.code]
    kinds: dict[type, str] = {Hello: "hello", SpeaksClassic: "classic", NotSent: "not-sent"}
    return [kinds[type(value)]]


@pytest.mark.parametrize(
    "split",
    [lambda data: [data], lambda data: [data[each : each + 1] for each in range(len(data))]],
    ids=["whole", "byte by byte"],
)
@each("sessions")
def test_a_session_goes_as_it_must(vector: dict[str, Any], split: Callable[[bytes], list[bytes]]) -> None:
    script = Script(split)
    for step in vector["steps"]:
        ((act, what),) = step.items()
        getattr(script, act)(what)
    script.collect()
    assert (script.sent, script.outcomes) == (b"", [])


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([encode(HELLO), b"6:1 ok.A,", b"6:2 ok.B,"]))))
def test_whatever_a_server_sends_each_waiter_has_one_outcome(pieces: list[bytes]) -> None:
    for core in (
        ClientSession("there", 1_000),
        ClassicExchange("there", parse_readable("upper"), b"x", 1_000),
    ):
        core.opener = 0
        core.open()
        count = 1
        if isinstance(core, ClientSession):
            for waiter in (1, 2, 3):
                core.request(waiter, 0.0, parse_readable("upper"), b"x")
            count = 4
        for piece in pieces:
            core.receive(piece, 0.0)
        core.lose("", is_clean=True)
        core.lose("", is_clean=True)
        outcomes: list[Outcome] = core.outcomes()
        assert sorted(waiter for waiter, _ in outcomes) == list(range(count))
        for _, value in outcomes:
            assert isinstance(value, bytes | Hello | XformError | NotSent | SpeaksClassic)
