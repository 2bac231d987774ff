"""Netstrings: ``<length>:<bytes>,`` (https://cr.yp.to/proto/netstrings.txt), decoded strictly and incrementally.

Invariant: the result does not depend on how the bytes were split, decoding ends at the first byte that cannot belong to
an acceptable netstring, and a length over the limit costs no memory.
"""

import io
import re
from typing import Literal, NoReturn

from xformd.errors import BadFrame, TooLarge

Violation = Literal["bad_length", "bad_terminator", "too_long"]

_COLON, _COMMA, _ZERO, _NINE = b":,09"
_TLS = {
    21: "it speaks TLS: use --tls, or tls: in its address",
    22: "the peer speaks TLS, and this port plain netstrings: leave out --tls, or set tls_certificate",
}
"""What the first byte of a stream means that is an alert of TLS, or a handshake."""


class NetstringError(BadFrame):
    """The stream broke the netstring format, at an ``offset`` from its start.

    ``strings`` are those that the same call had decoded before.
    """

    def __init__(self, violation: Violation, offset: int, strings: list[bytes], message: str) -> None:
        super().__init__(f"{message} (byte {offset} of the stream)")
        self.violation: Violation = violation
        self.offset = offset
        self.strings = strings

    @property
    def wire_error(self) -> BadFrame | TooLarge:
        """The error of the table to answer the peer with."""
        return (TooLarge if self.violation == "too_long" else BadFrame)(self.message)


def encode(string: bytes) -> bytes:
    """Frame a byte string of any length as a netstring."""
    return b"%d:%b," % (len(string), string)


class Decoder:
    """Decodes a stream piece by piece. Once it has raised an error, it raises the same one again."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._match_header = re.compile(rb"(0|[1-9][0-9]{0,%d}):" % (len(str(max_length)) - 1)).match
        self._data = b""  # what arrived last, decoded up to _position
        self._position = 0
        self._dropped = 0  # stream offset of the first byte of _data
        self._length: int | None = None  # of the string being read; None before its first digit
        self._body: io.BytesIO | None = None  # of the string being read; None while in its length
        self._last_length = 0  # of the last string
        self._error: NetstringError | None = None

    @property
    def has_unread(self) -> bool:
        """Whether there are bytes that no call has looked at yet, because ``max_strings`` was reached."""
        return self._position < len(self._data)

    @property
    def unread(self) -> tuple[bytes, int]:
        """The last read, and the position in it of the first byte that no call has looked at yet."""
        return self._data, self._position

    def skip_to(self, position: int) -> None:
        """Go on at a position in ``unread`` where a netstring begins: the caller has decoded up to there."""
        self._position = position

    def feed(self, data: bytes, position: int = 0) -> None:
        """Keep bytes for the next call of ``decode``.

        The caller has decoded them up to a ``position`` where a netstring begins; it must be 0 if any are unread.
        """
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._dropped += self._position
        if position == len(data):  # an idle connection must not hold its last read, which may be long
            self._dropped += position
            data, position = b"", 0
        self._data, self._position = data, position

    @property
    def is_inside(self) -> bool:
        """Whether a string has begun and is not complete."""
        return self._length is not None

    @property
    def string_bytes(self) -> int:
        """The length of the string that is being decoded; until that is known, of the last one."""
        return self._length if self._body is not None and self._length is not None else self._last_length

    def decode(self, data: bytes = b"", max_strings: int | None = None) -> list[bytes]:
        """Decode bytes, split anywhere, and return the strings that are complete.

        What follows ``max_strings`` is kept for the next call. ``NetstringError`` comes at the first byte that breaks
        the format; its ``strings`` were fine.
        """
        if self._error is not None:
            raise self._error
        if data:
            self.feed(data)
        strings: list[bytes] = []
        data, position, match_header = self._data, self._position, self._match_header
        size, max_length = len(data), self._max_length
        while position < size and len(strings) != max_strings:
            # The fast path: a whole string lies in this read. Anything else goes byte by byte, which finds the error.
            if self._length is None and (match := match_header(data, position)):
                start = match.end()
                end = start + int(match[1])
                if end < size and data[end] == _COMMA and end - start <= max_length:
                    strings.append(data[start:end])
                    position = end + 1
                    continue
            position = self._advance(data, position, strings)
        if strings:
            self._last_length = len(strings[-1])
        if position == size:
            self._dropped += size
            self._data, position = b"", 0
        self._position = position
        return strings

    def _advance(self, data: bytes, position: int, strings: list[bytes]) -> int:
        """Decode one byte of a length, or what there is of a body, or a terminator; return the next position."""
        if self._body is None:
            self._read_length(data[position], position, strings)
            return position + 1
        assert self._length is not None
        missing = self._length - self._body.tell()
        if missing:
            # Into one growing buffer: in a list of pieces, reads of one byte would cost forty bytes each.
            return position + self._body.write(memoryview(data)[position : position + missing])
        if data[position] != _COMMA:
            self._fail("bad_terminator", position, strings, "a netstring must end with a comma")
        strings.append(self._body.getvalue())
        self._length = self._body = None
        return position + 1

    def _read_length(self, byte: int, position: int, strings: list[bytes]) -> None:
        length = self._length
        if byte == _COLON and length is not None:
            self._body = io.BytesIO()
        elif not _ZERO <= byte <= _NINE:
            is_first = self._dropped + position == 0
            message = _TLS.get(byte) if is_first else None
            self._fail("bad_length", position, strings, message or "a netstring starts with its length and a colon")
        elif length == 0:
            self._fail("bad_length", position, strings, "a netstring's length has no leading zeros")
        else:
            self._length = (length or 0) * 10 + byte - _ZERO
            if self._length > self._max_length:
                message = f"a netstring of {self._length} bytes or more; the limit is {self._max_length} bytes"
                self._fail("too_long", position, strings, message)

    def _fail(self, violation: Violation, position: int, strings: list[bytes], message: str) -> NoReturn:
        self._error = NetstringError(violation, self._dropped + position, strings, message)
        raise self._error
