"""Streams of HTTP requests: what our parser makes of them, in whatever pieces they arrive."""

from collections.abc import Iterable, Iterator

import attrs
from hypothesis import strategies as st

from xformd.wire.http1 import END, HttpError, RequestHead, RequestParser

MAX_BODY_BYTES = 1_000
"""Of a body in chunks, unless the test says otherwise."""

LINE = b"POST /x HTTP/1.1\r\n"
HEAD = LINE + b"Host: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
OWL = HEAD + b"Content-Length: 3\r\n\r\nowl"


@attrs.define
class Parsed:
    """A request that has arrived, wholly or in part."""

    head: RequestHead
    body: bytes = b""
    end: int | None = None
    """How many bytes of the stream had been fed when it was complete; None if it is not."""

    @property
    def is_complete(self) -> bool:
        return self.end is not None


@attrs.define
class Outcome:
    """What became of a stream: its requests, and the error that ended it."""

    requests: list[Parsed]
    error: HttpError | None = None
    is_inside: bool = False

    @property
    def status(self) -> int | None:
        return None if self.error is None else self.error.status

    @property
    def meaning(self) -> tuple[object, ...]:
        """What must not depend on how the stream was split."""
        error = self.error and (self.error.status, self.error.message, self.error.headers)
        return ([(each.head, each.body, each.is_complete) for each in self.requests], error, self.is_inside)


def parse(pieces: Iterable[bytes], max_body_bytes: int = MAX_BODY_BYTES, *, takes_whole: bool = False) -> Outcome:
    """Parse a stream.

    Args:
        pieces: in which it arrives.
        max_body_bytes: see ``RequestParser``.
        takes_whole: whether a body that is here is taken at once, where that can be.
    """
    parser, outcome, fed = RequestParser(max_body_bytes), Outcome([]), 0
    try:
        for piece in pieces:
            parser.feed(piece)
            fed += len(piece)
            _parse_what_is_here(parser, outcome.requests, fed, takes_whole=takes_whole)
    except HttpError as error:
        outcome.error = error
    else:
        outcome.is_inside = parser.is_inside
    return outcome


def whole(data: bytes, max_body_bytes: int = MAX_BODY_BYTES) -> Outcome:
    """Parse a stream that arrives in one piece."""
    return parse([data], max_body_bytes)


def _parse_what_is_here(parser: RequestParser, requests: list[Parsed], fed: int, *, takes_whole: bool) -> None:
    while (event := parser.next_event()) is not None:
        if isinstance(event, RequestHead):
            requests.append(Parsed(event))
            if takes_whole and (whole := parser.take_whole_body()) is not None:
                requests[-1].body, requests[-1].end = whole, fed
        elif event is END:
            requests[-1].end = fed
        else:
            assert event, "no piece is empty"
            requests[-1].body += event


def singly(data: bytes) -> list[bytes]:
    """Return a stream byte by byte."""
    return [data[place : place + 1] for place in range(len(data))]


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yield a stream whole, byte by byte, and in two pieces at every place."""
    yield [data]
    yield singly(data)
    for place in range(1, len(data)):
        yield [data[:place], data[place:]]


@st.composite
def in_pieces(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    """Draw a stream, split anywhere."""
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


# A grammar of requests that are valid or nearly so.

_METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS", b"QUERY", b"PUT"])
_TARGETS = st.sampled_from(
    [b"/", b"/transform/upper?poem=a%20b", b"*", b"http://b:80/x?y", b"HTTPS://b", b"/a?b?c&d=[]"]
)
_VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0"])
_VALUES = st.one_of(
    st.sampled_from([b"", b" a", b"a ", b"\ta\t", b"a, b", b"a b", b'"x"', b"\xff\xfe", b"a:b", b","]),
    st.text("abc ,\t;=", max_size=8).map(str.encode),
)
_FIELDS = st.one_of(
    st.tuples(st.sampled_from([b"X", b"x", b"Accept", b"X-Y", b"!#$%&'*+.^_`|~0"]), _VALUES),
    st.sampled_from(
        [
            (b"Connection", b"close"),
            (b"connection", b"Keep-Alive"),
            (b"Connection", b"Upgrade, close"),
            (b"Upgrade", b"h2c"),
            (b"Expect", b"100-continue"),
            (b"TE", b"trailers"),
        ]
    ),
)
_EXTENSIONS = st.sampled_from([b""] * 4 + [b";a", b";a=b", b'; a="b c"', b";", b";\xff"])
_ZEROS = st.sampled_from([b""] * 4 + [b"0", b"000"])


def _field(name: bytes, value: bytes) -> bytes:
    return b"%b:%b\r\n" % (name, value)


@st.composite
def _chunked(draw: st.DrawFn) -> bytes:
    body = b""
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        size = draw(_ZEROS) + (b"%x" if draw(st.booleans()) else b"%X") % len(chunk)
        body += b"%b%b\r\n%b\r\n" % (size, draw(_EXTENSIONS), chunk)
    trailers = b"".join(_field(*field) for field in draw(st.lists(_FIELDS, max_size=2)))
    return body + b"%b0%b\r\n%b\r\n" % (draw(_ZEROS), draw(_EXTENSIONS), trailers)


@st.composite
def valid_requests(draw: st.DrawFn) -> bytes:
    """Draw a request that is valid as far as its framing goes."""
    fields = [_field(*field) for field in draw(st.lists(_FIELDS, max_size=4))]
    fields.insert(
        draw(st.integers(0, len(fields))), _field(b"Host", draw(st.sampled_from([b" a", b"b:80", b" [::1] "])))
    )
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "length":
        body = draw(st.binary(max_size=30))
        fields.append(_field(draw(st.sampled_from([b"Content-Length", b"CONTENT-LENGTH"])), b" %d" % len(body)))
    elif framing == "chunked":
        body = draw(_chunked())
        fields.append(_field(b"Transfer-Encoding", draw(st.sampled_from([b" chunked", b"Chunked\t"]))))
    line = b"%b %b %b\r\n" % (draw(_METHODS), draw(_TARGETS), draw(_VERSIONS))
    return line + b"".join(fields) + b"\r\n" + body


_TEXTS = st.one_of(
    st.sampled_from(
        [
            *(
                b"\r\n",
                b"\n",
                b"\r",
                b" ",
                b"\t",
                b"\0",
                b"\x0b",
                b"\x7f",
                b"\x80",
                b":",
                b",",
                b";",
                b"0",
                b"\r\n ",
                b"/",
            ),
            *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:\r\n"),
            *(b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding\r\n", b"Transfer-Encoding : chunked\r\n"),
            *(b"Content-Length: 3\r\n", b"Content-Length: 3, 3\r\n", b"content-length: +3\r\n", b"Content-Length:\r\n"),
            *(b"Host: b\r\n", b"X: y\r\n folded\r\n", b"0\r\n\r\n", b"3\r\nowl\r\n", b"Connection: close\r\n"),
        ]
    ),
    st.binary(min_size=1, max_size=3),
)


def _change(draw: st.DrawFn, data: bytes) -> bytes:
    """Change a stream in one place."""
    kind = draw(st.sampled_from(["insert", "remove", "replace", "swap lines", "double a line", "cut"]))
    start = draw(st.integers(0, len(data)))
    end = min(len(data), start + draw(st.integers(1, 3)))
    if kind in ("swap lines", "double a line"):
        lines = data.splitlines(keepends=True)
        here, there = (draw(st.integers(0, len(lines) - 1)) if lines else 0 for _ in range(2))
        if not lines:
            return data
        if kind == "swap lines":
            lines[here], lines[there] = lines[there], lines[here]
        else:
            lines.insert(there, lines[here])
        return b"".join(lines)
    inserted = draw(_TEXTS) if kind in ("insert", "replace") else b""
    return data[:start] + (inserted + data[start if kind == "insert" else end :] if kind != "cut" else b"")


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Draw a few requests, one after the other, of which some are damaged."""
    stream = b""
    for request in draw(st.lists(valid_requests(), min_size=1, max_size=3)):
        stream += draw(st.sampled_from([b""] * 5 + [b"\r\n"])) + request
    for _ in range(draw(st.integers(0, 3))):
        stream = _change(draw, stream)
    return stream
