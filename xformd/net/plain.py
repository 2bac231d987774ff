"""What connections need of the system and of addresses, without Twisted: for every kind of client, and for servers."""

import fcntl
import ipaddress
import os
import re
import socket
import struct
import termios
from pathlib import Path
from typing import Any, NamedTuple

from xformd.errors import ConfigError
from xformd.net.defaults import DEFAULT_PORT, with_host

MAX_UNIX_PATH_BYTES = 107
"""``sockaddr_un`` in Linux. Twisted does not reject a longer path: connecting to it simply never succeeds."""

MAX_UNANSWERED = 3  # with so many retransmissions a peer has not answered for about 1.5 s

PEER_TIMEOUT_S = 5
"""How long a server's machine may acknowledge nothing, while it is connected to, sent something, or idle."""

NO_ANSWER = "it does not answer"

_HOST_AND_PORT = re.compile(r"(?!unix:)(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+)(:(?P<port>\d{1,9}))?\Z")
# The system takes them for addresses: 10000 for 0.0.39.16, 127.1 for 127.0.0.1, 010.0.0.1 for 8.0.0.1.
_NUMERIC_HOST = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?\Z", re.IGNORECASE)


def file_fingerprint(file: str | Path | int) -> tuple[int, ...]:
    """Return what differs once a file has changed; nothing if it is not there."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Place(NamedTuple):
    """Where a server is: at a host and a port, or at the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    has_tls: bool = False


def find_place(address: str | int, default_port: int = DEFAULT_PORT) -> Place | None:
    """Parse ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``PORT``, one after ``tls:``, or ``unix:PATH``; None for others.

    Raises ``ConfigError`` for a port or a path that cannot be.
    """
    address = with_host(address)
    if match := _HOST_AND_PORT.match(address) or _HOST_AND_PORT.match(address.removeprefix("tls:")):
        port = int(match["port"] or default_port)
        if not 0 < port < 65_536:
            raise ConfigError(f"server address {address!r}: a port is 1 to 65535")
        return Place(match["host"].strip("[]"), port, has_tls=match.string != address)
    kind, _, path = address.partition(":")
    if kind == "unix" and len(os.fsencode(path.partition(":")[0])) > MAX_UNIX_PATH_BYTES:
        raise ConfigError(f"server address {address!r}: a Unix socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    return Place(path=path) if kind == "unix" and path and "=" not in path and ":" not in path else None


def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, None for any other text; one of IPv4 that is written as one of IPv6 is that of IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether other machines cannot reach a port on the interface with this address."""
    address = read_address(host)
    return host == "localhost" if address is None else address.is_loopback


def check_host(host: str) -> None:
    """Raise ``ConfigError`` if a number is no address in full."""
    if _NUMERIC_HOST.search(host) and read_address(host) is None:
        raise ConfigError(f"no host is called {host!r}: write a name, or an IP address in full")


def _socket_of(transport: Any) -> Any:
    found = getattr(transport, "socket", transport)  # of TLS: that of the connection under it
    return found if isinstance(found, socket.socket) and found.family != socket.AF_UNIX else None


def detect_loss(transport: Any, timeout_s: float, *, also_unread: bool = False) -> None:
    """Let the system end a TCP connection whose peer's machine has acknowledged nothing for this long.

    By itself it takes 15 minutes, or for ever if nothing is sent. A port's connections take the options over.

    ``also_unread`` is for where something is sent, too, as ``TCP_USER_TIMEOUT`` is. Linux then also ends a connection
    whose peer acknowledges and has no room for more: a client that read 20 KB/s was cut off, and an upload to a server
    that did not read for 5 s.
    """
    if (connection := _socket_of(transport)) is None:
        return
    whole_s = max(3, min(round(timeout_s), 32_767))  # the most that the system takes
    options = {
        "KEEPIDLE": whole_s // 2,
        "KEEPINTVL": max(1, whole_s // 6),
        "KEEPCNT": 3,
        "USER_TIMEOUT": 1000 * whole_s * also_unread,
    }
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def seems_gone(transport: Any) -> bool:
    """Whether the system has sent the same again and again without an answer, as a peer that does not read gives."""
    connection, option = _socket_of(transport), getattr(socket, "TCP_INFO", None)
    if connection is None or option is None or connection.fileno() < 0:
        return False
    _, _, retransmits, probes = connection.getsockopt(socket.IPPROTO_TCP, option, 4)  # of struct tcp_info
    return bool(max(retransmits, probes) >= MAX_UNANSWERED)


def bytes_in_system(transport: Any) -> int:
    """Return how much of a connection's output its peer has not acknowledged; 0 where the system does not say."""
    fileno = getattr(transport, "fileno", None)
    if fileno is None:
        return 0
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(fileno(), termios.TIOCOUTQ, bytes(4)))  # as SIOCOUTQ, tcp(7)
    except (OSError, ValueError):
        return 0
    return int(count)


def backoff_s(failures: int, *, first_s: float = 0.1, longest_s: float, jitter: float = 0.0) -> float:
    """Return how long to wait after one or more failed attempts in a row: twice as long after each, up to a limit.

    A ``jitter`` from 0 to 1 shortens the wait by up to half, so that peers do not all retry at once.
    """
    return min(longest_s, first_s * 2.0 ** min(failures - 1, 16)) * (1 - jitter / 2)
