"""What h11, a parser of HTTP that others rely on, makes of a request."""

import attrs
import h11

from support.http_streams import Parsed

MAX_HEAD_BYTES = 10**6


@attrs.frozen
class Reading:
    """A request as h11 reads it."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    rest: bytes | None
    """What follows the request; None if the request is not complete."""


def read_with_h11(stream: bytes) -> Reading:
    """Read the first request of a stream.

    Raises:
        h11.RemoteProtocolError: it is none.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.receive_data(stream)
    request, body, rest = None, b"", None
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            rest = connection.trailing_data[0]
            break
    assert request is not None, "the head is not complete"
    fields = [(bytes(name), bytes(value)) for name, value in request.headers]
    return Reading(bytes(request.method), bytes(request.target), bytes(request.http_version), fields, body, rest)


def assert_h11_agrees(stream: bytes, parsed: Parsed) -> None:
    """Check that h11 accepts a request that we have accepted, and reads the same.

    Two differences are known: before a request, we ignore empty lines (RFC 9112, 2.2); and of an absolute target, we
    tell the authority from path and query. Where the codings of a body are concerned, h11 tells no case. Of a request
    that is not complete, only the head is compared.

    Args:
        stream: which begins with it.
        parsed: what we have read; its ``end`` counts from there.
    """
    start = 0
    while stream.startswith(b"\r\n", start):
        start += 2
    stop = len(stream) if parsed.is_complete else stream.index(b"\r\n\r\n", start) + 4
    reading, head = read_with_h11(stream[start:stop]), parsed.head
    assert (reading.method, reading.version) == (head.method.encode(), b"1.0" if head.is_1_0 else b"1.1")
    target, authority = as_we_write_it(reading.target)
    assert (target, dict(reading.fields).get(b"host", b"") if authority is None else authority) == (
        head.target,
        head.host,
    )
    assert fields_joined(reading.fields) == [(name, _value(name, value)) for name, value in head.headers.items()]
    if parsed.end is not None:
        assert (reading.body, reading.rest) == (parsed.body, stream[parsed.end :])


def as_we_write_it(target: bytes) -> tuple[bytes, bytes | None]:
    """Split an absolute target into path with query, and authority; any other has no authority."""
    scheme, separator, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https") or not separator:
        return target, None
    end = min((rest.index(mark) for mark in (b"/", b"?") if mark in rest), default=len(rest))
    return (rest[end:] if rest.startswith(b"/", end) else b"/" + rest[end:]), rest[:end]


def fields_joined(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Join fields of one name in their order, where the first one stands."""
    joined: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        joined.setdefault(name, []).append(value)
    return [(name, b", ".join(values)) for name, values in joined.items()]


def _value(name: bytes, value: bytes) -> bytes:
    return value.lower() if name == b"transfer-encoding" else value
