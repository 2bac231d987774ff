"""The ``Date`` of an answer, made once a second."""

import time
from email.utils import formatdate

_made: tuple[int, list[tuple[bytes, bytes]]] = (0, [])


def header() -> list[tuple[bytes, bytes]]:
    """Give the header, as RFC 9110 wants it from a server that has a clock."""
    global _made
    now = int(time.time())
    if now != _made[0]:
        _made = now, [(b"date", formatdate(now, usegmt=True).encode())]
    return _made[1]
