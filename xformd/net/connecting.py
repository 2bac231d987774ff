"""Connecting one protocol to one endpoint, without a line in the log for it."""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol


def connect(endpoint: IStreamClientEndpoint, protocol: Protocol) -> Deferred[IProtocol]:
    """Connect a protocol.

    Args:
        endpoint: of the server.
        protocol: what will speak.

    Returns:
        Fires with the protocol once it is connected. Cancelling it stops the attempt.
    """
    connecting: Deferred[IProtocol] = endpoint.connect(_Once(protocol))
    return connecting


class _Once(Factory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:  # noqa: ARG002 - Twisted's signature
        return self._protocol
