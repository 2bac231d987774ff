"""Where poems go: a stream, byte for byte, or files whose names no address can lead astray."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import xformd
from support.deferreds import error_of, has_fired, result_of
from xformd.poems.delivery import Delivery, file_name, to_folder, to_stream


def test_a_stream_gets_the_bytes_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    write = to_stream(stream)
    write("a:1", b"The Owl\r")
    write("b:1", b"\0")
    assert stream.getvalue() == b"The Owl\r\0"
    assert capsys.readouterr().err == ""


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_what_comes_next_begins_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    write = to_stream(Terminal())
    write("a:1", b"The Owl\n")
    assert capsys.readouterr().err == ""
    write("a:1", b"The Owl")
    assert capsys.readouterr().err == "\n"


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
def test_a_file_has_its_servers_name_and_lies_where_it_should(address: str, name: str) -> None:
    assert file_name(address) == name


def test_each_poem_has_a_file_of_its_own(tmp_path: Path) -> None:
    write = to_folder(tmp_path / "new", ["a:1", "b:1"])
    write("b:1", b"The Owl")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "new").iterdir()] == [("b_1", b"The Owl")]


@pytest.mark.parametrize("addresses", [["a:1", "a/1"], ["a:1", "a:1"]])
def test_two_poems_with_one_name_are_refused_before_anything_is_fetched(tmp_path: Path, addresses: list[str]) -> None:
    with pytest.raises(xformd.ConfigError, match="would both become a_1"):
        to_folder(tmp_path, addresses)


class Threads:
    """A reactor whose only thread works when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def getThreadPool(self) -> "Threads":
        return self

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None], write: Callable[..., None], *words: Any, **_: Any
    ) -> None:
        def work() -> None:
            try:
                done(True, write(*words))
            except Exception as error:
                done(False, error)

        self.work.append(work)

    def callFromThread(self, call: Callable[..., None], *words: Any) -> None:
        call(*words)


class Shown:
    """Notes what is shown, warned of and written, in order."""

    def __init__(self, trouble: OSError | None = None) -> None:
        self.events: list[object] = []
        self.threads = Threads()
        self._trouble = trouble
        self.delivery = Delivery(self._write, self.events.append, self, self.threads)  # type: ignore[arg-type]

    def clear(self) -> None:
        self.events.append("clear")

    def draw(self) -> None:
        self.events.append("draw")

    def _write(self, address: str, poem: bytes) -> None:
        if self._trouble is not None:
            raise self._trouble
        self.events.append((address, poem))


@pytest.mark.parametrize("warning", ["", "it failed"])
def test_a_poem_is_written_in_a_thread_after_its_warning_with_nothing_drawn_meanwhile(warning: str) -> None:
    shown = Shown()
    done = Deferred.fromCoroutine(shown.delivery.deliver("a:1", b"The Owl", warning))
    before = ["clear", *([warning] if warning else [])]
    assert (shown.events, has_fired(done)) == (before, False)
    shown.threads.work[0]()
    assert shown.events == [*before, ("a:1", b"The Owl"), "draw"]
    assert result_of(done) is None


def test_what_cannot_be_written_is_the_callers_to_tell_and_the_lines_come_back() -> None:
    shown = Shown(OSError(28, "No space left on device"))
    done = Deferred.fromCoroutine(shown.delivery.deliver("a:1", b"The Owl", ""))
    shown.threads.work[0]()
    error_of(done, OSError)
    assert shown.events == ["clear", "draw"]


def test_a_complaint_stays_and_the_lines_come_back_under_it() -> None:
    shown = Shown()
    shown.delivery.complain("a:1 is gone")
    assert shown.events == ["clear", "a:1 is gone", "draw"]
