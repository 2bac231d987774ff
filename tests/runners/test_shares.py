"""The queue in which shares take turns: against plain lists that do the same slowly, and one rule at a time."""

from collections.abc import Iterable

import attrs
from hypothesis import given
from hypothesis import strategies as st

from support.fakes import Asker
from xformd.runners import PROGRAM, Caller
from xformd.runners.shares import (
    FORGET_ABOVE,
    JOB_BYTES,
    KILLS_PER_S,
    MAX_KILLS,
    UNKNOWN_JOB_S,
    FairQueue,
)


@attrs.define(eq=False)
class Job:
    """A job in the queue."""

    caller: Caller = PROGRAM
    poem: bytes = b""
    is_admitted: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.poem)


Queue = FairQueue[Job]


def queue_of(max_jobs: int = 1_000, max_bytes: int = 10**9, max_running: float = 1_000) -> Queue:
    return FairQueue(max_jobs, max_bytes, max_running)


def of(share: str, count: int = 1, poem: bytes = b"") -> list[Job]:
    return [Job(Caller(share), poem) for _ in range(count)]


def put_all(queue: Queue, jobs: Iterable[Job]) -> list[Job]:
    return [gone for job in jobs for gone in queue.put(job)]


def take(queue: Queue, took_s: float = 1.0, now: float = 0.0) -> Job | None:
    """Run the next job to its end."""
    if (job := queue.first(now)) is not None:
        assert queue.remove(job)
        queue.ended(job, queue.started(job), took_s)
    return job


def take_all(queue: Queue, took_s: float = 1.0) -> list[Job]:
    jobs = []
    while (job := take(queue, took_s)) is not None:
        jobs.append(job)
    return jobs


# Whose turn it is.


def test_a_share_with_little_does_not_wait_for_one_with_much_on_many_connections() -> None:
    queue = queue_of()
    greedy = [Job(Asker(share="greedy").caller) for _ in range(30)]
    modest = Job(Asker(share="modest").caller)
    put_all(queue, [*greedy, modest])
    assert modest in [take(queue), take(queue)]


def test_connections_of_a_share_take_turns() -> None:
    queue, one, other = queue_of(), Asker(), Asker()
    jobs = [Job(one.caller), Job(one.caller), Job(other.caller)]
    put_all(queue, jobs)
    assert take_all(queue) == [jobs[0], jobs[2], jobs[1]]


def test_shares_get_the_same_time_and_not_the_same_number_of_jobs() -> None:
    queue = queue_of()
    put_all(queue, [*of("slow", 100), *of("quick", 100)])
    used: dict[str, float] = {"slow": 0, "quick": 0}
    while len(queue) > 90:
        if (job := queue.first(0)) is None:
            break
        queue.remove(job)
        took_s = 0.1 if job.caller.share == "slow" else 0.01
        queue.ended(job, queue.started(job), took_s)
        used[job.caller.share] += took_s
    assert abs(used["slow"] - used["quick"]) < 0.3


def test_what_runs_counts_before_it_has_ended() -> None:
    queue = queue_of()
    put_all(queue, [*of("a", 2), *of("b", 2)])
    shares = []
    for _ in range(4):
        job = queue.first(0)
        assert job is not None
        queue.remove(job)
        queue.started(job)
        shares.append(job.caller.share)
    assert shares == ["a", "b", "a", "b"]


def test_no_share_saves_up_time_while_it_does_nothing() -> None:
    queue = queue_of()
    put_all(queue, of("old"))
    take(queue, 0.001)
    put_all(queue, of("busy", 50))
    take_all(queue)
    put_all(queue, [*of("busy", 4), *of("old", 4)])
    shares = [job.caller.share for job in take_all(queue)]
    assert sorted(shares[:2]) == ["busy", "old"]


def test_a_share_saves_up_no_time_while_its_reader_has_no_room() -> None:
    full = Asker(takes_results=False, share="full")
    queue = queue_of()
    put_all(queue, [Job(full.caller) for _ in range(4)])
    assert queue.first(0) is None
    put_all(queue, of("other", 50))
    for _ in range(46):
        take(queue)
    full.takes_results = True
    queue.has_room(full)
    assert {job.caller.share for job in take_all(queue)[:3]} == {"full", "other"}


def test_a_share_saves_up_no_time_while_it_has_to_wait() -> None:
    queue = queue_of(max_running=1)
    put_all(queue, of("slow", 5))
    running = queue.first(0)
    assert running is not None
    queue.remove(running)
    charged_s = queue.started(running)
    put_all(queue, of("other", 50))
    for _ in range(46):
        take(queue)
    queue.ended(running, charged_s, 0.001)
    assert {job.caller.share for job in take_all(queue)[:5]} == {"slow", "other"}


def test_a_share_runs_no_more_than_it_may_at_once() -> None:
    queue = queue_of(max_running=2)
    put_all(queue, [*of("a", 3), *of("b")])
    running = []
    while (job := queue.first(0)) is not None:
        queue.remove(job)
        running.append((job, queue.started(job)))
    assert sorted(job.caller.share for job, _ in running) == ["a", "a", "b"]
    queue.ended(*next(each for each in running if each[0].caller.share == "a"), 1.0)
    assert queue.first(0) is not None


# Kills.


def test_a_share_that_costs_many_workers_waits_and_others_do_not() -> None:
    queue = queue_of()
    put_all(queue, of("churn", 2))
    killer = queue.first(0)
    assert killer is not None
    for _ in range(MAX_KILLS):
        queue.killed(killer, 0)
    assert (queue.first(0), queue.next_s(0)) == (killer, None)
    queue.killed(killer, 0)
    assert queue.first(0) is None
    assert queue.next_s(0) == 1 / KILLS_PER_S
    (other,) = of("other")
    queue.put(other)
    assert queue.first(0) is other
    assert take(queue) is other
    assert queue.first(1 / KILLS_PER_S) is killer


def test_kills_are_forgiven_with_time() -> None:
    queue = queue_of()
    (job,) = of("careless")
    queue.put(job)
    for second in range(1_000):
        queue.killed(job, second / KILLS_PER_S)
        assert queue.first(second / KILLS_PER_S) is job


# Places and memory.


def test_where_there_is_no_place_the_share_with_the_most_gives_way() -> None:
    queue = queue_of(max_jobs=4)
    greedy = of("greedy", 4)
    assert put_all(queue, greedy) == []
    assert put_all(queue, of("a"))[0] not in greedy[:3]
    (own,) = of("greedy")
    assert queue.put(own) == [own]
    assert len(queue) == 4
    assert queue.takes_newcomers


def test_of_a_share_that_gives_way_the_caller_that_has_the_most_does() -> None:
    queue = queue_of(max_jobs=4)
    greedy, modest = Asker(), Asker()
    jobs = [Job(greedy.caller) for _ in range(4)]
    put_all(queue, jobs)
    assert queue.put(Job(modest.caller)) == [jobs[-1]]


def test_of_shares_with_as_much_the_one_that_has_come_gives_way() -> None:
    queue = queue_of(max_jobs=3)
    assert put_all(queue, [*of("a"), *of("b"), *of("c")]) == []
    assert not queue.takes_newcomers
    (late,) = of("d")
    assert queue.put(late) == [late]


def test_a_later_part_of_a_request_keeps_its_place_and_takes_nobodys() -> None:
    queue = queue_of(max_jobs=1)
    (first,) = of("a")
    later = Job(Caller("b"), is_admitted=True)
    assert put_all(queue, [first, later]) == []
    assert len(queue) == 2
    (last,) = of("c")
    assert queue.put(last) == [last]


def test_later_parts_of_requests_keep_nobody_else_out() -> None:
    """A request with several parts, such as ``upper+wrap``, comes to the queue when its first one has run."""
    queue = queue_of(max_jobs=10)
    later = [Job(Caller("many"), is_admitted=True) for _ in range(20)]
    assert put_all(queue, later) == []
    (other,) = of("other")
    assert queue.put(other) == [later[-1]]


def test_later_parts_of_requests_have_the_bound_in_memory_too() -> None:
    big = b"x" * 1_000
    queue = queue_of(max_bytes=3 * (JOB_BYTES + len(big)))
    later = [Job(Caller("many"), big, is_admitted=True) for _ in range(4)]
    assert put_all(queue, later) == [later[-1]]


def test_memory_has_a_bound_and_the_share_that_holds_the_most_gives_way() -> None:
    big = b"x" * 1_000
    queue = queue_of(max_bytes=3 * (JOB_BYTES + len(big)))
    heavy = of("heavy", 2, big)
    assert put_all(queue, heavy) == []
    (light,) = of("light", poem=b"x")
    assert queue.put(light) == []
    (more,) = of("light", poem=big)
    assert queue.put(more) == [heavy[1]]


def test_what_is_set_aside_takes_no_place_but_memory() -> None:
    full = Asker(takes_results=False, share="full")
    queue = queue_of(max_jobs=2, max_bytes=10 * JOB_BYTES)
    aside = [Job(full.caller) for _ in range(2)]
    put_all(queue, aside)
    assert queue.first(0) is None
    assert len(queue) == 0
    assert put_all(queue, of("other", 2)) == []
    more = [Job(full.caller) for _ in range(7)]
    assert put_all(queue, more) == [more[-1]]
    full.takes_results = True
    queue.has_room(full)
    assert len(queue) == 10


def test_a_share_is_forgotten_when_nothing_would_differ() -> None:
    queue = queue_of()
    for number in range(5 * FORGET_ABOVE):
        put_all(queue, of(f"2001:db8:{number:x}::/64"))
        assert take(queue, 0.0)
    assert len(queue._shares) <= 2 * FORGET_ABOVE + 1


def test_shares_that_ask_once_are_forgotten() -> None:
    """Whatever they used: else a share would be remembered until the others have used as much."""
    queue = queue_of()
    for number in range(5 * FORGET_ABOVE):
        put_all(queue, of(f"2001:db8:{number:x}::/64"))
        assert take(queue, 0.01)
    assert len(queue._shares) <= 2 * FORGET_ABOVE + 1


def test_the_shares_that_have_used_the_most_are_forgotten_last() -> None:
    queue = queue_of()
    put_all(queue, of("heavy", 20))
    take_all(queue)
    put_all(queue, of("killer"))
    killer = queue.first(0)
    assert killer is not None
    for _ in range(MAX_KILLS):
        queue.killed(killer, 0)
    take(queue, 0.0)
    for number in range(5 * FORGET_ABOVE):
        put_all(queue, of(f"{number}"))
        take(queue, 0.01)
    assert {"heavy", "killer"} <= {name for _, name in queue._shares}


def test_a_reader_whose_jobs_are_gone_is_forgotten() -> None:
    queue = queue_of()
    for _ in range(10):
        full = Asker(takes_results=False)
        job = Job(full.caller)
        queue.put(job)
        assert queue.first(0) is None
        assert queue.remove(job)
    assert not queue._set_aside


# Against plain lists.

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "remove", "full", "room", "clear"]), st.integers(0, 3)), max_size=60
)


class Model:
    """One list for each caller, in the order of their turns, and those that are set aside; each share's time."""

    def __init__(self) -> None:
        self.lists: list[list[Job]] = []
        self.aside: list[list[Job]] = []

    def put(self, job: Job) -> None:
        for each in self.lists + self.aside:
            if each[0].caller == job.caller:
                each.append(job)
                return
        self.lists.append([job])

    def first(self) -> Job | None:
        for each in [*self.lists]:
            if (reader := each[0].caller.reader) is None or reader.takes_results:
                return each[0]
            self.lists.remove(each)
            self.aside.append(each)
        return None

    def remove(self, job: Job) -> bool:
        for lists in (self.lists, self.aside):
            for each in lists:
                if job in each:
                    lists.remove(each)
                    lists.extend([rest] if (rest := [other for other in each if other is not job]) else [])
                    return True
        return False

    def has_room(self, asker: Asker) -> None:
        self.lists += [each for each in self.aside if each[0].caller.reader is asker]
        self.aside = [each for each in self.aside if each[0].caller.reader is not asker]

    def jobs(self) -> set[Job]:
        return {job for each in self.lists + self.aside for job in each}


@given(OPERATIONS)
def test_within_a_share_it_does_what_plain_lists_do(operations: list[tuple[str, int]]) -> None:
    queue, model = queue_of(), Model()
    askers = [Asker(), Asker(), Asker()]
    callers = [Caller(askers[0].caller.share), *(asker.caller for asker in askers)]
    jobs: list[Job] = []
    for operation, number in operations:
        asker = askers[number - 1]
        if operation == "put":
            jobs.append(Job(callers[number]))
            assert queue.put(jobs[-1]) == []
            model.put(jobs[-1])
        elif operation == "take":
            taken = queue.first(0)
            assert taken is model.first()
            assert taken is None or queue.remove(taken) is model.remove(taken) is True
        elif operation == "remove" and jobs:
            removed = jobs[number % len(jobs)]
            assert queue.remove(removed) is model.remove(removed)
        elif operation == "clear" and number == 0:
            assert {*queue.clear()} == model.jobs()
            model = Model()
        elif operation in ("full", "room"):
            asker.takes_results = operation == "room"
            if asker.takes_results:
                queue.has_room(asker)
                model.has_room(asker)
        assert len(queue) == sum(map(len, model.lists))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5_000)), max_size=60))
def test_its_bounds_hold_and_no_share_loses_a_place_to_one_that_has_more(jobs: list[tuple[str, int]]) -> None:
    queue = queue_of(max_jobs=8, max_bytes=20_000)
    held: dict[str, list[Job]] = {share: [] for share in "abcd"}
    for share, poem_bytes in jobs:
        job = Job(Caller(share), b"x" * poem_bytes)
        held[share].append(job)
        for gone in queue.put(job):
            most = max(len(each) for each in held.values())
            most_bytes = max(sum(JOB_BYTES + len(each.poem) for each in of_one) for of_one in held.values())
            loser = held[gone.caller.share]
            assert len(loser) == most or sum(JOB_BYTES + len(each.poem) for each in loser) == most_bytes
            loser.remove(gone)
        assert len(queue) == sum(map(len, held.values())) <= 8
        assert sum(JOB_BYTES + len(each.poem) for of_one in held.values() for each in of_one) <= 20_000


def test_a_first_job_is_taken_for_a_short_one() -> None:
    queue = queue_of()
    (job,) = of("new")
    assert queue.started(job) == UNKNOWN_JOB_S
