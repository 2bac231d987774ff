"""The classic dialect: one request, one reply, close (``docs/wire.md``, "Classic").

Invariant: it is what the poetry tutorial's programs speak, byte for byte. Nothing here may change what goes over the
wire.
"""

from typing import NamedTuple

from xformd import spec
from xformd.errors import BadRequest
from xformd.wire import netstring


class Request(NamedTuple):
    """A client's request: ``<spec>.<poem>``."""

    spec: spec.Spec
    poem: bytes


def encode_request(request: Request) -> bytes:
    """Encode what a client sends."""
    return netstring.encode(b"%b.%b" % (str(request.spec).encode("ascii"), request.poem))


def decode_request(string: bytes) -> Request:
    """Decode what a client has sent: the inside of its netstring, in which the first ``.`` ends the spec.

    Raises ``BadRequest`` if there is no ``.`` where there must be one, or the spec does not parse.
    """
    dot = string.find(b".", 0, spec.MAX_SPEC_BYTES + 1)
    if dot < 0:
        within = f" within {spec.MAX_SPEC_BYTES} bytes" if len(string) > spec.MAX_SPEC_BYTES else ""
        raise BadRequest(f"a request is <transform>.<poem>; this one has no '.' after a transform{within}")
    # Latin-1, so that the parser sees and quotes each byte as one character.
    return Request(spec.parse(string[:dot].decode("latin-1")), string[dot + 1 :])
