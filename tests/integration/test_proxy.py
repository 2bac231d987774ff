"""``xformd proxy`` in front of real servers."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import counted, packages, poems
from support.counted import Counted, counting, proxying
from support.packages import Environment
from support.processes import DEADLINE_S, XFORMD, Server, netstring, read_to_end, resident_bytes, wait_until, xformd
from support.processes import environment as variables
from support.session_client import Load, Session, step
from support.timing import assert_within

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the first version of the plugin."""
    return counted.install("1.0", tmp_path_factory.mktemp("counted"))


@pytest.fixture(scope="module")
def shared(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    """A server that no test stops, and whose gate none opens."""
    with counting(environment, tmp_path_factory.mktemp("shared")) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def front(shared: Counted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A proxy in front of it, which no test stops either."""
    with proxying(tmp_path_factory.mktemp("front"), shared.address) as proxy:
        yield proxy


def classic(server: Server, spec: str, poem: bytes) -> bytes:
    return server.ask(netstring(spec.encode() + b"." + poem))


def listing(server: Server) -> Any:
    with Session(server) as session:
        return json.loads(session.ask("!list").poem)


def time_out(session: Session, spec: str, timeout_s: float, **attributes: int) -> float:
    """Ask for what is not ready in time; return how many seconds later the answer comes: never before."""
    answer = session.ask(spec, b"owl", **attributes)
    assert answer.code == "timeout"
    assert answer.elapsed_s >= timeout_s
    return answer.elapsed_s - timeout_s


def test_100_simultaneous_misses_make_one_call(environment: Environment, tmp_path: Path) -> None:
    spec = step("counted", gate="true")
    with counting(environment, tmp_path) as upstream, proxying(tmp_path, upstream.address) as proxy:
        with ExitStack() as stack:
            sessions = [stack.enter_context(Session(proxy)) for _ in range(60)]
            for session in sessions:
                session.send((spec, b"owl"))
            sockets = [stack.enter_context(proxy.connect()) for _ in range(40)]
            for connection in sockets:
                connection.sendall(netstring(spec.encode() + b".owl"))
            wait_until(lambda: listing(proxy)["cache"]["misses"] == 100)
            sessions.pop(0).abort()
            upstream.open_gate()
            assert {session.receive().poem for session in sessions} == {b"owl 1.0"}
            assert {read_to_end(connection) for connection in sockets} == {b"7:owl 1.0,"}
        assert upstream.calls == 1
        assert classic(proxy, spec, b"owl") == b"7:owl 1.0,"
        assert upstream.calls == 1
        assert proxy.log == ""


@pytest.mark.slow
def test_after_an_upgrade_no_old_result_is_returned(tmp_path: Path) -> None:
    environment = counted.install("1.0", tmp_path)
    newer = counted.build("2.0", tmp_path / "newer")
    with counting(environment, tmp_path) as upstream:
        with proxying(tmp_path, upstream.address) as proxy, Session(proxy) as session:
            assert session.ask("counted", b"owl").poem == b"owl 1.0"
            packages.install(environment, [newer])
            upstream.server.process.send_signal(signal.SIGHUP)
            with Session(upstream.server) as direct:
                wait_until(lambda: direct.ask("counted", b"cat").poem == b"cat 2.0")
            wait_until(lambda: session.ask("counted", b"owl").poem == b"owl 2.0")
            assert {session.ask("counted", b"owl").poem for _ in range(20)} == {b"owl 2.0"}


@pytest.mark.slow
def test_of_two_upstreams_one_may_die(environment: Environment, tmp_path: Path) -> None:
    with counting(environment, tmp_path) as first, counting(environment, tmp_path) as second:
        with proxying(tmp_path, first.address, second.address) as proxy:
            with Load(proxy, step("counted", seconds=0.02)) as load:
                wait_until(lambda: first.calls > 5 and second.calls > 5)
                first.server.process.kill()
                after = load.total
                wait_until(lambda: load.total > after + 30)
            assert (load.trouble, set(load.codes)) == ("", {"ok"})


def test_an_error_passes_through_and_is_not_cached(shared: Counted, front: Server) -> None:
    kept_bytes = listing(front)["cache"]["bytes"]
    with Session(front) as session, Session(shared.server) as direct:
        for spec in ("refuses", "no-such-thing", "wrap:width=wide", "upper:x=1"):
            wanted = direct.ask(spec, b"owl")
            assert wanted.code != "ok"
            before = shared.calls
            for _ in range(2):
                answer = session.ask(spec, b"owl")
                assert (answer.code, answer.poem) == (wanted.code, wanted.poem)
            assert shared.calls == before + (2 if spec == "refuses" else 0)
    assert listing(front)["cache"]["bytes"] == kept_bytes


def test_a_large_result_is_cached_and_counted(shared: Counted, front: Server) -> None:
    poem = bytes(range(256)) * (8 * 4096)
    before, cache = shared.calls, listing(front)["cache"]
    with Session(front) as session:
        assert [session.ask("counted", poem).poem for _ in range(3)] == [poem + b" 1.0"] * 3
    assert classic(front, "counted", poem) == netstring(poem + b" 1.0")
    assert shared.calls == before + 1
    table = xformd("list-transforms", "--server", front.address).stdout.decode()
    assert f"cache: {cache['hits'] + 3} hits, {cache['misses'] + 1} misses, " in table


@pytest.mark.timing
def test_a_clients_own_deadline_holds(front: Server) -> None:
    slow = step("counted", seconds=5)
    with Session(front) as session:
        for spec in (slow, slow + "+fickle"):
            assert_within(0.2, lambda spec=spec: time_out(session, spec, 0.3, timeout_ms=300))  # type: ignore[misc]


@pytest.mark.timing
def test_an_upstream_that_never_answers_is_a_timeout(tmp_path: Path) -> None:
    with poems.peer(poems.only_listens) as upstream:
        with proxying(tmp_path, upstream.address, "--transform-timeout-s", "1") as proxy, Session(proxy) as session:
            assert_within(0.2, lambda: time_out(session, "counted", 1.0))
            wait_until(lambda: "does not list its transforms" in proxy.log)
            assert proxy.stop() == 0


@pytest.mark.slow
def test_the_cache_stays_within_its_bytes(shared: Counted, tmp_path: Path) -> None:
    with proxying(tmp_path, shared.address, "--cache-bytes", "2MiB") as proxy, Session(proxy) as session:
        memory = 0
        for number in range(600):
            poem = b"%d" % number + bytes(100_000)
            assert session.ask("cummingsify", poem).poem == poem
            if number == 100:
                memory = resident_bytes(proxy)
        cache = listing(proxy)["cache"]
        assert (cache["hits"], cache["misses"]) == (0, 600)
        assert 1.6 * MIB < cache["bytes"] <= 2 * MIB
        assert resident_bytes(proxy) - memory < 8 * MIB  # of 50 MB that went through


@pytest.mark.slow
def test_a_request_in_flight_is_answered_before_the_proxy_ends(environment: Environment, tmp_path: Path) -> None:
    with counting(environment, tmp_path) as upstream, proxying(tmp_path, upstream.address) as proxy:
        with Session(proxy) as session:
            (number,) = session.send((step("counted", gate="true"), b"owl"))
            wait_until(lambda: upstream.calls == 1)
            proxy.process.terminate()
            assert session.receive().code == "shutting-down"
            upstream.open_gate()
            (answer,) = session.collect([number])
            assert answer.poem == b"owl 1.0"
        assert proxy.process.wait(10) == 0
        assert proxy.log == ""


@pytest.mark.slow
def test_a_proxy_that_is_stopped_before_it_listens_prints_nothing() -> None:
    with poems.peer(poems.only_listens) as upstream:
        words = [*XFORMD, "proxy", "--port", "0", upstream.address]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables()) as proxy:
            wait_until(lambda: bool(upstream.connected_at))
            proxy.terminate()
            assert proxy.communicate(timeout=DEADLINE_S)[0] == b""
