"""One contract for the clients on Twisted, on asyncio and on plain sockets: the same results, errors and words."""

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import xformd
from support.clients import CLIENTS, HELLO, Conversation, FakeServer, Talk, answers, fake_servers, number, until, upper
from support.processes import DEADLINE_S
from xformd.blocking import TransformClient
from xformd.errors import XformError
from xformd.net.plain import PEER_TIMEOUT_S, bytes_in_system

Make = Callable[..., Any]


@pytest.fixture(params=CLIENTS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a client of each kind."""
    clients = CLIENTS[request.param]()
    yield clients.make
    clients.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], FakeServer]]:
    """Start servers in threads."""
    with fake_servers() as start:
        yield start


def _has(strings: list[bytes], count: int) -> bool:
    return len(strings) == count


def silent(string: bytes) -> None:
    """Answer nothing."""


def test_a_result_has_the_poems_type(make: Make, serve: Any) -> None:
    client = make(serve(answers(upper)).address)
    assert client.xform("upper", "dé") == "DÉ".replace("É", "é")  # it knows ASCII alone
    assert client.xform("upper", b"a.b") == b"A.B"
    assert client.xform("upper", bytearray(b"a")) == b"A"


def test_options_travel_in_the_spec_and_a_dot_is_encoded(make: Make, serve: Any) -> None:
    server = serve(answers(upper))
    make(server.address).xform("wrap:indent=2", "x", width=40, fill=False, ratio=1.5)
    assert server.received == [b"xformd/2", b"1 wrap:fill=false,indent=2,ratio=1%2E5,width=40.x"]


def test_answers_come_in_any_order_on_one_connection(make: Make, serve: Any) -> None:
    def backwards(conversation: Conversation) -> None:
        held: list[bytes] = []
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
                continue
            held.append(string)
            if len(held) == 4:
                conversation.say(*map(upper, reversed(held)))
                held.clear()

    server = serve(backwards)
    client = make(server.address)
    begun = [client.start("upper", f"poem {each}") for each in range(8)]
    assert [each.result(10) for each in begun] == [f"POEM {each}" for each in range(8)]
    assert server.connections == 1


def test_no_more_is_in_flight_than_the_server_allows(make: Make, serve: Any) -> None:
    server = serve(answers(silent))
    client = make(server.address)
    begun = [client.start("upper", str(each)) for each in range(6)]
    until(lambda: len(server.received) == 5)
    server.stop()
    lost = [each.exception(10) for each in begun]
    assert sorted(type(each).__name__ for each in lost) == ["ConnectionFailed"] * 2 + ["ConnectionLost"] * 4


@pytest.mark.parametrize("code", ["bad-options", "no-such-transform", "transform-died", "unavailable", "internal"])
def test_a_servers_error_is_an_exception_that_carries_the_poem(make: Make, serve: Any, code: str) -> None:
    client = make(serve(answers(lambda s: b"%b %b.in words" % (number(s), code.encode()))).address)
    with pytest.raises(xformd.errors.ERRORS[code], match="in words") as caught:
        client.xform("upper", "poem")
    assert caught.value.poem == "poem"


def test_a_server_that_crashes_fails_what_is_in_flight_and_is_used_when_it_comes_back(make: Make, serve: Any) -> None:
    server = serve(answers(silent))
    client = make(server.address, longest_delay_s=0.05)
    begun = client.start("upper", "poem")
    until(lambda: b"1 upper.poem" in server.received)
    server.stop()
    with pytest.raises(xformd.ConnectionLost) as caught:
        begun.result(10)
    assert (caught.value.poem, server.received.count(b"1 upper.poem")) == ("poem", 1)
    with pytest.raises(xformd.ConnectionFailed):
        client.xform("upper", "poem")
    server.talk = answers(upper)
    server.start()
    assert client.xform("upper", "back") == "BACK"


def test_a_server_that_closed_an_idle_connection_gets_the_next_request_on_another(make: Make, serve: Any) -> None:
    told: list[bytes] = []
    ended: list[bytes] = []

    def one(conversation: Conversation) -> None:
        for string in conversation:
            conversation.say(HELLO if string == b"xformd/2" else upper(string))
            if string != b"xformd/2":
                conversation.say(b"0 shutting-down.idle for too long")
                until(lambda: not bytes_in_system(conversation.socket))
                told.append(string)
                list(conversation)  # until the client has heard it
                ended.append(string)
                return

    server = serve(one)
    client = make(server.address)
    for each in range(1, 4):
        assert client.xform("upper", "x") == "X"
        heard = told if isinstance(client, TransformClient) else ended  # that one hears it when it is used next
        until(functools.partial(_has, heard, each))
    assert server.connections == 3


def test_what_a_stopping_server_has_not_begun_is_sent_again(make: Make, serve: Any) -> None:
    said = iter([b"1 shutting-down retry-after=5.bye", b"1 ok.done"])
    server = serve(answers(lambda string: next(said)))
    assert make(server.address).xform("upper", "x") == "done"
    assert server.received.count(b"1 upper.x") == 2


def test_another_server_gets_what_the_first_cannot_take(make: Make, serve: Any) -> None:
    busy = serve(answers(lambda string: number(string) + b" busy retry-after=250.later"))
    well = serve(answers(upper))
    gone = serve(answers(upper))
    gone.stop()
    client = make([gone.address, busy.address, well.address])
    assert [client.xform("upper", each) for each in "abcdef"] == list("ABCDEF")
    assert busy.received or well.received


def test_a_timeout_reaches_the_server_and_the_session_goes_on(make: Make, serve: Any) -> None:
    server = serve(answers(lambda s: upper(s) if s.endswith(b"quick") else None))
    client = make(server.address, address="there")
    assert client.xform("upper", "quick") == "QUICK"  # the connection is there, so that the next one is sent in time
    with pytest.raises(xformd.TransformTimeout, match=r"^no answer from there within 0\.3 s$") as caught:
        client.xform("upper", "slow", timeout=0.3)
    assert caught.value.poem == "slow"
    until(lambda: b"2 !cancel." in server.received)
    assert any(string.startswith(b"2 upper timeout=") for string in server.received)
    assert client.xform("upper", "quick") == "QUICK"
    assert server.connections == 1


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_an_impossible_timeout_is_a_programming_error(make: Make, serve: Any, timeout: float) -> None:
    client = make(serve(answers(upper)).address)
    for ask in (lambda: client.xform("upper", "x", timeout=timeout), lambda: client.ping(timeout=timeout)):
        with pytest.raises(ValueError, match="timeout must be a number of seconds above 0"):
            ask()
    with pytest.raises(TypeError, match="a poem must be str or bytes, not int"):
        client.xform("upper", 3)


def test_a_token_is_shown_before_anything_else(make: Make, serve: Any) -> None:
    def guarded(string: bytes) -> bytes:
        return b"1 ok.{}" if string == b"1 !auth.secret" else upper(string)

    server = serve(answers(guarded))
    assert make(server.address, token="secret").xform("upper", "x") == "X"
    assert server.received == [b"xformd/2", b"1 !auth.secret", b"2 upper.x"]


def test_list_and_ping(make: Make, serve: Any) -> None:
    listing = b'{"transforms": [{"name": "owl"}], "plugins": [], "conflicts": []}'
    told = {b"!list.": listing, b"!ping.": b"still loading owls"}
    client = make(serve(answers(lambda s: number(s) + b" ok." + told[s.split(b" ")[1]])).address)
    assert client.list_transforms(timeout=5)["transforms"][0]["name"] == "owl"
    assert client.ping() == "scripted 1, still loading owls"


def test_a_classic_server_gets_a_connection_for_each_request(make: Make, serve: Any) -> None:
    def tutorial(conversation: Conversation) -> None:
        for string in conversation:
            name, dot, poem = string.partition(b".")
            if dot and name == b"upper":
                conversation.say(poem.upper())
            return

    server = serve(tutorial)
    client = make(server.address, address="there")
    assert [client.xform("upper", each) for each in "ab"] == ["A", "B"]
    assert server.received == [b"xformd/2", b"upper.a", b"upper.b"]
    with pytest.raises(xformd.RequestRefused, match="there refused nope without an answer"):
        client.xform("nope", "x")
    with pytest.raises(xformd.RequestRefused, match="speaks only the classic dialect"):
        client.ping()


def _unreachable(port: int) -> list[socket.socket]:
    """Let a port accept nothing more, so that who connects to it waits; return what sees to that."""
    listener, *filling = (socket.socket() for _ in range(4))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(0)
    for each in filling:
        each.setblocking(False)
        each.connect_ex(("127.0.0.1", port))
    return [listener, *filling]


def test_nobody_waits_longer_than_his_timeout_for_a_classic_server(make: Make, serve: Any) -> None:
    def tutorial(conversation: Conversation) -> None:
        for string in conversation:
            if string.startswith(b"upper."):
                conversation.say(upper(b"1 " + string).partition(b".")[2])
            return

    server = serve(tutorial)
    client = make(server.address)
    assert client.xform("upper", "a", timeout=DEADLINE_S) == "A"
    server.stop()
    sockets = _unreachable(int(server.address.partition(":")[2]))
    before = time.monotonic()
    with pytest.raises(xformd.TransformTimeout):
        client.xform("upper", "b", timeout=0.2)
    assert time.monotonic() - before < PEER_TIMEOUT_S / 2
    for each in sockets:
        each.close()


def test_a_client_that_is_closed_takes_nothing_more(make: Make, serve: Any) -> None:
    client = make(serve(answers(upper)).address)
    assert client.xform("upper", "x") == "X"
    client.close()
    with pytest.raises(xformd.ConnectionFailed, match="is closed: make a new one"):
        client.xform("upper", "x")


def test_a_client_closes_although_its_server_never_reads(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xformd.wire.client.GIVE_UP_S", 0.1)
    is_over = threading.Event()

    def talk(conversation: Conversation) -> None:
        next(iter(conversation))
        conversation.say(HELLO.replace(b"1000000", b"100000000"))
        is_over.wait(DEADLINE_S)

    client = make(serve(talk).address)
    with pytest.raises(xformd.TransformTimeout):
        client.xform("upper", b"a" * 30_000_000, timeout=0.5)  # more than the system takes
    closing = threading.Thread(target=client.close, daemon=True)
    closing.start()
    closing.join(DEADLINE_S / 2)
    is_over.set()
    assert not closing.is_alive()


# The same words


def _refuses(conversation: Conversation) -> None:
    for string in conversation:
        if string == b"xformd/2":
            conversation.say(HELLO)
        elif b"!auth" in string:
            conversation.say(b"1 unauthorized.this server needs credentials")


def _after_request(act: Callable[[Conversation], None]) -> Talk:
    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
            else:
                act(conversation)
                return

    return talk


def _first(data: bytes) -> Talk:
    def talk(conversation: Conversation) -> None:
        conversation.socket.sendall(data)
        list(conversation)

    return talk


def _classic(act: Callable[[Conversation], None]) -> Talk:
    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if string != b"xformd/2":
                act(conversation)
            return

    return talk


WORLDS: dict[str, Talk | None] = {
    "refuses connections": None,
    "resets after the request": _after_request(Conversation.reset),
    "closes after the request": _after_request(lambda conversation: None),
    "says goodbye and closes": _after_request(lambda c: c.say(b"0 shutting-down.until tomorrow")),
    "resets at the opening": _first(b""),
    "is HTTP": _first(b"HTTP/1.1 400 Bad Request\r\n"),
    "is TLS": _first(b"\x15\x03\x01\x00\x02\x02\x50"),
    "is another protocol": _first(b"1:x,"),
    "has a huge hello": _first(b"99999999999:"),
    "has garbage for a hello": _first(b"15:xformd/2 {not J,"),
    "sends no netstring": _after_request(lambda c: c.socket.sendall(b"owl")),
    "sends a huge length": _after_request(lambda c: c.socket.sendall(b"999999999999:x")),
    "sends no id": _after_request(lambda c: c.say(b"owl ok.x")),
    "answers what nobody asked": _after_request(lambda c: c.say(*[b"%d ok.x" % each for each in range(7, 12)])),
    "sends a code of its own": _after_request(lambda c: c.say(b"1 tea-time.at five")),
    "is busy": _after_request(lambda c: c.say(b"1 busy retry-after=250.the queue is full")),
    "died": _after_request(lambda c: c.say(b"1 transform-died.its worker was killed")),
    "sends bytes": _after_request(lambda c: c.say(b"1 ok.\xff")),
    "sends too much": _after_request(lambda c: c.say(b"1 ok." + b"x" * 1_001)),
    "needs credentials": _refuses,
    "stops in the middle": _after_request(lambda c: c.say(b"1 shutting-down.stopped before this was done")),
    "is classic and refuses": _classic(lambda conversation: None),
    "is classic and breaks off": _classic(lambda c: c.socket.sendall(b"5:half")),
    "is classic and lies": _classic(lambda c: c.socket.sendall(b"1:abc,")),
    "is classic and resets": _classic(Conversation.reset),
    "never opens a session": _after_request(lambda c: None),
}


def _opens_never(conversation: Conversation) -> None:
    list(conversation)


def _dies_at_once(conversation: Conversation) -> None:
    for _ in conversation:
        conversation.reset()


WORLDS["never opens a session"] = _opens_never
WORLDS["resets at the opening"] = _dies_at_once


@pytest.fixture(scope="module")
def all_clients() -> Iterator[dict[str, Any]]:
    """Clients of all kinds."""
    started = {name: kind() for name, kind in CLIENTS.items()}
    yield started
    for clients in started.values():
        clients.stop()


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_error_is_said_in_the_same_words(
    all_clients: dict[str, Any], serve: Any, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xformd.client.servers.OPENING_TIMEOUT_S", 1.0)
    talk = WORLDS[world]
    server = serve(talk or _opens_never)
    if talk is None:
        server.stop()
    token = "wrong" if world == "needs credentials" else None
    said = {name: _ask(clients, server.address, token) for name, clients in all_clients.items()}
    assert said["asyncio"] == said["twisted"]
    assert said["blocking"] == said["twisted"]
    assert said["twisted"][0] != "no error"


def _ask(clients: Any, address: str, token: str | None) -> tuple[Any, ...]:
    client = clients.make(address, address="there", max_result_bytes=1_000, token=token)
    try:
        client.xform("upper:a=1", "poem", timeout=60)
    except XformError as error:
        return error.code, error.message, error.retryable, error.retry_after_ms, error.poem, error.log_message
    return ("no error",)


@pytest.mark.parametrize(
    ("transform", "poem", "options"),
    [
        ("Upper", "x", {}),
        ("upper", "\ud800", {}),
        ("a+b", "x", {"c": 1}),
        ("a", "x", {"c": object()}),
        ("a" * 9000, "x", {}),
    ],
)
def test_what_cannot_be_sent_is_said_in_the_same_words(
    all_clients: dict[str, Any], serve: Any, transform: str, poem: str, options: dict[str, Any]
) -> None:
    server = serve(answers(upper))
    said = []
    for clients in all_clients.values():
        with pytest.raises(XformError) as caught:
            clients.make(server.address).xform(transform, poem, **options)
        said.append((caught.value.code, caught.value.message, caught.value.poem))
    assert said == said[:1] * 3


@pytest.mark.parametrize("address", ["127.0.0.1:70000", "10000.1:5", "unix:/" + "x" * 200, "no:such:thing"])
def test_an_impossible_address_is_said_in_the_same_words(all_clients: dict[str, Any], address: str) -> None:
    said = []
    for clients in all_clients.values():
        with pytest.raises(xformd.ConfigError) as caught:
            clients.make(address)
        said.append(caught.value.message.partition(": write")[0].partition("Unknown")[0])
    assert said[1:] == said[:1] * 2 or address == "no:such:thing"


def test_a_second_address_in_the_place_of_the_port_is_refused_by_all(all_clients: dict[str, Any]) -> None:
    for clients in all_clients.values():
        with pytest.raises(xformd.ConfigError, match=r"several servers are a list: \['one:1', 'two:2'\]"):
            clients.make("one:1", port="two:2")


def test_a_server_that_is_silent_is_asked_and_given_up_in_the_same_words(
    all_clients: dict[str, Any], serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SILENCE_S", "DOUBT_S", "GIVE_UP_S"):
        monkeypatch.setattr(f"xformd.wire.client.{name}", 0.5)
    said = []
    for clients in all_clients.values():
        server = serve(answers(silent))
        begun = clients.make(server.address, address="there").start("upper", "poem")
        with pytest.raises(xformd.ConnectionLost) as caught:
            begun.result(10)
        said.append((caught.value.message, caught.value.poem))
        assert b"2 !ping." in server.received
    assert said == said[:1] * 3
    assert said[0][0].startswith("there has stopped answering, even a ping: it may be gone; the request may have run")


def test_a_server_that_works_for_long_and_answers_pings_is_left_alone(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SILENCE_S", "DOUBT_S", "GIVE_UP_S"):
        monkeypatch.setattr(f"xformd.wire.client.{name}", 0.1)
    pings = threading.Semaphore(0)

    def patient(string: bytes) -> bytes | None:
        if b"!ping" not in string:
            return None
        pings.release()
        return number(string) + b" ok."

    def talk(conversation: Conversation) -> None:
        for string in conversation:
            conversation.say(HELLO) if string == b"xformd/2" else None
            if (said := patient(string)) is not None:
                conversation.say(said)
            if number(string) == b"4":
                conversation.say(b"1 ok.DONE")

    server = serve(talk)
    assert make(server.address).xform("upper", "slow") == "DONE"
    assert server.connections == 1
