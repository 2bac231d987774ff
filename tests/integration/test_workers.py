"""The pool as clients see it: where steps run, how many wait, what happens when workers are killed."""

import time
from collections import Counter
from contextlib import ExitStack

import pytest

from support import process_table
from support.hostile import WORKERS, Hostile, Hosting, codes, new_marker
from support.processes import wait_until
from support.session_client import Answer, Load, Session, read_all, retry_after_s, step
from support.timing import assert_within

QUEUE = 10
SENT = 100


def test_consecutive_steps_go_to_one_worker_in_one_job(hostile: Hostile, session: Session) -> None:
    """Of many requests at once, each runs all its steps in one process; together they use several."""
    spec = f"pid+{step('sleep', seconds=0.005)}+pid+pid"
    answers = session.collect(session.send(*[(spec, b"poem")] * 40))
    assert codes(answers) == ["ok"] * 40
    pids = [answer.poem.split()[1:] for answer in answers]
    assert {(len(each), len(set(each))) for each in pids} == {(3, 1)}
    workers = {int(each[0]) for each in pids}
    assert len(workers) > 1
    assert workers <= hostile.processes()


@pytest.mark.timing
def test_past_the_queue_requests_are_busy_at_once(hosting: Hosting) -> None:
    """Of a hundred at once over four sessions, the running and the waiting succeed, and the rest are refused."""
    with hosting(XFORMD_MAX_QUEUE=str(QUEUE)) as hostile, ExitStack() as stack:
        hostile.worker_pids()
        sessions = [stack.enter_context(Session(hostile.server)) for _ in range(4)]
        assert_within(0.05, lambda: overrun(sessions))
        assert sessions[0].ask("pid").code == "ok"


def overrun(sessions: list[Session]) -> float:
    """Send more than may run and wait; return how long the slowest refusal took, in seconds."""
    requests = [(step("sleep", seconds=0.2), b"poem")] * (SENT // len(sessions))
    sent = [session.send(*requests) for session in sessions]
    read_all(sessions)  # together: an answer is timed when it is read
    answers = [answer for session, ids in zip(sessions, sent, strict=True) for answer in session.collect(ids)]
    busy = [answer for answer in answers if answer.code == "busy"]
    assert Counter(codes(answers)) == {"ok": WORKERS + QUEUE, "busy": SENT - WORKERS - QUEUE}
    assert all(retry_after_s(answer) > 0 for answer in busy)
    return max(answer.elapsed_s for answer in busy)


@pytest.mark.timing
def test_killing_all_workers_under_load_loses_what_ran_alone(hosting: Hosting) -> None:
    """The server answers again within 0.5 s, and loses no more requests than it had workers."""

    def measure() -> float:
        with hosting() as hostile:
            return kill_all_workers(hostile)

    assert_within(0.5, measure)


def kill_all_workers(hostile: Hostile) -> float:
    """Kill all workers under load, the warm spare too; return how long it took until a new one answered."""
    seen: list[Answer] = []
    at_work = hostile.worker_pids()
    workers = process_table.leaves(hostile.processes())
    assert at_work <= workers
    with Load(hostile.server, f"{step('sleep', seconds=0.02)}+pid", seen=seen.append) as load:
        wait_until(lambda: load.codes["ok"] > 50)
        killed_at = time.monotonic()
        process_table.kill(workers)
        wait_until(lambda: load.codes["ok"] > 150)
    lost = [answer for answer in seen if answer.code != "ok"]
    assert (load.trouble, {answer.code for answer in lost}) == ("", {"transform-died"})
    assert len(lost) <= len(workers)
    # An answer that a killed worker had sent before does not count.
    fresh = [answer for answer in seen if answer.code == "ok" and int(answer.poem.split()[-1]) not in workers]
    return min(answer.at for answer in fresh) - killed_at


@pytest.mark.slow
def test_twenty_kills_leave_no_grandchild(hosting: Hosting) -> None:
    """Six transforms that leave processes behind are killed three or four times each: none is quarantined."""
    names = [f"{name}{copy}" for name in ("fork", "setsid", "daemonise") for copy in ("", "-2")]
    with hosting() as hostile, Session(hostile.server) as session:
        for number in range(20):
            marker = new_marker()
            (sent,) = session.send((step(names[number % 6], marker=marker, then="hang"), b""), timeout_ms=5_000)
            wait_until(lambda marker=marker: bool(process_table.named(marker)))  # type: ignore[misc]
            session.cancel(sent)
            assert codes(session.collect([sent])) == ["cancelled"]
            wait_until(lambda marker=marker: not hostile.left_of(marker))  # type: ignore[misc]


@pytest.mark.slow
def test_a_leaking_transform_gets_new_workers_and_no_request_fails(hosting: Hosting) -> None:
    """A hundred calls leak more than a worker and the warm spare may use together."""
    spec = f"{step('leak', size_bytes=25_000_000)}+pid"
    settings = {"XFORMD_WORKERS": "1", "XFORMD_WORKER_MEMORY_BYTES": str(1024**3)}
    with hosting(**settings) as hostile, Session(hostile.server) as session:
        answers = [session.ask(spec) for _ in range(100)]
    assert codes(answers) == ["ok"] * 100
    assert len({answer.poem for answer in answers}) > 1


@pytest.mark.slow
def test_a_slow_inline_transform_is_named_in_the_log_once_a_minute(hostile: Hostile, session: Session) -> None:
    assert codes([session.ask("block-reactor") for _ in range(3)]) == ["ok"] * 3
    wait_until(lambda: "block-reactor" in hostile.server.log)
    (line,) = (line for line in hostile.server.log.splitlines() if "block-reactor" in line)
    assert "isolate" in line


@pytest.mark.slow
def test_the_operator_decides_what_runs_in_the_server(hosting: Hosting) -> None:
    """An isolated transform can run in the server, and one declared inline in a worker, where it holds nobody up."""
    with hosting("--inline=pid", "--isolate=block-reactor") as hostile, Session(hostile.server) as session:
        assert session.ask("pid").poem.split() == [str(hostile.server.process.pid).encode()]
        (held,) = session.send((step("block-reactor", seconds=1), b"poem"))
        ping = session.ask("!ping")
        (answer,) = session.collect([held])
        assert answer.code == "ok"
        assert ping.at < answer.at


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["never", "sleep:seconds=300"])
def test_pings_and_inline_transforms_run_while_every_worker_is_held(session: Session, spec: str) -> None:
    ids = session.send(*[(spec, b"")] * 20)
    assert session.ask("!ping").code == "ok"
    assert session.ask("cummingsify", b"INLINE").poem == b"inline"
    for number in ids:
        session.cancel(number)
    assert codes(session.collect(ids)) == ["cancelled"] * 20
