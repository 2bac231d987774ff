"""What a service manager is told: messages of ``sd_notify``, to a socket that the test reads."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.logs import Log
from xformd.net.systemd import Notifier


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("30000000", "", 15),
        ("30000000", "own", 15),
        ("30000000", "1", 0),  # another process is watched
        ("1", "", 0.0000005),
        ("", "", 0),
        ("owl", "", 0),
        ("-5", "", 0),
    ],
)
def test_a_server_says_that_it_lives_twice_as_often_as_it_must(usec: str, pid: str, interval_s: float) -> None:
    watched = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": str(os.getpid()) if pid == "own" else pid}
    assert Notifier({"NOTIFY_SOCKET": "/run/owl", **watched}).watchdog_s == interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its address in the environment."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(name if request.param == "path" else f"\0{name}")
        receiving.settimeout(90)
        yield receiving, name if request.param == "path" else f"@{name}"


def test_a_manager_is_told_and_its_variables_are_no_child_process_s(manager: tuple[socket.socket, str]) -> None:
    receiving, address = manager
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid()), "OWL": "1"}
    notifier = Notifier(environment)
    notifier.tell(READY=1)
    assert (receiving.recv(1_000), notifier.watchdog_s, environment) == (b"READY=1", 5, {"OWL": "1"})


def test_a_message_has_a_line_for_each_field_and_none_can_forge_another(manager: tuple[socket.socket, str]) -> None:
    receiving, address = manager
    Notifier({"NOTIFY_SOCKET": address}).tell(READY=1, STATUS="owl\nMAINPID=1\x1b")
    assert receiving.recv(1_000).decode() == "READY=1\nSTATUS=owl MAINPID=1\N{REPLACEMENT CHARACTER}"


def test_without_a_manager_nobody_is_told() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "10000000"})
    notifier.tell(READY=1)
    assert notifier.watchdog_s == 0


def test_a_manager_that_has_gone_costs_one_line_in_the_log(tmp_path: Path, log: Log) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    for _ in range(3):
        notifier.tell(WATCHDOG=1)
    (line,) = log.lines
    assert line.startswith("the service manager cannot be told how the server is: ")
    assert "No such file" in line


def test_a_manager_that_reads_nothing_holds_nobody_up(manager: tuple[socket.socket, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager[1]})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filling.sendto(b"X=1", manager[0].getsockname())
    notifier.tell(WATCHDOG=1)
