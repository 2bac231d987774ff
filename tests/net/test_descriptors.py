"""How many descriptors a server needs, and how many connections a limit leaves room for."""

import resource

import pytest

from xformd.net import descriptors
from xformd.net.descriptors import AcceptErrors, Room, make_room, needed, open_descriptors, raise_limit, room


@pytest.mark.parametrize("connections", [1, 100, 10_000])
@pytest.mark.parametrize("workers", [0, 2, 64])
def test_what_is_needed_is_enough(connections: int, workers: int) -> None:
    assert room(needed(connections, 10, workers), 10, workers) >= connections


def test_a_lower_limit_leaves_room_for_the_rest_as_well() -> None:
    assert room(1024, 10, 3) == 1024 - 10 - 32 - 4 * 8
    assert room(64, 8, 64) == 24
    assert room(16, 12, 2) == 1


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
def test_the_limit_is_raised_as_far_as_it_is_wanted_and_goes(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, holds: int, asked: list[tuple[int, int]]
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    assert raise_limit(wanted) == holds
    assert limits == asked


@pytest.mark.parametrize("error", [OSError("not permitted"), ValueError("current limit exceeds maximum limit")])
def test_a_system_that_has_a_lower_limit_than_it_says_keeps_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("resource.getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr("resource.setrlimit", refuse)
    assert raise_limit(2_000) == 1_024


@pytest.mark.parametrize(("limit", "connections"), [(1_000_000, 100), (100, 32)])
def test_there_is_room_for_what_is_wanted_or_for_what_the_limit_leaves(
    monkeypatch: pytest.MonkeyPatch, limit: int, connections: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(descriptors, "open_descriptors", lambda: 20)
    monkeypatch.setattr(descriptors, "raise_limit", lambda wanted: asked.append(wanted) or limit)
    assert make_room(100, 1) == Room(limit, connections)
    assert asked == [needed(100, 20, 1)]


def test_descriptors_are_counted() -> None:
    with open("/dev/null"), open("/dev/null"):  # noqa: PTH123
        two_more = open_descriptors()
    assert two_more == open_descriptors() + 2


def test_what_twisted_says_of_other_things_is_passed_over() -> None:
    heard: list[str] = []
    observer = AcceptErrors(lambda: heard.append("closed"), heard.append)
    port = "twisted.internet.tcp.Port"
    observer({"log_namespace": port, "log_format": "EMFILE encountered; releasing reserved file descriptor."})
    observer({"log_namespace": port})
    observer({"log_namespace": "xformd", "acceptError": "EMFILE"})
    observer({"log_namespace": port, "log_format": "Could not accept", "acceptError": "ECONNABORTED"})
    observer({})
    assert heard == []
    observer({"log_namespace": port, "log_format": "EMFILE recovery: Closed socket from {address}"})
    observer({"log_namespace": port, "log_format": "Could not accept", "acceptError": "ENFILE"})
    assert heard == ["closed", "ENFILE"]
