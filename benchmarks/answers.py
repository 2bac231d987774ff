"""Checks what a server answers: every byte of every reply, at the price of a comparison.

``take`` is handed what arrived and says how many replies it completes; what is wrong raises ``WrongAnswer``.
"""

import re
from typing import Protocol

from benchmarks.traffic import Traffic

_HTTP_OK = b"HTTP/1.1 200 OK\r\n"
_HTTP_NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n"
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class WrongAnswer(Exception):
    """A server answered something else than it must; its figures would mean nothing."""


class Answers(Protocol):
    """The replies of one connection."""

    def take(self, data: bytes) -> int:
        """Check what arrived, and count the replies that it completes."""
        ...


class InOrder:
    """Replies come in the order of the requests, so what arrives must be the next bytes of the cycle."""

    def __init__(self, traffic: Traffic) -> None:
        self._expected = traffic.reply_stream
        self._cycle_bytes = len(self._expected) // 2
        self._reply_bytes = len(traffic.replies[0])
        self._position = 0

    def take(self, data: bytes) -> int:
        """Check what arrived, and count the replies that it completes."""
        position = self._position
        if not self._expected.startswith(data, position):
            raise WrongAnswer(f"expected {self._expected[position : position + 60]!r}, not {data[:60]!r}")
        end = position + len(data)
        replies = end // self._reply_bytes - position // self._reply_bytes
        self._position = end % self._cycle_bytes
        return replies

    @property
    def incomplete(self) -> bytes:
        """What there is of the reply that has begun to arrive."""
        return self._expected[self._position - self._position % self._reply_bytes : self._position]

    @property
    def next_index(self) -> int:
        """Which reply of the cycle is not complete yet."""
        return self._position // self._reply_bytes


class AnyOrder:
    """Replies tell which request they answer. While they do come in order, they are checked as such, in bulk.

    Args:
        traffic: whose replies they are.
        outstanding: at most so many requests are in flight, sent in the cycle's order.
    """

    def __init__(self, traffic: Traffic, outstanding: int) -> None:
        self._in_order: InOrder | None = InOrder(traffic)
        self._outstanding = outstanding
        self._index_of = {reply: index for index, reply in enumerate(traffic.replies)}
        self._size = len(traffic.replies[0])
        self._received = b""
        self._done: set[int] = set()  # answered before one that was sent earlier
        self._oldest = 0

    def take(self, data: bytes) -> int:
        """Check what arrived, and count the replies that it completes."""
        if self._in_order is not None:
            try:
                return self._in_order.take(data)
            except WrongAnswer:
                self._received, self._oldest = self._in_order.incomplete, self._in_order.next_index
                self._in_order = None
        self._received += data
        complete = len(self._received) // self._size
        for number in range(complete):
            self._tick_off(self._received[number * self._size : (number + 1) * self._size])
        self._received = self._received[complete * self._size :]
        return complete

    def _tick_off(self, reply: bytes) -> None:
        index = self._index_of.get(reply)
        count = len(self._index_of)
        # A generator sends one more for each answer, in the cycle's order: so far have requests gone out.
        sent = min(len(self._done) + self._outstanding, count)
        if index is None or index in self._done or (index - self._oldest) % count >= sent:
            raise WrongAnswer(f"expected the answer to one of the requests in flight, not {reply[:60]!r}")
        self._done.add(index)
        while self._oldest in self._done:
            self._done.remove(self._oldest)
            self._oldest = (self._oldest + 1) % count


class HttpResponses:
    """One HTTP response at a time. Their heads may differ: one may say how long the transform took."""

    def __init__(self, traffic: Traffic) -> None:
        self._bodies = traffic.replies
        self._index = 0
        self._received = b""

    def take(self, data: bytes) -> int:
        """Check what arrived, and count the replies that it completes."""
        self._received += data
        size = self._response_size()
        if size is None or len(self._received) < size:
            return 0
        response, self._received = self._received, b""
        body = self._bodies[self._index]
        if len(response) != size or not response.startswith(_HTTP_OK) or not response.endswith(body):
            raise WrongAnswer(f"expected a response with {body[:60]!r}, not {response[:200]!r}")
        self._index = (self._index + 1) % len(self._bodies)
        return 1

    def _response_size(self) -> int | None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _CONTENT_LENGTH.search(self._received, 0, end + 2)
        if length is None or int(length[1]) != len(self._bodies[self._index]):
            raise WrongAnswer(
                f"expected a response of {len(self._bodies[self._index])} bytes, not {self._received[:200]!r}"
            )
        return end + len(b"\r\n\r\n") + int(length[1])


class NotModified:
    """One response without a body at a time, which says that the client's result is still right."""

    def __init__(self, traffic: Traffic) -> None:
        self._tags = traffic.replies
        self._index = 0
        self._received = b""

    def take(self, data: bytes) -> int:
        """Check what arrived, and count the replies that it completes."""
        self._received += data
        if b"\r\n\r\n" not in self._received:
            return 0
        response, self._received = self._received, b""
        tag = self._tags[self._index]
        is_whole = response.startswith(_HTTP_NOT_MODIFIED) and response.endswith(b"\r\n\r\n")
        if not is_whole or b"\r\netag: %b\r\n" % tag not in response:
            raise WrongAnswer(f"expected a 304 with the tag {tag!r}, not {response[:200]!r}")
        self._index = (self._index + 1) % len(self._tags)
        return 1


def check(traffic: Traffic, outstanding: int) -> Answers:
    """Return what checks the answers of one connection."""
    if traffic.is_http:
        return NotModified(traffic) if traffic.is_cached else HttpResponses(traffic)
    return AnyOrder(traffic, outstanding) if traffic.any_order else InOrder(traffic)
