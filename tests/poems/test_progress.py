"""Lines that are rewritten in place, on a terminal alone."""

import io

import pytest
from twisted.internet.task import Clock

from xformd.poems.progress import Progress, block


def test_each_address_has_a_line_that_fits() -> None:
    assert block({"a:1": "connecting", "long:1": "7 bytes, whole"}, columns=80, rows=24) == [
        "a:1     connecting",
        "long:1  7 bytes, whole",
    ]
    assert block({"a:1": "connecting"}, columns=10, rows=24) == ["a:1  conn"]


def test_an_address_may_not_play_with_the_terminal() -> None:
    (line,) = block({"\x1b[2J:1": "connecting"}, columns=80, rows=24)
    assert line == "\N{REPLACEMENT CHARACTER}[2J:1  connecting"


def test_what_has_no_room_is_counted() -> None:
    assert block({f"a:{n}": "x" for n in range(10)}, columns=80, rows=5) == ["a:0  x", "a:1  x", "... and 8 more"]
    assert block({f"a:{n}": "x" for n in range(10)}, columns=10, rows=3) == ["... and 1"]
    assert block({"a:0": "x", "a:1": "x"}, columns=80, rows=4) == ["a:0  x", "a:1  x"]
    assert block({}, columns=80, rows=24) == []


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return io.StringIO()


def test_lines_are_rewritten_ten_times_a_second_at_most(terminal: io.StringIO, clock: Clock) -> None:
    progress = Progress(terminal, clock.seconds)
    progress.says("a:1", "1 bytes")
    assert terminal.getvalue() == "a:1  1 bytes\n"
    progress.says("a:1", "2 bytes")
    clock.advance(0.1)
    progress.says("a:1", "3 bytes")
    assert terminal.getvalue() == "a:1  1 bytes\n\x1b[1A\r\x1b[Ja:1  3 bytes\n"


def test_what_stays_is_given_room_and_nothing_is_drawn_over_it(terminal: io.StringIO, clock: Clock) -> None:
    progress = Progress(terminal, clock.seconds)
    progress.says("a:1", "1 bytes")
    progress.clear()
    clock.advance(1)
    progress.says("a:1", "2 bytes")
    assert terminal.getvalue() == "a:1  1 bytes\n\x1b[1A\r\x1b[J"
    progress.draw()
    progress.says("a:1", "3 bytes")
    clock.advance(0.1)
    progress.says("a:1", "4 bytes")
    redrawn = "a:1  2 bytes\n\x1b[1A\r\x1b[Ja:1  4 bytes\n"
    assert terminal.getvalue() == "a:1  1 bytes\n\x1b[1A\r\x1b[J" + redrawn


def test_without_a_terminal_nothing_is_shown(clock: Clock) -> None:
    progress = Progress(None, clock.seconds)
    progress.says("a:1", "1 bytes")
    progress.clear()
    progress.draw()


def test_what_is_shown_and_what_is_taken_away_is_so_at_once(terminal: io.StringIO, clock: Clock) -> None:
    screen = io.BytesIO()
    progress = Progress(io.TextIOWrapper(screen, encoding="utf-8"), clock.seconds)
    progress.says("a:1", "1 bytes")
    assert screen.getvalue() == b"a:1  1 bytes\n"
    progress.clear()
    assert screen.getvalue().endswith(b"\x1b[J")
