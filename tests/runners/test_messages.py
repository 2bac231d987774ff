"""Messages between a server and its workers: they survive a round trip, and rubbish is recognised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xformd.plugins.selection import Selection
from xformd.runners import messages
from xformd.runners.messages import WorkerHello, WorkerSetup
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring


def inside(data: bytes) -> bytes:
    (string,) = netstring.Decoder(10**9).decode(data)
    return string


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1)

SELECTIONS = st.builds(
    Selection,
    distributions=st.none() | st.frozensets(NAMES),
    blocked=st.frozensets(NAMES),
    directories=st.lists(NAMES.map(Path)).map(tuple),
    preferred=st.dictionaries(NAMES, NAMES),
    strict=st.booleans(),
    ignore_unknown=st.booleans(),
)
SIZES = st.integers(1, 2**63)


ODD_FOLDERS = Selection(directories=(Path("/z"), Path("/a"), Path("/odd\udcff")))


@given(
    st.builds(WorkerSetup, selection=SELECTIONS, max_request_bytes=SIZES, max_result_bytes=SIZES, memory_bytes=SIZES)
)
@example(WorkerSetup(selection=ODD_FOLDERS, max_request_bytes=1, max_result_bytes=1, memory_bytes=1))
def test_a_setup_survives_a_round_trip(setup: WorkerSetup) -> None:
    assert messages.decode_setup(inside(messages.encode_setup(setup))) == setup


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        (messages.encode_hello, messages.decode_hello, WorkerHello(7, {"transforms": [{"name": "é\ud800"}]})),
        *((messages.encode_step, messages.decode_step, step) for step in (0, 1, 31, 999)),
        (messages.encode_traceback, messages.decode_traceback, SafeTraceback("ValueError", "Traceback:\n  there")),
    ],
)
def test_a_message_survives_a_round_trip(
    encode: Callable[..., bytes], decode: Callable[..., Any], message: Any
) -> None:
    assert decode(inside(encode(message))) == message


@pytest.mark.parametrize(
    "string",
    [b"", b"x", b"5", b"null", b"[]", b"[1]", b"[1, 2]", b'["1", {}]', b"[1, {}, 3]", b"\xff", b"[" * 100_000, b"{}"],
)
def test_a_malformed_hello_is_rejected(string: bytes) -> None:
    with pytest.raises(ValueError, match="a hello is a process id and a listing"):
        messages.decode_hello(string)


@pytest.mark.parametrize(
    "string", [b"step ", b"step -1", b"step 1000", b"step 1 ", b"step \xb2", b"1", b"", b"1 ok.step 1"]
)
def test_other_messages_are_no_step(string: bytes) -> None:
    assert messages.decode_step(string) is None


@pytest.mark.parametrize("string", [b"", b"traceback", b"1 ok.traceback {}", b"step 1"])
def test_other_messages_are_no_traceback(string: bytes) -> None:
    assert messages.decode_traceback(string) is None


@pytest.mark.parametrize(
    "string", [b"", b"{}", b"[]", b'{"error": 1, "traceback": ""}', b'{"error": ""}', b"\xff", b"[" * 100_000]
)
def test_a_malformed_traceback_is_rejected(string: bytes) -> None:
    with pytest.raises(ValueError, match="a traceback message has an error and a traceback"):
        messages.decode_traceback(b"traceback " + string)
