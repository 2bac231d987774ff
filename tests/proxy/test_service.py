"""The caching proxy for transforms, over a network in memory, in front of real protocols."""

import gc
import json
import re
import weakref
from random import Random
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.fakes import Asker
from support.logs import Log
from support.network import Host, Network, Tutorial, hello_then
from support.registries import registry_of
from support.traces import SAMPLED, TRACE_ID, Recorder
from xformd import transform
from xformd.access.guard import Grant, GuardedService
from xformd.access.rules import NOBODY, Identity
from xformd.client.requests import MAX_REPEATS, PATIENCE_S
from xformd.counting import FinishingService
from xformd.limits import Limits
from xformd.net import endpoints
from xformd.protocol import TransformFactory
from xformd.proxy import CachingTransformService
from xformd.proxy.catalog import LIST_TIMEOUT_S
from xformd.runners import Caller
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.spec import parse
from xformd.telemetry.timing import RequestTiming

REFRESH_S = 10.0


@transform(deterministic=True, inline=True)
def steady(poem: bytes) -> bytes:
    return poem.upper()


@transform(inline=True)
def fickle(poem: bytes) -> bytes:
    return poem.lower()


class World:
    """A proxy, and a server behind it whose results the test decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.network = Network()
        self.clock = Clock()
        self.waiting: list[Deferred[bytes]] = []
        self.cancelled = 0
        self.hosts: dict[str, Host] = {}
        self.services: dict[str, TransformService] = {}

        def find(reactor: Any, name: str, tls: None) -> endpoints.ClientEndpoint:
            return endpoints.ClientEndpoint(reactor, self.hosts[name])

        monkeypatch.setattr(endpoints, "client_endpoint", find)
        self.limits = Limits(**limits)

        def wait(poem: bytes) -> Deferred[bytes]:
            self.waiting.append(Deferred(self._cancel))
            return self.waiting[-1]

        later = transform(name="later", deterministic=True)(wait)
        fickle_later = transform(name="fickle-later")(wait)
        self.transforms: tuple[xformd.Transform, ...] = (steady, fickle, later, fickle_later)
        self.add("one")

    def add(self, name: str) -> Host:
        self.services[name] = TransformService.inline(
            registry_of(*self.transforms), Limits(), self.clock, self.clock.seconds
        )
        self.hosts[name] = self.network.host(TransformFactory(self.services[name], Limits(), self.clock))
        return self.hosts[name]

    def upgrade(self, version: str, name: str = "one") -> None:
        """Change the version of an upstream's plugin."""
        registry = registry_of(*self.transforms, version=version)
        self.services[name].swap(Generation(registry, InlineRunner(10**6, self.clock, self.clock.seconds)))

    def proxy(self, *names: str, **options: Any) -> CachingTransformService:
        options = {"refresh_s": REFRESH_S, **options}
        service = CachingTransformService(names or ("one",), self.limits, self.clock, **options)
        service.start()
        self.network.pump()
        return service

    def ask(self, proxy: CachingTransformService | GuardedService, spec: str, poem: bytes = b"owl", **more: Any) -> Any:
        """Return the answer after all that was on its way has arrived: a result, or a Deferred."""
        answer = proxy.xform(parse(spec), poem, **more)
        self.network.pump()
        return answer

    def answer_all(self) -> None:
        """Answer all that waits at the upstreams, and what comes after it."""
        self.network.pump()
        while unanswered := [each for each in self.waiting if not each.called]:
            for each in unanswered:
                each.callback(b"x")
            self.network.pump()

    def is_hit(self, proxy: CachingTransformService, spec: str = "steady", poem: bytes = b"owl") -> bool:
        """Ask, and return whether the result was cached."""
        answer = self.ask(proxy, spec, poem)
        assert (result_of(answer) if isinstance(answer, Deferred) else answer) == poem.upper()
        return not isinstance(answer, Deferred)

    def take_down(self) -> Any:
        """Stop the first upstream; return its factory, to start it again with."""
        host = self.hosts["one"]
        factory, host.factory = host.factory, None
        host.lose_connections()
        return factory

    def turn(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(seconds)
            self.network.pump()

    def says(self, name: str, answer: str | None) -> None:
        """Add an upstream that says the same to every request, with its id in place of the braces."""

        def reply(string: bytes) -> bytes | None:
            number = string.partition(b" ")[0].decode()
            return None if answer is None else answer.replace("{}", number).encode()

        self.hosts[name], _ = self.network.scripted(hello_then(reply))

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def proxy(world: World) -> CachingTransformService:
    return world.proxy()


def cache(proxy: CachingTransformService) -> dict[str, int]:
    shown: dict[str, int] = json.loads(proxy.listing())["cache"]
    return shown


def listings(proxy: CachingTransformService) -> list[Any]:
    """Return what each upstream has listed last."""
    return [*proxy._catalog._listings.values()]


def test_a_proxy_may_ask_a_second_upstream_where_one_takes_long(world: World) -> None:
    world.add("two")
    proxy = world.proxy("one", "two", client={"hedge": True})

    def ask(number: int) -> Any:
        return world.ask(proxy, "later", b"%d" % number)

    for number in range(140):  # so that it knows how long they take; the last ones save up for a second request
        answer = ask(number)
        world.clock.advance(0.01 if number < 100 else 0)
        world.answer_all()
        assert result_of(answer) == b"x"
    cancelled = world.cancelled
    answer = ask(140)
    asked = len(world.waiting)
    world.clock.advance(0.05)
    world.network.pump()
    assert len(world.waiting) == asked + 1
    world.waiting[-1].callback(b"second")
    world.network.pump()
    assert result_of(answer) == b"second"
    assert world.cancelled == cancelled + 1
    assert ask(140) == b"second"


def test_a_miss_is_a_deferred_and_a_hit_the_result_itself(world: World, proxy: CachingTransformService) -> None:
    assert result_of(world.ask(proxy, "steady")) == b"OWL"
    assert world.ask(proxy, "steady") == b"OWL"
    assert cache(proxy) == {"hits": 1, "misses": 1, "bytes": 3 + 1024}
    for spec, poem in (("steady", b"cat"), ("steady+steady", b"owl"), ("steady", b"")):
        assert not world.is_hit(proxy, spec, poem)


def test_what_is_not_deterministic_is_never_cached(world: World, proxy: CachingTransformService) -> None:
    for _ in range(2):
        assert result_of(world.ask(proxy, "fickle", b"OWL")) == b"owl"
    assert cache(proxy) == {"hits": 0, "misses": 0, "bytes": 0}


def test_what_does_not_say_its_version_is_not_cached(world: World) -> None:
    """As of a server without a listing: nobody knows what it has."""
    proxy = world.proxy()
    world.says("odd", "{} ok.OWL")
    world.hosts["one"].factory = world.hosts["odd"].factory
    world.hosts["one"].lose_connections()
    for _ in range(2):
        assert not world.is_hit(proxy)


def test_a_server_that_is_down_keeps_nothing_from_the_cache(world: World) -> None:
    world.hosts["two"] = world.network.host(None)
    proxy = world.proxy("one", "two")
    assert [world.is_hit(proxy), world.is_hit(proxy)] == [False, True]


def test_requests_that_share_a_call_keep_their_own_deadlines(world: World, proxy: CachingTransformService) -> None:
    short, long = world.ask(proxy, "later", timeout_s=1.0), world.ask(proxy, "later", timeout_s=20.0)
    world.clock.advance(1.0)
    assert "within 1 s" in error_of(short, xformd.TransformTimeout).message
    assert not has_fired(long)
    world.clock.advance(19.0)
    error_of(long, xformd.TransformTimeout)
    world.network.pump()
    assert (len(world.waiting), world.cancelled) == (1, 1)


def test_a_share_does_not_wait_for_one_that_has_asked_for_other_things_too(
    world: World, proxy: CachingTransformService
) -> None:
    one, other = Caller("10.0.0.1"), Caller("10.0.0.2")
    asked = [world.ask(proxy, "later", poem, caller=one) for poem in (b"slow", b"owl", b"owl")]
    found = world.ask(proxy, "later", caller=other)
    assert len(world.waiting) == 3
    world.waiting[2].callback(b"its own")
    world.network.pump()
    assert result_of(found) == b"its own"
    assert not any(map(has_fired, asked))
    assert world.ask(proxy, "later", caller=one) == b"its own"  # what is cached is for all


def test_shares_wait_together_for_what_one_has_asked_for_alone(world: World, proxy: CachingTransformService) -> None:
    asked = [world.ask(proxy, "later", caller=Caller(f"10.0.0.{number}")) for number in range(10)]
    assert len(world.waiting) == 1
    world.waiting[0].callback(b"for all")
    world.network.pump()
    assert [result_of(each) for each in asked] == [b"for all"] * 10


def test_the_deadline_of_an_uncached_request_reaches_the_upstream(world: World) -> None:
    world.ask(world.proxy(), "fickle-later", timeout_s=1.5)
    assert b" fickle-later timeout=1500." in world.hosts["one"].sent


def test_an_error_passes_through_and_is_not_cached(world: World, proxy: CachingTransformService) -> None:
    for number in range(2):
        answer = world.ask(proxy, "later")
        world.waiting[number].errback(xformd.GibberishError("this is no sonnet"))
        world.network.pump()
        assert error_of(answer, xformd.GibberishError).message == "this is no sonnet"
    assert cache(proxy)["bytes"] == 0


def test_a_deterministic_request_is_sent_again_when_its_connection_is_lost_and_not_for_ever(world: World) -> None:
    proxy = world.proxy()
    once, through = world.ask(proxy, "later"), world.ask(proxy, "fickle-later")
    world.hosts["one"].lose_connections()
    world.network.pump()
    error = error_of(through, xformd.Unavailable)
    assert error.retry_after_ms == 1000
    assert error.message.startswith("the connection to an upstream")
    for _ in range(MAX_REPEATS):
        assert not has_fired(once)
        world.hosts["one"].lose_connections()
        world.network.pump()
    error_of(once, xformd.Unavailable)


@pytest.mark.parametrize("code", ["shutting-down", "bad-frame"])
def test_an_error_about_the_upstreams_connection_becomes_unavailable(world: World, code: str) -> None:
    world.says("odd", f"{{}} {code} retry-after=7.go away")
    answer = world.ask(world.proxy("odd"), "steady")
    world.turn(1)
    error = error_of(answer, xformd.Unavailable)
    assert (error.message, error.retry_after_ms) == ("go away", 7)


def test_why_a_plugin_of_an_upstream_failed_is_not_passed_on(world: World) -> None:
    world.says("old", "{} no-such-transform.no transform 'owl' here; plugin x 1 (x) failed: /etc/key: not there")
    answer = world.ask(world.proxy("old"), "owl")
    world.turn(1)
    assert error_of(answer, xformd.NoSuchTransform).message == "no transform 'owl' here; plugin x 1 (x) failed"


def test_what_an_upstream_quotes_of_a_request_is_not_logged(world: World) -> None:
    world.says("odd", "{} shutting-down.no SECRET here")
    world.hosts["old"] = world.network.host(Factory.forProtocol(Tutorial))
    for upstream in ("odd", "old"):
        answer = world.ask(world.proxy(upstream), "steady:a=SECRET")
        world.turn(1)
        error = error_of(answer, xformd.XformError)
        assert "SECRET" in error.message
        assert "SECRET" not in error.log_message


def test_results_of_a_classic_server_are_not_cached(world: World) -> None:
    world.hosts["old"] = world.network.host(Factory.forProtocol(Tutorial))
    proxy = world.proxy("old")
    assert [result_of(world.ask(proxy, "cummingsify", b"OWL")) for _ in range(2)] == [b"owl"] * 2
    assert json.loads(proxy.listing())["transforms"] == []


def test_nor_are_they_while_the_list_of_a_newer_one_holds(world: World) -> None:
    @transform(deterministic=True, inline=True)
    def cummingsify(poem: bytes) -> bytes:
        return poem.lower()

    world.transforms = (cummingsify,)
    world.add("one")
    proxy = world.proxy()
    host = world.hosts["one"]
    host.factory = Factory.forProtocol(Tutorial)
    host.lose_connections()
    for _ in range(2):
        assert result_of(world.ask(proxy, "cummingsify", b"OWL")) == b"owl"


def test_the_refusal_of_a_classic_server_is_passed_on_after_one_request(world: World) -> None:
    proxy = world.proxy()
    host = world.hosts["one"]
    host.factory = Factory.forProtocol(Tutorial)
    host.lose_connections()
    answer = world.ask(proxy, "steady")
    assert "refused steady without an answer" in error_of(answer, xformd.TransformFailed).message
    assert [wire.peer.sent.partition(b":")[2] for wire in host.wires].count(b"steady.owl,") == 1


def test_a_result_over_the_limit_is_neither_returned_nor_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_result_bytes=1_000)
    proxy = world.proxy()
    for size in (1_001, 100_000):
        answer = world.ask(proxy, "steady", b"x" * size)
        world.turn(1)
        error_of(answer, xformd.TooLarge)
        assert len(proxy._results.answers) == 0
    assert not world.is_hit(proxy, poem=b"x" * 1_000)


def test_a_defect_is_logged_under_the_number_that_the_client_gets(world: World, log: Log) -> None:
    proxy = world.proxy()
    proxy._upstreams.forward = lambda *_, **__: fail(ZeroDivisionError("oh"))  # type: ignore[method-assign]
    error = error_of(world.ask(proxy, "steady"), xformd.InternalError)
    assert error.message in log.lines[0]
    assert len(log.tracebacks) == 1


def test_an_answered_request_is_forgotten(world: World, proxy: CachingTransformService) -> None:
    seen = [weakref.ref(world.ask(proxy, spec)) for spec in ("steady", "fickle")]
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


def test_over_the_queue_limit_a_request_is_busy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_queue=1, max_in_flight=1)
    proxy = world.proxy()
    world.ask(proxy, "later", b"one")
    through = world.ask(proxy, "fickle-later")
    busy = error_of(world.ask(proxy, "fickle-later"), xformd.Busy)
    assert (busy.message[:22], busy.retry_after_ms) == ("2 requests are waiting", 1000)
    error_of(world.ask(proxy, "later", b"two"), xformd.Busy)
    world.ask(proxy, "later", b"one")  # which is no other call
    world.waiting[0].callback(b"first")
    world.network.pump()
    world.waiting[1].callback(b"done")
    world.network.pump()
    assert result_of(through) == b"done"
    assert not has_fired(world.ask(proxy, "later", b"two"))


def test_stopping_cancels_what_waits(world: World, proxy: CachingTransformService) -> None:
    answers = [world.ask(proxy, "later"), world.ask(proxy, "fickle-later")]
    proxy.stop()
    for answer in answers:
        assert error_of(answer, xformd.ShuttingDown).retry_after_ms is None
    error_of(world.ask(proxy, "nope"), xformd.NoSuchTransform)  # an error while it stops is still that error
    closing = proxy.close()
    world.turn(1)
    assert has_fired(closing)
    assert world.clock.getDelayedCalls() == []


# The cache and its failures


def test_a_result_is_kept_for_its_ttl(world: World) -> None:
    proxy = world.proxy(ttl_s=5)
    world.ask(proxy, "steady")
    world.turn(4.9)
    assert world.is_hit(proxy)
    world.turn(0.1)
    assert not world.is_hit(proxy)


def test_results_and_remembered_poems_share_the_cache_bytes(world: World) -> None:
    proxy = world.proxy(cache_bytes=100_000)
    sizes = []
    for number in range(20):
        world.ask(proxy, "steady", b"%d" % number * 10_000)
        sizes.append(cache(proxy)["bytes"])
    assert sizes[0] == 2 * 10_000 + 1024
    assert 80_000 < max(sizes) <= 100_000


def test_long_poems_that_differ_in_the_middle_have_their_own_results(world: World) -> None:
    proxy = world.proxy()
    poems = [b"o" * 50_000 + middle + b"o" * 50_000 for middle in (b"a", b"b")]
    assert [world.is_hit(proxy, poem=poem) for poem in poems * 2] == [False, False, True, True]
    assert cache(proxy) == {"hits": 2, "misses": 2, "bytes": 2 * (100_001 + 1024) + 100_001}


def test_a_cache_that_fails_never_fails_a_request(world: World, proxy: CachingTransformService, log: Log) -> None:
    proxy._results.answers = None  # type: ignore[assignment]
    assert [world.is_hit(proxy), world.is_hit(proxy)] == [False, False]
    assert {*log.lines} == {"the cache could not be read", "an answer could not be cached"}


# What the upstreams have


def test_after_an_upgrade_is_noticed_no_old_result_is_returned(world: World) -> None:
    proxy = world.proxy()
    world.ask(proxy, "steady")
    assert world.is_hit(proxy)
    world.upgrade("2.0")
    world.turn(REFRESH_S - 1)
    assert world.is_hit(proxy)
    world.turn(1)
    assert not world.is_hit(proxy)


def test_after_an_upgrade_is_noticed_a_guard_returns_no_old_result_either(world: World) -> None:
    guarded = GuardedService(world.proxy(), Grant(Identity("ci", ("*",), unix_uid=1), world.clock))
    result_of(world.ask(guarded, "steady"))
    assert world.ask(guarded, "steady") == b"OWL"
    world.upgrade("2.0")
    world.turn(REFRESH_S)
    assert isinstance(world.ask(guarded, "steady"), Deferred)


def test_an_upstream_that_does_not_know_it_any_more_lends_it_no_old_results(world: World) -> None:
    proxy = world.proxy()
    world.ask(proxy, "steady")
    assert world.is_hit(proxy)
    host, factory = world.hosts["one"], world.take_down()
    world.says("stranger", "{} unauthorized.these credentials are not valid any more")
    host.factory = world.hosts["stranger"].factory
    world.turn(REFRESH_S)
    error = error_of(world.ask(proxy, "steady"), xformd.Unavailable)
    assert error.message == "an upstream does not know this proxy: its operator has to give it a token (--token-file)"
    assert json.loads(proxy.listing())["transforms"] == []
    host.factory = factory
    host.lose_connections()
    world.turn(REFRESH_S)
    assert world.is_hit(proxy)


def test_no_such_transform_makes_it_poll_soon_however_many_there_are(world: World) -> None:
    proxy = world.proxy()
    world.ask(proxy, "steady")
    world.upgrade("2.0")
    for _ in range(2):
        error_of(world.ask(proxy, "nope"), xformd.NoSuchTransform)
        world.turn(0.5)
    assert not world.is_hit(proxy)
    lists = world.hosts["one"].sent.count(b"!list")
    for _ in range(100):
        error_of(world.ask(proxy, "nope"), xformd.NoSuchTransform)
    world.turn(1)
    assert world.hosts["one"].sent.count(b"!list") == lists + 1


def test_nothing_is_cached_until_upstreams_agree_on_a_version(world: World) -> None:
    world.add("two")
    world.upgrade("2.0", "two")
    proxy = world.proxy("one", "two")
    assert [world.is_hit(proxy), world.is_hit(proxy)] == [False, False]
    world.upgrade("2.0")
    world.turn(REFRESH_S)
    assert [world.is_hit(proxy), world.is_hit(proxy)] == [False, True]


def install(world: World, version: str, name: str = "one") -> None:
    """Give an upstream a version of a plugin whose results end with it."""

    @transform(deterministic=True, inline=True)
    def edition(poem: bytes) -> bytes:
        return poem + version.encode()

    registry = registry_of(edition, version=version)
    world.services[name].swap(Generation(registry, InlineRunner(10**6, world.clock, world.clock.seconds)))


def test_a_result_of_a_version_that_came_and_went_between_two_polls_is_not_cached(world: World) -> None:
    install(world, "1.0")
    proxy = world.proxy()
    install(world, "2.0")
    assert result_of(world.ask(proxy, "edition")) == b"owl2.0"
    install(world, "1.0")
    assert result_of(world.ask(proxy, "edition")) == b"owl1.0"
    assert world.ask(proxy, "edition") == b"owl1.0"


def test_a_version_that_is_listed_while_it_answers_is_not_kept_as_the_one_before(world: World) -> None:
    proxy = world.proxy()
    world.upgrade("2.0")
    answer = world.ask(proxy, "later")
    world.turn(REFRESH_S)
    world.answer_all()
    assert result_of(answer) == b"x"
    world.upgrade("1.0")
    world.turn(REFRESH_S)
    assert isinstance(world.ask(proxy, "later"), Deferred)


def test_another_proxy_which_says_no_version_is_polled_no_more_often_and_not_cached(world: World) -> None:
    world.hosts["between"] = world.network.host(TransformFactory(world.proxy(), Limits(), world.clock))
    proxy = world.proxy("between")
    for _ in range(5):
        assert not world.is_hit(proxy)
        world.turn(1)
    assert world.hosts["between"].sent.count(b"!list") == 1


def test_a_result_of_another_version_makes_it_poll_soon(world: World) -> None:
    install(world, "1.0")
    proxy = world.proxy()
    install(world, "2.0")
    world.ask(proxy, "edition")
    world.turn(1)
    assert json.loads(proxy.listing())["transforms"][0]["version"] == "2.0"


@pytest.mark.parametrize("seed", range(3))
def test_versions_that_alternate_are_never_mixed(world: World, seed: int) -> None:
    """Whatever comes from the cache is of the one version that all upstreams have listed."""
    chance, names, hits = Random(seed), ("one", "two", "three"), 0
    for name in names[1:]:
        world.add(name)
    for name in names:
        install(world, "1.0", name)
    proxy = world.proxy(*names)
    for _ in range(1_000):
        if chance.random() < 0.04:  # a rolling upgrade, or a way back, that goes on and on
            install(world, chance.choice(["1.0", "2.0"]), chance.choice(names))
        if chance.random() < 0.02:
            world.turn(chance.uniform(0, REFRESH_S))
        poem = b"%d " % chance.randrange(20)
        answer = world.ask(proxy, "edition", poem)
        if isinstance(answer, bytes):
            versions = {each["version"] for listed in listings(proxy) for each in listed["transforms"]}
            assert {answer} == {poem + version.encode() for version in versions}
            hits += 1
        else:
            assert result_of(answer) in (poem + b"1.0", poem + b"2.0")
    assert 50 < hits < 950


def test_an_upstream_that_has_the_transform_is_asked_and_no_other(world: World) -> None:
    world.add("two")
    install(world, "1.0", "two")
    proxy = world.proxy("one", "two")
    for name in ("steady", "edition"):  # each has one of them
        for number in range(10):
            assert result_of(world.ask(proxy, name, b"%d " % number)).startswith(b"%d " % number)
    assert [world.hosts[name].sent.count(b"edition") for name in ("one", "two")] == [0, 10]
    assert [world.hosts[name].sent.count(b"steady") for name in ("one", "two")] == [10, 0]


def test_that_upstreams_differ_is_counted(world: World) -> None:
    world.add("two")
    proxy = world.proxy("one", "two")
    assert json.loads(proxy.listing())["upstreams"] == {"listed": 2, "fingerprints": 1}
    install(world, "1.0", "two")
    world.turn(REFRESH_S)
    assert json.loads(proxy.listing())["upstreams"] == {"listed": 2, "fingerprints": 2}


def test_an_upstream_that_gets_a_transform_is_asked_for_it_once_it_has_listed_it(world: World) -> None:
    world.add("two")
    install(world, "1.0", "two")
    proxy = world.proxy("one", "two")
    result_of(world.ask(proxy, "edition"))
    install(world, "1.0", "one")
    world.turn(REFRESH_S)
    for number in range(20):
        result_of(world.ask(proxy, "edition", b"%d" % number))
    assert world.hosts["one"].sent.count(b"edition") > 2


def test_each_upstream_is_asked_for_its_list_once_each_time(world: World) -> None:
    world.add("two")
    proxy = world.proxy("one", "two")
    for number in range(5):
        result_of(world.ask(proxy, "steady", b"%d" % number))
        world.turn(REFRESH_S)
    assert [world.hosts[name].sent.count(b"!list") for name in ("one", "two")] == [6, 6]


def test_an_upstream_is_polled_soon_after_its_return(world: World) -> None:
    factory = world.take_down()
    proxy = world.proxy()
    world.turn(REFRESH_S / 2)
    world.hosts["one"].factory = factory
    world.turn(1, times=2)  # it may have to wait before it connects
    assert [world.is_hit(proxy), world.is_hit(proxy)] == [False, True]


def test_an_upstream_that_hangs_delays_neither_the_start_nor_the_others(world: World) -> None:
    world.add("two").is_slow = True
    service = CachingTransformService(("one", "two"), Limits(), world.clock, refresh_s=1.0)
    started = service.start()
    world.network.pump()
    assert not has_fired(started)
    world.turn(LIST_TIMEOUT_S)
    assert has_fired(started)
    first = world.ask(service, "fickle")
    world.turn(PATIENCE_S)
    assert result_of(first) == b"owl"
    assert [world.is_hit(service), world.is_hit(service)] == [False, True]


def test_each_outage_of_an_upstream_is_logged_once_and_its_last_listing_holds(world: World, log: Log) -> None:
    proxy = world.proxy()
    world.ask(proxy, "steady")
    for _ in range(2):
        factory = world.take_down()
        world.turn(REFRESH_S / 2, times=22)
        assert world.is_hit(proxy)
        world.hosts["one"].factory = factory
        world.turn(REFRESH_S)
        world.turn(1)
    once = ["one does not list its transforms", "one lists its transforms again"]
    assert [line.partition(":")[0] for line in log.lines] == once * 2


def test_a_malformed_listing_is_logged_and_nothing_is_cached(world: World, log: Log) -> None:
    world.says("odd", '{} ok.{"transforms": 3}')
    proxy = world.proxy("odd")
    (line,) = log.lines
    why = "odd does not list its transforms: the server's list of transforms is malformed: it is "
    assert line.startswith(why)
    assert [result_of(world.ask(proxy, "steady")) for _ in range(2)] == [b'{"transforms": 3}'] * 2


def test_a_defect_in_polling_is_logged_and_does_not_end_it(
    world: World, proxy: CachingTransformService, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(proxy._catalog, "learn", None)
        world.turn(REFRESH_S)
    assert log.lines == ["cannot tell what one has"]
    world.upgrade("2.0")
    world.turn(REFRESH_S)
    assert json.loads(proxy.listing())["transforms"][0]["version"] == "2.0"


def test_an_upstream_gets_requests_within_a_second_of_its_return(world: World, proxy: CachingTransformService) -> None:
    factory = world.take_down()
    for _ in range(20):
        failed = world.ask(proxy, "steady")
        world.turn(1)
        assert "cannot connect to an upstream: Connection refused" in error_of(failed, xformd.Unavailable).message
    world.hosts["one"].factory = factory
    answer = world.ask(proxy, "steady")
    world.turn(1)
    assert result_of(answer) == b"OWL"


def test_an_upstream_that_never_answers_does_not_delay_closing(world: World, log: Log) -> None:
    world.says("mute", None)
    proxy = world.proxy("mute")
    answer = world.ask(proxy, "steady")
    proxy.stop()
    error_of(answer, xformd.ShuttingDown)
    closing = proxy.close()
    world.turn(1)
    assert has_fired(closing)
    world.turn(LIST_TIMEOUT_S)
    assert world.clock.getDelayedCalls() == []
    del closing
    gc.collect()  # which would log an error that nobody has seen
    assert log.lines == []


def test_an_answer_while_it_closes_starts_no_polling(world: World, proxy: CachingTransformService) -> None:
    answer = proxy.xform(parse("nope"), b"owl")
    assert isinstance(answer, Deferred)
    closing = proxy.close()
    world.network.pump()
    error_of(answer, xformd.NoSuchTransform)
    assert has_fired(closing)
    world.turn(2 * REFRESH_S)
    assert world.hosts["one"].sent.count(b"!list") == 1


# What the dialects call


def test_all_who_ask_within_a_second_share_one_long_listing(world: World) -> None:
    world.transforms = (*world.transforms, *(attrs.evolve(fickle, name=f"a{number}") for number in range(300)))
    world.upgrade("1.0")
    proxy = world.proxy()
    first = proxy.listing()
    world.ask(proxy, "steady")
    assert proxy.listing() is first
    world.turn(1)
    assert json.loads(proxy.listing())["cache"]["misses"] == 1
    world.upgrade("2.0")
    world.turn(REFRESH_S)
    assert json.loads(proxy.listing())["transforms"] != json.loads(first)["transforms"]


def test_for_a_caller_without_room_no_upstream_is_asked(world: World) -> None:
    proxy, full = world.proxy(), Asker(takes_results=False)
    answer = world.ask(proxy, "steady", caller=full.caller)
    assert not has_fired(answer)
    full.takes_results = True
    proxy.has_room(full)
    world.network.pump()
    assert result_of(answer) == b"OWL"


@pytest.mark.parametrize("takes_results", [True, False])
def test_nobody_waits_in_the_place_of_another_client(monkeypatch: pytest.MonkeyPatch, takes_results: bool) -> None:
    """One client asks for much, and then for what another one asks for: that one's place is its own."""
    world = World(monkeypatch, max_in_flight=4)
    proxy = world.proxy()
    many = Asker(takes_results, "192.0.2.1")
    for number in range(20):
        world.ask(proxy, "later", b"%d" % number, caller=many.caller)
    mine = world.ask(proxy, "later", caller=many.caller)
    theirs = world.ask(proxy, "later", caller=Asker(share="192.0.2.2").caller)
    world.waiting[-1].callback(b"OWL")
    world.network.pump()
    assert result_of(theirs) == b"OWL"
    many.takes_results = True
    proxy.has_room(many)
    world.answer_all()
    assert result_of(mine) == b"OWL"
    assert len(world.waiting) == 21


def test_what_is_busy_for_one_client_is_not_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, max_in_flight=4, max_queue=3)
    proxy = world.proxy()
    many = Asker(share="192.0.2.1")
    for number in range(5):
        world.ask(proxy, "later", b"%d" % number, caller=many.caller)
    mine = world.ask(proxy, "later", caller=many.caller)
    theirs = [world.ask(proxy, "later", poem, caller=Asker(share="192.0.2.2").caller) for poem in (b"owl", b"cat")]
    more = world.ask(proxy, "later", b"dog", caller=Asker(share="192.0.2.3").caller)
    world.answer_all()
    assert error_of(mine, xformd.Busy)
    assert [result_of(each) for each in (*theirs, more)] == [b"x"] * 3


# Traces.


class Traced:
    """A client of a proxy that traces what it is asked."""

    def __init__(self, world: World, service: Any) -> None:
        self._world = world
        self.recorder = Recorder()
        factory = TransformFactory(FinishingService(service), world.limits, world.clock, tracer=self.recorder.tracer)
        world.hosts["front"] = world.network.host(factory)
        self._client = xformd.TransformProxy("front", reactor=world.clock)

    def ask(self, spec: str, poem: bytes = b"owl") -> Deferred[bytes]:
        answer = self._client.xform(spec, poem, traceparent=SAMPLED)
        self._world.network.pump()
        self._world.turn(0, times=5)  # on a busy machine, a hit may take longer than a turn
        return answer

    def cache_of(self, name: str) -> list[Any]:
        """Return what the cache had for each request for a transform."""
        attributes = [span.attributes or {} for span in self.recorder.spans if span.name == name]
        return [each.get("xformd.cache") for each in attributes]


def test_a_trace_says_what_the_cache_had_and_goes_on_at_the_upstream(world: World) -> None:
    traced = Traced(world, world.proxy())
    for _ in range(2):
        assert result_of(traced.ask("steady")) == b"OWL"
    assert result_of(traced.ask("fickle")) == b"owl"
    assert traced.cache_of("steady") == ["miss", "hit"]
    assert traced.cache_of("fickle") == ["bypass"]
    calls = [span.context for span in traced.recorder.spans if span.name == "upstream"]
    sent = re.findall(rb"traceparent=00-([0-9a-f]*)-([0-9a-f]*)-01", world.hosts["one"].sent)
    assert sent == [(TRACE_ID.encode(), b"%016x" % call.span_id) for call in calls if call is not None]


def test_requests_that_share_a_call_have_one_between_them(world: World) -> None:
    traced = Traced(world, world.proxy())
    answers = [traced.ask("later") for _ in range(2)]
    world.answer_all()
    assert [result_of(each) for each in answers] == [b"x"] * 2
    assert sorted(traced.cache_of("later")) == ["miss", "shared"]
    assert traced.recorder.names.count("upstream") == 1


def test_a_failed_call_has_its_error_and_so_has_the_request(world: World) -> None:
    traced = Traced(world, world.proxy())
    error_of(traced.ask("uper"), xformd.NoSuchTransform)
    assert traced.recorder.attributes("upstream")["error.type"] == "no-such-transform"
    assert traced.recorder.attributes("uper")["error.type"] == "no-such-transform"
    world.take_down()
    error_of(traced.ask("fickle"), xformd.Unavailable)
    assert traced.recorder.attributes("fickle")["error.type"] == "unavailable"


def test_a_request_that_its_guard_refuses_has_a_span_too(world: World) -> None:
    service = GuardedService(world.proxy(), Grant(NOBODY, world.clock))
    traced = Traced(world, service)
    error_of(traced.ask("steady"), xformd.Unauthorized)
    assert traced.recorder.attributes("steady")["error.type"] == "unauthorized"
    assert traced.recorder.names == ["steady"]


def test_a_proxy_that_traces_nothing_passes_its_caller_s_trace_on(world: World) -> None:
    timing = RequestTiming(traceparent=SAMPLED)
    result_of(world.ask(world.proxy(), "steady", timing=timing))
    assert f" traceparent={SAMPLED}.owl".encode() in world.hosts["one"].sent
