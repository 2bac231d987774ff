"""What ``poem get`` shows and says while poems arrive."""

import io
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError  # noqa: A004
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

import xformd
from support.deferreds import error_of
from xformd.client.batch import Item
from xformd.poems import gather
from xformd.poems.gather import Progress, describe_failure, describe_state, file_name, format_lines, to_stream

LOST, BUSY = xformd.ConnectionLost("owl is gone"), xformd.Busy("later")


@pytest.mark.parametrize(
    ("item", "transform", "state"),
    [
        (Item(source="owl", error=LOST), None, "failed: connection-lost"),
        (Item(source="owl", poem=b"The Owl", result=b"The Owl"), None, "7 bytes, whole"),
        (Item(source="owl", poem=b"The Owl"), "upper", "7 bytes, upper is running"),
        (Item(source="owl", poem=b"The Owl", result=b"OWL"), "upper", "7 bytes, 3 after upper"),
        (Item(source="owl", poem=b"The Owl", result=b"The Owl", error=BUSY), "upper", "7 bytes, upper failed"),
    ],
)
def test_a_line_says_how_far_a_poem_is(item: Item[str], transform: str | None, state: str) -> None:
    assert describe_state(item, transform) == state


@pytest.mark.parametrize(
    ("poem", "error", "line"),
    [
        (None, LOST, "xformd: connection-lost: owl is gone"),
        (b"", BUSY, "upper failed: busy: later (the poem of owl); original poem follows"),
        (b"", OSError(28, "No space"), "xformd: cannot write the poem of owl: No space"),
        (b"", OSError("it is odd"), "xformd: cannot write the poem of owl: it is odd"),
    ],
)
def test_a_failure_is_one_line(poem: bytes | None, error: xformd.XformError | OSError, line: str) -> None:
    item = Item(source="owl", poem=poem, result=poem if error is BUSY else None, error=error)
    assert describe_failure(item, "upper", name_it=True) == line
    assert describe_failure(item, "upper", name_it=False) == line.replace(" (the poem of owl)", "")


def test_while_the_transform_server_is_down_no_poem_waits_long_for_its_original() -> None:
    reactor = MemoryReactorClock()
    transform = gather.make_transform("upper", ("127.0.0.1:1",), 60, reactor)
    for attempts in range(1, 11):
        answer = transform(b"x")
        reactor.advance(gather.LONGEST_DELAY_S)
        assert len(reactor.tcpClients) == attempts
        factory: Any = reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        error_of(answer, xformd.ConnectionFailed)


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "poem", "shown"),
    [(Terminal(), b"The Owl\n", ""), (Terminal(), b"The Owl", "\n"), (io.BytesIO(), b"The Owl", "")],
)
def test_on_a_terminal_what_follows_a_poem_begins_on_a_new_line(
    stream: io.BytesIO, poem: bytes, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to_stream(stream)("a:1", poem)
    assert (stream.getvalue(), capsys.readouterr().err) == (poem, shown)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1:10000", "127.0.0.1_10000"),
        ("[::1]:10000", "1_10000"),
        ("unix:/run/owl.sock", "unix_run_owl.sock"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "poem"),
        (".hidden:1", "hidden_1"),
    ],
)
def test_a_file_has_its_servers_name_and_stays_in_its_folder(address: str, name: str) -> None:
    assert file_name(address) == name


@pytest.mark.parametrize(
    ("states", "columns", "rows", "lines"),
    [
        ({"a:1": "connecting", "long:1": "whole"}, 80, 24, ["a:1     connecting", "long:1  whole"]),
        ({"a:1": "connecting"}, 10, 24, ["a:1  conn"]),
        ({"\x1b[2J:1": "x"}, 80, 24, ["\N{REPLACEMENT CHARACTER}[2J:1  x"]),  # an address must not move the cursor
        ({f"a:{n}": "x" for n in range(10)}, 80, 5, ["a:0  x", "a:1  x", "... and 8 more"]),
        ({f"a:{n}": "x" for n in range(10)}, 10, 3, ["... and 1"]),
        ({"a:0": "x", "a:1": "x"}, 80, 4, ["a:0  x", "a:1  x"]),
        ({}, 80, 24, []),
    ],
)
def test_the_lines_fit_the_terminal(states: dict[str, str], columns: int, rows: int, lines: list[str]) -> None:
    assert format_lines(states, columns, rows) == lines


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What ``Progress`` has flushed to a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return io.BytesIO()


@pytest.fixture
def progress(shown: io.BytesIO, clock: Clock) -> Progress:
    return Progress(io.TextIOWrapper(shown, encoding="utf-8"), clock.seconds)


def test_lines_are_redrawn_ten_times_a_second_at_most(progress: Progress, shown: io.BytesIO, clock: Clock) -> None:
    progress.update("a:1", "1 bytes")
    assert shown.getvalue() == b"a:1  1 bytes\n"
    progress.update("a:1", "2 bytes")
    clock.advance(0.1)
    progress.update("a:1", "3 bytes")
    assert shown.getvalue() == b"a:1  1 bytes\n\x1b[1A\r\x1b[Ja:1  3 bytes\n"


def test_nothing_is_drawn_over_what_stays(progress: Progress, shown: io.BytesIO, clock: Clock) -> None:
    progress.update("a:1", "1 bytes")
    progress.clear()
    clock.advance(1)
    progress.update("a:1", "2 bytes")
    cleared = b"a:1  1 bytes\n\x1b[1A\r\x1b[J"
    assert shown.getvalue() == cleared
    progress.draw()
    progress.update("a:1", "3 bytes")
    clock.advance(0.1)
    progress.update("a:1", "4 bytes")
    assert shown.getvalue() == cleared + b"a:1  2 bytes\n\x1b[1A\r\x1b[Ja:1  4 bytes\n"


def test_without_a_terminal_nothing_is_shown(clock: Clock) -> None:
    progress = Progress(None, clock.seconds)
    progress.update("a:1", "1 bytes")
    progress.clear()
    progress.draw()
