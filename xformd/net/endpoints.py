"""Parse the addresses that people write, and connect to them.

Twisted's endpoint strings are the full form (``unix:/run/xformd.sock``, ``ssl:11000:privateKey=...``); ``HOST:PORT``
is the short one. Invariant: whatever an endpoint or its plugin raises for a bad address leaves here as ``ConfigError``.
"""

import importlib.util
import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_HTTP_PORT, DEFAULT_PORT, tcp_server, with_host
from xformd.net.factory import DrainingFactory
from xformd.net.proxy_header import ProxyHeaderFactory

if TYPE_CHECKING:  # it needs what the extra "tls" installs
    from xformd.net.tls import Certificates

MAX_UNIX_PATH_BYTES = 107
"""``sockaddr_un`` in Linux. Twisted does not reject a longer path: connecting to it simply never succeeds."""

_BACKLOG_POSITIONS = {"tcp": 3, "tcp6": 2, "unix": 3}
"""Where the backlog stands in an endpoint string whose options have no names; other kinds have no backlog."""

_HOST_AND_PORT = re.compile(r"(?!unix:)(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+)(:(?P<port>\d{1,9}))?\Z")
# The system takes them for addresses: 10000 for 0.0.39.16, 127.1 for 127.0.0.1, 010.0.0.1 for 8.0.0.1.
_NUMERIC_HOST = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?\Z", re.IGNORECASE)


def tcp_client(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    """Return the endpoint for a host and a port; raise ``ConfigError`` if a number is no address in full."""
    if _NUMERIC_HOST.search(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ConfigError(f"no host is called {host!r}: write a name, or an IP address in full") from None
    if isIPAddress(host):
        return endpoints.TCP4ClientEndpoint(reactor, host, port)
    if isIPv6Address(host):
        return endpoints.TCP6ClientEndpoint(reactor, host, port)
    return endpoints.HostnameEndpoint(reactor, host, port)


def client_endpoint(reactor: Any, address: str | int, default_port: int = DEFAULT_PORT) -> IStreamClientEndpoint:
    """Parse the address of a server.

    Args:
        reactor: connects.
        address: ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``PORT``, or a Twisted client endpoint string.
        default_port: used if the address has no port.

    Raises:
        ConfigError: the address is invalid.
    """
    if match := _HOST_AND_PORT.match(address := with_host(address)):
        port = int(match["port"] or default_port)
        if not 0 < port < 65_536:
            raise ConfigError(f"server address {address!r}: a port is 1 to 65535")
        return tcp_client(reactor, match["host"].strip("[]"), port)
    if reason := _missing_tls(address, "tls:", "ssl:"):
        raise ConfigError(reason)
    if address.startswith("unix:") and len(os.fsencode(address.split(":")[1])) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"server address {address!r}: a Unix socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    try:
        endpoint: IStreamClientEndpoint = endpoints.clientFromString(reactor, address)
    except Exception as error:  # each endpoint type, and its plugin, raises what it likes
        expected = "write HOST:PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock"
        raise ConfigError(f"server address {address!r}: {_reason(error)}; {expected}") from error
    return endpoint


@attrs.frozen
class ServerEndpoint:
    """A port to listen on, and what stands between it and a server's factory: TLS, a PROXY header, both or nothing."""

    _port: IStreamServerEndpoint
    _reactor: Any
    certificates: "Certificates | None" = None
    has_proxy_header: bool = False

    def listen(self, factory: DrainingFactory[Any]) -> Deferred[IListeningPort]:
        """Listen; fires with the port."""
        wrapped: Any = factory if self.certificates is None else self.certificates.wrap(factory)
        if self.has_proxy_header:  # which comes before the handshake
            wrapped = ProxyHeaderFactory(wrapped, factory.identify, self._reactor)
        listening: Deferred[IListeningPort] = self._port.listen(wrapped)
        return listening


def server_endpoint(
    reactor: Any,
    description: str,
    setting: str = "listen",
    *,
    backlog: int = Limits().listen_backlog,
    alpn: tuple[bytes, ...] = (),
) -> ServerEndpoint:
    """Parse an address to listen on.

    Args:
        reactor: used to listen.
        description: a Twisted server endpoint string, such as ``tcp:11000:interface=127.0.0.1``; ``11000`` is the same.
        setting: where it comes from, for the error message.
        backlog: how many connections may wait to be accepted, unless the endpoint string says so.
        alpn: the protocols that a client may choose from over TLS.

    Raises:
        ConfigError: the endpoint string is invalid, or its certificate.
    """
    if reason := _missing_tls(description, "ssl:", "tls:", "haproxy:ssl:"):
        raise ConfigError(reason, setting=setting)
    if description.startswith("stdio"):
        reason = f"{description!r}: standard input is a single connection; a server cannot listen on it"
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
    words, options = endpoints._parse(description)
    if kind == "ssl":
        from xformd.net.tls import Certificates, TlsOptions

        tls = TlsOptions(*words[1:], **options)
        port = endpoints.TCP4ServerEndpoint(reactor, tls.port, int(tls.backlog or backlog), tls.interface)
        return ServerEndpoint(port, reactor, Certificates(tls, alpn, reactor))
    position = _BACKLOG_POSITIONS.get(kind)
    if position is not None and "backlog" not in options and len(words) <= position:
        description += f":backlog={backlog}"
    return ServerEndpoint(endpoints.serverFromString(reactor, description), reactor)


def show(address: IAddress) -> str:
    """Format the address of a listening port so that ``client_endpoint`` can parse it."""
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return f"unix:{name.decode(errors='replace')}" if isinstance(name, bytes) else f"unix:{name}"
    port: int = address.port  # type: ignore[attr-defined]  # every address with a host has a port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(endpoint: IStreamClientEndpoint, protocol: Protocol) -> Deferred[IProtocol]:
    """Connect one protocol to one endpoint, without Twisted's log lines for a factory that starts and stops.

    Returns:
        Fires with the protocol once it is connected. Cancelling it stops the attempt.
    """
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda _: protocol  # type: ignore[assignment,method-assign]
    connecting: Deferred[IProtocol] = endpoint.connect(factory)
    return connecting


def failure_reason(failure: Failure) -> str:
    """Return why a connection failed or was lost, in the operating system's words where it gave any."""
    error = failure.value
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__


def _reason(error: Exception) -> str:
    """Return what is wrong with an endpoint string, in Twisted's words where they are for people."""
    return re.sub(r"invalid literal for int\(\) with base 10: ", "expected a number, got ", str(error))


def _missing_tls(description: str, *prefixes: str) -> str:
    """Return what to install for an address that needs TLS, or an empty string if nothing is missing."""
    if description.startswith(prefixes) and importlib.util.find_spec("OpenSSL") is None:
        return f"{description!r} needs TLS: pip install 'xformd[tls]'"
    return ""
