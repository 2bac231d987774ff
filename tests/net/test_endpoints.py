"""What listens on each kind of endpoint: refusals pass every wrapper, and a PROXY header names the peer."""

import contextlib
import fcntl
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import endpoints
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.systemd import ListenFDs

from support.certificates import tls_endpoint
from support.deferreds import has_fired, result_of
from support.http_front import Front
from support.logs import Log
from support.memory import MemoryServer
from support.processes import netstring
from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.net.endpoints import client_endpoint, server_endpoint
from xformd.net.factory import DrainingFactory
from xformd.net.proxy_header import MAX_V2_BYTES
from xformd.poems.server import PoemFactory, PoemService

PROXY = IPv4Address("TCP", "192.0.2.80", 5_000)

V2_HEADER = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
    + struct.pack("!H", 12)
    + socket.inet_aton("192.0.2.7")
    + socket.inet_aton("192.0.2.80")
    + struct.pack("!HH", 40_000, 443)
)

FACTORIES: dict[str, Callable[[], DrainingFactory[Any]]] = {
    "netstring": lambda: MemoryServer(max_connections=1).factory,
    "http": lambda: Front(max_connections=1).factory,
    "poem": lambda: PoemFactory(PoemService(b"a"), MemoryReactorClock(), max_connections=1),
}


def only_port(reactor: MemoryReactorClock) -> Any:
    """Return the arguments with which a reactor has been asked to listen: port, factory, backlog and more."""
    servers: list[Any] = [*reactor.tcpServers, *reactor.unixServers]
    (listening,) = servers
    return listening


def on_port(description: str, factory: DrainingFactory[Any]) -> Any:
    """Listen in memory; return what the port builds protocols with."""
    reactor = MemoryReactorClock()
    assert has_fired(server_endpoint(reactor, description).listen(factory))
    return only_port(reactor)[1]


def describe(kind: str, folder: Path) -> str:
    """Return the description of an endpoint of a kind, such as ``haproxy:ssl``."""
    *wrapper, last = kind.split(":")
    plain = {"tcp": "tcp:0", "unix": f"unix:{folder}/socket"}
    return ":".join([*wrapper, tls_endpoint(folder)[0] if last == "ssl" else plain[last]])


class Stoppable(Protocol):
    """A connection that takes the only place of a server."""

    def stop(self) -> None: ...


@pytest.mark.parametrize("serves", FACTORIES)
@pytest.mark.parametrize("kind", ["tcp", "unix", "ssl", "haproxy:tcp", "haproxy:unix", "haproxy:ssl"])
def test_every_kind_of_endpoint_lets_a_server_refuse_a_connection(
    kind: str, serves: str, tmp_path: Path, log: Log
) -> None:
    factory = FACTORIES[serves]()
    port = on_port(describe(kind, tmp_path), factory)
    factory.connections.add(Stoppable(), None)
    for _ in range(2):
        refused = port.buildProtocol(PROXY)
        if serves == "poem":  # its refusal resets the connection
            transport = StringTransport()
            refused.makeConnection(transport)
            assert transport.disconnected
        else:
            assert refused is None
        factory.drain()
    assert log.tracebacks == []


class Proxied:
    """A netstring server behind a proxy."""

    def __init__(self, **limits: Any) -> None:
        self.server = MemoryServer(**limits)
        self.port = on_port("haproxy:tcp:0", self.server.factory)
        self.opened: list[Any] = []

    def connect(self, data: bytes = b"", step: int = 1_000) -> StringTransport:
        """Open a connection on which data arrives in pieces; return the transport."""
        transport = StringTransport(peerAddress=PROXY)
        protocol: Any = self.port.buildProtocol(PROXY)
        protocol.makeConnection(transport)
        self.opened.append(protocol)
        for start in range(0, len(data), step):
            if not transport.disconnecting:
                protocol.dataReceived(data[start : start + step])
        return transport

    @property
    def peers(self) -> list[str | None]:
        """The peer of each open connection, as the limits count it."""
        return [connection.peer for connection in self.server.factory.connections]


def v1(peer: str = "192.0.2.7") -> bytes:
    return f"PROXY TCP4 {peer} 192.0.2.80 40000 443\r\n".encode()


HEADERS = {
    "v1": (v1(), "192.0.2.7"),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::7 2001:db8::80 40000 443\r\n", "2001:db8::7"),
    "v1 IPv6 in full": (b"PROXY TCP6 2001:db8:0:0:0:0:0:7 ::1 40000 443\r\n", "2001:db8::7"),
    "v1 unknown, with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v2": (V2_HEADER, "192.0.2.7"),
    "v2 with more": (V2_HEADER.replace(b"\x00\x0c", b"\x00\x11") + b"\x04\x00\x02..", "192.0.2.7"),
    "v2 IPv6": (
        V2_HEADER[:13] + b"\x21\x00\x24" + socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + bytes(4),
        "2001:db8::7",
    ),
    "v2 of a Unix socket": (V2_HEADER[:13] + b"\x31\x00\xd8" + bytes(216), None),
    "v2 local": (V2_HEADER.replace(b"\x21\x11", b"\x20\x11"), None),
}


@pytest.mark.parametrize("step", [1, 7, 1_000])
@pytest.mark.parametrize(("header", "peer"), HEADERS.values(), ids=HEADERS)
def test_a_proxy_header_in_any_pieces_names_the_peer(header: bytes, peer: str | None, step: int) -> None:
    proxied = Proxied(max_connections_per_peer=1)
    transport = proxied.connect(header + netstring(b"upper.a"), step)
    assert transport.value() == b"1:A,"
    assert proxied.peers == [peer]


def test_connections_without_a_header_yet_count_in_total_and_for_no_peer() -> None:
    proxied = Proxied(max_connections=5, max_connections_per_peer=1)
    for _ in range(5):
        proxied.connect()
    assert proxied.peers == [None] * 5
    assert proxied.port.buildProtocol(PROXY) is None


def test_the_limit_for_each_peer_is_that_of_the_real_one(log: Log) -> None:
    proxied = Proxied(max_connections_per_peer=1)
    opening = netstring(b"xformd/2")
    for number in range(3):
        assert proxied.connect(v1(f"192.0.2.{number}") + opening).value()
    over = proxied.connect(v1("192.0.2.2") + opening)
    assert (over.value(), over.disconnected) == (b"", True)
    assert proxied.server.factory.refusals.counts == {"peer": 1}
    assert log.lines == [
        "closed a new connection: 1 are open from 192.0.2.2, which is max_connections_per_peer",
    ]


def test_the_log_names_the_real_peer(log: Log) -> None:
    Proxied().connect(v1() + b"no netstring")
    (line,) = log.lines
    assert line.startswith("refused 192.0.2.7:40000: bad-frame")


@pytest.mark.parametrize(
    "data",
    [
        netstring(b"upper.a"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.80 port 443\r\n",
        b"PROXY TCP4 \xff 192.0.2.80 1 443\r\n",
        b"PROXY TCP4 192.0.2.700 192.0.2.80 1 443\r\n",
        b"PROXY TCP5 192.0.2.7 192.0.2.80 1 443\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        b"PROXY\r\n",
        V2_HEADER.replace(b"\x21\x11", b"\x31\x11"),
        V2_HEADER.replace(b"\x21\x11\x00\x0c", b"\x21\x11\x00\x02"),
        V2_HEADER[:14] + b"\xff\xff" + bytes(MAX_V2_BYTES),
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_a_malformed_header_is_a_line_a_second(data: bytes, step: int, log: Log) -> None:
    proxied = Proxied()
    for _ in range(3):
        transport = proxied.connect(data, step)
        assert (transport.value(), transport.disconnected) == (b"", True)
    assert log.tracebacks == []
    assert log.lines == [
        "closed a new connection: 192.0.2.80 sent no valid PROXY header; "
        "a haproxy: endpoint is only for a proxy that sends one"
    ]


def test_a_half_close_passes_the_proxy_wrapper() -> None:
    proxied = Proxied()
    transport = proxied.connect(v1() + netstring(b"later.a"))
    (protocol,) = proxied.opened
    IHalfCloseableProtocol(protocol).readConnectionLost()
    proxied.server.results[0].callback("b")
    assert transport.value() == b"1:b,"
    IHalfCloseableProtocol(protocol).writeConnectionLost()


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10001", "127.0.0.1", 10_001),
        (10_001, "127.0.0.1", 10_001),
        (" 10001\n", "127.0.0.1", 10_001),
        ("\uff11\uff10", "127.0.0.1", 10),  # typed with an input method
        (":10001", "127.0.0.1", 10_001),
        ("tcp:10001", "127.0.0.1", 10_001),
        ("192.0.2.7", "192.0.2.7", 10_000),
        ("192.0.2.7:1", "192.0.2.7", 1),
        ("[::1]:10001", "::1", 10_001),
        ("tcp:192.0.2.7:1", "192.0.2.7", 1),
    ],
)
def test_an_address_of_a_server(address: str | int, host: str, port: int) -> None:
    reactor: Any = MemoryReactorClock()
    client_endpoint(reactor, address, 10_000).connect(Factory())
    assert [client[:2] for client in reactor.tcpClients] == [(host, port)]


@pytest.mark.parametrize("address", ["owl", "owl:1", "7.example.org", "x7:1", "192.0.2.7.example"])
def test_a_name_may_have_digits(address: str) -> None:
    client_endpoint(MemoryReactorClock(), address)


def test_a_unix_socket_may_have_a_number_for_its_name() -> None:
    reactor: Any = MemoryReactorClock()
    client_endpoint(reactor, "unix:10001").connect(Factory())
    assert reactor.unixClients[0][0] == "10001"


def test_who_wants_no_http_is_told_how_to_say_so() -> None:
    with pytest.raises(ConfigError, match=r"'off'.*; write a Twisted server endpoint, such as .*, or none"):
        server_endpoint(MemoryReactorClock(), "off", "http")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("0", "a port is 1 to 65535"),
        ("65536", "a port is 1 to 65535"),
        ("owl:100000", "a port is 1 to 65535"),
        ("9" * 20, "write HOST:PORT"),
        # The system would take them for addresses: 0.0.39.16, 127.0.0.1, 8.0.0.1 and so on.
        ("10000:80", "no host is called '10000'"),
        ("127.1:80", "no host is called '127.1'"),
        ("010.0.0.1", "no host is called '010.0.0.1'"),
        ("0x7F000001:80", "no host is called '0x7F000001'"),
        ("192.0.2.0x7", "no host is called"),
        ("192.0.2.700:80", "no host is called"),
        ("\uff11\uff10:80", "no host is called"),
    ],
)
def test_a_number_is_never_taken_for_a_host(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        client_endpoint(MemoryReactorClock(), address)


def test_a_host_beside_its_port_is_no_number_either() -> None:
    with pytest.raises(ConfigError, match="no host is called '10000': write a name, or an IP address in full"):
        client_endpoint(MemoryReactorClock(), "10000:80")


@pytest.mark.parametrize(("description", "port"), [("0", 0), ("11000", 11_000), ("haproxy:11000", 11_000)])
def test_to_listen_on_a_bare_number_is_to_listen_on_this_machine(description: str, port: int) -> None:
    reactor = MemoryReactorClock()
    assert has_fired(server_endpoint(reactor, description).listen(DrainingFactory(Limits(), reactor)))
    assert (only_port(reactor)[0], only_port(reactor)[3]) == (port, "127.0.0.1")


BACKLOGS = {
    "tcp:0": 7,
    "tcp:0:interface=127.0.0.1:backlog=3": 3,
    "tcp:0:127.0.0.1:3": 3,
    "haproxy:tcp:0": 7,
    "haproxy:tcp:0:backlog=3": 3,
    r"unix:/run/a\=b\:c": 7,
    "unix:/run/socket:mode=660:backlog=3": 3,
}


@pytest.mark.parametrize(("description", "backlog"), BACKLOGS.items())
def test_one_backlog_for_every_endpoint_unless_it_has_its_own(description: str, backlog: int) -> None:
    reactor = MemoryReactorClock()
    factory = DrainingFactory[Any](Limits(), reactor)
    assert has_fired(server_endpoint(reactor, description, backlog=7).listen(factory))
    assert only_port(reactor)[2] == backlog


def test_the_backlog_of_a_tls_port(tmp_path: Path) -> None:
    description, _ = tls_endpoint(tmp_path)
    for extra, backlog in (("", 7), (":backlog=3", 3)):
        reactor = MemoryReactorClock()
        factory = DrainingFactory[Any](Limits(), reactor)
        assert has_fired(server_endpoint(reactor, description + extra, backlog=7).listen(factory))
        assert only_port(reactor)[2:] == (backlog, "127.0.0.1")


def test_a_wrapped_protocol_need_not_take_a_half_close() -> None:
    """Such as one that only resets the connection of a client that is refused."""

    class Refusing(DrainingFactory[Any]):
        def refuse(self) -> Protocol:
            return Protocol()

    factory = Refusing(Limits(), MemoryReactorClock())
    factory.drain()
    protocol = on_port("haproxy:tcp:0", factory).buildProtocol(PROXY)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.writeConnectionLost()
    assert not transport.disconnecting
    protocol.readConnectionLost()
    assert transport.disconnecting


# Unix sockets.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def leave_dead(path: Path) -> None:
    """Leave what a server leaves that is killed, with a lock that names a process that is there."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    path.with_name(f"{path.name}.lock").symlink_to(str(os.getpid()))


def listen_on(path: Path) -> None:
    """Listen in memory on a Unix socket, and raise what that raises."""
    on_port(f"unix:{path}", DrainingFactory(Limits(), MemoryReactorClock()))


def in_use(path: Path) -> bool:
    """Whether a server is told that another listens there."""
    with contextlib.suppress(OSError):
        listen_on(path)
        return False
    return path.is_socket()


def test_what_a_killed_server_has_left_is_removed(path: Path) -> None:
    leave_dead(path)
    listen_on(path)
    assert [*path.parent.iterdir()] == []


def test_a_lock_without_a_socket_is_removed(path: Path) -> None:
    path.with_name("socket.lock").symlink_to(str(os.getpid()))
    listen_on(path)
    assert [*path.parent.iterdir()] == []


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ("", 0o660),
        (":mode=600", 0o600),
        (":mode=666", 0o666),
        (":604", 0o604),
        (":backlog=5", 0o660),
        (":600:5", 0o600),
    ],
)
def test_a_unix_socket_has_the_mode_asked_for_and_never_a_wider_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, options: str, mode: int, umask: int
) -> None:
    from twisted.internet import reactor

    born: list[int] = []
    real_chmod = os.chmod

    def chmod(name: str, to: int) -> None:
        born.append(path.stat().st_mode & 0o777)
        real_chmod(name, to)

    before = os.umask(umask)
    try:
        with monkeypatch.context() as watched:
            watched.setattr(os, "chmod", chmod)
            endpoint = server_endpoint(reactor, f"unix:{path}{options}")
            port = result_of(endpoint.listen(DrainingFactory(Limits(), MemoryReactorClock())))
    finally:
        assert os.umask(before) == umask
    assert born == [0]
    assert path.stat().st_mode & 0o777 == mode
    port.stopListening()


@pytest.mark.parametrize("backlog", [0, 5])
def test_a_server_that_lives_is_not_displaced_whatever_its_lock_names(path: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as living, contextlib.ExitStack() as clients:
        living.bind(str(path))
        living.listen(backlog)
        path.with_name("socket.lock").symlink_to("4194304")  # as of a process in another container
        for _ in range(2 if backlog == 0 else 0):  # then its queue is full
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(path))
        assert in_use(path)
        assert path.is_socket()


def test_a_socket_of_another_type_is_in_use(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(path))
        assert in_use(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_never_removed(path: Path, kind: str) -> None:
    if kind == "link":
        path.symlink_to("nowhere")
    else:
        (path.touch if kind == "file" else path.mkdir)()
    with pytest.raises(OSError, match="something else is there, which is no socket; move it away"):
        listen_on(path)
    assert os.path.lexists(path)


def test_a_server_waits_for_another_that_is_about_to_listen(path: Path) -> None:
    leave_dead(path)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as other:

        def start() -> None:
            path.unlink()
            other.bind(str(path))
            other.listen()
            os.close(folder)

        starting = threading.Timer(0.1, start)
        starting.start()
        assert in_use(path)
        starting.join()


def test_a_folder_that_stays_locked_keeps_no_server_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd-tmpfiles asks programs to lock theirs."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    leave_dead(path)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    listen_on(path)
    os.close(folder)


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("unix:", "a Unix socket's path has 1 to 107 bytes"),
        (f"unix:/{'a' * 107}", "a Unix socket's path has 1 to 107 bytes"),
        ("unix:/a:mode=rw", "expected a number, got 'rw'; write a Twisted server endpoint"),
        ("tcp:80:interfac=::1", "it has no option 'interfac'; write a Twisted server endpoint"),
        ("tcp:80:port=81", "'port' is given twice; a colon in a value is written as \\:; write"),
        ("tcp:interface=a", "it needs 'port'; write"),
        ("unix:/a:600:5:1:2", "too many options without a name; write"),
        ("haproxy:stdio:", "standard input is a single connection"),
    ],
)
def test_a_mistake_in_an_endpoint_is_told_as_what_it_is(description: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^listen: {re.escape(repr(description))}: {re.escape(says)}"):
        server_endpoint(MemoryReactorClock(), description)


# Sockets that systemd opened.


@pytest.fixture
def inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
    """Sockets by the names that systemd gave them."""
    sockets = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "tcp6": socket.create_server(("::1", 0), family=socket.AF_INET6),
        "unix": socket.socket(socket.AF_UNIX),
        "datagrams": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    }
    sockets["unix"].bind(str(tmp_path / "socket"))
    sockets["unix"].listen()
    given = ListenFDs([each.fileno() for each in sockets.values()], tuple(sockets))
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", given)
    yield sockets
    for each in sockets.values():
        each.close()


@pytest.mark.parametrize(
    ("description", "says"),
    [
        *(
            (
                f"systemd:domain=INET{which}",
                "name one socket of those that systemd gave this process: index=0, index=1, ",
            )
            for which in ("", ":name=owl", ":index=4", ":index=-1", ":index=a", ":index=0:name=tcp")
        ),
        ("systemd:domain=OWL:index=0", "the socket is of another domain: write domain=INET"),
        ("systemd:domain=INET:name=tcp6", "the socket is of another domain: write domain=INET6"),
        ("systemd:domain=INET:name=unix", "the socket is of another domain: write domain=UNIX"),
        ("haproxy:systemd:INET:name=unix", "the socket is of another domain: write domain=UNIX"),
        ("systemd:domain=INET:name=datagrams", "the socket does not listen: its unit must have ListenStream="),
    ],
)
def test_a_mistake_about_a_socket_of_systemd_is_told_as_what_it_is(
    description: str, says: str, inherited: dict[str, socket.socket]
) -> None:
    with pytest.raises(ConfigError, match=f"^listen: {re.escape(repr(description))}: {re.escape(says)}"):
        server_endpoint(MemoryReactorClock(), description)


@pytest.mark.parametrize(
    "description", ["systemd:name=tcp", "systemd:index=0", "systemd:domain=INET:name=tcp", "haproxy:systemd:name=tcp"]
)
def test_a_socket_of_systemd_is_found_by_its_name(description: str, inherited: dict[str, socket.socket]) -> None:
    adopted: Any = server_endpoint(MemoryReactorClock(), description)._port
    assert (adopted.fileno, adopted.addressFamily) == (inherited["tcp"].fileno(), socket.AF_INET)


def test_a_name_of_several_sockets_chooses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", ListenFDs([3, 4], ("xformd.socket", "xformd.socket")))
    with pytest.raises(ConfigError, match="2 sockets have this name: choose one with index=, or set"):
        server_endpoint(MemoryReactorClock(), "systemd:name=xformd.socket")


def test_without_systemd_its_endpoints_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", ListenFDs([]))
    with pytest.raises(ConfigError, match="systemd gave this process no socket: start it through"):
        server_endpoint(MemoryReactorClock(), "systemd:domain=INET:index=0")
