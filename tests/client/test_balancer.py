"""The choice among servers: pure, on a clock that only the test moves."""

import random
from collections import Counter
from typing import Any

import pytest

from xformd import errors
from xformd.client import balancer
from xformd.client.balancer import ANYTHING, Balancer, Node, kind_of, offers_of
from xformd.spec import parse

UPPER, STAMP = parse("upper"), parse("upper+stamp")
KIND = kind_of(UPPER, 1_000)
LOST = errors.ConnectionLost("gone")
OFFERS = offers_of(
    {
        "transforms": [
            {"name": "upper", "deterministic": True, "distribution": "xformd", "version": "1"},
            {"name": "stamp", "deterministic": False, "distribution": "xformd", "version": "1"},
        ]
    }
)


class Server(Node):
    """A server that has as many requests as the test says."""

    load = 0

    def __init__(self, offers: Any = OFFERS) -> None:
        super().__init__()
        self.offers = offers


class World:
    """A balancer, its servers and their clock."""

    def __init__(self, count: int = 3) -> None:
        self.now = 1_000.0
        self.balancer = Balancer(lambda: self.now, random.Random(1))
        self.servers = [Server() for _ in range(count)]
        self.balancer.nodes.extend(self.servers)

    def choose(self, spec: Any = UPPER, tried: Any = ()) -> Server:
        return self.balancer.choose(self.servers, spec, tried)

    def chosen(self, count: int = 30, spec: Any = UPPER) -> Counter[int]:
        """Count how often each server is chosen."""
        return Counter(self.servers.index(self.choose(spec)) for _ in range(count))

    def note(self, server: Server, error: Exception | None = None, times: int = 1, seconds: float = 0.01) -> None:
        for _ in range(times):
            self.balancer.note(server, KIND, seconds, error)

    def leave_out(self, server: Server) -> None:
        """Have a server answer with faults, beside others that do not."""
        for other in self.servers:
            if other is not server:
                self.note(other, times=10)
        self.note(server, LOST, times=3)
        assert server.is_out


@pytest.fixture
def world() -> World:
    return World()


def test_the_server_with_the_fewest_requests_is_chosen_and_equals_take_turns(world: World) -> None:
    assert set(world.chosen(30).values()) == {10}
    world.servers[0].load = world.servers[2].load = 2
    assert world.choose() is world.servers[1]


def test_a_server_that_was_tried_comes_after_the_others(world: World) -> None:
    first, second, third = world.servers
    second.load = third.load = 50
    assert world.choose(tried=[first, second]) is third
    assert world.choose(tried=[first, second, third]) is first


@pytest.mark.parametrize(("offers", "comes_last"), [({"x": OFFERS["upper"]}, True), (None, True), (ANYTHING, False)])
def test_those_that_have_the_transforms_are_asked_others_only_if_none_is_known_to(
    world: World, offers: Any, comes_last: bool
) -> None:
    first, *others = world.servers
    first.offers = offers
    for other in others:
        other.load = 50
    assert (world.choose() is first) == (not comes_last)
    for other in others:
        other.offers = {"x": OFFERS["upper"]}
    assert world.choose() is first


def test_a_request_may_run_twice_if_all_that_have_its_transforms_say_so(world: World) -> None:
    assert world.balancer.may_run_twice(UPPER)
    assert not world.balancer.may_run_twice(STAMP)
    world.servers[0].offers = {"upper": balancer.Offer(False, "xformd", "2")}
    assert not world.balancer.may_run_twice(UPPER)
    for server in world.servers:
        server.offers = None
    assert not world.balancer.may_run_twice(UPPER)


@pytest.mark.parametrize("error", [LOST, errors.InternalError("7"), errors.BadFrame("x"), errors.Busy("x")])
def test_a_server_that_answers_with_more_faults_than_the_others_is_left_out(world: World, error: Exception) -> None:
    for server in world.servers:
        world.note(server, times=10)
    world.note(world.servers[0], error, times=2)
    assert world.chosen()[0] == 10
    world.note(world.servers[0], error)
    assert world.chosen()[0] == 0


@pytest.mark.parametrize(
    "error",
    [errors.GibberishError("x"), errors.TransformFailed("x"), errors.RequestRefused("x"), errors.TransformDied("x")],
)
def test_what_a_transform_answers_says_nothing_about_its_server(world: World, error: Exception) -> None:
    for server in world.servers[1:]:
        world.note(server, times=10)
    world.note(world.servers[0], error, times=30)
    assert world.chosen()[0] == 10


def test_faults_that_all_servers_have_leave_none_out(world: World) -> None:
    for _ in range(20):
        for server in world.servers:
            world.note(server, errors.Unavailable("in quarantine"))
            world.note(server, times=2)
    assert len(world.chosen()) == 3


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (10, 5)])
def test_at_most_half_are_left_out(count: int, most: int) -> None:
    world = World(count)
    world.note(world.servers[-1], times=1_000)
    for server in world.servers[:-1] or world.servers:
        world.note(server, LOST, times=50)
    assert sum(server.is_out for server in world.servers) == most


def test_one_request_decides_whether_a_server_comes_back_and_each_time_out_is_longer(world: World) -> None:
    first = world.servers[0]
    world.leave_out(first)
    for rest_s in (1, 2, 4, 8, 16, 30, 30):
        world.now += rest_s * 0.99
        assert world.chosen()[0] == 0
        world.now += rest_s * 0.02
        assert world.choose() is first
        assert world.chosen()[0] == 0  # while that request is on its way
        world.note(first, LOST)
    world.now += 31
    assert world.choose() is first
    world.note(first)
    assert world.chosen()[0] == 10


def test_a_probe_that_is_given_up_decides_nothing(world: World) -> None:
    first = world.servers[0]
    world.leave_out(first)
    world.now += 1.01
    assert world.choose() is first
    world.note(first, errors.Cancelled("x"))
    assert world.choose() is first


def test_a_request_that_must_not_run_twice_is_the_probe_only_if_there_is_no_other(world: World) -> None:
    world.leave_out(world.servers[0])
    world.now += 1.01
    assert world.chosen(spec=STAMP)[0] == 0
    world.now += balancer.UNREPEATABLE_PROBE_S
    assert world.choose(STAMP) is world.servers[0]


def test_a_server_that_is_left_out_is_better_than_one_that_was_tried(world: World) -> None:
    first, *others = world.servers
    world.leave_out(first)
    assert world.choose(tried=others) is first


def test_a_server_that_is_much_slower_is_left_out_until_it_is_not() -> None:
    world = World(4)
    first, *others = world.servers
    for _ in range(40):
        for other in others:
            world.note(other, seconds=0.01)
        world.note(first, seconds=0.2)
    assert first.is_out
    world.now += 1.01
    assert world.choose() is first
    world.note(first, seconds=0.2)
    assert world.chosen()[0] == 0
    world.now += 2.01
    assert world.choose() is first
    world.note(first, seconds=0.011)
    assert world.chosen(40)[0] == 10


def test_few_servers_are_left_out_for_being_slow(world: World) -> None:
    first, *others = world.servers
    for _ in range(40):
        world.note(first, seconds=0.2)
        for other in others:
            world.note(other)
    assert not first.is_out


def test_requests_that_were_given_up_late_show_that_a_server_is_slow() -> None:
    world = World(4)
    first, *others = world.servers
    for _ in range(60):
        for other in others:
            world.note(other)
        world.note(first, errors.Cancelled("the caller's timeout"), seconds=1.0)
    assert first.is_out


def test_a_busy_server_is_asked_less_for_as_long_as_it_says(world: World) -> None:
    first, *others = world.servers
    world.note(first, errors.Busy("x", retry_after_ms=500))
    for other in others:
        other.load = 2
    assert world.chosen()[0] == 0
    world.now += 0.51
    assert world.choose() is first


def test_a_server_that_owes_answers_and_is_silent_counts_as_fuller(world: World) -> None:
    first, *others = world.servers
    for _ in world.servers:
        world.choose().load = 1
    world.now += 1
    for other in others:
        other.load = 3
        world.note(other)
    assert world.chosen(10)[0] == 0
    for other in others:
        other.load = 20
    assert world.choose() is first


def test_of_many_servers_a_few_are_compared_unless_none_of_them_will_do() -> None:
    world = World(300)
    assert len(world.chosen(3_000)) > 290
    for server in world.servers[1:]:
        server.offers = {"x": OFFERS["upper"]}
    assert world.choose() is world.servers[0]


def test_the_time_after_which_a_request_is_hedged_is_the_95th_percentile_of_its_kind(world: World) -> None:
    assert world.balancer.hedge_after_s(KIND) is None
    for number in range(1, 101):
        world.note(world.servers[0], seconds=number / 100)
    assert world.balancer.hedge_after_s(KIND) == pytest.approx(0.95, abs=0.05)
    assert world.balancer.hedge_after_s(kind_of(UPPER, 1_000_000)) is None
    assert world.balancer.hedge_after_s(kind_of(STAMP, 1_000)) is None


def test_few_requests_are_hedged(world: World) -> None:
    hedged = 0
    for _ in range(10_000):
        world.balancer.hedge_after_s(KIND)
        hedged += world.balancer.may_hedge()
    assert 0.04 < hedged / 10_000 <= 0.05


def test_what_is_remembered_is_bounded(world: World) -> None:
    for number in range(10_000):
        world.balancer.note(world.servers[0], (f"x{number}", 1), 0.1)
    assert len(world.balancer._durations) == balancer.MAX_KINDS
