"""TransformProxy on sessions, over a network in memory and against the real server's protocol."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import directlyProvides

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.memory import MemoryServer
from support.network import HELLO, Dying, Host, Network, Scripted, Tutorial, hello_then
from xformd import TransformProxy
from xformd.client.session import Session
from xformd.client.upstream import CLASSIC_FOR_S, LONGEST_DELAY_S, OPENING_TIMEOUT_S
from xformd.net.deadline import backoff_s
from xformd.wire.netstring import encode


class World:
    """A network, a clock, and servers of every kind."""

    def __init__(self) -> None:
        self.network = Network()
        self.server = MemoryServer()
        self.clock = self.server.clock
        self.host = self.network.host(self.server.factory)

    def proxy(self, *hosts: Host, **arguments: Any) -> TransformProxy:
        return TransformProxy(list(hosts or [self.host]), reactor=self.clock, **arguments)

    def scripted(self, answer: Callable[[bytes], bytes | None]) -> tuple[Host, list[bytes]]:
        """Give a server that answers so, and the strings that it will have been sent."""
        log: list[bytes] = []
        factory = Factory.forProtocol(lambda: Scripted(log, answer))  # type: ignore[arg-type]
        return self.network.host(factory), log

    def settle(self, deferred: Deferred[Any]) -> Any:
        self.network.pump()
        return result_of(deferred)

    def fail(self, deferred: Deferred[Any], kind: type[BaseException]) -> Any:
        self.network.pump()
        return error_of(deferred, kind)


@pytest.fixture
def world() -> World:
    return World()


def test_many_requests_go_over_one_connection(world: World) -> None:
    proxy = world.proxy()
    answers = [proxy.xform("upper", f"poem {number}") for number in range(100)]
    world.network.pump()
    assert [result_of(answer) for answer in answers] == [f"POEM {number}" for number in range(100)]
    assert world.settle(proxy.xform("upper", b"bytes")) == b"BYTES"
    assert len(world.host.wires) == 1


def test_a_request_does_not_wait_until_the_server_has_acknowledged_the_last() -> None:
    told: list[bool] = []
    transport = StringTransport()
    transport.setTcpNoDelay = told.append  # type: ignore[attr-defined]
    directlyProvides(transport, ITCPTransport)
    Session("127.0.0.1:1", Clock(), 1_000).makeConnection(transport)
    assert told == [True]


def test_no_more_is_sent_than_the_server_takes_on(world: World) -> None:
    proxy = world.proxy()
    answers = [proxy.xform("later", "x") for _ in range(70)]
    world.network.pump()
    assert world.host.wires[0].peer.sent.count(b" later.") == 64
    world.server.results[0].callback("first")
    assert world.settle(answers[0]) == "first"
    assert world.host.wires[0].peer.sent.count(b" later.") == 65


@pytest.mark.parametrize(
    ("spec", "poem", "kind"),
    [
        ("nope", "x", xformd.NoSuchTransform),
        ("upper:loud=1", "x", xformd.BadOptions),
        ("upper", b"\xff", xformd.GibberishError),
        ("grow", b"x" * 11, xformd.TooLarge),
        ("Upper", "x", xformd.BadRequest),
        ("upper", "\ud800", xformd.GibberishError),
    ],
)
def test_what_the_server_says_is_the_exception_and_it_carries_the_poem(
    world: World, spec: str, poem: Any, kind: type
) -> None:
    proxy = world.proxy()
    assert world.fail(proxy.xform(spec, poem), kind).poem == poem
    assert world.settle(proxy.xform("upper", "still there")) == "STILL THERE"


def test_a_request_over_the_servers_limit_is_refused_before_it_is_sent(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: b"1 ok."))
    error = world.fail(world.proxy(host, address="there").xform("upper", "x" * 993), xformd.TooLarge)
    assert error.message == "the request has 1001 bytes; the limit of there is 1000 bytes"
    assert log == [b"xformd/2"]


def test_a_result_over_our_own_limit_is_refused_and_the_session_goes_on(world: World) -> None:
    proxy = world.proxy(max_result_bytes=5)
    error = world.fail(proxy.xform("upper", "sonnet"), xformd.TooLarge)
    assert error.message == "the result has 6 bytes; the limit is 5 bytes"
    assert world.settle(proxy.xform("upper", "haiku")) == "HAIKU"
    assert "transforms" in world.settle(proxy.list_transforms())  # which is no result
    assert len(world.host.wires) == 1


# An old server


def test_an_old_server_is_asked_in_the_classic_form_and_remembered_for_a_while(world: World) -> None:
    host = world.network.host(Factory.forProtocol(Tutorial))
    proxy = world.proxy(host, address="there")
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    assert world.settle(proxy.xform("cummingsify", "AGAIN")) == "again"
    assert [wire.peer.sent[:10] for wire in host.wires] == [b"8:xformd/2", b"16:cumming", b"17:cumming"]
    refused = world.fail(proxy.xform("nope", "x"), xformd.RequestRefused)
    assert "there refused nope without an answer" in refused.message
    assert "classic dialect" in world.fail(proxy.ping(), xformd.RequestRefused).message
    host.factory = world.server.factory
    world.clock.advance(CLASSIC_FOR_S)
    assert world.settle(proxy.xform("upper", "upgraded")) == "UPGRADED"
    assert world.settle(proxy.ping()) == f"xformd {xformd.__version__}"


def test_a_server_that_dies_at_the_opening_is_not_taken_for_an_old_one(world: World) -> None:
    host = world.network.host(Factory.forProtocol(Dying))
    proxy = world.proxy(host)
    world.fail(proxy.xform("upper", "poem"), xformd.ConnectionLost)
    host.factory = world.server.factory
    world.clock.advance(LONGEST_DELAY_S)
    assert world.settle(proxy.ping()) == f"xformd {xformd.__version__}"


def test_an_old_server_that_is_gone_is_left_out_and_another_one_asked(world: World) -> None:
    old = world.network.host(Factory.forProtocol(Tutorial))
    proxy = world.proxy(old, world.host)
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    old.factory = None
    assert [world.settle(proxy.xform("upper", "poem")) for _ in range(3)] == ["POEM"] * 3


def test_servers_of_the_classic_form_share_the_work(world: World) -> None:
    hosts = [world.network.host(Factory.forProtocol(Tutorial)) for _ in range(2)]
    proxy = world.proxy(*hosts)
    first = [proxy.xform("cummingsify", "FIRST") for _ in hosts]
    assert [world.settle(answer) for answer in first] == ["first"] * 2
    for host in hosts:
        assert len(host.wires) == 2  # an opening, and the first poem
        host.factory = Factory.forProtocol(Protocol)  # which never answers
    waiting = [proxy.xform("cummingsify", "HERE") for _ in range(20)]
    world.network.pump()
    assert [len(host.wires) - 2 for host in hosts] == [10, 10]
    for answer in waiting:
        answer.cancel()
        world.fail(answer, xformd.Cancelled)
    assert [upstream.load for upstream in proxy._upstreams] == [0, 0]


def test_an_old_server_that_is_gone_is_left_alone_for_a_while(world: World) -> None:
    host = world.network.host(Factory.forProtocol(Tutorial))
    proxy = world.proxy(host)
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    host.factory = None
    world.fail(proxy.xform("cummingsify", "HERE"), xformd.ConnectionFailed)
    again = proxy.xform("cummingsify", "HERE")
    world.network.pump()
    assert not has_fired(again)
    world.clock.advance(LONGEST_DELAY_S)
    world.fail(again, xformd.ConnectionFailed)


def test_what_comes_back_in_the_place_of_an_old_server_may_be_a_newer_one(world: World) -> None:
    host = world.network.host(Factory.forProtocol(Tutorial))
    proxy = world.proxy(host)
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    host.factory = None
    world.fail(proxy.xform("cummingsify", "HERE"), xformd.ConnectionFailed)
    host.factory = world.server.factory
    ping = proxy.ping()
    world.clock.advance(LONGEST_DELAY_S)
    assert world.settle(ping) == f"xformd {xformd.__version__}"


def test_a_server_that_does_not_answer_is_left_out_no_longer_than_the_caller_says(world: World) -> None:
    host = world.network.host()
    proxy = world.proxy(host, longest_delay_s=0.5)
    for _ in range(10):
        answer = proxy.xform("upper", "poem")
        world.network.pump()
        world.clock.advance(0.5)
        world.fail(answer, xformd.ConnectionFailed)


def test_attempts_get_rarer_while_a_server_does_not_answer_and_begin_anew_after_it_has(world: World) -> None:
    host = world.network.host()
    proxy = world.proxy(host)
    for _ in range(2):
        host.factory = None
        for wire in host.wires:
            wire.peer.lose(ConnectionLost())
        for failures in range(1, 6):
            # Less up to a half by chance: as many seconds are long enough for the attempt, and a half of them are not.
            failed = proxy.xform("upper", "x")
            world.network.pump()
            if failures > 1:
                world.clock.advance(backoff_s(failures - 1, longest_s=LONGEST_DELAY_S, jitter=1) * 0.99)
                world.network.pump()
                assert not has_fired(failed)
                world.clock.advance(backoff_s(failures - 1, longest_s=LONGEST_DELAY_S, jitter=0))
            world.fail(failed, xformd.ConnectionFailed)
        host.factory = world.server.factory
        answer = proxy.xform("upper", "x")
        world.clock.advance(backoff_s(5, longest_s=LONGEST_DELAY_S, jitter=0))
        assert world.settle(answer) == "X"


def test_a_connection_that_is_gone_is_forgotten(world: World) -> None:
    proxy = world.proxy()
    for _ in range(3):
        assert world.settle(proxy.xform("upper", "x")) == "X"
        world.host.wires[-1].peer.lose(ConnectionLost())
    assert len(world.host.wires) == 3
    assert [session for upstream in proxy._upstreams for session in upstream._sessions] == []


# Connections that fail


def test_a_lost_connection_fails_what_was_in_flight_and_the_next_request_gets_a_new_one(world: World) -> None:
    proxy = world.proxy(address="there")
    lost = proxy.xform("later", "poem")
    world.network.pump()
    world.host.wires[0].peer.lose(ConnectionLost())
    error = world.fail(lost, xformd.ConnectionLost)
    assert "there" in error.message
    assert error.poem == "poem"
    assert world.settle(proxy.xform("upper", "again")) == "AGAIN"
    assert len(world.host.wires) == 2


def test_what_was_in_flight_is_never_sent_again_and_what_was_not_written_is(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: None))
    proxy = world.proxy(host)
    answers = [proxy.xform("upper", f"{number}") for number in range(3)]
    world.network.pump()
    host.wires[0].peer.lose(ConnectionLost())
    world.network.pump()
    error_of(answers[0], xformd.ConnectionLost)
    error_of(answers[1], xformd.ConnectionLost)
    assert not has_fired(answers[2])
    assert log == [b"xformd/2", b"1 upper.0", b"2 upper.1", b"xformd/2", b"1 upper.2"]


def test_a_server_that_is_stopping_is_asked_again_on_a_new_connection(world: World) -> None:
    answers = iter([b"1 shutting-down retry-after=5.bye", b"1 ok.done"])
    host, log = world.scripted(hello_then(lambda string: next(answers)))
    first = world.proxy(host).xform("upper", "x")
    world.network.pump()
    assert result_of(first) == "done"
    assert log.count(b"1 upper.x") == 2


def test_what_a_stopping_server_had_begun_is_not_sent_again(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: b"1 shutting-down.the server stopped before this was done"))
    first = world.proxy(host).xform("upper", "x")
    world.network.pump()
    error_of(first, xformd.ShuttingDown)
    assert log.count(b"1 upper.x") == 1


def test_a_server_that_says_goodbye_gets_nothing_new(world: World) -> None:
    proxy = world.proxy()
    running = proxy.xform("later", "x")
    world.network.pump()
    world.server.factory.drain()
    world.network.pump()
    assert not has_fired(running)
    world.server.results[0].callback("answered")
    assert world.settle(running) == "answered"
    assert world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed)


def test_busy_goes_elsewhere_and_else_to_the_caller(world: World) -> None:
    busy, log = world.scripted(hello_then(lambda string: string.partition(b" ")[0] + b" busy retry-after=250.later"))
    error = world.fail(world.proxy(busy).xform("upper", "x"), xformd.Busy)
    assert (error.retry_after_ms, error.poem) == (250, "x")
    assert log == [b"xformd/2", b"1 upper.x"]
    proxy = world.proxy(busy, world.host)
    answers = [proxy.xform("upper", f"{number}") for number in range(4)]
    world.network.pump()
    assert [result_of(answer) for answer in answers] == ["0", "1", "2", "3"]


def test_no_connection_is_an_error_at_once_and_then_attempts_get_rarer(world: World) -> None:
    nowhere = world.network.host()
    proxy = world.proxy(nowhere, address="there")
    first = world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed)
    assert first.message.startswith("cannot connect to there: Connection refused; is 'xformd serve' running there?")
    second = proxy.xform("upper", "y")
    world.network.pump()
    assert not has_fired(second)
    world.clock.advance(0.1)
    assert world.fail(second, xformd.ConnectionFailed).poem == "y"
    third = proxy.xform("upper", "z")
    nowhere.factory = world.server.factory
    world.clock.advance(0.2)
    assert world.settle(third) == "Z"


def test_a_server_that_accepts_and_never_answers_is_a_server_that_fails(world: World) -> None:
    mute, _ = world.scripted(lambda string: None)
    answer = world.proxy(mute, address="there").xform("upper", "x")
    world.network.pump()
    world.clock.advance(OPENING_TIMEOUT_S)
    assert world.fail(answer, xformd.ConnectionFailed).message == "there does not answer"


def test_a_server_that_fails_at_the_opening_is_left_alone_for_a_while(world: World) -> None:
    mute, _ = world.scripted(lambda string: None)
    dying = world.network.host(Factory.forProtocol(Dying))
    for host in (mute, dying):
        proxy = world.proxy(host)
        answer = proxy.xform("upper", "x")
        world.network.pump()
        if host is mute:
            world.clock.advance(OPENING_TIMEOUT_S)
        world.fail(answer, xformd.XformError)
        before = len(host.wires)
        proxy.xform("upper", "x")
        world.network.pump()
        assert len(host.wires) == before
        world.clock.advance(LONGEST_DELAY_S)
        world.network.pump()
        assert len(host.wires) == before + 1


@pytest.mark.parametrize(
    ("first", "kind"),
    [(b"HTTP/1.1 400", xformd.BadFrame), (b"1:x,", xformd.BadFrame), (b"99999999:", xformd.TooLarge)],
)
def test_something_else_that_listens_there_is_told_from_a_server(world: World, first: bytes, kind: type) -> None:
    class Else(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(first)  # type: ignore[union-attr]

    host = world.network.host(Factory.forProtocol(Else))
    error = world.fail(world.proxy(host, address="there").xform("upper", "x"), kind)
    assert error.message.startswith("there sent an unreadable answer: ")


@pytest.mark.parametrize("rubbish", [b"no id", b"1 ok", b"x ok.poem", b"1 busy retry-after=x.m"])
def test_an_answer_that_cannot_be_read_fails_all_that_is_in_flight(world: World, rubbish: bytes) -> None:
    host, _ = world.scripted(hello_then(lambda string: rubbish if string.startswith(b"2 ") else None))
    proxy = world.proxy(host)
    answers = [proxy.xform("upper", poem) for poem in ("a", "b")]
    world.network.pump()
    assert [error_of(answer, xformd.BadFrame).poem for answer in answers] == ["a", "b"]


def test_an_answer_that_nobody_asked_for_is_ignored(world: World) -> None:
    host, _ = world.scripted(hello_then(lambda string: b"77 ok.surprise" if string.startswith(b"1 ") else b"2 ok.two"))
    proxy = world.proxy(host)
    proxy.xform("upper", "a")
    assert world.settle(proxy.xform("upper", "b")) == "two"


# Several servers


def test_requests_are_shared_among_the_servers_that_answer(world: World) -> None:
    other = MemoryServer()
    hosts = [world.host, world.network.host(other.factory), world.network.host()]
    proxy = world.proxy(*hosts)
    answers = [proxy.xform("later", "x") for _ in range(20)]
    world.network.pump()
    assert len(world.server.results) + len(other.results) == 20
    assert abs(len(world.server.results) - len(other.results)) <= 8
    for deferred in [*world.server.results, *other.results]:
        deferred.callback("y")
    world.network.pump()
    assert {result_of(answer) for answer in answers} == {"y"}


def test_what_waits_for_a_connection_counts_as_work(world: World) -> None:
    other = MemoryServer()
    proxy = world.proxy(world.host, world.network.host(other.factory))
    for _ in range(20):
        proxy.xform("later", "x")
    world.network.pump()
    assert (len(world.server.results), len(other.results)) == (10, 10)


def test_when_no_server_answers_the_caller_is_told(world: World) -> None:
    proxy = world.proxy(world.network.host(), world.network.host())
    world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed)


def test_a_server_that_was_given_up_and_does_not_say_so_is_not_the_next_choice(world: World) -> None:
    hung, _ = world.scripted(hello_then(lambda string: None))
    proxy = world.proxy(hung, world.host)
    given_up = proxy.xform("upper", "x", timeout=1)
    world.network.pump()
    world.clock.advance(1)
    world.fail(given_up, xformd.TransformTimeout)
    assert world.settle(proxy.xform("upper", "y")) == "Y"


def test_while_a_server_is_being_reached_whoever_waits_goes_elsewhere_and_nobody_dials_twice(world: World) -> None:
    mute, _ = world.scripted(lambda string: None)
    proxy = world.proxy(mute, world.host)
    impatient = proxy.xform("upper", "x", timeout=1)
    world.network.pump()
    world.clock.advance(1)
    world.fail(impatient, xformd.TransformTimeout)
    assert world.settle(proxy.xform("upper", "y")) == "Y"
    alone = world.proxy(mute)
    for _ in range(3):
        answer = alone.xform("upper", "x", timeout=1)
        world.network.pump()
        world.clock.advance(1)
        world.fail(answer, xformd.TransformTimeout)
    assert len(mute.wires) == 2  # one for each proxy


def test_nobody_waits_for_a_server_that_has_failed_while_another_answers(world: World) -> None:
    mute, _ = world.scripted(lambda string: None)
    proxy = world.proxy(mute, world.host)
    first = proxy.xform("upper", "x")
    world.network.pump()
    world.clock.advance(OPENING_TIMEOUT_S)
    assert world.settle(first) == "X"
    world.clock.advance(LONGEST_DELAY_S)
    assert [world.settle(proxy.xform("upper", "y")) for _ in range(3)] == ["Y"] * 3
    assert len(mute.wires) == 2  # it is tried again meanwhile


def test_a_server_that_has_failed_is_used_again_once_it_answers(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: None))
    back, host.factory = host.factory, None
    proxy = world.proxy(host, world.host)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    host.factory = back
    world.clock.advance(LONGEST_DELAY_S)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    proxy.xform("upper", "y")
    world.network.pump()
    assert log == [b"xformd/2", b"1 upper.y"]


def test_an_old_server_that_has_failed_is_used_again_too(world: World) -> None:
    old = world.network.host()
    proxy = world.proxy(old, world.host)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    old.factory = Factory.forProtocol(Tutorial)
    world.clock.advance(LONGEST_DELAY_S)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"


# Deadlines, cancellation, the end


def test_a_timeout_travels_and_ends_the_wait_here_too(world: World) -> None:
    proxy = world.proxy(address="there")
    answer = proxy.xform("later", "poem", timeout=2.5)
    world.network.pump()
    assert b"1 later timeout=2500.poem" in world.host.wires[0].peer.sent
    world.clock.advance(2.5)
    assert world.fail(answer, xformd.TransformTimeout).poem == "poem"
    assert world.server.cancelled == 1
    assert world.settle(proxy.xform("upper", "x", timeout=2.5)) == "X"


def test_a_timeout_ends_the_wait_for_a_connection(world: World) -> None:
    world.host.is_slow = True
    answer = world.proxy(address="there").xform("upper", "poem", timeout=1)
    world.clock.advance(1)
    assert world.fail(answer, xformd.TransformTimeout).message == "no answer from there within 1 s"


def test_cancelling_reaches_the_server_and_the_session_goes_on(world: World) -> None:
    proxy = world.proxy()
    answer, other = proxy.xform("later", "poem"), proxy.xform("later", "other")
    world.network.pump()
    answer.cancel()
    cancelled = world.fail(answer, xformd.Cancelled)
    assert isinstance(cancelled, CancelledError)
    assert cancelled.poem == "poem"
    assert world.server.cancelled == 1
    world.server.results[1].callback("done")
    assert world.settle(other) == "done"


@pytest.mark.parametrize("stage", ["before there is a connection", "waiting for its turn"])
def test_cancelling_a_request_that_is_not_sent_yet_sends_nothing(world: World, stage: str) -> None:
    host, log = world.scripted(hello_then(lambda string: None))
    proxy = world.proxy(host)
    if stage == "waiting for its turn":
        for _ in range(2):
            proxy.xform("upper", "x")
        world.network.pump()
    answer = proxy.xform("upper", "y")
    answer.cancel()
    world.fail(answer, xformd.Cancelled)
    assert not [string for string in log if string.endswith(b"upper.y") or b"!cancel" in string]


def test_who_gives_up_before_there_is_a_connection_costs_nobody_else_theirs(world: World) -> None:
    proxy = world.proxy()
    answers = [proxy.xform("upper", "x") for _ in range(3)]
    answers[1].cancel()
    world.fail(answers[1], xformd.Cancelled)
    assert [result_of(answers[number]) for number in (0, 2)] == ["X", "X"]


def test_a_request_that_was_given_up_counts_until_the_server_has_answered_it(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: None))
    proxy = world.proxy(host)
    first, *_ = [proxy.xform("upper", f"{number}") for number in range(3)]
    world.network.pump()
    first.cancel()
    world.fail(first, xformd.Cancelled)
    proxy.xform("upper", "3")
    world.network.pump()
    assert log == [b"xformd/2", b"1 upper.0", b"2 upper.1", b"1 !cancel."]
    host.wires[0].write(encode(b"1 cancelled.given up"))
    world.network.pump()
    assert log[-1] == b"3 upper.2"


def test_close_waits_for_what_is_in_flight(world: World) -> None:
    proxy = world.proxy()
    answer = proxy.xform("later", "poem")
    world.network.pump()
    closed = proxy.close()
    world.network.pump()
    assert not has_fired(closed)
    assert "closed" in world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed).message
    world.server.results[0].callback("done")
    assert world.settle(closed) is None
    assert result_of(answer) == "done"
    assert world.host.wires[0].is_gone


def test_closing_ends_an_attempt_to_connect_that_nobody_waits_for(world: World) -> None:
    mute, _ = world.scripted(lambda string: None)
    proxy = world.proxy(mute)
    impatient = proxy.xform("upper", "x", timeout=1)
    world.network.pump()
    world.clock.advance(1)
    world.fail(impatient, xformd.TransformTimeout)
    assert world.settle(proxy.close()) is None
    assert mute.wires[0].is_gone


def test_a_proxy_is_an_async_context_manager(world: World) -> None:
    async def use() -> str:
        async with world.proxy() as proxy:
            return await proxy.xform("upper", "poem")

    assert world.settle(Deferred.fromCoroutine(use())) == "POEM"
    assert world.host.wires[0].is_gone


def test_list_and_ping(world: World) -> None:
    proxy = world.proxy()
    listed = world.settle(proxy.list_transforms(timeout=1))
    assert "upper" in {transform["name"] for transform in listed["transforms"]}
    assert json.dumps(listed)
    assert world.settle(proxy.ping(timeout=1)) == f"xformd {xformd.__version__}"


# What the caller sees of kinds


def test_a_result_is_of_the_poems_own_kind(world: World) -> None:
    proxy = world.proxy()
    assert world.settle(proxy.xform("upper", "dé")) == "DÉ"
    assert world.settle(proxy.xform("upper", "dé".encode())) == "DÉ".encode()
    host, _ = world.scripted(hello_then(lambda string: b"1 ok.\xff"))
    failed = world.fail(world.proxy(host).xform("zip", "poem"), xformd.GibberishError)
    assert failed.poem == "poem"


def test_what_is_no_poem_or_no_timeout_is_a_programming_error(world: World) -> None:
    proxy = world.proxy()
    assert world.settle(proxy.xform("cummingsify+upper"[12:], bytearray(b"a"))) == b"A"  # type: ignore[type-var]
    world.fail(proxy.xform("upper", None), TypeError)  # type: ignore[type-var]
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            proxy.xform("upper", "x", timeout=timeout)


def test_options_travel_in_the_spec(world: World) -> None:
    host, log = world.scripted(hello_then(lambda string: b"1 ok."))
    world.settle(world.proxy(host).xform("wrap:indent=2", b"x", width=40, fill=False, ratio=1.5))
    assert log[1] == b"1 wrap:fill=false,indent=2,ratio=1%2E5,width=40.x"


def test_the_fallback_of_the_tutorial_is_one_line(world: World) -> None:
    proxy = world.proxy(world.network.host())
    answer = proxy.xform("cummingsify", "The Owl").addErrback(lambda failure: failure.value.poem)
    assert world.settle(answer) == "The Owl"


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([encode(HELLO), b"6:1 ok.A,", b"6:2 ok.B,"]))))
def test_whatever_a_server_sends_the_outcome_is_a_result_or_one_of_our_errors(pieces: list[bytes]) -> None:
    class Anything(Protocol):
        def connectionMade(self) -> None:
            for piece in pieces:
                self.transport.write(piece)  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

    world = World()
    host = world.network.host(Factory.forProtocol(Anything))
    answer = world.proxy(host).xform("upper", b"poem").addErrback(lambda failure: failure.value)
    for _ in range(5):
        world.network.pump()
        world.clock.advance(1)
    assert isinstance(result_of(answer), bytes | xformd.XformError)
