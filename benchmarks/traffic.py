"""What a generator sends and what must come back, made ahead of time, so that measuring costs little.

A cycle of numbered poems, all of one size, so that requests and replies are of one size too: sending some requests is
sending one slice, and checking some replies is comparing one slice.
"""

from collections.abc import Callable
from functools import cached_property
from urllib.parse import urlencode

import attrs

TRANSFORM = "cummingsify"
_VERSE = (
    "THE FOG COMES ON LITTLE CAT FEET. IT SITS LOOKING OVER HARBOR AND CITY ON SILENT HAUNCHES AND THEN MOVES ON.\n"
)
_FIRST_NUMBER = 100  # what is numbered has three digits from the first to the last
_MOST_POEMS = 256
_MOST_BYTES = 2 * 1024 * 1024

SESSION_OPENING = b"8:xformd/2,"


@attrs.frozen
class Traffic:
    """One cycle of requests and the replies to them.

    Attributes:
        opening: what a connection sends first.
        has_hello: whether the server answers the opening with a netstring of its own.
        requests: all of one size.
        replies: what answers each of them; for HTTP its body alone, or its tag where there is no body.
        is_http: whether replies stand in HTTP responses.
        is_cached: whether these are 304, since the client has the results.
        any_order: whether replies may come in any order; they then tell which request they answer.
    """

    opening: bytes
    has_hello: bool
    requests: tuple[bytes, ...]
    replies: tuple[bytes, ...]
    is_http: bool = False
    is_cached: bool = False
    any_order: bool = False

    @cached_property
    def request_stream(self) -> bytes:
        """Two cycles of requests, so that no slice of up to one cycle has to be put together from two parts."""
        return 2 * b"".join(self.requests)

    @cached_property
    def reply_stream(self) -> bytes:
        """Two cycles of replies. All connections share it: the processor's caches hold the server's data too."""
        return 2 * b"".join(self.replies)


Dialect = Callable[[int, int], Traffic]
"""Makes traffic: of poems of so many bytes, for so many outstanding requests on a connection."""


def poems(size: int, outstanding: int) -> list[bytes]:
    """Return numbered upper-case poems.

    Args:
        size: of each, in bytes.
        outstanding: how many of them a connection has in flight at most. There are at least twice as many.
    """
    count = max(2 * outstanding, min(_MOST_POEMS, _MOST_BYTES // size))
    verses = _VERSE * (size // len(_VERSE) + 1)
    return [f"{number} {verses}"[:size].encode() for number in range(_FIRST_NUMBER, _FIRST_NUMBER + count)]


def cummingsify(poem: bytes) -> bytes:
    """Do what every server here does."""
    return poem.decode().lower().encode()


def netstring(string: bytes) -> bytes:
    return b"%d:%b," % (len(string), string)


def session(size: int, outstanding: int, transform: str = TRANSFORM) -> Traffic:
    """Return the session dialect's traffic: each request has an id."""
    numbered = list(enumerate(poems(size, outstanding), _FIRST_NUMBER))
    return Traffic(
        opening=SESSION_OPENING,
        has_hello=True,
        requests=tuple(netstring(b"%d %b.%b" % (number, transform.encode(), poem)) for number, poem in numbered),
        replies=tuple(netstring(b"%d ok.%b" % (number, cummingsify(poem))) for number, poem in numbered),
        any_order=True,
    )


def classic(size: int, outstanding: int) -> Traffic:
    """Return the classic dialect's traffic. Kept open, it is what a tutorial's server speaks that does not close."""
    written = poems(size, outstanding)
    return Traffic(
        opening=b"",
        has_hello=False,
        requests=tuple(netstring(b"%b.%b" % (TRANSFORM.encode(), poem)) for poem in written),
        replies=tuple(netstring(cummingsify(poem)) for poem in written),
    )


def echo(size: int, outstanding: int) -> Traffic:
    """Return the traffic of a server that answers with what it got: that of a session, of the same size."""
    requests = session(size, outstanding).requests
    return Traffic(opening=b"", has_hello=False, requests=requests, replies=requests)


def http(size: int, outstanding: int, folder: str = "/") -> Traffic:
    """Return HTTP's traffic: a poem is the body of a POST.

    Args:
        size: of each poem, in bytes.
        outstanding: how many of them a connection has in flight at most.
        folder: what stands before the transform's name.
    """
    head = (
        "POST {}{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n"
    )
    written = poems(size, outstanding)
    return Traffic(
        opening=b"",
        has_hello=False,
        requests=tuple(head.format(folder, TRANSFORM, size).encode() + poem for poem in written),
        replies=tuple(cummingsify(poem) for poem in written),
        is_http=True,
    )


def xformd_http(size: int, outstanding: int) -> Traffic:
    """Return the same for xformd, which has a transform's name below ``/transform/``."""
    return http(size, outstanding, "/transform/")


def urls(posts: Traffic) -> tuple[bytes, ...]:
    """Return where the poems of some POSTs can be had by GET: in the query."""
    _, path, _ = posts.requests[0].split(b" ", 2)
    poems = [request.partition(b"\r\n\r\n")[2] for request in posts.requests]
    return tuple(b"%b?%b" % (path, urlencode({"poem": poem}).encode()) for poem in poems)


def revalidating(posts: Traffic, tags: tuple[bytes, ...]) -> Traffic:
    """Return GETs of a client that has the results already.

    Args:
        posts: the poems, as they would be sent in bodies.
        tags: the ``ETag`` of each one's result.
    """
    head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: %b\r\n\r\n"
    requests = tuple(head % (url, tag) for url, tag in zip(urls(posts), tags, strict=True))
    return attrs.evolve(posts, requests=requests, replies=tags, is_cached=True)
