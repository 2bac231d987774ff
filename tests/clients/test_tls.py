"""TLS of all three clients: whom they trust, what they show, and the same words where there is no connection."""

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import xformd
from support.certificates import Authority
from support.clients import CLIENTS, FakeServer, Talk, answers, upper
from xformd.errors import ConfigError, XformError
from xformd.net.tls import ClientTls

NOW = datetime.now(UTC).replace(tzinfo=None)
DAY = timedelta(days=1)
EXPIRED: dict[str, Any] = {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}
NOT_YET: dict[str, Any] = {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}


class World:
    """An authority, another one, a server and clients of all kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority, self.stranger = Authority(), Authority()
        self.ca = self.authority.write(folder / "ca.pem")
        self.clients = {name: make() for name, make in CLIENTS.items()}
        self.server: FakeServer | None = None

    def serve(self, certificate: Path | None = None, client_ca: Path | None = None, talk: Talk | None = None) -> str:
        """Start a server, over TLS if it has a certificate; return its address."""
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            if client_ca is not None:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        self.server = FakeServer(talk or answers(upper), context)
        return self.server.address

    def issue(self, *names: str, authority: Authority | None = None, **validity: Any) -> Path:
        return (authority or self.authority).issue(self.folder / f"{names[0]}.pem", *names, **validity)

    def ask(self, address: str, tls: ClientTls | bool | None = None) -> list[Any]:
        """Return what comes of a request of each client: the result, or the error's code and words."""
        said: list[Any] = []
        for clients in self.clients.values():
            try:
                client = clients.make(address, tls=ClientTls(self.ca) if tls is None else tls, address="there")
                said.append(client.xform("upper", "x", timeout=90))
            except XformError as error:
                said.append((error.code, error.message, error.poem))
        return said


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for clients in made.clients.values():
        clients.stop()
    if made.server is not None:
        made.server.stop()


def test_a_server_whose_name_is_verified_answers(world: World) -> None:
    address = world.serve(world.issue("localhost", "127.0.0.1"))
    assert world.ask(address) == ["X"] * 3
    assert world.ask(address.replace("127.0.0.1", "localhost")) == ["X"] * 3


def test_long_poems_go_over_tls_both_ways(world: World) -> None:
    address = world.serve(world.issue("127.0.0.1"))
    poem = "long poem " * 90_000
    for clients in world.clients.values():
        client = clients.make(address, tls=ClientTls(world.ca))
        begun = [client.start("upper", f"{each} {poem}") for each in range(4)]
        assert [each.result(60) == f"{number} {poem}".upper() for number, each in enumerate(begun)] == [True] * 4


def test_an_address_asks_for_tls_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    address = world.serve(world.issue("127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca))
    assert world.ask(f"tls:{address}", False) == ["X"] * 3


def test_a_client_shows_its_certificate(world: World) -> None:
    address = world.serve(world.issue("127.0.0.1"), client_ca=world.ca)
    assert world.ask(address, ClientTls(world.ca, world.issue("ci.internal"))) == ["X"] * 3


def _certificates(world: World) -> dict[str, Callable[[], tuple[str, ClientTls | None]]]:
    good = lambda: world.issue("127.0.0.1")  # noqa: E731
    below = Authority(world.stranger)
    return {
        "has expired": lambda: (world.serve(world.issue("127.0.0.1", **EXPIRED)), None),
        "is not valid yet": lambda: (world.serve(world.issue("127.0.0.1", **NOT_YET)), None),
        "is for another name": lambda: (world.serve(world.issue("other.internal", "127.0.0.2")), None),
        "is of a stranger": lambda: (world.serve(world.issue("127.0.0.1", authority=world.stranger)), None),
        "is of one below a stranger": lambda: (world.serve(world.issue("127.0.0.1", authority=below)), None),
        "is none": lambda: (world.serve(), None),
        "ends in the handshake": lambda: (world.serve(talk=lambda conversation: None), None),
        "wants the client's": lambda: (world.serve(good(), client_ca=world.ca), None),
        "does not trust the client's": lambda: (
            world.serve(good(), client_ca=world.ca),
            ClientTls(world.ca, world.issue("ci.internal", authority=world.stranger)),
        ),
        "finds the client's expired": lambda: (
            world.serve(good(), client_ca=world.ca),
            ClientTls(world.ca, world.issue("ci.internal", **EXPIRED)),
        ),
    }


CASES = [
    "has expired",
    "is not valid yet",
    "is for another name",
    "is of a stranger",
    "is of one below a stranger",
    "is none",
    "ends in the handshake",
    "wants the client's",
    "does not trust the client's",
    "finds the client's expired",
]


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_certificate_is_said_in_the_same_words(world: World, case: str) -> None:
    address, tls = _certificates(world)[case]()
    twisted, *others = world.ask(address, tls)
    assert twisted[0] in ("connection-failed", "connection-lost")
    assert others == [twisted] * 2


def test_a_bad_file_is_named(world: World, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.touch()
    for tls in (ClientTls(tmp_path / "gone.pem"), ClientTls(nothing), ClientTls(None, None, nothing)):
        for clients in world.clients.values():
            with pytest.raises(
                ConfigError, match=r"gone\.pem: No such file|nothing\.pem has no valid|needs its certificate"
            ):
                clients.make("127.0.0.1:1", tls=ClientTls(tls.ca, tls.certificate, tls.key))


def test_a_file_is_read_again_when_it_has_changed(world: World) -> None:
    tls = ClientTls(world.ca)
    first = tls.context()
    assert tls.context() is first
    world.stranger.write(world.ca)
    assert (second := tls.context()) is not first
    world.ca.write_text("half a certificate")
    assert tls.context() is second
    assert xformd.ConfigError is ConfigError
