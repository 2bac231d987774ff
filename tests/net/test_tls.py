"""TLS in memory: what is negotiated, which certificate is used, and what the log says of a failed handshake."""

import ssl
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

import xformd.net.tls.server as tls_server
from support.certificates import Authority, tls_endpoint, write_certificate
from support.deferreds import has_fired
from support.logs import Log
from support.memory import HERE, MemoryServer
from support.processes import netstring
from xformd.errors import ConfigError
from xformd.net.endpoints import ServerEndpoint, server_endpoint
from xformd.net.tls import ServerTls, client_names
from xformd.net.turns import TURN_S

HTTP = (b"http/1.1",)


class Site:
    """A netstring server on a TLS port, and where its certificate is."""

    def __init__(self, folder: Path, alpn: tuple[bytes, ...] = (), options: str = "", kind: str = "") -> None:
        pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
        self.description, self.trusted = tls_endpoint(folder)
        self.key, self.certificate = folder / "key.pem", self.trusted / "certificate.pem"
        self.reactor = MemoryReactorClock()
        self.server = MemoryServer()
        self.endpoint: ServerEndpoint = server_endpoint(self.reactor, kind + self.description + options, alpn=alpn)
        assert has_fired(self.endpoint.listen(self.server.factory))
        ((_, self.factory, _, _),) = self.reactor.tcpServers
        self.accepted: list[Any] = []

    @property
    def chain_length(self) -> int:
        """How many certificates are sent with the server's own."""
        assert self.endpoint.certificates is not None
        return len(self.endpoint.certificates._current.extraCertChain)

    def accept(self) -> Any:
        """Accept a connection; return the server's protocol."""
        protocol: Any = self.factory.buildProtocol(HERE)
        protocol.makeConnection(StringTransport())
        self.accepted.append(protocol)
        return protocol

    def leave(self) -> None:
        """Lose every connection."""
        for protocol in self.accepted:
            protocol.connectionLost(Failure(ConnectionDone()))

    def fail(self, data: bytes) -> None:
        """Connect, send data that is no handshake, and leave."""
        protocol = self.accept()
        if data:
            protocol.dataReceived(data)
            self.reactor.advance(0)
        protocol.connectionLost(Failure(ConnectionDone()))

    def renew(self) -> None:
        """Replace the key and the certificate, and wait until they may be looked at."""
        write_certificate(self.key, self.certificate)
        self.reactor.advance(1)

    def is_trusted(self) -> bool:
        """Whether a client that trusts the certificate which lies there now takes the one that the server has."""
        try:
            Client(self, ssl.create_default_context(cafile=self.certificate))
        except ssl.SSLCertVerificationError:
            return False
        return True


class Client:
    """A client that has shaken hands with a site."""

    def __init__(self, site: Site, context: ssl.SSLContext, before: bytes = b"") -> None:
        self.server, self._reactor = site.accept(), site.reactor
        if before:
            self.server.dataReceived(before)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        try:
            for _ in range(9):
                try:
                    self.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self.exchange()
        finally:
            self.exchange()

    def exchange(self) -> None:
        """Pass on what both sides have sent."""
        if data := self._out.read():
            self.server.dataReceived(data)
            self._reactor.advance(0)  # its share may have had its turn
        self._in.write(self.server.transport.value())
        self.server.transport.clear()

    def ask(self, site: Site, data: bytes) -> bytes:
        """Send data; return what comes back."""
        self.tls.write(data)
        self.exchange()
        site.reactor.advance(0)  # small answers are sent together, on the reactor's next turn
        self.exchange()
        return self.tls.read()


def untrusting(**offer: list[str]) -> ssl.SSLContext:
    """Return the context of a client that takes any certificate, and offers ALPN."""
    context = ssl._create_unverified_context()
    if "alpn" in offer:
        context.set_alpn_protocols(offer["alpn"])
    return context


@pytest.mark.parametrize(
    ("speaks", "offer", "chosen"),
    [
        (HTTP, ["h2", "http/1.1"], "http/1.1"),
        (HTTP, ["http/1.1"], "http/1.1"),
        (HTTP, ["h2"], None),
        (HTTP, [], None),
        ((), ["h2", "http/1.1"], None),
        ((), ["xformd"], None),
        ((), [], None),
    ],
)
def test_alpn_never_ends_a_handshake(
    tmp_path: Path, speaks: tuple[bytes, ...], offer: list[str], chosen: str | None
) -> None:
    site = Site(tmp_path, speaks)
    client = Client(site, untrusting(alpn=offer) if offer else untrusting())
    assert client.tls.selected_alpn_protocol() == chosen
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"


def test_the_header_of_a_proxy_comes_before_the_handshake(tmp_path: Path) -> None:
    site = Site(tmp_path, kind="haproxy:")
    client = Client(site, untrusting(alpn=["h2"]), before=b"PROXY TCP4 192.0.2.7 192.0.2.80 1 2\r\n")
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"
    client.server.readConnectionLost()
    assert client.server.transport.disconnecting


def test_a_replaced_certificate_is_used_by_new_connections(tmp_path: Path, log: Log) -> None:
    site = Site(tmp_path)
    before = Client(site, ssl.create_default_context(cafile=site.certificate))
    write_certificate(site.key, site.certificate)
    assert not site.is_trusted()  # looked at once a second, at most
    site.reactor.advance(1)
    assert site.is_trusted()
    assert before.ask(site, netstring(b"upper.a")) == b"1:A,"
    site.reactor.advance(1)
    assert site.is_trusted()
    assert [line for line in log.lines if "again" in line] == [f"read the TLS certificate again: {site.certificate}"]


def test_between_the_new_key_and_the_new_certificate_the_old_ones_stay(tmp_path: Path, log: Log) -> None:
    site = Site(tmp_path)
    trusting_old = ssl.create_default_context(cafile=site.certificate)
    new = tmp_path / "new.pem"
    write_certificate(site.key, new)
    for _ in range(3):
        site.reactor.advance(1)
        Client(site, trusting_old)
    assert log.lines == [
        "the TLS certificate stays as it was: "
        f"the key in {site.key} is not that of the certificate in {site.certificate}"
    ]
    new.replace(site.certificate)
    site.reactor.advance(1)
    assert site.is_trusted()


def spoil(site: Site, what: str) -> str:
    """Break a file of a site; return what the log says of it."""
    if what == "gone":
        site.key.unlink()
        return f"{site.key}: No such file or directory"
    if what == "encrypted":
        write_certificate(site.key, site.certificate, b"secret")
        return f"{site.key}: the private key is encrypted; nobody is there to type its password"
    if what == "no key":
        site.key.write_text("")
        return f"{site.key} has no valid private key in PEM format"
    assert what == "no certificate"
    site.certificate.write_bytes(site.key.read_bytes())
    return f"{site.certificate} has no valid certificate in PEM format"


@pytest.mark.parametrize("what", ["gone", "encrypted", "no key", "no certificate"])
def test_a_bad_file_is_one_line_and_the_old_certificate_stays(tmp_path: Path, what: str, log: Log) -> None:
    site = Site(tmp_path)
    trusting = ssl.create_default_context(cafile=site.certificate)
    says = spoil(site, what)
    for _ in range(3):
        site.reactor.advance(1)
        Client(site, trusting)
    assert log.lines == [f"the TLS certificate stays as it was: {says}"]
    assert site.endpoint.certificates is not None
    site.endpoint.certificates.reload()
    assert len(log) == 2
    site.renew()
    assert site.is_trusted()
    spoil(site, what)
    with pytest.raises(ConfigError) as refused:
        server_endpoint(site.reactor, site.description)
    assert says in refused.value.reason
    assert refused.value.setting == "listen"


def test_a_backlog_may_be_chosen(tmp_path: Path) -> None:
    site = Site(tmp_path, options=":backlog=9")
    ((*_, backlog, interface),) = site.reactor.tcpServers
    assert (backlog, interface) == (9, "127.0.0.1")


def test_what_follows_the_certificate_in_its_file_is_its_chain(tmp_path: Path) -> None:
    site = Site(tmp_path)
    write_certificate(tmp_path / "ca-key.pem", tmp_path / "ca.pem")
    site.certificate.write_bytes(site.certificate.read_bytes() + (tmp_path / "ca.pem").read_bytes())
    site.reactor.advance(1)
    assert site.is_trusted()
    assert site.chain_length == 1


def test_whatever_goes_wrong_with_new_files_the_old_certificate_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    site = Site(tmp_path)

    def fail(*_: object) -> None:
        raise ArithmeticError("an odd key")

    monkeypatch.setattr("xformd.net.tls.certificates.load_pem_private_key", fail)
    site.renew()
    assert not site.is_trusted()
    assert log.lines == ["the TLS certificate stays as it was: an odd key"]


def test_options_may_stand_in_twisteds_order_and_one_file_may_hold_both(tmp_path: Path) -> None:
    site = Site(tmp_path)
    both = tmp_path / "server.pem"
    both.write_bytes(site.certificate.read_bytes() + site.key.read_bytes())
    for description in (f"ssl:0:{both}", f"ssl:0:{site.key}:{site.certificate}"):
        assert server_endpoint(site.reactor, description).certificates is not None
    with pytest.raises(ConfigError, match="it has no option 'key'"):
        server_endpoint(site.reactor, f"ssl:0:key={both}")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"7:upper.a,", b"8:xformd/2,", b"1", b"\r\n", b"PROXY TCP4 "]
)
@pytest.mark.parametrize(("speaks", "advice"), [(HTTP, "https:"), ((), "tls:")])
def test_plain_text_on_a_tls_port_is_told_apart(
    tmp_path: Path, data: bytes, speaks: tuple[bytes, ...], advice: str, log: Log
) -> None:
    site = Site(tmp_path, speaks)
    for _ in range(3):
        site.fail(data)
    says = f"a client spoke plain text to the TLS port 10.0.0.1:12345; use {advice}"
    assert log.lines == [f"closed a new connection: {says}"]
    site.reactor.advance(1)
    assert log.lines[1:] == [f"closed a new connection: {says} (the last of 2 within a second)"]
    assert log.tracebacks == []


def old_client() -> ssl.SSLContext:
    context = untrusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def choosy_client() -> ssl.SSLContext:
    context = untrusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA")
    return context


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (old_client, "unsupported protocol"),
        (choosy_client, "no shared cipher"),
        (ssl.create_default_context, "tlsv1 alert unknown ca"),
    ],
)
def test_a_failed_handshake_says_why(site: Site, make: Any, why: str, log: Log) -> None:
    context = make()
    for _ in range(3):
        with pytest.raises(ssl.SSLError):
            Client(site, context)
    site.leave()
    assert log.tracebacks == []
    assert log.lines == [f"closed a new connection: the TLS handshake on 10.0.0.1:12345 failed: {why}"]


def test_a_client_that_leaves_during_the_handshake_is_logged_and_one_that_sent_nothing_is_not(
    site: Site, log: Log
) -> None:
    site.fail(b"")
    assert log.lines == []
    site.fail(b"\x16\x03\x01")
    assert log.lines == [
        "closed a new connection: the TLS handshake on 10.0.0.1:12345 failed: the client left in the middle of it"
    ]


def test_a_handshake_that_the_server_aborts_is_not_logged_twice(site: Site, log: Log) -> None:
    protocol = site.accept()
    protocol.dataReceived(b"\x16\x03\x01")
    site.server.clock.advance(300)  # idle_timeout_s
    protocol.connectionLost(Failure(ConnectionDone()))
    assert len(log.lines) == 1
    assert log.lines[0].startswith("cut off ")


def test_the_handshakes_of_a_peer_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        untrusting().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    hello = outgoing.read()
    early, late, lost = site.accept(), site.accept(), site.accept()
    monkeypatch.setattr(tls_server, "time", Mock(perf_counter=partial(next, count(step=2 * TURN_S))))
    early.dataReceived(hello[:9])
    for server in (early, late, lost):
        server.dataReceived(hello[9:] if server is early else hello)
        assert not server.transport.value()
    lost.connectionLost(Failure(ConnectionDone()))
    site.reactor.pump([0] * 3)
    assert [each.transport.value()[:1] == b"\x16" for each in (early, late, lost)] == [True, True, False]


def with_client_ca(folder: Path, authority: Authority) -> Site:
    """Return a site that asks its clients for certificates of an authority."""
    return Site(folder, options=f":clientCa={authority.write(folder / 'client-ca.pem')}")


def as_client(site: Site, certificate: Path | None) -> Client:
    """Shake hands as a client with a certificate, or without one."""
    context = ssl.create_default_context(cafile=site.certificate)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return Client(site, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_clients_certificate_names_it(tmp_path: Path, version: ssl.TLSVersion) -> None:
    authority = Authority()
    site = with_client_ca(tmp_path, authority)
    names = ("Web.Internal", "192.0.2.7", "2001:db8::1", "spiffe://internal/web")
    context = ssl.create_default_context(cafile=site.certificate)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(authority.issue(tmp_path / "client.pem", *names))
    client = Client(site, context)
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"
    connection = client.server.wrappedProtocol
    assert client_names(connection.transport) == {name.lower() for name in names}
    site.leave()
    assert client_names(connection.transport) == {name.lower() for name in names}


def test_a_client_without_a_certificate_has_no_names(tmp_path: Path) -> None:
    site = with_client_ca(tmp_path, Authority())
    assert client_names(site.accept()) == frozenset()
    client = as_client(site, None)
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"
    assert client_names(client.server) == client_names(StringTransport()) == frozenset()


@pytest.mark.parametrize(
    ("dns", "uris", "found"),
    [
        (["Web.Internal", "*.internal"], ["spiffe://a/web"], {"web.internal", "*.internal", "spiffe://a/web"}),
        (["spiffe://a/web", "10.0.0.7", "fe80::7"], [], set()),
        ([], ["web.internal", "10.0.0.7", "fe80::7"], set()),
        (["web.internal\0.example"], [], {"web.internal\0.example"}),
    ],
)
def test_a_name_of_one_kind_is_not_taken_for_one_of_another(dns: list[str], uris: list[str], found: set[str]) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    names = x509.SubjectAlternativeName([*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)])
    extensions = x509.Extensions([x509.Extension(names.oid, False, names)])
    assert tls_server.names_in(Mock(extensions=extensions)) == found


def test_a_certificate_that_nobody_asked_for_names_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)
    client = as_client(site, Authority().issue(tmp_path / "client.pem", "web.internal"))
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"
    assert client_names(client.server) == frozenset()


def test_behind_a_proxys_header_the_certificate_is_the_clients(tmp_path: Path) -> None:
    authority = Authority()
    site = Site(tmp_path, options=f":clientCa={authority.write(tmp_path / 'client-ca.pem')}", kind="haproxy:")
    context = ssl.create_default_context(cafile=site.certificate)
    context.load_cert_chain(authority.issue(tmp_path / "client.pem", "web.internal"))
    client = Client(site, context, before=b"PROXY TCP4 192.0.2.7 192.0.2.80 1 2\r\n")
    assert client.ask(site, netstring(b"upper.a")) == b"1:A,"
    assert client_names(client.server.wrappedProtocol.wrappedProtocol.transport) == {"web.internal"}


def test_a_certificate_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    site = with_client_ca(tmp_path, Authority())
    client = as_client(site, Authority().issue(tmp_path / "client.pem", "web.internal"))
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        client.ask(site, netstring(b"upper.a"))
    assert client_names(client.server) == frozenset()


def test_certificates_are_what_twisted_asks_for_connections(site: Site) -> None:
    assert IOpenSSLServerConnectionCreator.providedBy(site.endpoint.certificates)


@pytest.mark.parametrize(
    ("description", "is_external"),
    [
        ("tcp:1", True),
        ("tcp:1:interface=192.0.2.1", True),
        ("tcp:1:interface=poems.internal", True),
        (r"tcp6:1:interface=\:\:", True),
        ("haproxy:tcp:1", True),
        ("1", False),
        ("tcp:1:interface=127.9.9.9", False),
        ("tcp:1:interface=localhost", False),
        (r"tcp:1:interface=\:\:1", False),
        (r"haproxy:tcp6:1:interface=\:\:1", False),
    ],
)
def test_the_settings_are_for_ports_that_other_machines_can_reach_or_for_all(
    site: Site, description: str, is_external: bool
) -> None:
    own = site.endpoint.certificates
    assert own is not None
    for covers_loopback in (False, True):
        tls = ServerTls(own, covers_loopback)
        found = server_endpoint(site.reactor, description, tls=tls).certificates
        assert (found is own) is (is_external or covers_loopback)
        assert server_endpoint(site.reactor, site.description, tls=tls).certificates not in (None, own)
        assert server_endpoint(site.reactor, "unix:socket", tls=tls).certificates is None
