"""What the clients without Twisted share: the addresses that they take, and how they connect.

Invariant: what goes wrong is said in the words of ``TransformProxy``.
"""

import contextlib
import os
import random
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from xformd.client.requests import Client, addresses_of
from xformd.client.servers import LONGEST_DELAY_S, MAX_SESSION_AGE_S, Core, Server
from xformd.errors import ConfigError, ConnectionFailed
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, with_host
from xformd.net.plain import NO_ANSWER, PEER_TIMEOUT_S, Place, check_host, detect_loss, find_place
from xformd.net.tls import ClientTls
from xformd.wire.client import ClassicExchange
from xformd.wire.session import MIB


class HandshakeFailed(Exception):
    """There is no TLS connection; ``__cause__`` is what the module ``ssl`` raised."""


class SocketClient(Client):
    """What ``TransformClient`` is on asyncio and on plain sockets alike.

    Args:
        servers: ``HOST``, ``HOST:PORT``, a port on 127.0.0.1, one of these after ``tls:``, ``unix:PATH``; or several.

    The others are those of ``TransformProxy``, but for ``reactor``.
    """

    # What asyncio and plain sockets do differently, beside what ``Servers`` lists. ``_look_up`` is
    # ``socket.getaddrinfo``. ``_run_on`` runs a core on a connection, over TLS to a server of that name if there is
    # one, and returns the link; it may raise ``HandshakeFailed``.
    _look_up: Callable[[str, int], Awaitable[list[Any]]]
    _connect_socket: Callable[[socket.socket, Any], Awaitable[None]]
    _run_on: Callable[[socket.socket, Core, str, str | None], Awaitable[Any]]

    def __init__(
        self,
        servers: str | int | Sequence[str | int] = f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        port: int | None = None,
        *,
        tls: ClientTls | bool = False,
        address: str | None = None,
        max_result_bytes: int = 10 * MIB,
        longest_delay_s: float = LONGEST_DELAY_S,
        max_session_age_s: float = MAX_SESSION_AGE_S,
        token: str | None = None,
        hedge: bool = False,
    ) -> None:
        made = [Server(address or with_host(each), _place(each)) for each in addresses_of(servers, port)]
        super().__init__(made, max_result_bytes, longest_delay_s, max_session_age_s, token, hedge=hedge)
        self._tls = tls if isinstance(tls, ClientTls) else ClientTls()
        self._has_tls = bool(tls)
        if any(self._name(server) for server in made):
            self._tls.context()  # a bad file is found now

    async def _dial(self, server: Server, core: Core, in_use: Collection[str]) -> Any:
        found = await self._find(server)
        server.hosts = frozenset(host for _, _, host in found)
        last = OSError(NO_ANSWER)
        for family, address, host in sorted(found, key=lambda each: (each[2] in in_use, random.random())):
            with contextlib.ExitStack() as undo:
                try:
                    connection = undo.enter_context(socket.socket(family))
                    connection.setblocking(False)
                    await self._connect_socket(connection, address)
                    if family != socket.AF_UNIX:
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        detect_loss(connection, PEER_TIMEOUT_S, also_unread=isinstance(core, ClassicExchange))
                except OSError as error:
                    last = error
                    continue
                try:
                    link = await self._run_on(connection, core, host, self._name(server))
                except HandshakeFailed as failed:
                    reason = why_lost(failed.__cause__, self._tls, server.place.host)
                    raise ConnectionFailed(f"cannot connect to {server.address}: {reason}") from failed.__cause__
                undo.pop_all()
                return link
        raise _connection_failed(server, os.strerror(last.errno) if last.errno else NO_ANSWER, last) from last

    async def _find(self, server: Server) -> list[tuple[int, Any, str]]:
        place: Place = server.place
        if place.path:
            return [(socket.AF_UNIX, place.path, place.path)]
        try:
            infos = await self._look_up(place.host, place.port)
        except (OSError, UnicodeError) as error:  # no name has an empty label, or a long one
            reason = f"DNS lookup failed: no results for hostname lookup: {place.host}"
            raise _connection_failed(server, reason, error) from error
        return [(family, address, address[0]) for family, _, _, _, address in infos]

    def _name(self, server: Server) -> str | None:
        """Return the name to verify over TLS; None for plain TCP."""
        place: Place = server.place
        return place.host if place.has_tls or (self._has_tls and not place.path) else None


def why_lost(error: BaseException | None, tls: ClientTls, host: str = "") -> str:
    """Return why there is no TLS connection, or none any more; nothing if TLS is not the reason."""
    if host or "SSL" in type(error).__name__:
        from xformd.net.tls.words import explain

        return explain(error, host, has_certificate=tls.certificate is not None)  # type: ignore[arg-type]
    return ""


def _connection_failed(server: Server, reason: str, cause: BaseException) -> ConnectionFailed:
    error = ConnectionFailed(f"cannot connect to {server.address}: {reason}; is 'xformd serve' running there?")
    error.__cause__ = cause
    return error


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what a client is made of that is given nothing, as ``xformd send`` takes it from the environment."""
    files = [environ.get(f"XFORMD_TLS_{name}") for name in ("CA", "CLIENT_CERTIFICATE", "CLIENT_KEY")]
    has_tls = environ.get("XFORMD_CLIENT_TLS", "").lower() in ("1", "true", "t", "yes", "y", "on")
    return {
        "servers": environ.get("XFORMD_SERVER", "").split() or f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        "token": environ.get("XFORMD_TOKEN") or None,
        "tls": (has_tls or any(files)) and ClientTls(*files),
    }


def _place(address: str | int) -> Place:
    place = find_place(str(address).removeprefix("tcp:") if str(address).count(":") > 1 else address)
    if place is None:
        raise ConfigError(f"server address {address!r}: write HOST:PORT, tls:HOST:PORT or unix:/run/xformd.sock")
    if place.host:
        check_host(place.host)
    return place
