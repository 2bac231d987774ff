"""What a server and its workers tell each other comes out as it went in, and rubbish is told apart."""

from pathlib import Path

import pytest
from hypothesis import given
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
)
SIZES = st.integers(1, 2**63)


@given(
    st.builds(WorkerSetup, selection=SELECTIONS, max_request_bytes=SIZES, max_result_bytes=SIZES, memory_bytes=SIZES)
)
def test_orders_come_out_as_they_went_in(told: WorkerSetup) -> None:
    assert messages.decode_setup(inside(messages.encode_setup(told))) == told


def test_folders_keep_their_order_and_names_that_are_no_text() -> None:
    folders = (Path("/z"), Path("/a"), Path("/odd\udcff"))
    told = WorkerSetup(
        selection=Selection(directories=folders), max_request_bytes=1, max_result_bytes=1, memory_bytes=1
    )
    assert messages.decode_setup(inside(messages.encode_setup(told))).selection.directories == folders


def test_a_report_comes_out_as_it_went_in() -> None:
    report = WorkerHello(7, {"transforms": [{"name": "é\ud800"}]})
    assert messages.decode_hello(inside(messages.encode_hello(report))) == report


@pytest.mark.parametrize(
    "string",
    [b"", b"x", b"5", b"null", b"[]", b"[1]", b"[1, 2]", b'["1", {}]', b"[1, {}, 3]", b"\xff", b"[" * 100_000, b"{}"],
)
def test_what_is_no_report_is_told_apart(string: bytes) -> None:
    with pytest.raises(ValueError, match="a report is a process id and a listing"):
        messages.decode_hello(string)


@pytest.mark.parametrize("step", [0, 1, 31, 999])
def test_a_step_comes_out_as_it_went_in(step: int) -> None:
    assert messages.decode_step(inside(messages.encode_step(step))) == step


@pytest.mark.parametrize(
    "string",
    [
        b"step ",
        b"step -1",
        b"step 1000",
        b"step 1 ",
        b"step \xb2",
        b"1",
        b"",
        b"1 ok.step 1",
    ],
)
def test_anything_else_is_no_step(string: bytes) -> None:
    assert messages.decode_step(string) is None


def test_a_fault_comes_out_as_it_went_in() -> None:
    raised = SafeTraceback("ValueError", "Traceback:\n  there\nValueError")
    assert messages.decode_traceback(inside(messages.encode_traceback(raised))) == raised


@pytest.mark.parametrize("string", [b"", b"fault", b"1 ok.fault {}", b"step 1"])
def test_anything_else_is_no_fault(string: bytes) -> None:
    assert messages.decode_traceback(string) is None


@pytest.mark.parametrize(
    "string", [b"", b"{}", b"[]", b'{"error": 1, "traceback": ""}', b'{"error": ""}', b"\xff", b"[" * 100_000]
)
def test_what_only_begins_like_a_fault_is_told_apart(string: bytes) -> None:
    with pytest.raises(ValueError, match="a fault is an error and its traceback"):
        messages.decode_traceback(b"fault " + string)
