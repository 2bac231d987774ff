"""What systemd gives to a service: sockets that it has opened, and one to tell it how the service is (``sd_notify``).

Invariant: whatever a service manager does, telling it something neither fails nor holds the server up.
"""

import functools
import os
import socket
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

from twisted.internet import endpoints
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from xformd.errors import ConfigError, one_line

SEND_TIMEOUT_S = 0.1  # how long a message may wait for room in the manager's queue


class Notifier:
    """Tells a service manager how the server is; without one it does nothing.

    What the manager has set in the environment is taken out of it: no child process may speak for the server.
    """

    log = Logger()

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        usec, pid = (environment.pop(f"WATCHDOG_{name}", "") for name in ("USEC", "PID"))
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._has_failed = False
        # How often to tell that the server is alive, half of what the manager allows; 0 if nobody waits for it.
        is_watched = address and usec.isdecimal() and pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 2e6 if is_watched else 0.0

    def tell(self, **fields: object) -> None:
        """Send these fields, a line for each (``sd_notify(3)``); that it fails is logged once."""
        if not self._address:
            return
        message = "\n".join(f"{name}={one_line(str(value))}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(SEND_TIMEOUT_S)
                sending.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self.log.warn("the service manager cannot be told how the server is: {error}", error=str(error))
            self._has_failed = True


def endpoint(
    reactor: Any, domain: str = "", index: str | None = None, name: str | None = None
) -> tuple[Any, str | None]:
    """Return the endpoint of a socket that systemd opened, chosen by its place or its name, and its interface.

    A Unix socket has no interface.

    Raises:
        ConfigError: there is no such socket, it does not listen, or it is of another domain than the one given.
    """
    given = endpoints._SystemdParser._sddaemon
    sockets = {f"index={number}": each for number, each in enumerate(given.inheritedDescriptors())}
    sockets |= {f"name={each}": number for each, number in given.inheritedNamedDescriptors().items()}
    descriptor = sockets.get(f"name={name}" if index is None else f"index={index}")
    if not sockets:
        raise ConfigError("systemd gave this process no socket: start it through a .socket unit")
    if descriptor is None or None not in (index, name):
        raise ConfigError(f"name one socket of those that systemd gave this process: {', '.join(sockets)}")
    if name is not None and (count := [*given._names].count(name)) > 1:
        raise ConfigError(f"{count} sockets have this name: choose one with index=, or set FileDescriptorName=")
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        address, family = opened.getsockname(), opened.family
        is_listening = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if domain not in ("", actual := family.name.removeprefix("AF_")):
        raise ConfigError(f"the socket is of another domain: write domain={actual}, or leave it out")
    if not is_listening:
        raise ConfigError("the socket does not listen: its unit must have ListenStream=, and not Accept=yes")
    if family == socket.AF_UNIX:
        return SimpleNamespace(listen=functools.partial(_adopt_unix_socket, reactor, descriptor)), None
    return endpoints.AdoptedStreamServerEndpoint(reactor, descriptor, family), address[0]


def _adopt_unix_socket(reactor: Any, descriptor: int, factory: Any) -> Deferred[IListeningPort]:
    from twisted.internet import unix

    os.set_blocking(descriptor, False)
    port: Any = unix.Port._fromListeningDescriptor(reactor, descriptor, factory)
    # Twisted would make systemd's file writable for everybody, and at the end delete it and shut the socket down.
    port._bindPath, port._shouldShutdown, port.backlog = b"\0", False, socket.SOMAXCONN
    port.startListening()
    return succeed(port)
