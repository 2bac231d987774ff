"""Addresses as people write them: of servers to call, and of places to listen.

Twisted's endpoint strings are the full form (``unix:/run/xformd.sock``, ``ssl:11000:privateKey=...``); ``HOST:PORT``
is the short one.
"""

import importlib.util
import os
import re
from typing import Any

from twisted.internet import endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint, IStreamServerEndpoint

from xformd.errors import ConfigError
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_HTTP_PORT, DEFAULT_PORT

MAX_UNIX_PATH_BYTES = 107
"""Of a Unix socket's name, ``sockaddr_un`` in Linux; a longer one is never an error, it just never connects."""

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+)(:(?P<port>[0-9]{1,5}))?\Z")


def tcp_client(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    """Give the endpoint for a host and a port; a numeric address needs no look-up."""
    if isIPAddress(host):
        return endpoints.TCP4ClientEndpoint(reactor, host, port)
    if isIPv6Address(host):
        return endpoints.TCP6ClientEndpoint(reactor, host, port)
    return endpoints.HostnameEndpoint(reactor, host, port)


def client_endpoint(reactor: Any, address: str, default_port: int = DEFAULT_PORT) -> IStreamClientEndpoint:
    """Read the address of a server.

    Args:
        reactor: what will connect.
        address: ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, or a Twisted client endpoint string.
        default_port: where the address names none.

    Returns:
        The endpoint to connect to.

    Raises:
        ConfigError: it is none of these.
    """
    if match := _HOST_AND_PORT.match(address):
        port = int(match["port"] or default_port)
        if not 0 < port < 65_536:
            raise ConfigError(f"server address {address!r}: a port is 1 to 65535")
        return tcp_client(reactor, match["host"].strip("[]"), port)
    if reason := _lacks_tls(address, "tls:", "ssl:"):
        raise ConfigError(reason)
    if address.startswith("unix:") and len(os.fsencode(address.split(":")[1])) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"server address {address!r}: a Unix socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    try:
        endpoint: IStreamClientEndpoint = endpoints.clientFromString(reactor, address)
    except Exception as error:  # each kind of endpoint, and its plugin, raises as it likes
        message = f"server address {address!r}: {error}; write HOST:PORT, or a Twisted client endpoint"
        raise ConfigError(message) from error
    return endpoint


def server_endpoint(reactor: Any, description: str, setting: str = "listen") -> IStreamServerEndpoint:
    """Read a place to listen.

    Args:
        reactor: what will listen.
        description: a Twisted server endpoint string, such as ``tcp:11000:interface=127.0.0.1``.
        setting: which names it.

    Returns:
        The endpoint to listen on.

    Raises:
        ConfigError: it is no endpoint string.
    """
    if reason := _lacks_tls(description, "ssl:", "tls:"):
        raise ConfigError(reason, setting=setting)
    if description.startswith("stdio"):
        reason = f"{description!r}: standard input is one connection, and no place to listen"
        raise ConfigError(reason, setting=setting)
    try:
        endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, description)
    except Exception as error:  # as above
        port = DEFAULT_PORT if setting == "listen" else DEFAULT_HTTP_PORT
        example = f"tcp:{port}:interface={DEFAULT_HOST}"
        reason = f"{description!r}: {error}; write a Twisted server endpoint, such as {example}"
        raise ConfigError(reason, setting=setting) from error
    return endpoint


def show(address: IAddress) -> str:
    """Say where a port listens, in the form that ``client_endpoint`` reads."""
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return f"unix:{name.decode(errors='replace')}" if isinstance(name, bytes) else f"unix:{name}"
    port: int = address.port  # type: ignore[attr-defined]  # whatever has a host has a port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lacks_tls(description: str, *prefixes: str) -> str:
    """Say what to install; nothing where an address needs no TLS, or it is there."""
    if description.startswith(prefixes) and importlib.util.find_spec("OpenSSL") is None:
        return f"{description!r} needs TLS: pip install 'xformd[tls]'"
    return ""
