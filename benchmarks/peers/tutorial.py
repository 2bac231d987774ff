"""A transform server in the tutorial's style: ``NetstringReceiver``, and ``getattr`` to find the transform.

As it stands it speaks the classic dialect: it answers one request and closes. With ``--kept-open``
it answers any number of them on one connection, in order.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import ServerFactory
from twisted.protocols.basic import NetstringReceiver


class TransformService:
    """The transforms."""

    def cummingsify(self, poem: bytes) -> bytes:
        """Lower-case the poem."""
        return poem.decode().lower().encode()


class TransformProtocol(NetstringReceiver):
    """One connection."""

    factory: Any
    transport: Any
    MAX_LENGTH = 10 * 1024 * 1024

    def stringReceived(self, request: bytes) -> None:  # noqa: N802 - Twisted's name
        """Answer a request ``<transform>.<poem>``."""
        if b"." not in request:  # bad request
            self.transport.loseConnection()
            return
        name, poem = request.split(b".", 1)
        transformed = self.factory.transform(name.decode(), poem)
        if transformed is not None:
            self.sendString(transformed)
        if transformed is None or not self.factory.keeps_open:
            self.transport.loseConnection()


class TransformFactory(ServerFactory):
    """Makes connections, and knows the transforms."""

    protocol = TransformProtocol

    def __init__(self, service: TransformService, keeps_open: bool) -> None:
        self.service = service
        self.keeps_open = keeps_open

    def transform(self, name: str, poem: bytes) -> bytes | None:
        """Return the transformed poem, or None where that cannot be done."""
        thunk = getattr(self, f"xform_{name}", None)
        if thunk is None:  # no such transform
            return None
        try:
            transformed: bytes = thunk(poem)
        except Exception:
            return None  # transform failed
        return transformed

    def xform_cummingsify(self, poem: bytes) -> bytes:
        """Lower-case the poem."""
        return self.service.cummingsify(poem)


def main() -> None:
    factory = TransformFactory(TransformService(), keeps_open="--kept-open" in sys.argv[1:])
    port: Any = reactor.listenTCP(0, factory, backlog=2048, interface="127.0.0.1")
    print(f"listening on 127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
