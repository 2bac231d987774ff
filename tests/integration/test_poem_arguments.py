"""What ``xformd poem`` and ``xformd proxy`` reject before they connect or listen."""

import pytest

from support.poems import ANYWHERE
from support.processes import xformd

UPSTREAM = "127.0.0.1:1"
NO_FOLDER = "unix:/no/such/folder/socket"
DURATION, SIZE = "invalid duration {!r}: try 0.5, 30 or 5min", "invalid size {!r}: try 100000 or 10MiB"


@pytest.mark.parametrize(
    ("command", "arguments", "status", "says"),
    [
        ("poem get", (), 2, "Missing argument"),
        ("poem get", ("--via", UPSTREAM, UPSTREAM), 2, "--via needs --transform"),
        ("poem get", ("--transform", "No Transform", UPSTREAM), 64, "bad-request: "),
        ("poem get", ("--transform", "upper", "--via", "a:b:c", UPSTREAM), 78, "bad-config: server address 'a:b:c'"),
        ("poem get", ("--transform", "upper", "--via", "9:1", UPSTREAM), 78, "bad-config: no host is called '9'"),
        ("poem get", ("1",), 69, "cannot connect to 127.0.0.1:1: Connection refused"),
        ("poem get", ("1:1",), 78, "bad-config: no host is called '1'"),
        ("poem get", ("--output-dir", "x", "1", ":1"), 78, "would both become x/127.0.0.1_1"),
        ("ping", ("--server", "1"), 69, "cannot connect to 127.0.0.1:1: Connection refused"),
        ("poem get", ("--timeout", "soon", UPSTREAM), 2, DURATION.format("soon")),
        ("poem get", ("--output-dir", "x", UPSTREAM, UPSTREAM), 78, "would both become x/127.0.0.1_1"),
        ("poem proxy", ("no:such:endpoint", "--listen", ANYWHERE), 78, "write HOST:PORT"),
        ("poem proxy", (UPSTREAM, "--ttl", "soon"), 2, DURATION.format("soon")),
        ("poem proxy", (UPSTREAM, "--timeout", "0"), 2, "invalid duration '0': it must be above 0"),
        ("poem serve", ("no-such-file",), 78, "xformd: bad-config: cannot serve no-such-file: No such file"),
        ("poem serve", ("/dev/null",), 78, "xformd: bad-config: cannot serve /dev/null: it is not a regular file\n"),
        ("poem serve", ("README.md", "--listen", "nonsense:1"), 78, "write a Twisted server endpoint"),
        ("poem serve", ("README.md", "--listen", NO_FOLDER), 69, f"cannot listen on {NO_FOLDER}"),
        ("poem serve", ("README.md", "--port", "x"), 2, "'x' is not a valid integer"),
        ("poem serve", ("README.md", "--slow", "0"), 2, SIZE.format("0")),
        ("poem serve", ("README.md", "--slow", "fast"), 2, SIZE.format("fast")),
        ("proxy", (), 2, "Missing argument 'UPSTREAM...'"),
        ("proxy", ("no:such:endpoint",), 78, "write HOST:PORT"),
        ("proxy", (UPSTREAM, "--ttl", "soon"), 2, DURATION.format("soon")),
        ("proxy", (UPSTREAM, "--cache-bytes", "0"), 2, SIZE.format("0")),
        ("proxy", (UPSTREAM, "--max-queue", "many"), 78, "--max-queue: expected a whole number of at least 1, got"),
        ("proxy", (UPSTREAM, "--listen", NO_FOLDER), 69, f"cannot listen on {NO_FOLDER}: No such"),
    ],
)
def test_impossible_arguments_are_an_error_at_once(
    command: str, arguments: tuple[str, ...], status: int, says: str
) -> None:
    rejected = xformd(*command.split(), *arguments)
    assert (rejected.returncode, rejected.stdout) == (status, b"")
    assert says in rejected.stderr.decode()
