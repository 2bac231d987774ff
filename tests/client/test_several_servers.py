"""TransformProxy with several servers, in memory: where a request goes, and where when its server is lost."""

import gc
import re
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.memory import MemoryServer, grow, upper
from support.network import Host, NamedReactor, Network
from support.registries import registry_of
from xformd import TransformProxy, transform
from xformd.client.requests import LOOK_AGAIN_S
from xformd.client.servers import LONGEST_DELAY_S
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.spec import parse
from xformd.wire.netstring import encode

TYPICAL_S = 0.01


class World:
    """Some servers with a transform ``sure``, which is deterministic, and ``later``, which is not."""

    def __init__(self, count: int = 3, **options: Any) -> None:
        self.network = Network()
        self.servers: list[MemoryServer] = []
        self.running: list[list[Deferred[str]]] = []
        self.hosts: list[Host] = []
        for _ in range(count):
            self.add()
        self.clock = self.servers[0].clock
        self.proxy = TransformProxy(self.hosts, reactor=self.clock, **options)

    def add(self) -> None:
        waiting: list[Deferred[str]] = []

        @transform(deterministic=True)
        def sure(poem: str) -> Deferred[str]:
            waiting.append(Deferred(lambda _: None))
            return waiting[-1]

        server = MemoryServer(transforms=(upper, grow, sure))
        if self.servers:
            server.service._clock = server.clock = self.servers[0].clock
        self.servers.append(server)
        self.running.append(waiting)
        self.hosts.append(self.network.host(server.factory))

    def open(self) -> "World":
        """Open a session to each server, and learn what it has."""
        for _ in range(3 * len(self.hosts)):
            self.settle(self.proxy.xform("upper", "x"))
        return self

    def settle(self, answer: Deferred[Any]) -> Any:
        self.network.pump()
        return result_of(answer)

    def send(self, name: str, *poems: str, **options: Any) -> list[Deferred[str]]:
        answers = [self.proxy.xform(name, poem, **options) for poem in poems]
        self.network.pump()
        return answers

    def turn(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.network.pump()

    def where(self) -> list[int]:
        """Return the servers that run a request to ``sure``, one for each request."""
        return [number for number, waiting in enumerate(self.running) for each in waiting if not each.called]

    def finish(self, number: int, result: str = "done") -> None:
        for each in self.running[number]:
            if not each.called:
                each.callback(result)
        self.network.pump()

    def kill(self, number: int) -> None:
        self.hosts[number].factory = None
        self.hosts[number].lose_connections()
        self.network.pump()


def test_each_server_is_asked_once_what_it_has_and_a_single_one_is_not() -> None:
    world = World().open()
    assert [host.sent.count(b"!list") for host in world.hosts] == [1, 1, 1]
    assert World(1).open().hosts[0].sent.count(b"!list") == 0


def test_a_deterministic_request_is_sent_again_when_its_server_is_lost() -> None:
    world = World().open()
    (answer,) = world.send("sure", "x")
    (lost,) = world.where()
    world.kill(lost)
    assert not has_fired(answer)
    (other,) = set(world.where()) - {lost}
    world.finish(other)
    assert result_of(answer) == "done"


@pytest.mark.parametrize(("name", "may"), [("sure", True), ("later", False)])
def test_what_comes_back_behind_a_single_address_is_asked_what_may_run_twice(name: str, may: bool) -> None:
    """A balancer in TCP mode, say, with many servers behind it."""
    world = World(1).open()
    (answer,) = world.send(name, "x")
    world.hosts[0].lose_connections()
    world.network.pump()
    assert world.hosts[0].sent.count(b"!list") == 1
    assert has_fired(answer) == (not may)
    if may:
        world.finish(0)
        assert result_of(answer) == "done"
    else:
        assert "may have run" in error_of(answer, xformd.ConnectionLost).message


@pytest.mark.parametrize(("name", "may"), [("sure", True), ("later", False)])
def test_what_a_server_fails_at_itself_is_sent_to_another_one_if_it_may_run_twice(name: str, may: bool) -> None:
    world = World().open()
    (answer,) = world.send(name, "x")
    (host,) = (host for host in world.hosts if f" {name}.x".encode() in host.sent)
    (number,) = re.findall(rf"(\d+) {name}\.x", host.sent.decode())
    host.say(encode(f"{number} internal.7".encode()))
    assert has_fired(answer) == (not may)
    if may:
        assert len(world.where()) == 2
    else:
        error_of(answer, xformd.InternalError)


def test_a_deterministic_request_that_its_servers_die_of_is_not_sent_to_all() -> None:
    world = World(10).open()
    (answer,) = world.send("sure", "poison")
    killed = []
    while not has_fired(answer):
        (found,) = {number for number in world.where() if number not in killed}
        killed.append(found)
        world.kill(found)
    assert len(killed) == 3
    assert "may have run" in error_of(answer, xformd.ConnectionLost).message


def test_a_request_that_is_not_deterministic_fails_when_its_server_is_lost_and_says_why() -> None:
    world = World().open()
    (answer,) = world.send("later", "x")
    (lost,) = (number for number, server in enumerate(world.servers) if server.results)
    world.kill(lost)
    error = error_of(answer, xformd.ConnectionLost)
    assert error.message.endswith("; the request may have run: repeat it only if that is harmless")
    assert error.poem == "x"


def test_a_server_that_has_the_transform_is_found_before_and_after_the_servers_have_listed_theirs() -> None:
    world = World()

    @transform
    def rare(poem: str) -> str:
        return "rare"

    world.hosts[2].factory = MemoryServer(transforms=(upper, rare)).factory
    assert [world.settle(world.proxy.xform("rare", "x")) for _ in range(3)] == ["rare"] * 3
    world.open()
    asked = [host.sent.count(b" rare.") for host in world.hosts]
    assert [world.settle(world.proxy.xform("rare", "x")) for _ in range(9)] == ["rare"] * 9
    assert [host.sent.count(b" rare.") for host in world.hosts] == [asked[0], asked[1], asked[2] + 9]
    error_of(world.send("no-such", "x")[0], xformd.NoSuchTransform)


def test_a_transform_that_a_server_has_lost_is_asked_of_the_others() -> None:
    world = World().open()
    world.servers[0].service.swap(Generation(registry_of(grow), InlineRunner(1_000_000, world.clock)))
    assert [world.settle(world.proxy.xform("upper", "x")) for _ in range(9)] == ["X"] * 9


# A second server is asked too


def hedging(count: int = 2, **options: Any) -> World:
    """Make a world that knows how long the transforms take."""
    world = World(count, **options).open()
    for _ in range(300):
        answers = world.send("sure", "x")
        world.clock.advance(TYPICAL_S)
        for number in world.where():
            world.finish(number)
        assert result_of(answers[0]) == "done"
    for waiting in world.running:
        waiting.clear()
    return world


@pytest.mark.parametrize("options", [{"by_proxy": True}, {"by_call": True}])
def test_a_slow_request_is_sent_to_a_second_server_and_the_loser_is_cancelled(options: dict[str, bool]) -> None:
    world = hedging(hedge="by_proxy" in options)
    call = {"hedge": True} if "by_call" in options else {}
    for _ in range(30):  # which may be hedged, and are not
        answers = world.send("sure", "x", **call)
        for number in world.where():
            world.finish(number)
        assert result_of(answers[0]) == "done"
    (answer,) = world.send("sure", "y", **call)
    (first,) = world.where()
    cancelled = [host.sent.count(b"!cancel") for host in world.hosts]
    world.turn(TYPICAL_S * 2)
    (second,) = set(world.where()) - {first}
    world.finish(second, "second")
    assert result_of(answer) == "second"
    assert [world.hosts[number].sent.count(b"!cancel") - cancelled[number] for number in (first, second)] == [1, 0]


@pytest.mark.parametrize(("name", "hedge"), [("sure", False), ("later", True)])
def test_a_request_is_not_sent_twice_if_nobody_asked_for_it_or_it_must_not_run_twice(name: str, hedge: bool) -> None:
    world = hedging()
    world.send(name, *["x"] * 30, hedge=hedge)
    before = [host.sent for host in world.hosts]
    world.turn(TYPICAL_S * 5)
    assert [host.sent for host in world.hosts] == before


def test_few_of_many_slow_requests_are_sent_twice() -> None:
    world = hedging()
    world.send("sure", *["x"] * 100, hedge=True)
    world.turn(TYPICAL_S * 5)
    assert 100 < sum(map(len, world.running)) <= 105


def test_cancelling_a_request_that_was_sent_twice_cancels_it_at_both_servers() -> None:
    world = hedging()
    for answer in world.send("sure", *["x"] * 30, hedge=True):
        answer.addErrback(lambda failure: failure.trap(xformd.Cancelled))
        world.turn(TYPICAL_S * 2)
        answer.cancel()
        world.network.pump()
    assert [host.sent.count(b"!cancel") for host in world.hosts] == [len(waiting) for waiting in world.running]


def test_if_one_of_two_fails_the_other_may_still_answer() -> None:
    world = hedging()
    world.send("sure", *["x"] * 30, hedge=True)
    for number in (0, 1):
        world.finish(number)
    (answer,) = world.send("sure", "y", hedge=True)
    (first,) = world.where()
    world.turn(TYPICAL_S * 2)
    world.running[first][-1].errback(xformd.GibberishError("not this"))
    world.network.pump()
    assert not has_fired(answer)
    world.finish(1 - first)
    assert result_of(answer) == "done"


# Servers whose workers are busy


def busy(count: int = 2) -> World:
    """Make a world whose servers have a worker each, and whose client knows that and how long ``sure`` takes."""
    world = hedging(count)
    for node in world.proxy._balancer.nodes:
        assert node.offers
        node.workers, node.offers = 1, {**node.offers, "sure": node.offers["sure"]._replace(at_once=1)}
    return world


def test_what_takes_long_waits_in_the_client_for_the_first_server_that_is_free() -> None:
    world = busy()
    first = world.send("sure", "a", "b")
    waiting = world.send("sure", "c", "d")
    assert sorted(world.where()) == [0, 1]
    world.finish(1)
    assert sorted(world.where()) == [0, 1]
    world.finish(1)
    assert sorted(world.where()) == [0, 1]
    world.finish(1)
    assert [has_fired(answer) for answer in waiting] == [True, True]
    assert sum(map(has_fired, first)) == 1


def test_what_is_quick_or_not_known_does_not_wait_in_the_client() -> None:
    world = busy()
    world.send("sure", "a", "b")
    assert [world.settle(world.proxy.xform("upper", "x")) for _ in range(3)] == ["X"] * 3
    world.send("later", "a", "b", "c")
    assert sum(len(server.results) for server in world.servers) == 3


def test_clients_of_a_proxy_take_turns_while_they_wait() -> None:
    world = busy()
    spec = parse("sure")
    for client, count in (("first", 6), ("second", 1)):
        for number in range(count):
            world.proxy.forward(spec, b"%d" % number, client)
    world.network.pump()
    world.finish(0)
    world.finish(0)
    assert sum(host.sent.count(b"client=second") for host in world.hosts) == 1


def test_a_request_that_waits_can_be_given_up_and_gets_the_place_of_one_that_was() -> None:
    world = busy(2)
    first = world.send("sure", "a", "b")
    cancelled, waiting = world.send("sure", "c", "d")
    cancelled.cancel()
    error_of(cancelled, xformd.Cancelled)
    (timed,) = world.send("sure", "e", timeout=0.1)
    world.turn(0.1)
    error_of(timed, xformd.TransformTimeout)
    for answer in first:
        answer.cancel()
        error_of(answer, xformd.Cancelled)
    world.network.pump()
    world.turn(LOOK_AGAIN_S)
    assert len(world.where()) == 1
    world.finish(world.where()[0])
    assert result_of(waiting) == "done"


def test_a_request_that_waits_for_long_takes_no_more_memory_the_longer_it_waits() -> None:
    world = busy()
    world.send("sure", "a", "b")
    (waiting,) = world.send("sure", "c")
    counts = []
    for _ in range(3):
        for _ in range(20):
            world.turn(LOOK_AGAIN_S)
        gc.collect()
        counts.append(sum(isinstance(each, Deferred) for each in gc.get_objects()))
    assert counts[2] - counts[1] < 10
    waiting.cancel()
    error_of(waiting, xformd.Cancelled)


def test_closing_waits_for_what_waits_and_accepts_nothing_more() -> None:
    world = busy()
    world.send("sure", "a", "b")
    (waiting,) = world.send("sure", "c")
    closed = world.proxy.close()
    error_of(world.send("sure", "d")[0], xformd.ConnectionFailed)
    for _ in range(3):
        for number in (0, 1):
            world.finish(number)
        world.turn(LOOK_AGAIN_S)
    assert result_of(waiting) == "done"
    assert result_of(closed) is None


# The addresses of a name


def test_an_address_that_is_back_is_used_again_soon_though_the_others_of_its_name_answer() -> None:
    world = World(2)
    reactor = NamedReactor(world.clock)
    reactor.names["poems"] = ["10.0.0.1", "10.0.0.2"]
    for number, host in enumerate(world.hosts, 1):
        host.host = f"10.0.0.{number}"
        reactor.hosts[host.host] = host
    world.proxy = TransformProxy("poems:11000", reactor=reactor)
    world.open()
    assert all(b"upper.x" in host.sent for host in world.hosts)
    factory = world.hosts[0].factory
    world.kill(0)
    for _ in range(40):
        assert world.settle(world.proxy.xform("upper", "x")) == "X"
        world.turn(0.25)
    assert sum(not wire.is_gone for wire in world.hosts[1].wires) == 1
    assert len(world.hosts[1].wires) < 12
    world.hosts[0].factory = factory
    world.turn(LONGEST_DELAY_S)
    before = world.hosts[0].sent
    world.open()
    assert b"upper.x" in world.hosts[0].sent[len(before) :]
