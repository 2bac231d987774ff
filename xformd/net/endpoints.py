"""Parse the addresses that people write, and connect to them.

Twisted's endpoint strings are the full form (``unix:/run/xformd.sock``, ``ssl:11000:privateKey=...``); ``HOST:PORT``
is the short one. Invariants: whatever an endpoint or its plugin raises for a bad address leaves here as
``ConfigError``, and a client's connection is lost soon after its server's machine has vanished.
"""

import contextlib
import errno
import os
import random
import re
import socket
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import endpoints, tcp
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import TimeoutError  # noqa: A004
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
from xformd.net import systemd
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_HTTP_PORT, DEFAULT_PORT, tcp_server, with_host
from xformd.net.factory import DrainingFactory
from xformd.net.plain import (
    MAX_UNIX_PATH_BYTES,
    NO_ANSWER,
    PEER_TIMEOUT_S,
    check_host,
    detect_loss,
    find_place,
    read_address,
)
from xformd.net.proxy_header import ProxyHeaderFactory
from xformd.net.tls import ClientTls, ServerTls, what_is_missing

if TYPE_CHECKING:  # it needs what the extra "tls" installs
    from xformd.net.tls.server import Certificates

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

Server = str | int | IStreamClientEndpoint


@implementer(IStreamClientEndpoint, IReactorPluggableNameResolver, IHostnameResolver)
class ClientEndpoint:
    """A server's endpoint, and the reactor as that endpoint sees it: a name is looked up anew for each connection."""

    addresses: Sequence[Any] = ()  # what the name stood for last
    in_use: Collection[str] = ()  # any other address comes before these
    only: str = ""  # the one address to connect to, of those that the name stands for

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
            for address in sorted(self.addresses, key=lambda each: (each.host in self.in_use, random.random())):
                if self.only in ("", address.host):
                    resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        ours = SimpleNamespace(addressResolved=found.append, resolutionComplete=complete)
        ours.resolutionBegan = resolutionReceiver.resolutionBegan
        return self._reactor.nameResolver.resolveHostName(ours, *name, **options)


def _over_tls(reactor: Any, tcp: IStreamClientEndpoint, host: str, timeout_s: int, tls: ClientTls | None) -> Any:
    if tls is None:
        return tcp
    credentials = tls.credentials(reactor)
    from xformd.net.tls.client import TlsEndpoint  # where it is installed

    return TlsEndpoint(tcp, host, credentials, reactor, timeout_s)


def client_endpoint(
    reactor: Any,
    address: str | int,
    default_port: int = DEFAULT_PORT,
    timeout_s: int = PEER_TIMEOUT_S,
    *,
    tls: ClientTls | None = None,
) -> ClientEndpoint:
    """Parse the address of a server; raise ``ConfigError`` if it is invalid.

    It is ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``PORT``, or a Twisted client endpoint string, which may say itself
    how long connecting to one address may take. With ``tls`` that is used for TCP; ``tls:HOST:PORT`` asks for it too.
    """
    address, client = with_host(address), ClientEndpoint(reactor)
    if (place := find_place(address, default_port)) is not None and place.host:
        check_host(place.host)
        # Twisted's for IPv4 takes addresses of IPv6 too.
        kind: Any = endpoints.HostnameEndpoint if read_address(place.host) is None else endpoints.TCP4ClientEndpoint
        plain = kind(client, place.host, place.port, timeout_s)
        tls = tls or (ClientTls() if place.has_tls else None)
        client.endpoint = _over_tls(client, plain, place.host, timeout_s, tls)
        return client
    if address.startswith(("tls:", "ssl:")) and (missing := what_is_missing()):
        raise ConfigError(f"{address!r}: {missing}")
    try:
        (scheme, *words), options = endpoints._parse(address)
        has_timeout = "timeout" in options or len(words) > 2 or scheme not in ("tcp", "ssl", "tls", "unix")
        client.endpoint = endpoints.clientFromString(client, address + ("" if has_timeout else f":timeout={timeout_s}"))
        tcp = endpoints._parseClientTCP(*words, **options) if scheme == "tcp" else None
        if tcp is not None and read_address(tcp["host"]) is None:
            client.endpoint = endpoints.HostnameEndpoint(client, **{"timeout": timeout_s, **tcp})  # for all addresses
    except Exception as error:  # each endpoint type, and its plugin, raises what it likes
        expected = "write HOST:PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock"
        raise ConfigError(f"server address {address!r}: {_reason(error)}; {expected}") from error
    if tcp is not None:
        client.endpoint = _over_tls(client, client.endpoint, tcp["host"], timeout_s, tls)
    return client


def named_client(
    reactor: Any, server: Server, name: str | None, *default: int, unnamed: str, tls: ClientTls | None = None
) -> tuple[ClientEndpoint, str]:
    """Return a server's endpoint, and its name in messages; ``default`` and ``tls`` as for ``client_endpoint``."""
    if isinstance(server, str | int):
        return client_endpoint(reactor, server, *default, tls=tls), name or with_host(server)
    return ClientEndpoint(reactor, server), name or unnamed


class _SharedPort(tcp.Port):
    """A TCP port on which other servers of this user may listen too: the kernel spreads the connections."""

    def createInternetSocket(self) -> socket.socket:  # noqa: N802 - Twisted's name
        """Make the socket."""
        opened: socket.socket = super().createInternetSocket()  # type: ignore[no-untyped-call]
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return opened


def _listen_on_shared(endpoint: Any, factory: Any) -> IListeningPort:
    """Listen as Twisted's endpoint for TCP would, which cannot say that others may too."""
    port = _SharedPort(endpoint._port, factory, endpoint._backlog, endpoint._interface, endpoint._reactor)
    port.startListening()
    return port


@attrs.frozen
class ServerEndpoint:
    """A port to listen on, and what stands between it and a server's factory: TLS, a PROXY header, both or nothing."""

    _port: IStreamServerEndpoint
    _reactor: Any
    certificates: "Certificates | None" = None
    _alpn: tuple[bytes, ...] = ()
    has_proxy_header: bool = False
    _path: str = ""  # of a Unix socket; none if it is abstract, and gone with its server
    _is_shared: bool = False

    def listen(self, factory: DrainingFactory[Any]) -> Deferred[IListeningPort]:
        """Listen; fires with the port."""
        wrapped: Any = factory if self.certificates is None else self.certificates.wrap(factory, self._alpn)
        if self.has_proxy_header:  # which comes before the handshake
            wrapped = ProxyHeaderFactory(wrapped, factory.identify, self._reactor)
        with _claimed(self._path) if self._path else contextlib.nullcontext():
            if self._is_shared:
                return execute(_listen_on_shared, self._port, wrapped)
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


def server_endpoint(
    reactor: Any,
    description: str,  # a Twisted server endpoint string such as ``tcp:11000:interface=127.0.0.1``, or a port there
    setting: str = "listen",  # where it comes from, for the error message
    *,
    backlog: int = Limits().listen_backlog,  # of connections to accept, unless the string says so
    alpn: tuple[bytes, ...] = (),  # the protocols that a client may choose from over TLS
    reuse_port: bool = False,  # other servers of this user may listen on the same TCP port
    tls: ServerTls | None = None,  # gives TLS to TCP ports; an ``ssl:`` endpoint has its own
) -> ServerEndpoint:
    """Parse an address to listen on; raise ``ConfigError`` if it is invalid, or its certificate."""
    if description.startswith(("ssl:", "tls:", "haproxy:ssl:")) and (missing := what_is_missing()):
        raise ConfigError(f"{description!r}: {missing}", setting=setting)
    try:
        has_header = description.lower().startswith("haproxy:")
        inner = description[len("haproxy:") :] if has_header else description
        parsed = _parse_server_endpoint(reactor, inner, backlog, tls, reuse_port)
        return attrs.evolve(parsed, alpn=alpn, has_proxy_header=has_header)
    except ConfigError as error:
        raise ConfigError(f"{description!r}: {error.reason}", setting=setting) from error
    except Exception as error:  # as above
        port = DEFAULT_PORT if setting == "listen" else DEFAULT_HTTP_PORT
        example = f"tcp:{port}:interface={DEFAULT_HOST}"
        reason = f"{description!r}: {_reason(error)}; write a Twisted server endpoint, such as {example}"
        reason += ", or none" if setting == "http" else ""
        raise ConfigError(reason, setting=setting) from error


def _parse_server_endpoint(
    reactor: Any, description: str, backlog: int, tls: ServerTls | None, reuse_port: bool
) -> ServerEndpoint:
    if re.fullmatch(r"\d+", description):
        description = tcp_server(port=int(description))
    kind = description.partition(":")[0]
    if kind == "stdio":
        raise ConfigError("standard input is a single connection; a server cannot listen on it")
    words, options = endpoints._parse(description)
    if kind == "ssl":
        from xformd.net.tls.server import Certificates, TlsOptions

        own = TlsOptions(*words[1:], **options)
        port: Any = endpoints.TCP4ServerEndpoint(reactor, own.port, int(own.backlog or backlog), own.interface)
        return ServerEndpoint(port, reactor, Certificates(own, reactor), is_shared=reuse_port)
    defaults = {"backlog": backlog, "mode": 660}  # Twisted's 666 is for everybody on the machine
    missing = [name for name in defaults if name not in options and len(words) <= _POSITIONS[name].get(kind, 0)]
    description += "".join(f":{name}={defaults[name]}" for name in missing)
    if kind == "systemd":
        adopted, host = systemd.endpoint(reactor, *words[1:], **options)
        return ServerEndpoint(adopted, reactor, tls.for_port(host) if tls and host is not None else None)
    port = endpoints.serverFromString(reactor, description)
    is_tcp = isinstance(port, endpoints.TCP4ServerEndpoint | endpoints.TCP6ServerEndpoint)
    certificates = tls.for_port(port._interface) if tls and is_tcp else None
    path = port._address if kind == "unix" else "\0"
    if not 0 < len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"a Unix socket's path has 1 to {MAX_UNIX_PATH_BYTES} bytes")
    path = path.partition("\0")[0]
    return ServerEndpoint(port, reactor, certificates, path=path, is_shared=reuse_port and is_tcp)


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
    if isinstance(error, TimeoutError) and number is None:
        return NO_ANSWER
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__


def _reason(error: Exception) -> str:
    """Return what is wrong with an endpoint string, in Twisted's words where they are for people."""
    reason = str(error)
    for pattern, words in _IN_PLAIN_WORDS.items():
        reason = re.sub(pattern, words, reason)
    return reason
