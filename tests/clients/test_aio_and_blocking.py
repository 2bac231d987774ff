"""What is peculiar to the clients without Twisted: imports, types, forks, threads, Ctrl-C, one line."""

import asyncio
import contextlib
import gc
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xformd
from support.clients import CLIENTS, HELLO, Conversation, FakeServer, answers, number, until, upper
from support.processes import DEADLINE_S
from support.timing import assert_within
from xformd import aio, blocking
from xformd.blocking import link

ROOT = Path(__file__).parents[2]

USER_CODE = """
import asyncio
from typing import assert_type

from twisted.internet.defer import Deferred

from xformd import TransformProxy, call
from xformd.aio import TransformClient as AsyncioClient
from xformd.blocking import TransformClient


async def ask(client: AsyncioClient) -> None:
    assert_type(await client.xform("upper", "x"), str)
    assert_type(await client.xform("upper", b"x", timeout=1.5), bytes)
    assert_type(await client.xform("gzip", "x", result=bytes), bytes)
    assert_type(await client.xform("gunzip", b"x", result=str, level=3), str)


with TransformClient("127.0.0.1:1") as client:
    assert_type(client.xform("upper", "x", width=40), str)
    assert_type(client.xform("upper", b"x"), bytes)
    assert_type(client.xform("gzip", "x", result=bytes), bytes)
    assert_type([*client.map("upper", ["x"])], list[str])
    assert_type([*client.map("gzip", ["x"], result=bytes)], list[bytes])
assert_type(call("upper", "x"), str)
proxy = TransformProxy("127.0.0.1:1")
assert_type(proxy.xform("upper", "x"), Deferred[str])
assert_type(proxy.xform("upper", b"x", timeout=1, hedge=True), Deferred[bytes])
assert_type(proxy.xform("gzip", "x", result=bytes), Deferred[bytes])
assert_type(call("gzip", "x", result=bytes), bytes)
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    started = FakeServer(answers(upper))
    yield started
    started.stop()


@pytest.mark.parametrize("module", ["aio", "blocking"])
def test_neither_needs_twisted(module: str, server: FakeServer) -> None:
    ask = {
        "aio": "import asyncio; asyncio.run(xformd.aio.TransformClient(sys.argv[1]).xform('upper', 'x'))",
        "blocking": "xformd.blocking.TransformClient(sys.argv[1]).xform('upper', 'x')",
    }[module]
    code = f"import sys; sys.modules['twisted'] = None; import xformd.{module}; {ask}"
    subprocess.run([sys.executable, "-W", "error", "-c", code, server.address], check=True, timeout=90)


def test_importing_the_asyncio_client_loads_nothing_that_takes_long() -> None:
    heavy = "{'twisted', 'asyncio', 'ssl', 'attr', 'inspect', 'dataclasses', 'logging'}"
    imports = "import sys; before = {*sys.modules}; import xformd.aio"
    code = f"{imports}; sys.exit(', '.join({heavy} & {{*sys.modules}} - before) or None)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)


@pytest.mark.slow
@pytest.mark.timing
def test_importing_the_asyncio_client_takes_60_ms(tmp_path: Path) -> None:
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}

    def cpu_s(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | compiled)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    alone = min(cpu_s("pass") for _ in range(7))
    cpu_s("import xformd.aio")  # which compiles it
    assert_within(0.060, lambda: cpu_s("import xformd.aio") - alone, tries=20)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_the_type_of_a_result_is_known(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker, reason="pip install --group dev")
    program = tmp_path / "program.py"
    program.write_text(USER_CODE)
    options = {
        "mypy": ["--strict", "--config-file=", "--cache-dir", str(tmp_path)],
        "basedpyright": ["--level", "error", "--pythonpath", sys.executable],
    }[checker]
    command = [sys.executable, "-m", checker, *options, str(program)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@pytest.mark.timing
def test_a_request_costs_no_more_than_with_twisted() -> None:
    def measure() -> float:
        command = [sys.executable, "-m", "benchmarks.clients", "--rounds", "1", "--requests", "2000"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
        print(done.stdout)
        ratios = re.findall(r"([\d.]+) of TransformProxy  at most ([\d.]+)", done.stdout)
        assert len(ratios) == 2
        return max(float(ratio) / float(most) for ratio, most in ratios)

    assert_within(1.0, measure)


def test_one_line_asks_the_server_of_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFORMD_SERVER", server.address)
    assert xformd.call("upper", "x") == "X"
    assert xformd.call("upper", "x", result=bytes, width=3) == b"X"
    monkeypatch.setenv("XFORMD_TOKEN", "secret")
    server.talk = answers(lambda string: b"1 ok.{}" if b"!auth" in string else upper(string))
    assert xformd.call("upper", "y") == "Y"
    assert server.received[-2] == b"1 !auth.secret"
    assert server.received[-1].startswith(b"2 upper timeout=")


def test_one_line_may_be_the_first_in_several_threads(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFORMD_SERVER", server.address)
    answered: list[str] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for each in range(20):
            monkeypatch.setenv("XFORMD_ROUND", str(each))  # so that a client is made
            threads = [threading.Thread(target=lambda: answered.append(xformd.call("upper", "x"))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(90)
    finally:
        sys.setswitchinterval(before)
    assert answered == ["X"] * 160


@pytest.mark.parametrize("kind", ["asyncio", "blocking"])
def test_an_address_that_this_machine_cannot_use_is_passed_over(
    kind: str, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_family, port = 255, int(server.address.partition(":")[2])
    found = [(no_family, 1, 6, "", ("::1", port, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    clients = CLIENTS[kind]()
    assert [clients.make("owls.test", port=1).xform("upper", "x") for _ in range(10)] == ["X"] * 10
    clients.stop()


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_name_that_cannot_be_one_is_no_server(kind: str) -> None:
    clients = CLIENTS[kind]()
    with pytest.raises(xformd.ConnectionFailed, match=r"cannot connect to a\.\.b:1: "):
        clients.make("a..b:1").xform("upper", "x")
    clients.stop()


@pytest.mark.filterwarnings("ignore:unclosed", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_of_asyncio_may_be_used_in_one_loop_after_another(server: FakeServer) -> None:
    client = aio.TransformClient(server.address)
    assert [asyncio.run(client.xform("upper", each)) for each in "ab"] == ["A", "B"]
    del client
    gc.collect()  # what it had in loops that are over


@pytest.mark.parametrize("kind", ["twisted", "asyncio"])
def test_a_cancelled_request_is_cancelled_at_the_server(kind: str) -> None:
    server = FakeServer(answers(lambda string: upper(string) if string.endswith(b"quick") else None))
    clients = CLIENTS[kind]()
    client = clients.make(server.address)
    begun = client.start("upper", "slow")
    until(lambda: b"1 upper.slow" in server.received)
    begun.cancel()
    until(lambda: b"1 !cancel." in server.received)
    assert client.xform("upper", "quick") == "QUICK"
    assert server.connections == 1
    clients.stop()
    server.stop()


def closed_meanwhile(client: Any, begun: Any, goes_on: threading.Event) -> Any:
    """Close a client, let the server go on then, and return the result of what was begun before."""
    closing = threading.Thread(target=client.close)
    closing.start()
    until(lambda: _is_closed(client))
    goes_on.set()
    result = begun.result(DEADLINE_S)
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    return result


@pytest.mark.parametrize("kind", CLIENTS)
def test_closing_waits_for_a_request_that_waits_for_its_connection(kind: str) -> None:
    may_open = threading.Event()

    def late(conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                may_open.wait(DEADLINE_S)
            conversation.say(HELLO if string == b"xformd/2" else upper(string))

    server = FakeServer(late)
    clients = CLIENTS[kind]()
    client = clients.make(server.address)
    begun = client.start("upper", "poem")
    until(lambda: server.received)
    assert closed_meanwhile(client, begun, may_open) == "POEM"
    clients.stop()
    server.stop()


@pytest.mark.parametrize("kind", CLIENTS)
def test_what_is_accepted_ends_although_it_needs_another_connection_after_the_client_is_closed(kind: str) -> None:
    may_refuse = threading.Event()

    def stop_late(conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
            elif conversation.server.connections > 1:
                conversation.say(upper(string))
            else:
                may_refuse.wait(DEADLINE_S)
                conversation.say(number(string) + b" shutting-down retry-after=1.bye")

    server = FakeServer(stop_late)
    clients = CLIENTS[kind]()
    client = clients.make(server.address)
    begun = client.start("upper", "poem")
    until(lambda: b"1 upper.poem" in server.received)
    assert closed_meanwhile(client, begun, may_refuse) == "POEM"
    clients.stop()
    server.stop()


def test_closing_that_is_given_up_leaves_no_connection_open() -> None:
    ended = threading.Event()

    def hold(conversation: Conversation) -> None:
        with contextlib.ExitStack() as at_end:
            at_end.callback(ended.set)
            for string in conversation:
                if string == b"xformd/2":
                    conversation.say(HELLO)
                elif string != b"1 upper.slow":
                    conversation.say(number(string) + (b" cancelled." if b"!cancel" in string else b" ok."))

    server = FakeServer(hold)

    async def give_up() -> None:
        client = aio.TransformClient(server.address)
        asked = asyncio.create_task(client.xform("upper", "slow"))
        while b"1 upper.slow" not in server.received:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.close(), 0.05)
        asked.cancel()
        assert await asyncio.to_thread(ended.wait, DEADLINE_S / 9)

    asyncio.run(give_up())
    server.stop()


def test_a_signal_may_close_the_client_amid_a_request() -> None:
    silent = FakeServer(answers(lambda string: None))

    def interrupt() -> None:
        until(lambda: b"1 upper.slow" in silent.received)
        os.kill(os.getpid(), signal.SIGUSR1)

    with blocking.TransformClient(silent.address) as client:

        def close(*_: object) -> None:
            client.close()
            silent.crash()

        before = signal.signal(signal.SIGUSR1, close)
        threading.Thread(target=interrupt).start()
        with pytest.raises(xformd.ConnectionLost):
            client.xform("upper", "slow")
        signal.signal(signal.SIGUSR1, before)
    silent.stop()


def _is_closed(client: Any) -> bool:
    """Whether it takes nothing more."""
    with pytest.raises(xformd.XformError) as refused:
        client.ping(timeout=0.1)
    return "is closed" in refused.value.message


def test_ctrl_c_cancels_the_request_at_the_server_and_the_client_goes_on() -> None:
    server = FakeServer(answers(lambda string: upper(string) if string.endswith(b"quick") else None))

    def interrupt() -> None:
        until(lambda: b"1 upper.slow" in server.received)
        os.kill(os.getpid(), signal.SIGINT)

    with blocking.TransformClient(server.address) as client:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            client.xform("upper", "slow")
        until(lambda: b"1 !cancel." in server.received)
        assert client.xform("upper", "quick") == "QUICK"
    assert server.connections == 1
    server.stop()


def test_a_forked_process_has_connections_of_its_own(server: FakeServer) -> None:
    with blocking.TransformClient(server.address) as client:
        assert client.xform("upper", "parent") == "PARENT"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int([client.xform("upper", "child") for _ in range(3)] != ["CHILD"] * 3)
            finally:
                os._exit(status)
        assert [client.xform("upper", "parent") for _ in range(3)] == ["PARENT"] * 3
        assert os.waitpid(child, 0)[1] == 0
        assert client.xform("upper", "after") == "AFTER"
    assert server.connections == 2


def test_many_threads_share_a_connection(server: FakeServer) -> None:
    wrong: list[str] = []
    with blocking.TransformClient(server.address) as client:

        def work(name: str) -> None:
            for each in range(50):
                poem = f"{name} {each}"
                if client.xform("upper", poem, timeout=90) != poem.upper():
                    wrong.append(poem)

        threads = [threading.Thread(target=work, args=(f"thread {each}",)) for each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert (wrong, server.connections, len(server.received)) == ([], 1, 401)


def test_the_thread_that_reads_may_leave_before_the_others() -> None:
    held: list[bytes] = []

    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
            elif b"!cancel" in string:
                conversation.say(number(string) + b" cancelled.", *map(upper, held[1:]))
            else:
                held.append(string)

    server = FakeServer(talk)
    with blocking.TransformClient(server.address) as client:
        results: list[str] = []

        def leave() -> None:
            with pytest.raises(xformd.TransformTimeout):
                client.xform("a", "x", timeout=1)

        first = threading.Thread(target=leave)
        first.start()
        until(lambda: held)
        others = [threading.Thread(target=lambda: results.append(client.xform("upper", "y"))) for _ in range(3)]
        for thread in others:
            thread.start()
        for thread in (first, *others):
            thread.join(90)
    assert results == ["Y"] * 3
    server.stop()


def test_long_poems_from_many_threads_arrive_while_others_are_answered() -> None:
    hello = HELLO.replace(b"1000000", b"9000000")
    server = FakeServer(answers(upper, hello))
    poem = "long poem " * 300_000
    with blocking.TransformClient(server.address) as client:
        results: list[bool] = []

        def work() -> None:
            results.append(client.xform("upper", poem, timeout=60) == poem.upper())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == [True] * 4
    server.stop()


def test_a_thread_that_still_sends_waits_no_longer_than_its_timeout() -> None:
    def only_greet(conversation: Conversation) -> None:
        next(iter(conversation))
        conversation.say(HELLO.replace(b"1000000", b"90000000"))
        is_over.wait(DEADLINE_S)

    is_over = threading.Event()
    server = FakeServer(only_greet)
    client = blocking.TransformClient(server.address)
    with ThreadPoolExecutor() as threads:
        reads = threads.submit(client.xform, "upper", "x" * 20_000_000)
        until(lambda: [node for node in client._balancer.nodes if node.link._reader is not None])  # type: ignore[attr-defined]
        sends = threads.submit(client.xform, "upper", "x", timeout=0.2)
        try:
            assert isinstance(sends.exception(DEADLINE_S / 2), xformd.TransformTimeout)
        finally:
            is_over.set()
            server.stop()
        assert isinstance(reads.exception(DEADLINE_S), xformd.ConnectionLost)
    client.close()


def test_a_thread_that_still_sends_hears_that_the_connection_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_greet(conversation: Conversation) -> None:
        next(iter(conversation))
        conversation.say(HELLO.replace(b"1000000", b"90000000"))
        gone.wait(90)

    class Poll:
        """What a thread waits with: before it waits to send, another one has found that the connection is lost."""

        def __init__(self) -> None:
            self.real = select.poll()
            self.poll, self.modify = self.real.poll, self.real.modify

        def register(self, connection: socket.socket, events: int) -> None:
            if events == select.POLLOUT:
                server.crash()
                until(lambda: connection.fileno() < 0)
            self.real.register(connection, events)

    names = {"poll": Poll, "POLLIN": select.POLLIN, "POLLOUT": select.POLLOUT}
    monkeypatch.setattr(link, "select", SimpleNamespace(**names))
    gone = threading.Event()
    server = FakeServer(only_greet)
    with blocking.TransformClient(server.address) as client, ThreadPoolExecutor() as threads:
        begun = [threads.submit(client.xform, "upper", "x" * 20_000_000, timeout=90) for _ in range(2)]
        for each in begun:
            with pytest.raises(xformd.ConnectionLost):
                each.result(90)
    gone.set()
    server.stop()


def test_a_thread_that_is_interrupted_before_it_reads_leaves_that_to_others(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with blocking.TransformClient(server.address) as client:
        assert client.xform("upper", "x") == "X"
        with monkeypatch.context() as at_that_point:
            at_that_point.setattr(link.Link, "_read_until", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.xform("upper", "y")
        assert client.xform("upper", "z", timeout=5) == "Z"


def test_a_system_without_room_for_a_thread_may_have_it_later(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with blocking.TransformClient(server.address) as client:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                client.xform("upper", "x", timeout=5)
        assert client.xform("upper", "x", timeout=5) == "X"


def test_map_keeps_the_order_and_stops_at_the_first_error(server: FakeServer) -> None:
    server.talk = answers(lambda s: number(s) + b" gibberish.no" if s.endswith(b"13") else upper(s))
    with blocking.TransformClient(server.address) as client:
        assert [*client.map("upper", map(str, range(100, 112)))] == [str(each) for each in range(100, 112)]
        results = client.map("upper", (f"p{each}" for each in range(1000)), in_flight=8)
        for each in range(13):
            assert next(results) == f"P{each}"
        with pytest.raises(xformd.GibberishError) as caught:
            next(results)
        assert caught.value.poem == "p13"
        assert client.xform("upper", "on") == "ON"
    assert server.connections == 1


def test_map_drops_no_poem(server: FakeServer) -> None:
    poems: Any = ["x", None, "y"]
    with blocking.TransformClient(server.address) as client:
        results = client.map("upper", poems)
        assert next(results) == "X"
        with pytest.raises(TypeError, match="a poem must be str or bytes, not NoneType"):
            next(results)
        assert [*client.map("upper", ["x", "y"], in_flight=0)] == ["X", "Y"]


def test_a_signal_may_close_the_client_between_the_requests_of_map(server: FakeServer) -> None:
    class Interrupted(str):
        def encode(self, *_: Any) -> bytes:
            client.xform("upper", "y")  # so that there is a connection to close
            client.close()
            return b"x"

    client = blocking.TransformClient(server.address)
    with pytest.raises(xformd.ConnectionFailed, match="is closed"):
        next(client.map("upper", [Interrupted()]))


def test_map_sends_again_what_a_stopping_server_has_not_begun(server: FakeServer) -> None:
    def two_and_goodbye(conversation: Conversation) -> None:
        answered = 0
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
                continue
            answered += 1
            conversation.say(upper(string) if answered <= 2 else number(string) + b" shutting-down retry-after=1.bye")

    server.talk = two_and_goodbye
    with blocking.TransformClient(server.address) as client:
        assert [*client.map("upper", map(str, range(10, 30)))] == [str(each) for each in range(10, 30)]
    assert server.connections > 5


def test_map_raises_what_goes_wrong_with_its_poem() -> None:
    server = FakeServer(answers(lambda string: None))
    with blocking.TransformClient(server.address, address="there") as client:
        with pytest.raises(xformd.TransformTimeout, match=r"no answer from there within 0\.1 s") as caught:
            next(client.map("upper", ["slow", "too"], timeout=0.1))
        assert caught.value.poem == "slow"
        until(lambda: {b"1 !cancel.", b"2 !cancel."} <= set(server.received))
    server.stop()
    with blocking.TransformClient(server.address) as client, pytest.raises(xformd.ConnectionFailed) as failed:
        next(client.map("upper", ["nobody"]))
    assert failed.value.poem == "nobody"
