"""Rounds of the reactor, in which each share has its time."""

from functools import partial

from twisted.internet.task import Clock

from support.logs import Log
from xformd.net.turns import MAX_COUNTED, TURN_S, Turns


def wait_for_all(turns: Turns, done: list[str], share: str, count: int, seconds: float = 2 * TURN_S) -> None:
    def run(name: str) -> None:
        done.append(name)
        turns.used(share, seconds)

    for number in range(count):
        turns.wait(share, object(), partial(run, f"{share}{number}"))


def test_each_share_has_a_turn_in_a_round_however_much_of_it_waits(clock: Clock) -> None:
    turns, done = Turns(clock), list[str]()
    wait_for_all(turns, done, "a", 3)
    wait_for_all(turns, done, "b", 1)
    clock.advance(0)
    assert done == ["a0", "b0", "a1", "a2"]
    assert clock.getDelayedCalls() == []


def test_what_is_short_goes_on_together(clock: Clock) -> None:
    turns, done = Turns(clock), list[str]()
    wait_for_all(turns, done, "a", 8, TURN_S / 5)
    wait_for_all(turns, done, "b", 1)
    clock.advance(0)
    assert done == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "a6", "a7"]


def test_a_share_is_over_until_the_round_ends(clock: Clock) -> None:
    turns = Turns(clock)
    turns.used("a", TURN_S / 2)
    assert turns.over == set()
    turns.used("a", TURN_S)
    assert turns.over == {"a"}
    clock.advance(0)
    assert turns.over == set()
    assert clock.getDelayedCalls() == []


def test_short_work_needs_no_timer_and_is_counted_for_few(clock: Clock) -> None:
    turns = Turns(clock)
    for number in range(MAX_COUNTED):
        turns.used(f"{number}", 0.0)
    assert clock.getDelayedCalls() == []
    turns.used("one more", 0.0)
    clock.advance(0)
    assert turns._used == {}


def test_what_is_gone_has_no_turn(clock: Clock) -> None:
    turns, done, gone = Turns(clock), list[str](), object()
    turns.wait("a", gone, partial(done.append, "gone"))
    wait_for_all(turns, done, "a", 1)
    turns.forget("a", gone)
    turns.forget("b", gone)
    clock.advance(0)
    assert done == ["a0"]


def test_a_turn_that_fails_is_logged_and_keeps_nobody_from_theirs(clock: Clock, log: Log) -> None:
    turns, done = Turns(clock), list[str]()
    turns.wait("a", object(), lambda: [][0])
    wait_for_all(turns, done, "a", 1)
    clock.advance(0)
    assert done == ["a0"]
    assert len(log.tracebacks) == 1
