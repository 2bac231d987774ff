"""Messages between a server and its workers: they survive a round trip, and rubbish is recognised."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xformd.plugins.selection import Selection
from xformd.plugins.settings import Table
from xformd.runners import messages
from xformd.runners.messages import WorkerSetup
from xformd.spec import parse
from xformd.wire import netstring
from xformd.wire.session import Request, decode_request


def inside(data: bytes) -> bytes:
    (string,) = netstring.Decoder(10**9).decode(data)
    return string


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1)

VALUES = st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
TABLES = st.dictionaries(
    NAMES, st.builds(Table, st.dictionaries(NAMES, VALUES, max_size=2), st.just({"": "x.toml"}), st.text()), max_size=2
)

SELECTIONS = st.builds(
    Selection,
    distributions=st.none() | st.frozensets(NAMES),
    blocked=st.frozensets(NAMES),
    directories=st.lists(NAMES.map(Path)).map(tuple),
    preferred=st.dictionaries(NAMES, NAMES),
    strict=st.booleans(),
    ignore_unknown=st.booleans(),
    settings=TABLES,
    commands=TABLES,
)
SIZES = st.integers(1, 2**63)


ODD_FOLDERS = Selection(directories=(Path("/z"), Path("/a"), Path("/odd\udcff")))


KEYS = st.tuples(NAMES, NAMES)
STATES = st.sampled_from(["failed", "loading"])


@given(
    st.builds(
        WorkerSetup,
        selection=SELECTIONS,
        max_request_bytes=SIZES,
        max_result_bytes=SIZES,
        memory_bytes=SIZES,
        left_out=st.dictionaries(KEYS, st.tuples(STATES, st.text())),
        late=st.frozensets(KEYS),
        late_warm_up=st.frozensets(KEYS),
        warm_ups=st.none() | st.frozensets(NAMES),
        shows_errors=st.booleans(),
    )
)
@example(WorkerSetup(selection=ODD_FOLDERS, max_request_bytes=1, max_result_bytes=1, memory_bytes=1))
def test_a_setup_survives_a_round_trip(setup: WorkerSetup) -> None:
    assert messages.decode_setup(inside(messages.encode_setup(setup))) == setup


@pytest.mark.parametrize("note", [("batch", 32, 0), ("cancel", 2**53, 0), ("step", 1, 31), ("return", 7, 0)])
def test_a_note_survives_a_round_trip(note: Any) -> None:
    assert messages.decode_note(inside(messages.encode_note(*(each for each in note if each)))) == note


def test_several_requests_are_announced_as_a_batch() -> None:
    requests = [Request(number, parse("upper"), b"a.poem", 100) for number in (7, 8)]
    note, *strings = netstring.Decoder(10**9).decode(messages.encode_requests(requests))
    assert messages.decode_note(note) == ("batch", 2, 0)
    assert [*map(decode_request, strings)] == requests
    assert inside(messages.encode_requests(requests[:1])) == strings[0]


def test_a_hello_survives_a_round_trip() -> None:
    listing = {"transforms": [{"name": "é\ud800"}]}
    hello = messages.decode_news(inside(messages.encode_hello(7, json.dumps(listing))))
    assert hello == {"pid": 7, "listing": listing}


NEWS: list[dict[str, Any]] = [
    {"loading": ["x-owl", "é\ud800"]},
    {"warming_up": ["x-owl", "owl"]},
    {"timeout_s": 300},
    {"timeout_s": 0.5},
    {"late": []},
    {"late": [["x-owl", "owl"], ["x-cat", "cat"]]},
    {"loaded": True, "pid": 7},
    {"warning": "plugin x-owl left a process running"},
    {"raised": 7, "error": "E", "traceback": "", "detail": "no \ud800 (/x.py, line 1)"},
]


@pytest.mark.parametrize("news", NEWS, ids=str)
def test_news_survive_a_round_trip(news: dict[str, Any]) -> None:
    assert messages.decode_news(inside(messages.encode_news(**news))) == news


@pytest.mark.parametrize("string", [b"", b"news", b"1 ok.news {}", b"[1, {}]"])
def test_other_messages_are_no_news(string: bytes) -> None:
    assert messages.decode_news(string) is None


@pytest.mark.parametrize("string", [b"", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_malformed_news_are_rejected(string: bytes) -> None:
    with pytest.raises(ValueError, match="news are an object of JSON"):
        messages.decode_news(b"news " + string)


@pytest.mark.parametrize(
    "string", [b"step ", b"step -1", b"step 1 1000", b"step 1 ", b"step \xb2", b"1", b"", b"1 ok.step 1", b"steps 1"]
)
def test_other_messages_are_no_note(string: bytes) -> None:
    assert messages.decode_note(string) is None
