"""Parse the addresses that people write, and connect to them.

Twisted's endpoint strings are the full form (``unix:/run/xformd.sock``, ``ssl:11000:privateKey=...``); ``HOST:PORT``
is the short one. Invariants: whatever an endpoint or its plugin raises for a bad address leaves here as
``ConfigError``, and a client's connection is lost soon after its server's machine has vanished.
"""

import contextlib
import errno
import functools
import importlib.util
import ipaddress
import os
import random
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_HTTP_PORT, DEFAULT_PORT, tcp_server, with_host
from xformd.net.factory import DrainingFactory
from xformd.net.proxy_header import ProxyHeaderFactory
from xformd.net.transport import detect_loss

if TYPE_CHECKING:  # it needs what the extra "tls" installs
    from xformd.net.tls import Certificates

MAX_UNIX_PATH_BYTES = 107
"""``sockaddr_un`` in Linux. Twisted does not reject a longer path: connecting to it simply never succeeds."""

_POSITIONS = {"backlog": {"tcp": 3, "tcp6": 2, "unix": 3}, "mode": {"unix": 2}}
"""Where an option stands in an endpoint string whose options have no names; other kinds do not have it."""

_IN_PLAIN_WORDS = {
    r"invalid literal for int\(\) with base \d+: ": "expected a number, got ",
    r"\S+\(\) got an unexpected keyword argument ": "it has no option ",
    r"\S+\(\) got multiple values for argument (.*)": r"\1 is given twice; a colon in a value is written as \:",
    r"\S+\(\) missing \d+ required positional arguments?: ": "it needs ",
    r"\S+\(\) takes .* positional arguments? but .* given": "too many options without a name",
}
"""What Twisted says of an endpoint string that it cannot parse."""

_HOST_AND_PORT = re.compile(r"(?!unix:)(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+)(:(?P<port>\d{1,9}))?\Z")
# The system takes them for addresses: 10000 for 0.0.39.16, 127.1 for 127.0.0.1, 010.0.0.1 for 8.0.0.1.
_NUMERIC_HOST = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?\Z", re.IGNORECASE)

PEER_TIMEOUT_S = 5
"""How long a server's machine may acknowledge nothing, while it is connected to, sent something, or idle."""


@implementer(IStreamClientEndpoint, IReactorPluggableNameResolver, IHostnameResolver)
class ClientEndpoint:
    """A server's endpoint, and the reactor as that endpoint sees it: a name is looked up anew for each connection."""

    addresses: Sequence[Any] = ()  # what the name stood for last
    connections: Sequence[Any] = ()  # that are open: any other address comes before theirs

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint | None = None) -> None:
        self._reactor = reactor
        self.endpoint: Any = endpoint
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - Twisted's name
        """See ``IStreamClientEndpoint``."""
        connecting: Deferred[IProtocol] = self.endpoint.connect(protocolFactory)
        return connecting

    def resolveHostName(self, resolutionReceiver: Any, *name: Any, **options: Any) -> Any:  # noqa: N802, N803
        """See ``IHostnameResolver``. While nothing is found, what was found last holds."""
        found: list[Any] = []

        def complete() -> None:
            self.addresses = found or self.addresses
            in_use = [getattr(each.transport.getPeer(), "host", None) for each in self.connections]
            for address in sorted(self.addresses, key=lambda each: (each.host in in_use, random.random())):
                resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        ours = SimpleNamespace(addressResolved=found.append, resolutionComplete=complete)
        ours.resolutionBegan = resolutionReceiver.resolutionBegan
        return self._reactor.nameResolver.resolveHostName(ours, *name, **options)


def tcp_client(reactor: Any, host: str, port: int, timeout_s: int = PEER_TIMEOUT_S) -> ClientEndpoint:
    """Return the endpoint for a host and a port; raise ``ConfigError`` if a number is no address in full."""
    if _NUMERIC_HOST.search(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ConfigError(f"no host is called {host!r}: write a name, or an IP address in full") from None
    client = ClientEndpoint(reactor)
    is_numeric = isIPAddress(host) or isIPv6Address(host)
    kind: Any = endpoints.TCP4ClientEndpoint if is_numeric else endpoints.HostnameEndpoint  # which takes IPv6, too
    client.endpoint = kind(client, host, port, timeout_s)
    return client


def client_endpoint(
    reactor: Any, address: str | int, default_port: int = DEFAULT_PORT, timeout_s: int = PEER_TIMEOUT_S
) -> ClientEndpoint:
    """Parse the address of a server; raise ``ConfigError`` if it is invalid.

    It is ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``PORT``, or a Twisted client endpoint string, which may say itself
    how long connecting to one address may take.
    """
    if match := _HOST_AND_PORT.match(address := with_host(address)):
        port = int(match["port"] or default_port)
        if not 0 < port < 65_536:
            raise ConfigError(f"server address {address!r}: a port is 1 to 65535")
        return tcp_client(reactor, match["host"].strip("[]"), port, timeout_s)
    if reason := _missing_tls(address, "tls:", "ssl:"):
        raise ConfigError(reason)
    if address.startswith("unix:") and len(os.fsencode(address.split(":")[1])) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"server address {address!r}: a Unix socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    client = ClientEndpoint(reactor)
    try:
        (kind, *words), options = endpoints._parse(address)
        has_timeout = "timeout" in options or len(words) > 2 or kind not in ("tcp", "ssl", "tls", "unix")
        client.endpoint = endpoints.clientFromString(client, address + ("" if has_timeout else f":timeout={timeout_s}"))
        if kind == "tcp" and not isIPAddress((tcp := endpoints._parseClientTCP(*words, **options))["host"]):
            client.endpoint = endpoints.HostnameEndpoint(client, **{"timeout": timeout_s, **tcp})  # for all addresses
    except Exception as error:  # each endpoint type, and its plugin, raises what it likes
        expected = "write HOST:PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock"
        raise ConfigError(f"server address {address!r}: {_reason(error)}; {expected}") from error
    return client


def named_client(
    reactor: Any, server: str | int | IStreamClientEndpoint, name: str | None, *default: int, unnamed: str
) -> tuple[IStreamClientEndpoint, str]:
    """Return a server's endpoint, and its name in messages; ``default`` as for ``client_endpoint``."""
    if isinstance(server, str | int):
        return client_endpoint(reactor, server, *default), name or with_host(server)
    return server, name or unnamed


@attrs.frozen
class ServerEndpoint:
    """A port to listen on, and what stands between it and a server's factory: TLS, a PROXY header, both or nothing."""

    _port: IStreamServerEndpoint
    _reactor: Any
    certificates: "Certificates | None" = None
    has_proxy_header: bool = False
    _path: str = ""  # of a Unix socket; none if it is abstract, and gone with its server

    def listen(self, factory: DrainingFactory[Any]) -> Deferred[IListeningPort]:
        """Listen; fires with the port."""
        wrapped: Any = factory if self.certificates is None else self.certificates.wrap(factory)
        if self.has_proxy_header:  # which comes before the handshake
            wrapped = ProxyHeaderFactory(wrapped, factory.identify, self._reactor)
        with _claimed(self._path) if self._path else contextlib.nullcontext():
            listening: Deferred[IListeningPort] = self._port.listen(wrapped)
        return listening


@contextlib.contextmanager
def _claimed(path: str) -> Iterator[None]:
    """Remove what a killed server has left; lock the folder, where others may be between ``bind`` and ``listen``."""
    import fcntl

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nobody can lock a folder without the right to read it
            descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # noqa: PTH120 - the path as it was given
            stack.callback(os.close, descriptor)
            for _ in range(50):  # other programs may keep a folder locked
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.02)
        # Twisted's lock names a process: the number may be another's by now, or that of one in another container.
        with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as client:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EEXIST, "something else is there, which is no socket; move it away")
            client.setblocking(False)  # the queue of a server that is busy may be full
            if client.connect_ex(path) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            os.unlink(path)  # noqa: PTH108
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.lock")  # noqa: PTH108
        stack.callback(os.umask, os.umask(0o777))  # nobody may connect until Twisted has set the socket's mode
        yield


def _systemd_endpoint(reactor: Any, domain: str = "", index: str | None = None, name: str | None = None) -> Any:
    given = endpoints._SystemdParser._sddaemon
    sockets = {f"index={number}": each for number, each in enumerate(given.inheritedDescriptors())}
    sockets |= {f"name={each}": number for each, number in given.inheritedNamedDescriptors().items()}
    descriptor = sockets.get(f"name={name}" if index is None else f"index={index}")
    if not sockets:
        raise ConfigError("systemd gave this process no socket: start it through a .socket unit")
    if descriptor is None or None not in (index, name):
        raise ConfigError(f"name one socket of those that systemd gave this process: {', '.join(sockets)}")
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        family, is_listening = opened.family, opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if domain != (actual := family.name.removeprefix("AF_")):
        raise ConfigError(f"the socket is of another domain: write domain={actual}")
    if not is_listening:
        raise ConfigError("the socket does not listen: its unit must have ListenStream=, and not Accept=yes")
    if family == socket.AF_UNIX:
        return SimpleNamespace(listen=functools.partial(_adopt_unix_socket, reactor, descriptor))
    return endpoints.AdoptedStreamServerEndpoint(reactor, descriptor, family)


def _adopt_unix_socket(reactor: Any, descriptor: int, factory: Any) -> Deferred[IListeningPort]:
    from twisted.internet import unix

    os.set_blocking(descriptor, False)
    port: Any = unix.Port._fromListeningDescriptor(reactor, descriptor, factory)
    # Twisted would make systemd's file writable for everybody, and at the end delete it and shut the socket down.
    port._bindPath, port._shouldShutdown, port.backlog = b"\0", False, socket.SOMAXCONN
    port.startListening()
    return succeed(port)


def server_endpoint(
    reactor: Any,
    description: str,
    setting: str = "listen",
    *,
    backlog: int = Limits().listen_backlog,
    alpn: tuple[bytes, ...] = (),
) -> ServerEndpoint:
    """Parse an address to listen on; raise ``ConfigError`` if it is invalid, or its certificate.

    Args:
        reactor: used to listen.
        description: a Twisted server endpoint string, such as ``tcp:11000:interface=127.0.0.1``; ``11000`` is the same.
        setting: where it comes from, for the error message.
        backlog: how many connections may wait to be accepted, unless the endpoint string says so.
        alpn: the protocols that a client may choose from over TLS.
    """
    if reason := _missing_tls(description, "ssl:", "tls:", "haproxy:ssl:"):
        raise ConfigError(reason, setting=setting)
    try:
        return _parse_server_endpoint(reactor, description, backlog, alpn)
    except ConfigError as error:
        raise ConfigError(f"{description!r}: {error.reason}", setting=setting) from error
    except Exception as error:  # as above
        port = DEFAULT_PORT if setting == "listen" else DEFAULT_HTTP_PORT
        example = f"tcp:{port}:interface={DEFAULT_HOST}"
        reason = f"{description!r}: {_reason(error)}; write a Twisted server endpoint, such as {example}"
        raise ConfigError(reason, setting=setting) from error


def _parse_server_endpoint(reactor: Any, description: str, backlog: int, alpn: tuple[bytes, ...]) -> ServerEndpoint:
    if re.fullmatch(r"\d+", description):
        description = tcp_server(port=int(description))
    kind, _, rest = description.partition(":")
    if kind.lower() == "haproxy":
        inner = _parse_server_endpoint(reactor, rest, backlog, alpn)
        return attrs.evolve(inner, has_proxy_header=True)
    if kind == "stdio":
        raise ConfigError("standard input is a single connection; a server cannot listen on it")
    words, options = endpoints._parse(description)
    if kind == "ssl":
        from xformd.net.tls import Certificates, TlsOptions

        tls = TlsOptions(*words[1:], **options)
        tcp = endpoints.TCP4ServerEndpoint(reactor, tls.port, int(tls.backlog or backlog), tls.interface)
        return ServerEndpoint(tcp, reactor, Certificates(tls, alpn, reactor))
    defaults = {"backlog": backlog, "mode": 660}  # Twisted's 666 is for everybody on the machine
    missing = [name for name in defaults if name not in options and len(words) <= _POSITIONS[name].get(kind, 0)]
    description += "".join(f":{name}={defaults[name]}" for name in missing)
    if kind == "systemd":
        return ServerEndpoint(_systemd_endpoint(reactor, *words[1:], **options), reactor)
    port: Any = endpoints.serverFromString(reactor, description)
    path = port._address if kind == "unix" else "\0"
    if not 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"a Unix socket's path has 1 to {MAX_UNIX_PATH_BYTES} bytes")
    return ServerEndpoint(port, reactor, path=path.partition("\0")[0])


def show(address: IAddress) -> str:
    """Format the address of a listening port so that ``client_endpoint`` can parse it."""
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return f"unix:{name.decode(errors='replace')}" if isinstance(name, bytes) else f"unix:{name}"
    port: int = address.port  # type: ignore[attr-defined]  # every address with a host has a port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(endpoint: IStreamClientEndpoint, protocol: Protocol, *, also_unread: bool = False) -> Deferred[IProtocol]:
    """Connect one protocol to one endpoint, without Twisted's log lines for a factory that starts and stops.

    ``also_unread`` is as for ``detect_loss``.
    """
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _: protocol  # type: ignore[assignment,method-assign]

    def detect(connected: IProtocol) -> IProtocol:
        detect_loss(protocol.transport, PEER_TIMEOUT_S, also_unread=also_unread)
        return connected

    connecting: Deferred[IProtocol] = endpoint.connect(factory)
    return connecting.addCallback(detect)


def failure_reason(failure: Failure) -> str:
    """Return why a connection failed or was lost, in the operating system's words where it gave any."""
    error = failure.value
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__


def _reason(error: Exception) -> str:
    """Return what is wrong with an endpoint string, in Twisted's words where they are for people."""
    reason = str(error)
    for pattern, words in _IN_PLAIN_WORDS.items():
        reason = re.sub(pattern, words, reason)
    return reason


def _missing_tls(description: str, *prefixes: str) -> str:
    """Return what to install for an address that needs TLS, or an empty string if nothing is missing."""
    if description.startswith(prefixes) and importlib.util.find_spec("OpenSSL") is None:
        return f"{description!r} needs TLS: pip install 'xformd[tls]'"
    return ""
