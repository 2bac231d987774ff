"""The classic form: one request, one reply, close (``docs/wire.md``, "Classic").

What the poetry tutorial's programs speak, byte for byte. It is frozen: nothing here may change what goes over
the wire.
"""

import attrs

from xformd import spec
from xformd.errors import BadFrame, BadRequest, TooLarge
from xformd.wire import netstring


@attrs.frozen
class Request:
    """What a client asks for: ``<spec>.<poem>``."""

    spec: spec.Spec
    poem: bytes


def encode_request(request: Request) -> bytes:
    """Give the bytes that a client sends."""
    return netstring.encode(b"%b.%b" % (str(request.spec).encode("ascii"), request.poem))


def decode_request(string: bytes) -> Request:
    """Read the string inside a client's netstring.

    Args:
        string: ``<spec>.<poem>``; the first ``.`` is the one that counts.

    Returns:
        The request.

    Raises:
        BadRequest: there is no ``.`` where there must be one, or the spec does not parse.
    """
    dot = string.find(b".", 0, spec.MAX_SPEC_BYTES + 1)
    if dot < 0:
        within = f" within {spec.MAX_SPEC_BYTES} bytes" if len(string) > spec.MAX_SPEC_BYTES else ""
        raise BadRequest(f"a request is <transform>.<poem>; this one has no '.' after a transform{within}")
    # Byte for character, so that the parser sees, quotes and counts whatever was sent.
    return Request(spec.parse(string[:dot].decode("latin-1")), string[dot + 1 :])


class OneString:
    """Reads the one netstring that either side of a classic connection sends.

    Args:
        max_bytes: the longest string to accept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._decoder = netstring.Decoder(max_bytes)

    def receive(self, data: bytes) -> bytes | None:
        """Take bytes in.

        Args:
            data: what arrived. What follows the one string is never looked at.

        Returns:
            The string once it is complete, None before.

        Raises:
            BadFrame: this is not a netstring.
            TooLarge: the length is over the limit.
        """
        try:
            strings = self._decoder.decode(data, max_strings=1)
        except netstring.NetstringError as error:
            raise (TooLarge if error.violation == "too_long" else BadFrame)(error.message) from error
        return strings[0] if strings else None
