"""Reads a request's body, as far as the limit goes and the client stays."""

from collections.abc import Mapping

from starlette.types import Receive

from xformd.errors import Cancelled, TooLarge
from xformd.http import requests


async def read(headers: Mapping[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """Read a body.

    Args:
        headers: of the request.
        receive: gives its events (ASGI).
        max_bytes: how long it may be.

    Returns:
        The body.

    Raises:
        TooLarge: it is longer; where its length is known beforehand, nothing of it is read.
        Cancelled: the client is gone.
    """
    announced = requests.content_length(headers)
    if announced is not None and announced > max_bytes:
        raise TooLarge(f"the poem has {announced} bytes; the limit is {max_bytes} bytes")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client has gone")
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise TooLarge(f"the poem has more than {max_bytes} bytes, which is the limit")
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
