"""A client over TLS, in memory: whom it trusts, what it shows, and what both sides say when there is no connection."""

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol

import xformd.net.tls.server as tls_server
from support.certificates import Authority
from support.deferreds import error_of, has_fired, result_of
from support.logs import Log
from support.memory import MemoryServer
from support.network import Dying, NamedReactor, Network
from xformd import TransformProxy
from xformd.config import Settings
from xformd.errors import BadFrame, ConfigError, ConnectionFailed, ConnectionLost
from xformd.net.endpoints import client_endpoint
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.net.tls import ClientTls, client_names, server_tls
from xformd.net.turns import TURN_S

NOW = datetime.now(UTC).replace(tzinfo=None)
DAY = timedelta(days=1)
EXPIRED = {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}
NOT_YET = {"not_before": NOW + DAY, "not_after": NOW + 9 * DAY}


class World:
    """A server called server.internal, its authority, and another authority."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
        self.folder = folder
        self.authority, self.stranger = Authority(), Authority()
        self.ca = self.authority.write(folder / "ca.pem")
        self.certificate = self.authority.issue(folder / "server.pem", "server.internal", "10.0.0.1")
        self.network = Network()
        self.server = MemoryServer()
        self.reactor = NamedReactor(self.server.clock)
        self.reactor.names["server.internal"] = self.reactor.names["other.internal"] = ["10.0.0.1"]
        self.host = self.reactor.hosts["10.0.0.1"] = self.network.host()

    def serve(self, certificate: Path | None = None, alpn: tuple[bytes, ...] = (), **settings: Any) -> None:
        """Start the server."""
        chosen = Settings(tls_certificate=certificate or self.certificate, **settings)
        tls = server_tls(chosen, self.server.clock)
        assert tls is not None
        self.host.factory = tls.certificates.wrap(self.server.factory, alpn)

    def issue(self, authority: Authority | None = None, **validity: Any) -> Path:
        """Issue a certificate for a client."""
        return (authority or self.authority).issue(self.folder / "client.pem", "ci.internal", **validity)

    def proxy(self, tls: ClientTls | bool | None = None, server: str = "server.internal:11000") -> TransformProxy:
        """Return a client, by default one that trusts the server's authority."""
        return TransformProxy(server, tls=ClientTls(self.ca) if tls is None else tls, reactor=self.reactor)

    def ask(self, proxy: TransformProxy) -> Any:
        """Send a poem; return the Deferred of the answer."""
        answer = proxy.xform("upper", "a")
        self.settle()
        return answer

    def settle(self) -> None:
        for _ in range(5):
            self.network.pump()
            self.server.clock.advance(0)

    def names(self) -> frozenset[str]:
        """Return whom the server takes the client that connected last for."""
        return client_names(self.host.wires[-1].protocol)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world where no handshake takes time, and so none has to wait for its turn."""
    monkeypatch.setattr(tls_server, "time", Mock(perf_counter=lambda: 0.0))
    return World(tmp_path)


@pytest.mark.parametrize(
    "server", ["server.internal:11000", "tls:server.internal:11000", "10.0.0.1:11000", "tcp:server.internal:11000"]
)
def test_a_server_whose_name_is_verified_answers(world: World, server: str) -> None:
    world.serve()
    assert result_of(world.ask(world.proxy(server=server))) == "A"
    assert world.names() == frozenset()
    assert b"upper" not in world.host.sent


def test_by_default_those_are_trusted_that_the_system_trusts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.serve()
    with monkeypatch.context() as trusting:
        trusting.setenv("SSL_CERT_FILE", str(world.ca))
        assert result_of(world.ask(world.proxy(True))) == "A"
        assert result_of(world.ask(world.proxy(False, "tls:server.internal:11000"))) == "A"
    error_of(world.ask(world.proxy(True)), ConnectionFailed)


def test_a_host_and_a_port_may_be_apart(world: World) -> None:
    world.serve()
    proxy = TransformProxy("server.internal", 11000, tls=ClientTls(world.ca), reactor=world.reactor)
    assert result_of(world.ask(proxy)) == "A"


def test_a_client_shows_its_certificate_with_its_chain(world: World) -> None:
    world.serve(tls_client_ca=world.ca)
    assert result_of(world.ask(world.proxy(ClientTls(world.ca, world.issue())))) == "A"
    assert world.names() == {"ci.internal"}


def test_chains_are_sent_and_an_intermediate_authority_alone_may_be_trusted(world: World) -> None:
    below = Authority(world.authority)
    intermediate = below.write(world.folder / "below.pem")
    world.serve(below.issue(world.folder / "chained.pem", "server.internal"), tls_client_ca=intermediate)
    for ca in (world.ca, intermediate):
        assert result_of(world.ask(world.proxy(ClientTls(ca, world.issue(below))))) == "A"
        assert world.names() == {"ci.internal"}
    error = error_of(world.ask(world.proxy(ClientTls(world.ca, world.issue()))), (ConnectionFailed, ConnectionLost))
    assert "it does not trust whoever issued this client's certificate" in error.message


def test_the_key_may_be_in_a_file_of_its_own(world: World) -> None:
    world.serve(tls_client_ca=world.ca)
    both = world.issue().read_text()
    key, certificate = world.folder / "key.pem", world.folder / "certificate.pem"
    start = both.index("-----BEGIN CERTIFICATE")
    key.write_text(both[:start])
    certificate.write_text(both[start:])
    assert result_of(world.ask(world.proxy(ClientTls(world.ca, certificate, key)))) == "A"
    assert world.names() == {"ci.internal"}


def test_a_clients_certificate_that_is_replaced_is_used_by_new_connections(world: World, log: Log) -> None:
    world.serve(tls_client_ca=world.ca)
    proxy = world.proxy(ClientTls(world.ca, world.issue()))
    assert result_of(world.ask(proxy)) == "A"
    world.authority.issue(world.folder / "client.pem", "web.internal")
    world.host.lose_connections()
    world.server.clock.advance(1)
    assert result_of(world.ask(proxy)) == "A"
    assert world.names() == {"web.internal"}
    (world.folder / "client.pem").write_text("nonsense")
    world.host.lose_connections()
    world.server.clock.advance(1)
    assert result_of(world.ask(proxy)) == "A"
    assert log.lines == [
        f"read the TLS certificate again: {world.folder}/client.pem",
        f"the TLS certificate stays as it was: {world.folder}/client.pem has no valid private key in PEM format",
    ]


@pytest.mark.parametrize(
    ("validity", "names", "says", "server_says"),
    [
        (EXPIRED, (), "has expired, or that of its issuer: renew it", "alert certificate expired"),
        (NOT_YET, (), "is not valid yet: wait, or set the clock right", "alert bad certificate"),
        (
            {},
            ("web.internal", "10.0.0.9"),
            "is not for server.internal: call it by a name that is in it, or put server.internal into it",
            "alert",
        ),
    ],
)
def test_what_is_wrong_with_a_servers_certificate(
    world: World, validity: Any, names: tuple[str, ...], says: str, server_says: str, log: Log
) -> None:
    names = names or ("server.internal",)
    world.serve(world.authority.issue(world.folder / "bad.pem", *names, **validity))
    error = error_of(world.ask(world.proxy()), ConnectionFailed)
    expected = f"cannot connect to server.internal:11000: the server's certificate {says}"
    assert re.fullmatch(expected, error.message), error.message
    assert server_says in log.lines[-1]
    warned = ["clients will reject" in line for line in log.lines]
    assert warned == ([True, False] if validity else [False])


def test_what_a_client_says_is_logged_although_its_turn_never_came(
    world: World, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(world.authority.issue(world.folder / "bad.pem", "server.internal", **EXPIRED))
    monkeypatch.setattr(tls_server, "time", Mock(perf_counter=partial(next, count(step=2 * TURN_S))))
    error_of(world.ask(world.proxy()), ConnectionFailed)
    assert "alert certificate expired" in log.lines[-1]


def test_an_issuer_that_the_client_does_not_trust(world: World, log: Log) -> None:
    world.serve()
    error = error_of(world.ask(world.proxy(ClientTls(world.stranger.write(world.folder / "x.pem")))), ConnectionFailed)
    assert "the server's certificate was issued by an authority that is not trusted here" in error.message
    assert error.message.endswith("if that is right, name a file with its certificate with --tls-ca")
    assert "alert unknown ca" in log.lines[-1]


@pytest.mark.parametrize(
    ("validity", "is_strange", "says", "server_says"),
    [
        (EXPIRED, False, "certificate, which has expired: renew it", "the client's certificate has expired"),
        (NOT_YET, False, "certificate; its log says why", "the client's certificate is not valid yet: wait"),
        ({}, True, "it does not trust whoever issued this client's certificate", "let an authority of tls_client_ca"),
    ],
)
def test_what_is_wrong_with_a_clients_certificate(
    world: World, validity: Any, is_strange: bool, says: str, server_says: str, log: Log
) -> None:
    """In TLS 1.3 the client learns it after its handshake."""
    world.serve(tls_client_ca=world.ca)
    own = world.issue(world.stranger if is_strange else None, **validity)
    error = error_of(world.ask(world.proxy(ClientTls(world.ca, own))), (ConnectionFailed, ConnectionLost))
    assert re.search(says, error.message), error.message
    assert re.search(server_says, log.lines[-1]), log.lines
    assert world.names() == frozenset()


def test_a_server_that_demands_a_certificate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As others do: ours only asks for one."""
    world.serve(tls_client_ca=world.ca)
    monkeypatch.setattr(SSL, "VERIFY_PEER", SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    error = error_of(world.ask(world.proxy()), (ConnectionFailed, ConnectionLost))
    assert "it demands a certificate of its clients: give one with --tls-client-certificate" in error.message


def test_a_server_that_speaks_plain_netstrings(world: World, log: Log) -> None:
    world.host.factory = world.server.factory
    error = error_of(world.ask(world.proxy()), ConnectionFailed)
    assert "it ended the connection in the TLS handshake: does it speak TLS?" in error.message
    assert "the peer speaks TLS, and this port plain netstrings" in log.lines[-1]


class Talker(Protocol):
    """A server that speaks first, in plain text."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"220 mail.example.org ESMTP\r\n")


def test_a_server_that_speaks_something_else(world: World) -> None:
    world.host.factory = Factory.forProtocol(Talker)
    error = error_of(world.ask(world.proxy()), ConnectionFailed)
    assert "it speaks no TLS: leave out --tls, or tls: in its address" in error.message


def test_a_server_that_dies_in_the_handshake(world: World) -> None:
    world.host.factory = Factory.forProtocol(Dying)
    error = error_of(world.ask(world.proxy()), ConnectionFailed)
    assert "it ended the connection in the TLS handshake" in error.message


def test_a_server_that_is_mute(world: World) -> None:
    world.host.factory = Factory.forProtocol(Protocol)
    answer = world.ask(world.proxy())
    world.server.clock.advance(PEER_TIMEOUT_S - 0.1)
    assert not has_fired(answer)
    world.server.clock.advance(0.1)
    world.settle()
    assert "it has not answered the TLS handshake within 5 s" in error_of(answer, ConnectionFailed).message


def test_nobody_is_there(world: World) -> None:
    answer = world.ask(world.proxy())
    world.server.clock.advance(1)  # it might have other addresses
    assert "is 'xformd serve' running there?" in error_of(answer, ConnectionFailed).message


def test_who_gives_up_in_the_handshake_leaves_no_connection(world: World) -> None:
    world.host.factory = Factory.forProtocol(Protocol)
    proxy = world.proxy()
    answer = proxy.xform("upper", "a", timeout=1)
    world.settle()
    world.server.clock.advance(1)
    closing = proxy.close()
    world.settle()
    assert has_fired(answer)
    assert has_fired(closing)
    answer.addErrback(lambda _: None)
    assert [wire.is_gone for wire in world.host.wires] == [True]
    assert not world.server.clock.getDelayedCalls()


def test_plain_text_to_a_server_that_speaks_tls(world: World, log: Log) -> None:
    world.serve()
    error = error_of(world.ask(world.proxy(False)), BadFrame)
    assert "it speaks TLS: use --tls, or tls: in its address" in error.message
    assert "a client spoke plain text to the TLS port" in log.lines[-1]


def test_a_file_that_is_bad_is_said_at_once(world: World) -> None:
    missing, key = world.folder / "missing.pem", world.folder / "other.pem"
    world.stranger.issue(key, "x.internal")
    for tls, says in (
        (ClientTls(missing), f"{missing}: No such file or directory"),
        (ClientTls(world.ca, world.ca), f"{world.ca} has no valid private key in PEM format"),
        (ClientTls(key=key), "a client's key needs its certificate"),
        (ClientTls(certificate=world.issue(), key=key), f"the key in {key} is not that of the certificate"),
    ):
        for server in ("server.internal:1", "tcp:server.internal:1"):
            with pytest.raises(ConfigError, match=re.escape(says)):
                world.proxy(tls, server)
    with pytest.raises(ConfigError, match="a port is 1 to 65535"):
        client_endpoint(world.reactor, "tls:server.internal:99999")


def test_a_setting_that_needs_a_certificate_says_so(world: World) -> None:
    given: dict[str, Any] = {"tls_key": world.ca, "tls_client_ca": world.ca, "tls": "all"}
    for name, value in given.items():
        with pytest.raises(ConfigError, match="TLS needs a certificate: set tls_certificate too") as refused:
            server_tls(Settings(**{name: value}), world.server.clock)
        assert refused.value.setting == name
    assert server_tls(Settings(), world.server.clock) is None


def test_without_the_packages_it_is_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"TLS needs more packages: pip install 'xformd\[tls\]'"):
        world.serve()
    for server in ("server.internal:1", "tls:server.internal:1"):
        with pytest.raises(ConfigError, match=r"TLS needs more packages: pip install 'xformd\[tls\]'"):
            world.proxy(True, server)
