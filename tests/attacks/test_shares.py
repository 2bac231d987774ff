"""One address asks for as much as it can; another one, which asks for little, hardly notices.

Each attack is for a few seconds, with the figure that it must print.
"""

import select
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.processes import DEADLINE_S, Server, netstring, read_to_end, serving
from support.session_client import Answer, Session, read_all
from support.timing import assert_within

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shares")]

ATTACKER, VICTIM = "127.0.0.2", "127.0.0.3"
ATTACK_S = 4.0
JOB_S = 0.3

NOISE_S = 0.1
"""What a busy machine may add."""

PLUGIN = """
import time
import xformd

@xformd.transform(examples=[("a", "a", {"seconds": 0.0})])
def heavy(poem: str, *, seconds: float = 0.3) -> str:
    time.sleep(seconds)
    return poem

@xformd.transform
def fill(poem: str) -> str:
    return poem * 1000

@xformd.transform(examples=[("a", "a")])
def hoard(poem: str) -> str:
    kept = [poem]
    while len(poem) > 1_000:
        kept.append(" " * 10_000_000)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [heavy, fill, hoard]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "work.py").write_text(PLUGIN)
    options = ("--trusted-proxies", "127.0.0.1", "--worker-memory-bytes", "200MiB")
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(folder), *options, XFORMD_WORKERS="2") as running:
        yield running


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "proxy"
    folder.mkdir()
    with serving(folder, server.address, verb=("proxy",), ready="listening") as running:
        yield running


@contextmanager
def attacking(*attacks: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run attacks in threads, each until its event is set."""
    over = threading.Event()
    threads = [threading.Thread(target=attack, args=(over,), daemon=True) for attack in attacks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(90)


def ask_for(seconds: float, server: Server, spec: str = "wrap:width=20", source: str = VICTIM) -> list[Answer]:
    """Ask for something small again and again, and return the answers."""
    answers = []
    with Session(server, source) as session:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            answers.append(session.ask(spec, b"%d owls went to sea" % time.monotonic_ns()))  # which no cache has
            time.sleep(0.002)
    return answers


def slowest_s(answers: list[Answer]) -> float:
    assert {answer.code for answer in answers} == {"ok"}
    return sorted(answer.elapsed_s for answer in answers)[len(answers) * 99 // 100]


def median_s(answers: list[Answer]) -> float:
    assert {answer.code for answer in answers} == {"ok"}
    return statistics.median(answer.elapsed_s for answer in answers)


def on_classic_connections(server: Server) -> Callable[[threading.Event], None]:
    def attack(over: threading.Event) -> None:
        while not over.is_set():
            with server.connect(ATTACKER) as connection:
                connection.sendall(netstring(b"heavy." + b"x" * 2_400))
                read_to_end(connection)

    return attack


def in_a_session(server: Server, count: int = 64) -> Callable[[threading.Event], None]:
    def attack(over: threading.Event) -> None:
        with Session(server, ATTACKER) as session:
            session.send(*[("heavy", b"%d" % number) for number in range(count)])
            while not over.is_set():
                session.receive()
                session.send(("heavy", b"%d" % time.monotonic_ns()))

    return attack


def assert_hardly_noticed(name: str, server: Server, *attacks: Callable[[threading.Event], None]) -> None:
    """Compare the 99th percentile of another address's requests with what it is without the attacks."""
    alone_s = slowest_s(ask_for(1.5, server))
    limit_s = 1.5 * alone_s + JOB_S + NOISE_S
    print(f"\n{name}: alone {1000 * alone_s:.0f} ms, a job {1000 * JOB_S:.0f} ms; p99 in seconds", end=" ")
    with attacking(*attacks):
        assert_within(limit_s, lambda: slowest_s(ask_for(ATTACK_S, server)))


def test_thirty_connections_of_one_address_do_not_keep_the_workers(server: Server) -> None:
    assert_hardly_noticed("30 connections", server, *[on_classic_connections(server)] * 30)


def test_a_heavy_session_at_the_proxy_does_not_keep_the_upstream(proxy: Server) -> None:
    """The upstream trusts the proxy: each of its clients has a share of its own there."""
    assert_hardly_noticed("64 requests at the proxy", proxy, in_a_session(proxy))


def fill_and_never_read(server: Server, stack: ExitStack) -> None:
    for _ in range(17):
        session = stack.enter_context(Session(server, ATTACKER))
        session.send(*[("fill", b"x" * 100)] * 64)
        assert select.select([session.socket], [], [], DEADLINE_S)[0], "it is not answered"


@pytest.mark.parametrize("through", ["server", "proxy"])
def test_sessions_that_do_not_read_make_nobody_else_wait(through: str, request: pytest.FixtureRequest) -> None:
    front: Server = request.getfixturevalue(through)
    with ExitStack() as stack:
        fill_and_never_read(front, stack)
        sessions = [stack.enter_context(Session(front, VICTIM)) for _ in range(4)]
        ids = [session.send(*[("wrap", b"%d" % number) for number in range(60)]) for session in sessions]
        read_all(sessions)
        answers = [answer for session, each in zip(sessions, ids, strict=True) for answer in session.collect(each)]
    busy = sum(answer.code == "busy" for answer in answers)
    print(f"\n17 sessions that do not read, at the {through}: {busy} of {len(answers)} of another's requests are busy")
    assert {answer.code for answer in answers} == {"ok"}


def test_pipelines_that_have_begun_keep_nobody_out_of_the_queue(server: Server) -> None:
    """Their later parts come to the queue when the first one has run, here in the server itself."""
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(Session(server, ATTACKER)).send(*[("upper+heavy", b"x")] * 64)
        answers = ask_for(1.5, server)
    busy = sum(answer.code == "busy" for answer in answers)
    print(f"\n1,280 pipelines of one address: {busy} of {len(answers)} of another's requests are busy")
    assert {answer.code for answer in answers} == {"ok"}


def with_timeouts(server: Server) -> Callable[[threading.Event], None]:
    def attack(over: threading.Event) -> None:
        with Session(server, ATTACKER) as session:
            while not over.wait(1 / 60):
                session.send(("heavy:seconds=5%2E0", b"x" * 1_400), timeout_ms=60)

    return attack


def with_cancels(server: Server) -> Callable[[threading.Event], None]:
    def attack(over: threading.Event) -> None:
        with Session(server, ATTACKER) as session:
            while not over.is_set():
                numbers = session.send(*[("heavy:seconds=5%2E0", b"x" * 1_400)] * 4)  # more than there are workers
                over.wait(1 / 15)  # so that each worker has one, nearly all the time
                for number in numbers:
                    session.cancel(number)

    return attack


@pytest.mark.parametrize("attack", [with_timeouts, with_cancels])
def test_churn_of_workers_costs_its_own_share(
    server: Server, attack: Callable[[Server], Callable[[threading.Event], None]]
) -> None:
    alone_s = median_s(ask_for(1.5, server))
    limit_s = 3 * alone_s + 0.002
    print(f"\n{attack.__name__}: alone {1000 * alone_s:.1f} ms; median in seconds", end=" ")
    with attacking(attack(server)):
        assert_within(limit_s, lambda: median_s(ask_for(ATTACK_S, server)))


def test_large_requests_of_one_client_quarantine_a_transform_for_nobody_else(server: Server) -> None:
    with Session(server, ATTACKER) as attacker, Session(server, VICTIM) as victim:
        answers = [attacker.ask("hoard", b"x" * 100_000) for _ in range(6)]
        codes = [answer.code for answer in answers]
        print(f"\nfive that run out of memory: {codes[:5]}, then {codes[5]}; another's: {victim.ask('hoard').code}")
        assert codes == ["transform-died"] * 5 + ["unavailable"]
        assert all(b"ran out of memory" in answer.poem for answer in answers[:5])
        assert victim.ask("hoard", b"small").code == "ok"
        assert attacker.ask("hoard", b"small").code == "ok"


def test_requests_that_never_end_keep_nobody_from_sending_long_ones(server: Server) -> None:
    head = b"10000000:heavy:seconds=0." + b"x" * 100_000
    with ExitStack() as stack:
        greedy = [stack.enter_context(server.connect(ATTACKER)) for _ in range(120)]
        for connection in greedy:
            connection.sendall(head)
        with Session(server, VICTIM) as session:
            answers = [session.ask("wrap", b"owl " * 1_000_000) for _ in range(3)]
        closed = [connection for connection in greedy if select.select([connection], [], [], 0)[0]]
    print(f"\n120 requests of 10 MB that never end: {len(closed)} are closed, another's of 4 MB: {answers[0].code}")
    assert {answer.code for answer in answers} == {"ok"}
    assert 120 - len(closed) <= 54
