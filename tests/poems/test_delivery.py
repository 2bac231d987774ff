"""Where poems go: a stream, byte for byte, or files whose names no address can lead astray."""

import io
from pathlib import Path

import pytest

import xformd
from xformd.poems.delivery import file_name, to_folder, to_stream


def test_a_stream_gets_the_bytes_and_nothing_else() -> None:
    stream = io.BytesIO()
    write = to_stream(stream)
    write("a:1", b"The Owl\r")
    write("b:1", b"\0")
    assert stream.getvalue() == b"The Owl\r\0"


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
