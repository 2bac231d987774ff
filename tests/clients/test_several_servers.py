"""All clients before several servers that say what they have: what is sent again, and what is sent to two."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import xformd
from support.clients import CLIENTS, HELLO, Conversation, FakeServer, answers, fake_servers, number, until, upper
from xformd.blocking import TransformClient
from xformd.client.requests import MAX_REPEATS
from xformd.spec import Spec, Step

SURE = {"name": "sure", "deterministic": True, "distribution": "owls", "version": "1"}
RARE = {**SURE, "name": "rare"}


@pytest.fixture(params=CLIENTS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Make a client of each kind."""
    clients = CLIENTS[request.param]()
    yield clients.make
    clients.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    """Start servers in threads."""
    with fake_servers() as start:
        yield start


def listing(*transforms: dict[str, Any]) -> bytes:
    return json.dumps({"transforms": transforms, "plugins": [], "conflicts": []}).encode()


def offering(answer: Callable[[bytes], bytes | None], *transforms: dict[str, Any]) -> Callable[[bytes], bytes | None]:
    """Answer as a server that has these transforms."""
    told = listing(*(transforms or [SURE]))
    return lambda string: number(string) + b" ok." + told if b"!list" in string else answer(string)


class Fragile:
    """A server that lists ``sure``, and resets the connection when it is asked for it."""

    def __init__(self) -> None:
        self.resets = 0

    def __call__(self, conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
            elif b" sure" in string:
                self.resets += 1
                conversation.reset()
                return
            else:
                conversation.say(offering(upper)(string) or b"")


def test_a_request_that_may_run_twice_is_sent_again_when_its_server_is_lost(make: Any, serve: Any) -> None:
    fragile = Fragile()
    client = make([serve(fragile).address, serve(answers(offering(upper))).address])

    def is_repeated() -> bool:
        before = fragile.resets
        try:
            return client.xform("sure", "x") == "X" and fragile.resets > before
        except xformd.ConnectionLost:  # the servers had not said yet that it may run twice
            return False

    until(is_repeated)


def test_the_poems_of_map_that_may_run_twice_are_sent_again_when_their_server_is_lost(serve: Any) -> None:
    fragile = Fragile()
    poems = [str(each) for each in range(100, 120)]

    with TransformClient([serve(fragile).address, serve(answers(offering(upper))).address]) as client:

        def are_repeated() -> bool:
            before = fragile.resets
            try:
                return [*client.map("sure", poems)] == poems and fragile.resets > before
            except xformd.ConnectionLost:
                return False

        until(are_repeated)


def test_a_poem_of_map_is_repeated_no_more_often_than_any_request(serve: Any) -> None:
    fragile = [Fragile() for _ in range(6)]
    with TransformClient([serve(each).address for each in fragile], longest_delay_s=0.01) as client:
        until(lambda: client.ping() and [node.offers for node in client._balancer.nodes].count(None) == 0)
        until(lambda: client._balancer.may_run_twice(Spec((Step("sure"),))))
        until(lambda: len(client._balancer.nodes) == 6 and client.ping())
        before = sum(each.resets for each in fragile)
        with pytest.raises(xformd.ConnectionLost):
            next(client.map("sure", ["x"]))
        assert sum(each.resets for each in fragile) - before == 1 + MAX_REPEATS


def test_a_transform_is_asked_of_the_server_that_has_it(make: Any, serve: Any) -> None:
    def lacks(string: bytes) -> bytes:
        return number(string) + b" no-such-transform.none" if b" rare" in string else upper(string)

    other, having = serve(answers(offering(lacks))), serve(answers(offering(upper, SURE, RARE)))
    client = make([other.address, having.address])
    assert [client.xform("rare", "x") for _ in range(4)] == ["X"] * 4

    def is_found_at_once() -> bool:
        before = len(other.received)
        assert client.xform("rare", "x") == "X"
        return len(other.received) == before

    until(is_found_at_once)


def test_a_slow_request_is_sent_to_a_second_server_and_the_loser_is_cancelled(make: Any, serve: Any) -> None:
    held: list[bytes] = []

    def answer(string: bytes) -> bytes | None:
        if string.endswith(b"slow") and not held:
            held.append(string)
            return None
        return upper(string)

    servers = [serve(answers(offering(answer))) for _ in range(2)]
    client = make([server.address for server in servers], hedge=True)

    def is_sent_to_both() -> bool:
        assert [client.xform("sure", "fast") for _ in range(30)] == ["FAST"] * 30
        held.clear()
        try:
            return bool(client.xform("sure", "slow", timeout=1) == "SLOW")
        except xformd.TransformTimeout:  # one in 20 may be sent twice, and the servers have to say that it may
            return False

    until(is_sent_to_both)
    (slow,) = held
    until(lambda: number(slow) + b" !cancel." in [*servers[0].received, *servers[1].received])


class Faulty:
    """Answers as a server that has ``sure``, and is ``busy`` for a while."""

    is_busy = True

    def __init__(self) -> None:
        self.refused = self.answered = 0

    def __call__(self, string: bytes) -> bytes:
        if b" sure" not in string:
            return upper(string)
        self.refused += self.is_busy
        self.answered += not self.is_busy
        return number(string) + b" busy retry-after=1.full" if self.is_busy else upper(string)

    def is_left_out(self, client: Any) -> bool:
        """Send requests; whether it has got none of them."""
        before = self.refused
        assert [client.xform("sure", "x") for _ in range(50)] == ["X"] * 50
        return 3 <= before == self.refused


def test_a_question_does_not_keep_a_server_out_that_was_left_out(make: Any, serve: Any) -> None:
    faulty = Faulty()
    server = serve(answers(offering(faulty)))
    client = make([server.address, serve(answers(offering(upper))).address])
    until(lambda: faulty.is_left_out(client))
    faulty.is_busy = False
    server.received.clear()
    until(lambda: client.ping() and any(b"!ping" in string for string in server.received))
    assert (client.xform("sure", "x"), faulty.answered) == ("X", 1)


def test_a_poem_of_map_does_not_keep_a_server_out_that_was_left_out(serve: Any) -> None:
    faulty = Faulty()
    with TransformClient([serve(answers(offering(faulty))).address, serve(answers(offering(upper))).address]) as client:
        until(lambda: faulty.is_left_out(client))
        faulty.is_busy = False
        until(lambda: [*client.map("sure", "x")] == ["X"] and faulty.answered)
        assert not [node for node in client._balancer.nodes if node.is_probed]  # it was noted what came of it
