"""Batches and transforms on asyncio, as clients of a real server see them."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from support.hostile import codes
from support.processes import DEADLINE_S, Server, serving, wait_until
from support.session_client import Answer, Load, Session, read_all
from support.timing import assert_within

pytestmark = pytest.mark.slow

CALL_S = 0.005
"""What a call of the model costs, however many poems it gets."""

SOURCE = f"""
import asyncio, os, signal, time
import xformd


@xformd.transform(batch=32)
def model(poems: list[str]) -> list[str]:
    time.sleep({CALL_S})
    return poems


@xformd.transform
def one(poem: str) -> str:
    time.sleep({CALL_S})
    return poem


@xformd.transform(batch=32, batch_wait_s=0.05, timeout=1)
def touchy(poems: list[str]) -> list[str]:
    for poem in poems:
        if poem == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if poem == "raise":
            raise ValueError("no")
        if poem == "hang":
            time.sleep(1000)
        if poem == "slow":
            time.sleep(0.5)
    return [poem for poem in poems if poem != "lose"]


@xformd.transform(batch=32, batch_wait_s=0.05)
def gate(poems: list[str]) -> list[str]:
    folder = poems[0]
    open(folder + "/started", "w").close()
    while not os.path.exists(folder + "/open"):
        time.sleep(0.005)
    return poems


async def act(poem: str) -> str:
    what, _, rest = poem.partition(" ")
    if what == "sleep":
        await asyncio.sleep(float(rest))
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "block":
        time.sleep(1000)
    while what == "deaf":
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
    return poem


pure = xformd.transform(name="pure", deterministic=True)(act)
impure = xformd.transform(name="impure")(act)


@xformd.transform
async def briefly(poem: str) -> str:
    await asyncio.sleep(0.001)
    return poem


@xformd.hookimpl
def xformd_transforms():
    return [t for t in globals().values() if isinstance(t, xformd.Transform)]
"""


@contextmanager
def running(folder: Path, *arguments: str, **extra: str) -> Iterator[Server]:
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "shared.py").write_text(SOURCE)
    more = ("--workers", "2") if "--workers" not in arguments else ()
    options: dict[str, Any] = {**extra}
    with serving(folder, "--plugins=none", "--plugins-dir", str(plugins), *more, *arguments, **options) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    with Session(server) as opened:
        yield opened


def ask_all(server: Server, spec: str, count: int, sessions: int = 20, poem: bytes = b"poem") -> list[Answer]:
    """Ask for so many at once, over several sessions."""
    with ExitStack() as stack:
        opened = [stack.enter_context(Session(server)) for _ in range(sessions)]
        sent = [(each, each.send(*[(spec, poem)] * (count // sessions), timeout_ms=20_000)) for each in opened]
        read_all(opened)
        return [answer for each, ids in sent for answer in each.collect(ids)]


# Batches.


@pytest.mark.parametrize(
    ("poison", "code"),
    [("raise", "transform-failed"), ("crash", "transform-died"), ("hang", "timeout"), ("lose", "transform-failed")],
)
def test_of_a_batch_only_the_poisoned_member_fails(session: Session, poison: str, code: str) -> None:
    poems = [b"good %d" % number for number in range(31)]
    poems.insert(13, poison.encode())
    answers = session.collect(session.send(*(("touchy", poem) for poem in poems)))
    assert answers.pop(13).code == code
    assert [(answer.code, answer.poem) for answer in answers] == [("ok", poem) for poem in poems if poem[:1] == b"g"]


@pytest.mark.parametrize("how", ["cancels", "leaves"])
def test_a_client_that_gives_up_harms_no_other_of_its_batch(
    server: Server, session: Session, how: str, tmp_path: Path
) -> None:
    with Session(server) as other:
        requests = [("gate", bytes(tmp_path))] * 3
        ids, good = other.send(*requests), session.send(*requests)
        wait_until((tmp_path / "started").exists)
        if how == "leaves":
            other.abort()
        else:
            for number in ids[:2]:
                other.cancel(number)
            assert codes(other.collect(ids[:2])) == ["cancelled"] * 2
        (tmp_path / "open").touch()
        if how == "cancels":
            assert codes(other.collect(ids[2:])) == ["ok"]
        assert codes(session.collect(good)) == ["ok"] * 3


@pytest.mark.timing
def test_batches_have_eight_times_the_throughput_of_one_at_a_time(server: Server) -> None:
    def rate(spec: str, count: int) -> float:
        began = time.monotonic()
        assert Counter(codes(ask_all(server, spec, count))) == {"ok": count}
        return count / (time.monotonic() - began)

    def measure() -> float:
        single, batched = rate("one", 400), rate("model", 960)  # the queue takes 1,000
        print(f"one at a time {single:.0f}/s, in batches {batched:.0f}/s: {batched / single:.1f} times")
        return single / batched

    rate("model", 100)
    assert_within(1 / 8, measure)


@pytest.mark.timing
def test_alone_a_request_of_a_batch_takes_no_longer_than_it_may_wait_for_others(session: Session) -> None:
    def latency_ms(spec: str) -> float:
        return 1_000 * median(session.ask(spec, b"poem").elapsed_s for _ in range(50))

    def measure() -> float:
        alone, batched = latency_ms("one"), latency_ms("model")
        print(f"without batches {alone:.2f} ms, alone in a batch {batched:.2f} ms")
        return batched - alone

    assert_within(6.5, measure)  # 5 ms, and what timers are late


# Asyncio.


@pytest.mark.timing
def test_a_thousand_requests_that_wait_for_a_second_end_within_two(server: Server) -> None:
    def measure() -> float:
        began = time.monotonic()
        assert Counter(codes(ask_all(server, "pure", 1_000, poem=b"sleep 1"))) == {"ok": 1_000}
        took_s = time.monotonic() - began
        print(f"1,000 requests that wait 1 s each: {took_s:.2f} s")
        return took_s - 1

    assert_within(1.0, measure)


def test_a_deadline_and_a_cancellation_end_the_task_and_cost_no_companion_anything(session: Session) -> None:
    (kept,) = session.send(("impure", b"sleep 1.5"))
    assert session.ask("impure", b"sleep 1000", timeout_ms=100).code == "timeout"
    (cancelled,) = session.send(("impure", b"sleep 1000"))
    session.cancel(cancelled)
    assert codes(session.collect([cancelled, kept])) == ["cancelled", "ok"]


@pytest.mark.parametrize("poison", ["deaf", "block", "crash"])
@pytest.mark.parametrize(("spec", "code"), [("pure", "ok"), ("impure", "transform-died")])
def test_what_costs_its_worker_costs_companions_nothing_that_may_run_again(
    server: Server, session: Session, poison: str, spec: str, code: str
) -> None:
    with Session(server) as other:
        companions = other.send(*[(spec, b"sleep 2")] * 5)
        session.ask(spec, b"sleep 0.05")
        own = session.ask(spec, poison.encode(), timeout_ms=300)
        assert own.code == ("transform-died" if poison == "crash" else "timeout")
        assert set(codes(other.collect(companions))) == {code}
        assert session.ask(spec, b"sleep 0").code == "ok"
        assert session.ask("one", b"good").code == "ok"
    assert "quarantine" not in server.log


def test_what_blocks_its_loop_again_and_again_is_in_quarantine(tmp_path: Path) -> None:
    with running(tmp_path) as server, Session(server) as session:
        wait_until(lambda: session.ask("pure", b"block", timeout_ms=100).code == "unavailable")
        wait_until(lambda: "transform pure is in quarantine for 127.0.0.1: it has killed 5 workers" in server.log)
        assert session.ask("pure", b"sleep 0").code == "unavailable"
        assert session.ask("impure", b"sleep 0").code == "ok"


def test_worn_workers_are_replaced_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    settings = {"XFORMD_MAX_JOBS_PER_WORKER": "40"}
    with running(tmp_path, **settings) as server:
        with ExitStack() as stack:
            loads = [stack.enter_context(Load(server, spec, outstanding=20)) for spec in ("briefly", "model", "one")]
            wait_until(lambda: all(load.total > 500 for load in loads))
        assert [(load.trouble, {*load.codes}) for load in loads] == [("", {"ok"})] * 3


def test_a_reload_under_load_loses_no_request(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with ExitStack() as stack:
            loads = [stack.enter_context(Load(server, spec, outstanding=20)) for spec in ("briefly", "model", "one")]
            for reload in range(1, 4):
                server.process.send_signal(signal.SIGHUP)
                wait_until(lambda count=reload: server.log.count("reloaded:") == count)  # type: ignore[misc]
            after = [load.total for load in loads]
            wait_until(lambda: all(load.total > before + 100 for load, before in zip(loads, after, strict=True)))
        assert [(load.trouble, {*load.codes}) for load in loads] == [("", {"ok"})] * 3


def test_a_server_that_stops_finishes_what_it_has_accepted(tmp_path: Path) -> None:
    with running(tmp_path) as server, Session(server) as session:
        ids = session.send(*[("impure", b"sleep 1")] * 5, *[("touchy", b"slow")] * 5)
        session.ask("one", b"good")
        server.process.send_signal(signal.SIGTERM)
        assert codes(session.collect(ids)) == ["ok"] * 10


def test_a_server_that_may_wait_no_longer_says_so(tmp_path: Path) -> None:
    with running(tmp_path, XFORMD_SHUTDOWN_GRACE_S="0.5") as server, Session(server) as session:
        ids = session.send(*[("impure", b"sleep 1000")] * 3, *[("impure", b"deaf")] * 3)
        session.ask("one", b"good")
        server.process.send_signal(signal.SIGTERM)
        assert codes(session.collect(ids)) == ["shutting-down"] * 6
        server.process.wait(DEADLINE_S)


def test_without_workers_asyncio_is_unavailable_and_batches_are_of_one(tmp_path: Path) -> None:
    with running(tmp_path, "--workers", "0") as server, Session(server) as session:
        refused = session.ask("pure", b"sleep 0")
        assert refused.code == "unavailable"
        assert b"pure runs on asyncio in a worker, and this server has none: --workers 1 or more" in refused.poem
        assert session.ask("model", b"poem").poem == b"poem"
        assert session.ask("model+one", b"poem").poem == b"poem"


def test_steps_of_every_sort_follow_each_other(session: Session) -> None:
    answers = session.collect(session.send(*[("one+model+upper+pure+briefly+model+one", b"sleep 0")] * 20))
    assert {(answer.code, answer.poem) for answer in answers} == {("ok", b"SLEEP 0")}
