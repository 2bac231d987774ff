"""How many descriptors a server needs, and how many connections a limit leaves room for."""

import resource
import sys
from subprocess import DEVNULL
from subprocess import run as run_process
from unittest.mock import Mock

import pytest

from support.logs import Log
from support.processes import DEADLINE_S, environment
from xformd.limits import Limits
from xformd.net import run
from xformd.net.run import make_room, raise_limit

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "holds", "asked"),
    [
        (1_024, 4_096, 500, 1_024, []),
        (1_024, 4_096, 2_000, 2_000, [(2_000, 4_096)]),
        (1_024, 4_096, 9_000, 4_096, [(4_096, 4_096)]),
        (1_024, UNLIMITED, 9_000, 9_000, [(9_000, UNLIMITED)]),
        (UNLIMITED, UNLIMITED, 9_000, 9_000, []),
    ],
)
def test_the_limit_is_raised_up_to_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, holds: int, asked: list[tuple[int, int]]
) -> None:
    setrlimit = Mock()
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", setrlimit)
    assert raise_limit(wanted) == holds
    assert [call.args[1] for call in setrlimit.call_args_list] == asked


@pytest.mark.parametrize("error", [OSError("not permitted"), ValueError("current limit exceeds maximum limit")])
def test_the_limit_stays_where_the_system_refuses_to_raise_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr("resource.setrlimit", Mock(side_effect=error))
    assert raise_limit(2_000) == 1_024


def limit_to(limit: int, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Give the process 20 open descriptors and a limit; return what is asked to raise it."""
    raise_limit = Mock(return_value=limit)
    monkeypatch.setattr(run, "open_descriptors", lambda: 20)
    monkeypatch.setattr(run, "raise_limit", raise_limit)
    return raise_limit


@pytest.mark.parametrize("workers", [0, 2, 64])
def test_the_limit_that_is_asked_for_is_enough(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    limit_to(0, monkeypatch).side_effect = lambda wanted: wanted
    limit, connections = make_room(1_000, workers)
    assert (limit, connections) == (1_000 + 20 + 32 + 8 * (workers + 1), 1_000)


@pytest.mark.parametrize(
    ("limit", "workers", "connections"), [(1024, 3, 1024 - 20 - 32 - 4 * 8), (64, 64, 12), (16, 2, 1)]
)
def test_connections_leave_room_for_everything_else(
    monkeypatch: pytest.MonkeyPatch, limit: int, workers: int, connections: int
) -> None:
    limit_to(limit, monkeypatch)
    assert make_room(10_000, workers) == (limit, connections)


@pytest.mark.parametrize(
    ("fronts", "limit", "allowed", "warning"),
    [
        (1, 1_000_000, 100, ""),
        (1, 100, 32, "ulimit -n is 100 and has room for 32 connections instead of 100; raise it"),
        (2, 100, 16, "ulimit -n is 100 and has room for 16 connections on each front instead of 100;"),
    ],
)
def test_no_more_connections_are_allowed_than_fit(
    monkeypatch: pytest.MonkeyPatch, log: Log, fronts: int, limit: int, allowed: int, warning: str
) -> None:
    limit_to(limit, monkeypatch)
    limits = run.within_descriptors(Limits(max_connections=100), workers=1, fronts=fronts)
    assert limits == Limits(max_connections=allowed)
    assert [line.startswith(warning) for line in log.lines] == ([True] if warning else [])


def test_open_descriptors_are_counted_or_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null"), open("/dev/null"):  # noqa: PTH123
        two_more = run.open_descriptors()
    assert two_more == run.open_descriptors() + 2
    monkeypatch.setattr("os.listdir", Mock(side_effect=FileNotFoundError))
    assert run.open_descriptors() == run.GUESSED_OPEN_DESCRIPTORS


MUTE = "import socket, sys, threading; socket.getaddrinfo = lambda *_, **__: threading.Event().wait(1000); "


@pytest.mark.parametrize(
    "command",
    [
        ["ping", "--server", "poems.example:1", "--timeout", "0.1"],
        ["send", "upper", "--server", "poems.example:1", "--timeout", "0.1"],
        ["send", "upper", "--server", "tcp:poems.example:1", "--timeout", "0.1"],
        ["poem", "get", "poems.example:1", "--timeout", "0.1"],
    ],
)
def test_a_command_ends_although_a_name_server_is_mute(command: list[str]) -> None:
    words = [sys.executable, "-c", MUTE + "from xformd.cli import main; sys.exit(main())", *command]
    done = run_process(words, stdin=DEVNULL, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)
    assert (done.returncode, b"within 0.1 s" in done.stderr) == (75, True)
