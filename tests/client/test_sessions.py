"""TransformProxy on sessions, over a network in memory and against the real server's protocol."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionRefusedError  # noqa: A004
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import directlyProvides, implementer

import xformd
from support.deferreds import error_of, has_fired, outcome_of, result_of
from support.memory import MemoryServer
from support.network import HELLO, Answer, Dying, Host, NamedReactor, Network, Tutorial, hello_then
from xformd import TransformProxy
from xformd.client.requests import PATIENCE_S
from xformd.client.servers import CLASSIC_FOR_S, LONGEST_DELAY_S, OPENING_TIMEOUT_S
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.spec import parse
from xformd.wire.client import DOUBT_S, GIVE_UP_S, SILENCE_S
from xformd.wire.netstring import encode

VERSION = f"xformd {xformd.__version__}"
SILENT = hello_then(lambda string: None)


class World:
    """A network, a clock, and servers of every kind."""

    def __init__(self) -> None:
        self.network = Network()
        self.scripted = self.network.scripted
        self.server = MemoryServer()
        self.clock = self.server.clock
        self.host = self.network.host(self.server.factory)

    def proxy(self, *hosts: Host, **options: Any) -> TransformProxy:
        return TransformProxy(list(hosts or [self.host]), reactor=self.clock, **options)

    def tutorial(self) -> Host:
        """Make a server that speaks only the classic dialect."""
        return self.network.host(Factory.forProtocol(Tutorial))

    def send(self, proxy: TransformProxy, *poems: str, transform: str = "upper", **options: Any) -> list[Deferred[str]]:
        """Send poems, and let all that is on its way arrive."""
        answers = [proxy.xform(transform, poem, **options) for poem in poems]
        self.network.pump()
        return answers

    def turn(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.network.pump()

    def settle(self, deferred: Deferred[Any]) -> Any:
        self.network.pump()
        return result_of(deferred)

    def fail(self, deferred: Deferred[Any], kind: type[BaseException], after_s: float = 0) -> Any:
        self.turn(after_s)
        return error_of(deferred, kind)

    def lose(self, deferred: Deferred[Any], after_s: float = 0) -> Any:
        """Return the error of a request whose server is lost, once what is there instead was asked about it."""
        self.turn(after_s)
        for _ in range(2):  # for its session and for its list
            self.turn(PATIENCE_S)
        return error_of(deferred, xformd.ConnectionLost)


@pytest.fixture
def world() -> World:
    return World()


def test_many_requests_go_over_one_connection(world: World) -> None:
    proxy = world.proxy()
    answers = world.send(proxy, *[f"poem {number}" for number in range(100)])
    assert [result_of(answer) for answer in answers] == [f"POEM {number}" for number in range(100)]
    assert len(world.host.wires) == 1


def test_a_request_does_not_wait_for_the_acknowledgement_of_the_last() -> None:
    calls: list[bool] = []
    transport = StringTransport()
    transport.setTcpNoDelay = calls.append  # type: ignore[attr-defined]
    directlyProvides(transport, ITCPTransport)

    @implementer(IStreamClientEndpoint)
    class Endpoint:
        def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
            factory.buildProtocol(None).makeConnection(transport)  # type: ignore[arg-type,union-attr]
            return Deferred()

    TransformProxy(Endpoint(), reactor=Clock()).xform("upper", "x")
    assert calls == [True]


def test_no_more_is_sent_than_the_server_allows_in_flight(world: World) -> None:
    answers = world.send(world.proxy(), *"x" * 70, transform="later")
    assert world.host.sent.count(b" later.") == 64
    world.server.results[0].callback("first")
    assert world.settle(answers[0]) == "first"
    assert world.host.sent.count(b" later.") == 65


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
def test_an_error_is_an_exception_that_carries_the_poem(world: World, spec: str, poem: Any, kind: type) -> None:
    proxy = world.proxy()
    assert world.fail(proxy.xform(spec, poem), kind).poem == poem
    assert world.settle(proxy.xform("upper", "still there")) == "STILL THERE"


def test_a_request_over_the_servers_limit_is_not_sent(world: World) -> None:
    host, received = world.scripted(hello_then(lambda string: b"1 ok."))
    error = world.fail(world.proxy(host, address="there").xform("upper", "x" * 993), xformd.TooLarge)
    assert error.message == "the request has 1001 bytes; the limit of there is 1000 bytes"
    assert received == [b"xformd/2"]


def test_a_result_over_our_own_limit_is_refused_and_the_session_goes_on(world: World) -> None:
    proxy = world.proxy(max_result_bytes=5)
    error = world.fail(proxy.xform("upper", "sonnet"), xformd.TooLarge)
    assert error.message == "the result has 6 bytes; the limit is 5 bytes"
    assert world.settle(proxy.xform("upper", "haiku")) == "HAIKU"
    assert "transforms" in world.settle(proxy.list_transforms())  # the limit is for results alone
    assert len(world.host.wires) == 1


# Servers that speak only the classic dialect


def test_a_classic_server_is_remembered_for_a_while(world: World) -> None:
    host = world.tutorial()
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


def test_classic_servers_share_the_work(world: World) -> None:
    hosts = [world.tutorial(), world.tutorial()]
    proxy = world.proxy(*hosts)
    assert [result_of(answer) for answer in world.send(proxy, *"AB", transform="cummingsify")] == ["a", "b"]
    for host in hosts:
        assert len(host.wires) == 2  # an opening, and a poem
        host.factory = Factory.forProtocol(Protocol)  # which never answers
    waiting = world.send(proxy, *"x" * 20, transform="cummingsify")
    assert [len(host.wires) - 2 for host in hosts] == [10, 10]
    for answer in waiting:
        answer.cancel()
        world.fail(answer, xformd.Cancelled)
    assert [server.load for server in proxy._servers] == [0, 0]


def test_a_classic_server_that_is_gone_is_left_out(world: World) -> None:
    old = world.tutorial()
    proxy = world.proxy(old, world.host)
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    old.factory = None
    assert [world.settle(proxy.xform("upper", "poem")) for _ in range(3)] == ["POEM"] * 3


def test_a_classic_server_that_is_gone_is_tried_again_later_as_any_server(world: World) -> None:
    host = world.tutorial()
    proxy = world.proxy(host)
    assert world.settle(proxy.xform("cummingsify", "HERE")) == "here"
    host.factory = None
    world.fail(proxy.xform("cummingsify", "HERE"), xformd.ConnectionFailed)
    (again,) = world.send(proxy, "HERE", transform="cummingsify")
    assert not has_fired(again)
    world.fail(again, xformd.ConnectionFailed, LONGEST_DELAY_S)
    host.factory = world.server.factory
    ping = proxy.ping()
    world.turn(LONGEST_DELAY_S)
    assert result_of(ping) == VERSION


# Connections that fail


def test_attempts_get_rarer_while_a_server_does_not_answer_and_begin_anew_after_it_has(world: World) -> None:
    host = world.network.host()
    proxy = world.proxy(host)
    for _ in range(2):
        host.factory = None
        host.lose_connections()
        world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed)
        for longest_wait_s in (0.1, 0.2, 0.4, 0.8):  # the wait is random, from a half of it to all of it
            (failed,) = world.send(proxy, "x")
            world.turn(longest_wait_s / 2 * 0.99)
            assert not has_fired(failed)
            world.fail(failed, xformd.ConnectionFailed, longest_wait_s)
        host.factory = world.server.factory
        answer = proxy.xform("upper", "x")
        world.turn(1.6)
        assert result_of(answer) == "X"


def test_a_server_that_does_not_answer_is_left_out_no_longer_than_the_caller_says(world: World) -> None:
    proxy = world.proxy(world.network.host(), longest_delay_s=0.5)
    for _ in range(10):
        (answer,) = world.send(proxy, "poem")
        world.fail(answer, xformd.ConnectionFailed, 0.5)


@pytest.mark.parametrize("servers", [1, 2])
def test_without_a_connection_the_first_request_fails_at_once(world: World, servers: int) -> None:
    hosts = [world.network.host() for _ in range(servers)]
    error = world.fail(world.proxy(*hosts, address="there").xform("upper", "x"), xformd.ConnectionFailed)
    assert error.message.startswith("cannot connect to there: Connection refused; is 'xformd serve' running there?")
    assert error.poem == "x"
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_each_request_that_waited_for_a_connection_has_an_error_with_its_own_poem(world: World) -> None:
    poems = [str(number) for number in range(5)]
    answers = world.send(world.proxy(world.network.host()), *poems)
    assert [world.fail(answer, ConnectError).poem for answer in answers] == poems


def test_a_lost_connection_is_forgotten(world: World) -> None:
    proxy = world.proxy()
    for _ in range(3):
        assert world.settle(proxy.xform("upper", "x")) == "X"
        world.host.lose_connections()
    assert len(world.host.wires) == 3
    assert [len(address.links) for address in proxy._servers[0].addresses] == [1]


def test_what_was_in_flight_is_never_sent_again_and_what_was_not_written_is(world: World) -> None:
    host, received = world.scripted(SILENT)
    answers = world.send(world.proxy(host, address="there"), "0", "1", "2")
    host.lose_connections()
    world.network.pump()
    for number in (0, 1):
        error = world.lose(answers[number])
        assert ("there" in error.message, error.poem) == (True, str(number))
    assert not has_fired(answers[2])
    sent = [string for string in received if b"!list" not in string and b"!cancel" not in string]
    assert [string.partition(b" ")[2] or string for string in sent] == [
        *(b"xformd/2", b"upper.0", b"upper.1"),
        *(b"xformd/2", b"upper.2"),
    ]


@pytest.mark.parametrize(
    ("replies", "times"),
    [
        ([b"1 shutting-down retry-after=5.bye", b"1 ok.done"], 2),
        ([b"1 shutting-down.stopped before this was done"], 1),
    ],
)
def test_what_a_stopping_server_has_not_begun_is_sent_again(world: World, replies: list[bytes], times: int) -> None:
    left = iter(replies)
    host, received = world.scripted(hello_then(lambda string: next(left)))
    (answer,) = world.send(world.proxy(host), "x")
    assert received.count(b"1 upper.x") == times
    assert outcome_of(answer) == "done" if times == 2 else error_of(answer, xformd.ShuttingDown)


def test_a_server_that_says_goodbye_gets_nothing_new(world: World) -> None:
    proxy = world.proxy()
    (running,) = world.send(proxy, "x", transform="later")
    world.server.factory.drain()
    world.network.pump()
    assert not has_fired(running)
    world.server.results[0].callback("answered")
    assert world.settle(running) == "answered"
    world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed)


def test_busy_goes_to_another_server_or_to_the_caller(world: World) -> None:
    busy, received = world.scripted(hello_then(lambda string: string[:1] + b" busy retry-after=250.later"))
    error = world.fail(world.proxy(busy).xform("upper", "x"), xformd.Busy)
    assert (error.retry_after_ms, error.poem) == (250, "x")
    assert received == [b"xformd/2", b"1 upper.x"]
    answers = world.send(world.proxy(busy, world.host), *"0123")
    assert [result_of(answer) for answer in answers] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("protocol", "after_s", "kind", "says"),
    [
        (Protocol, OPENING_TIMEOUT_S, xformd.ConnectionFailed, "there accepted the connection and did not answer"),
        (Dying, 0, xformd.ConnectionLost, "the connection to there is lost"),
    ],
)
def test_a_server_that_fails_at_the_opening_is_left_out_and_not_believed_to_be_classic(
    world: World, protocol: type[Protocol], after_s: float, kind: type[xformd.XformError], says: str
) -> None:
    host = world.network.host(Factory.forProtocol(protocol))
    proxy = world.proxy(host, address="there")
    (answer,) = world.send(proxy, "x")
    assert world.fail(answer, kind, after_s).message.startswith(says)
    before = len(host.wires)
    world.send(proxy, "x")
    assert len(host.wires) == before
    host.factory = world.server.factory
    world.turn(LONGEST_DELAY_S)
    assert len(host.wires) == before + 1
    assert world.settle(proxy.ping()) == VERSION


@pytest.mark.parametrize(
    ("first", "kind"),
    [(b"HTTP/1.1 400", xformd.BadFrame), (b"1:x,", xformd.BadFrame), (b"99999999:", xformd.TooLarge)],
)
def test_another_kind_of_server_is_recognized(world: World, first: bytes, kind: type) -> None:
    host = world.network.silent()
    (answer,) = world.send(world.proxy(host, address="there"), "x")
    host.say(first)
    assert error_of(answer, kind).message.startswith("there sent an unreadable answer: ")


@pytest.mark.parametrize("rubbish", [b"no id", b"1 ok", b"x ok.poem", b"1 busy retry-after=x.m"])
def test_an_unreadable_answer_fails_all_that_is_in_flight(world: World, rubbish: bytes) -> None:
    host, _ = world.scripted(hello_then(lambda string: rubbish if string.startswith(b"2 ") else None))
    answers = world.send(world.proxy(host), "a", "b")
    assert [error_of(answer, xformd.BadFrame).poem for answer in answers] == ["a", "b"]


def test_an_answer_to_no_request_is_ignored(world: World) -> None:
    host, _ = world.scripted(hello_then(lambda string: b"77 ok.surprise" if string.startswith(b"1 ") else b"2 ok.two"))
    assert result_of(world.send(world.proxy(host), "a", "b")[1]) == "two"


@pytest.mark.parametrize("unasked", [b"0 busy.x", b"999 ok.x", b"1 ok.x"])
def test_a_flood_of_answers_to_no_request_ends_the_session(world: World, unasked: bytes) -> None:
    host, _ = world.scripted(SILENT)
    proxy = world.proxy(host)
    (answer,) = world.send(proxy, "a")
    host.say(encode(b"1 ok.A" if unasked[:1] == b"1" else b"999 ok.x"))
    (second,) = world.send(proxy, "b")
    for _ in range(4):
        host.say(encode(unasked))
    error_of(second, xformd.BadFrame)
    assert has_fired(answer)
    answer.addErrback(lambda _: None)


# Several servers


@pytest.mark.parametrize(("refusing", "difference"), [(0, 0), (1, 8)])
def test_requests_are_shared_among_the_servers_that_answer(world: World, refusing: int, difference: int) -> None:
    other = MemoryServer()
    hosts = [world.host, world.network.host(other.factory), *[world.network.host()] * refusing]
    answers = world.send(world.proxy(*hosts), *"x" * 20, transform="later")
    assert len(world.server.results) + len(other.results) == 20
    assert abs(len(world.server.results) - len(other.results)) <= difference
    for deferred in [*world.server.results, *other.results]:
        deferred.callback("y")
    world.network.pump()
    assert {result_of(answer) for answer in answers} == {"y"}


@pytest.mark.parametrize("answer", [SILENT, lambda string: None], ids=["hangs", "never opens"])
def test_a_server_that_left_a_request_unanswered_is_not_the_next_choice(world: World, answer: Answer) -> None:
    hung, _ = world.scripted(answer)
    proxy = world.proxy(hung, world.host)
    waiting = [answer for answer in world.send(proxy, "x", "x", timeout=1) if not has_fired(answer)]
    world.clock.advance(1)
    assert [error_of(answer, xformd.TransformTimeout).poem for answer in waiting] == ["x"]
    assert [world.settle(proxy.xform("upper", "y")) for _ in range(3)] == ["Y"] * 3


def test_only_one_attempt_to_connect_is_in_flight_and_closing_ends_it(world: World) -> None:
    mute = world.network.silent()
    proxy = world.proxy(mute)
    for _ in range(3):
        (answer,) = world.send(proxy, "x", timeout=1)
        world.fail(answer, xformd.TransformTimeout, 1)
    assert world.settle(proxy.close()) is None
    assert [wire.is_gone for wire in mute.wires] == [True]


def test_nobody_waits_for_a_server_that_has_failed_while_another_answers(world: World) -> None:
    mute = world.network.silent()
    proxy = world.proxy(mute, world.host)
    first = world.send(proxy, "x", "x")
    world.turn(OPENING_TIMEOUT_S)
    assert [result_of(answer) for answer in first] == ["X", "X"]
    world.clock.advance(LONGEST_DELAY_S)
    assert [world.settle(proxy.xform("upper", "y")) for _ in range(3)] == ["Y"] * 3
    assert len(mute.wires) == 2  # it is tried again meanwhile


@pytest.mark.parametrize("dialect", ["session", "classic"])
def test_a_server_that_has_failed_is_used_again_once_it_answers(world: World, dialect: str) -> None:
    host = world.network.host()
    proxy = world.proxy(host, world.host)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    host.factory = Factory.forProtocol(Tutorial) if dialect == "classic" else MemoryServer().factory
    world.clock.advance(LONGEST_DELAY_S)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    answers = world.send(proxy, *["HERE"] * 9, transform="cummingsify")
    assert (b",16:cummingsify.HERE," if dialect == "classic" else b" cummingsify.HERE,") in host.sent
    for answer in answers:
        answer.addErrback(lambda _: None)  # of a server without that transform


# Servers that vanish without a word


def test_a_server_that_answers_nothing_is_asked_given_up_and_replaced(world: World) -> None:
    host, received = world.scripted(SILENT)
    proxy = world.proxy(host, address="there")
    (answer,) = world.send(proxy, "poem")
    world.turn(SILENCE_S)
    assert received[2:] == [b"2 !ping."]
    assert not has_fired(answer)
    error = world.lose(answer, GIVE_UP_S)
    assert error.message.startswith(
        "there has stopped answering, even a ping: it may be gone; the request may have run"
    )
    assert error.poem == "poem"
    host.factory = world.server.factory
    host.lose_connections()
    world.network.pump()
    assert world.settle(proxy.xform("upper", "x")) == "X"


@pytest.mark.parametrize("timeout_s", [0.5, 1.0, 2.0, 10.0, None])
def test_a_server_that_vanishes_costs_no_more_than_it_must(world: World, timeout_s: float | None) -> None:
    proxy = world.proxy()
    assert world.settle(proxy.xform("upper", "x")) == "X"
    world.host.vanish()
    started = world.clock.seconds()
    new = world.host = world.network.host(world.server.factory)
    proxy._servers[0].place.endpoint = new  # as if a name pointed elsewhere
    while True:
        answer = proxy.xform("upper", "x", timeout=timeout_s).addErrback(lambda failure: failure.value)
        asked = world.clock.seconds()
        while not has_fired(answer):
            world.turn(0.25)
        if result_of(answer) == "X":
            break
    assert asked - started <= min(5, max(2 * (timeout_s or 5), 2))


def test_a_server_that_works_for_long_and_answers_pings_is_left_alone(world: World) -> None:
    host, received = world.scripted(hello_then(lambda string: b"2 ok." if b"!ping" in string else None))
    (answer,) = world.send(world.proxy(host), "x")
    for _ in range(120):
        world.turn(0.5)
    assert not has_fired(answer)
    assert len(host.wires) == 1
    assert len([string for string in received if b"!ping" in string]) == 60 / SILENCE_S
    host.say(encode(b"1 ok.done"))
    assert result_of(answer) == "done"


def test_an_answer_that_waits_to_be_read_counts_when_the_timer_is_late(world: World) -> None:
    host, _ = world.scripted(SILENT)
    (answer,) = world.send(world.proxy(host), "x")
    world.turn(SILENCE_S)
    host.wires[0].write(encode(b"2 ok."))  # not pumped: this process does something else
    world.clock.callLater(60, world.network.pump)
    world.clock.advance(60)
    world.turn(1)
    assert not has_fired(answer)


def test_a_server_at_its_limit_does_not_read_and_is_not_given_up(world: World) -> None:
    host, _ = world.scripted(SILENT)
    answers = world.send(world.proxy(host), "0", "1", "2")
    for _ in range(60):
        world.turn(0.5)
    assert not any(map(has_fired, answers))
    host.say(encode(b"1 ok.done"))
    assert result_of(answers[0]) == "done"


@pytest.mark.parametrize("sign", ["bytes_in_system", "seems_gone"])
def test_a_server_that_takes_an_upload_is_not_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr("xformd.client.servers.bytes_in_system", lambda _: 100_000)
    host, _ = world.scripted(SILENT)
    (answer,) = world.send(world.proxy(host), "a long poem")
    for _ in range(60):
        world.turn(0.5)
    assert not has_fired(answer)
    monkeypatch.setattr(f"xformd.client.servers.{sign}", lambda _: 20)
    world.lose(answer, GIVE_UP_S)


def test_a_connection_in_doubt_gets_nothing_new_and_may_still_answer(world: World) -> None:
    hello = HELLO.replace(b'in_flight": 2', b'in_flight": 3')
    host, received = world.scripted(lambda string: hello if string == b"xformd/2" else None)
    proxy = world.proxy(host)
    (slow,) = world.send(proxy, "slow")
    (quick,) = world.send(proxy, "quick", timeout=1)
    world.fail(quick, xformd.TransformTimeout, 1)
    host.factory = world.server.factory
    world.turn(DOUBT_S)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    assert len(host.wires) == 2
    host.wires[0].write(encode(b"1 ok.late"))
    assert world.settle(slow) == "late"
    assert received[1:] == [b"1 upper.slow", b"2 upper timeout=1000.quick", b"2 !cancel."]


# Servers that are slow to connect to


def test_a_request_waits_little_for_a_connection_while_there_is_another_server(world: World) -> None:
    slow = world.network.host()
    slow.is_slow = True
    proxy = world.proxy(slow, world.host)
    (answer,) = world.send(proxy, "x")
    world.turn(PATIENCE_S)
    assert result_of(answer) == "X"
    assert [world.settle(proxy.xform("upper", "y")) for _ in range(3)] == ["Y"] * 3


@pytest.mark.parametrize("ask", [lambda proxy: proxy.xform("upper", "x"), lambda proxy: proxy.ping()])
def test_a_slow_server_is_better_than_none(world: World, ask: Any) -> None:
    slow = world.network.silent()
    answer = ask(world.proxy(slow, world.network.host()))
    world.turn(PATIENCE_S)
    assert not has_fired(answer)
    slow.say(encode(HELLO))
    slow.say(encode(b"1 ok.late"))
    assert result_of(answer) in ("late", "scripted 1, late")


# Names, and the age of sessions


class Named:
    """A proxy for the servers of a name, one at each address."""

    def __init__(self, world: World, *addresses: str, server: str = "poems:11000", **options: Any) -> None:
        self.world = world
        self.reactor = NamedReactor(world.clock)
        self.reactor.names["poems"] = [*addresses]
        for last in range(1, 5):
            host = self.reactor.hosts[f"10.0.0.{last}"] = world.network.host(world.server.factory)
            host.host = f"10.0.0.{last}"
        self.proxy = TransformProxy(server, reactor=self.reactor, **options)

    def ask(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.world.settle(self.proxy.xform("upper", "x")) == "X"

    def connections(self) -> list[int]:
        """How many connections there are to each host."""
        return [sum(not wire.peer.is_gone for wire in host.wires) for host in self.reactor.hosts.values()]


@pytest.mark.parametrize("server", ["poems:11000", "tcp:poems:11000", "tcp:host=poems:port=11000:bindAddress=10.0.0.9"])
def test_all_addresses_of_a_name_are_used(world: World, server: str) -> None:
    named = Named(world, "10.0.0.1", "10.0.0.2", "10.0.0.3", server=server)
    named.ask(20)
    assert named.connections() == [1, 1, 1, 0]
    asked = [host.sent.count(b"upper.x") for host in named.reactor.hosts.values()]
    assert min(asked[:3]) >= 4
    assert named.reactor.timeout == PEER_TIMEOUT_S


def test_a_name_is_asked_again_for_each_connection(world: World) -> None:
    named = Named(world, "10.0.0.1")
    named.ask(5)
    named.reactor.names["poems"] = ["10.0.0.2"]
    named.reactor.hosts["10.0.0.1"].lose_connections()
    named.ask()
    assert (named.connections(), named.reactor.lookups) == ([0, 1, 0, 0], 2)


def test_what_a_name_stood_for_last_holds_while_it_is_unknown(world: World) -> None:
    named = Named(world, "10.0.0.1")
    named.ask()
    named.reactor.names["poems"] = []
    named.reactor.hosts["10.0.0.1"].lose_connections()
    named.ask()


def test_a_name_that_nobody_knows_fails_at_once(world: World) -> None:
    error = world.fail(Named(world).proxy.xform("upper", "x"), xformd.ConnectionFailed)
    assert error.message.startswith("cannot connect to poems:11000: DNS lookup failed: no results for hostname lookup")


def test_a_timeout_ends_the_wait_for_a_name(world: World) -> None:
    named = Named(world)
    named.reactor.names["poems"] = None
    world.fail(named.proxy.xform("upper", "x", timeout=1), xformd.TransformTimeout, 1)


def test_a_session_is_replaced_at_its_age_when_its_requests_are_answered(world: World) -> None:
    proxy = world.proxy(max_session_age_s=20)
    (running,) = world.send(proxy, "x", transform="later")
    for _ in range(20):
        world.turn(1)
    assert world.settle(proxy.xform("upper", "the last on the old one")) == "THE LAST ON THE OLD ONE"
    assert world.settle(proxy.xform("upper", "x")) == "X"
    old, new = world.host.wires
    assert (old.is_gone, b"upper.x" in new.peer.sent, b"upper.x" in old.peer.sent) == (False, True, False)
    world.server.results[0].callback("done")
    assert world.settle(running) == "done"
    assert (old.is_gone, new.is_gone) == (True, False)


def test_sessions_reach_servers_that_came_later_and_not_all_at_once(world: World) -> None:
    clients = [Named(world, "10.0.0.1", max_session_age_s=100) for _ in range(50)]
    ages = []
    for client in clients:
        client.ask()
        client.reactor.names["poems"] = ["10.0.0.1", "10.0.0.2"]
        ages.append(client.proxy._servers[0].addresses[0].link.renews_at)
    assert 50 <= min(ages) < 60 < 90 < max(ages) <= 100
    world.turn(100)
    for client in clients:
        client.ask(5)
        assert client.connections() == [1, 1, 0, 0]


def test_a_server_that_takes_no_new_connection_keeps_the_old_one(world: World) -> None:
    proxy = world.proxy(max_session_age_s=10)
    assert world.settle(proxy.xform("upper", "x")) == "X"
    factory, world.host.factory = world.host.factory, None
    for _ in range(5):
        world.turn(10)
        assert world.settle(proxy.xform("upper", "x")) == "X"
    world.host.factory = factory
    world.turn(LONGEST_DELAY_S)
    assert world.settle(proxy.xform("upper", "x")) == "X"


# Deadlines, cancellation, the end


def test_a_timeout_reaches_the_server_and_ends_the_wait_here_too(world: World) -> None:
    proxy = world.proxy(address="there")
    (answer,) = world.send(proxy, "poem", transform="later", timeout=2.5)
    assert b"1 later timeout=2500.poem" in world.host.sent
    assert world.fail(answer, xformd.TransformTimeout, 2.5).poem == "poem"
    assert world.server.cancelled == 1
    assert world.settle(proxy.xform("upper", "x", timeout=2.5)) == "X"


def test_a_timeout_ends_the_wait_for_a_connection(world: World) -> None:
    world.host.is_slow = True
    answer = world.proxy(address="there").xform("upper", "poem", timeout=1)
    assert world.fail(answer, xformd.TransformTimeout, 1).message == "no answer from there within 1 s"


def test_cancelling_reaches_the_server_and_the_session_goes_on(world: World) -> None:
    answer, other = world.send(world.proxy(), "poem", "other", transform="later")
    answer.cancel()
    cancelled = world.fail(answer, xformd.Cancelled)
    assert (isinstance(cancelled, CancelledError), cancelled.poem, world.server.cancelled) == (True, "poem", 1)
    world.server.results[1].callback("done")
    assert world.settle(other) == "done"


@pytest.mark.parametrize("is_waiting_for_its_turn", [False, True])
def test_cancelling_a_request_that_is_not_sent_yet_sends_nothing(world: World, is_waiting_for_its_turn: bool) -> None:
    host, received = world.scripted(SILENT)
    proxy = world.proxy(host)
    if is_waiting_for_its_turn:
        world.send(proxy, "x", "x")
    answer = proxy.xform("upper", "y")
    answer.cancel()
    world.fail(answer, xformd.Cancelled)
    assert not [string for string in received if string.endswith(b"upper.y") or b"!cancel" in string]


def test_cancelling_before_there_is_a_connection_cancels_that_request_alone(world: World) -> None:
    proxy = world.proxy()
    first, second, third = (proxy.xform("upper", "x") for _ in range(3))
    second.cancel()
    world.fail(second, xformd.Cancelled)
    assert (result_of(first), result_of(third)) == ("X", "X")


def test_a_cancelled_request_is_in_flight_until_the_server_has_answered_it(world: World) -> None:
    host, received = world.scripted(SILENT)
    proxy = world.proxy(host)
    first, *_ = world.send(proxy, "0", "1", "2")
    first.cancel()
    world.send(proxy, "3")
    error_of(first, xformd.Cancelled)
    assert received == [b"xformd/2", b"1 upper.0", b"2 upper.1", b"1 !cancel."]
    host.say(encode(b"1 cancelled.given up"))
    assert received[-1] == b"3 upper.2"


def test_close_waits_for_what_is_in_flight(world: World) -> None:
    proxy = world.proxy()
    (answer,) = world.send(proxy, "poem", transform="later")
    closed = proxy.close()
    world.network.pump()
    assert not has_fired(closed)
    assert "closed" in world.fail(proxy.xform("upper", "x"), xformd.ConnectionFailed).message
    world.server.results[0].callback("done")
    assert world.settle(closed) is None
    assert result_of(answer) == "done"
    assert world.host.wires[0].is_gone


def test_a_proxy_is_an_async_context_manager(world: World) -> None:
    async def use() -> str:
        async with world.proxy() as proxy:
            return await proxy.xform("upper", "poem")

    assert world.settle(Deferred.fromCoroutine(use())) == "POEM"
    assert world.host.wires[0].is_gone


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_proxy_is_told_which_versions_made_a_result(world: World, timeout: float | None) -> None:
    answers = {b"1": b"1 ok version=upper/1%2E0.X", b"2": b"2 ok.Y"}  # the second as from an older server
    host, received = world.scripted(hello_then(lambda string: answers[string.partition(b" ")[0]]))
    proxy = world.proxy(host)
    told: list[str | None] = []
    for expected in (b"X", b"Y"):
        answer = proxy.forward(parse("upper"), b"x", None, timeout=timeout, on_version=told.append)
        assert world.settle(answer) == expected
    assert told == ["upper/1.0", None]
    assert all(b" want=version" in string for string in received[1:])


def test_list_and_ping(world: World) -> None:
    proxy = world.proxy()
    listed = world.settle(proxy.list_transforms(timeout=1))
    assert "upper" in {transform["name"] for transform in listed["transforms"]}
    assert world.settle(proxy.ping(timeout=1)) == VERSION


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"transforms": 3}'])
def test_a_lying_listing_is_a_bad_frame(world: World, answer: bytes) -> None:
    host, _ = world.scripted(hello_then(lambda string: b"1 ok." + answer))
    error = world.fail(world.proxy(host).list_transforms(), xformd.errors.BadFrame)
    assert error.message.startswith("the server's list of transforms is malformed: ")


# Types


def test_a_result_has_the_poems_type(world: World) -> None:
    proxy = world.proxy()
    for poem, result in (("dé", "DÉ"), ("dé".encode(), "DÉ".encode()), (bytearray(b"a"), b"A")):
        assert world.settle(proxy.xform("upper", poem)) == result
    host, _ = world.scripted(hello_then(lambda string: b"1 ok.\xff"))
    assert world.fail(world.proxy(host).xform("zip", "poem"), xformd.GibberishError).poem == "poem"


def test_a_poem_of_another_type_or_an_impossible_timeout_is_a_programming_error(world: World) -> None:
    proxy = world.proxy()
    world.fail(proxy.xform("upper", None), TypeError)
    for timeout in (0, -1, float("nan"), float("inf")):
        for failed in (proxy.xform("upper", "x", timeout=timeout), proxy.list_transforms(timeout=timeout)):
            assert "timeout must be a number of seconds above 0" in str(world.fail(failed, ValueError))
    assert world.host.wires == []


def test_options_travel_in_the_spec(world: World) -> None:
    host, received = world.scripted(hello_then(lambda string: b"1 ok."))
    world.settle(world.proxy(host).xform("wrap:indent=2", b"x", width=40, fill=False, ratio=1.5))
    assert received[1] == b"1 wrap:fill=false,indent=2,ratio=1%2E5,width=40.x"


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
