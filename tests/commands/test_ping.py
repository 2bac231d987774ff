"""``xformd ping --all``: who answers at which address, with what, and how that differs."""

import io
import json
import re
import socket
from typing import Any

import pytest
import twisted.internet
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import result_of
from support.fakes import listing_of
from support.network import NamedReactor, Network
from support.poems import Talk, peer
from support.processes import netstring, xformd
from support.registries import plain, quick, registry_of
from xformd.commands import transforms
from xformd.limits import Limits
from xformd.protocol import TransformFactory
from xformd.service import TransformService
from xformd.wire.netstring import Decoder

HELLO = b'xformd/2 {"server": "xformd 9", "max_request_bytes": 9, "max_in_flight": 9}'


def answers(listed: dict[str, Any], pong: bytes = b"") -> Talk:
    """Make a server that pings and lists."""

    def talk(connection: socket.socket) -> None:
        decoder = Decoder(1_000)
        while data := connection.recv(10_000):
            for string in decoder.decode(data):
                number, _, asked = string.partition(b" ")
                answer = pong if asked == b"!ping." else json.dumps({"plugins": [], "conflicts": [], **listed}).encode()
                connection.sendall(netstring(number + b" ok." + answer if asked else HELLO))

    return talk


def test_servers_that_offer_the_same_are_equal() -> None:
    with peer(answers(listing_of(wrap="1.0"))) as one, peer(answers(listing_of(wrap="1.0"), b"loading owls")) as two:
        done = xformd("ping", "--all", "--server", one.address, "--server", two.address)
    first, second = done.stdout.decode().splitlines()
    assert first.startswith(f"{one.address}: xformd 9, ready, 1 transforms, fingerprint ")
    assert second == first.replace(one.address, two.address).replace("ready", "loading owls")
    assert (done.returncode, done.stderr) == (0, b"")


def test_servers_that_differ_are_compared_and_the_status_says_so() -> None:
    with peer(answers(listing_of(wrap="1.0", owl="1.0"))) as one, peer(answers(listing_of(wrap="1.1"))) as two:
        arguments = ("ping", "--all", "--server", one.address, "--server", two.address)
        done = xformd(*arguments)
    lines = done.stdout.decode().splitlines()
    assert lines[2:] == [
        f"{two.address} lacks owl (x-owl 1.0)",
        f"{two.address} has wrap of x-wrap 1.1, and {one.address} of x-wrap 1.0",
    ]
    assert (done.returncode, done.stderr) == (78, b"")


def test_a_server_that_does_not_answer_is_an_error_and_the_others_are_asked() -> None:
    def refuse(connection: socket.socket) -> None:
        decoder = Decoder(1_000)
        while data := connection.recv(10_000):
            for string in decoder.decode(data):
                number, _, asked = string.partition(b" ")
                connection.sendall(netstring(number + b" unauthorized.no token" if asked else HELLO))

    with peer(refuse) as one, peer(answers(listing_of())) as two:
        done = xformd("ping", "--all", "--server", one.address, "--server", two.address)
    assert done.stdout.startswith(f"{two.address}: xformd 9, ready, 0 transforms".encode())
    assert (done.returncode, done.stderr) == (77, b"xformd: unauthorized: no token\n")


def test_flags_that_do_not_go_together_are_refused() -> None:
    done = xformd("ping", "--all", "--wait")
    assert done.returncode == 2
    assert b"--all" in done.stderr.splitlines()[-1]


def test_a_name_is_asked_at_each_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, clock = Network(), Clock()
    reactor = NamedReactor(clock)
    for last, offered in enumerate([(plain, quick), (plain,), ()], 1):
        service = TransformService.inline(registry_of(*offered), Limits(), clock)
        factory = TransformFactory(service, Limits(), clock) if offered else None
        reactor.hosts[f"10.0.0.{last}"] = network.host(factory)
    reactor.names["poems"] = [*reactor.hosts]
    monkeypatch.setattr(twisted.internet, "reactor", reactor, raising=False)
    looking = Deferred.fromCoroutine(transforms._look("poems:11000", 5, {"token": None, "tls": False}))
    for _ in range(20):
        network.pump()
        clock.advance(0.1)  # between two attempts to connect
    looks = result_of(looking)
    shown = io.StringIO()
    assert transforms._report(looks, shown) == 69
    first, second, difference = shown.getvalue().splitlines()
    assert difference == "poems:11000 at 10.0.0.2 lacks quick (xformd-verses 1.0)"
    assert re.match(r"poems:11000 at 10\.0\.0\.1: .*, 2 transforms, ", first)
    assert re.match(r"poems:11000 at 10\.0\.0\.2: .*, 1 transforms, ", second)
    failed = "xformd: connection-failed: cannot connect to poems:11000 at 10.0.0.3"
    assert capsys.readouterr().err.startswith(failed)
