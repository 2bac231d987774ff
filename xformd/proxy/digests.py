"""The hash of a poem. A long one costs as much as all else of a hit, so those of the last poems are remembered.

What is remembered is found by a sketch: a dict's own hash of a long poem would be a third of a hit. A poem is known
only if every byte of it is.
"""

import hashlib

import attrs

LONG_BYTES = 8 * 1024
"""A shorter poem is hashed about as soon as it is found."""

_SAMPLES = 256
_EDGE_BYTES = 64


@attrs.frozen
class _Known:
    """A poem with its hash."""

    poem: bytes
    digest: bytes


class Digests:
    """Gives the SHA-256 of poems.

    Args:
        max_bytes: of the poems that are remembered together with their hashes, the last ones that were new. Of those
            that one cannot tell from each other by their sketch, there is the last one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: dict[bytes, _Known] = {}
        self.size_bytes = 0

    def of(self, poem: bytes) -> bytes:
        """Give the hash of a poem."""
        if not LONG_BYTES <= len(poem) <= self._max_bytes:
            return hashlib.sha256(poem).digest()
        drawn = sketch(poem)
        known = self._known.get(drawn)
        return known.digest if known is not None and known.poem == poem else self._add(drawn, poem)

    def _add(self, drawn: bytes, poem: bytes) -> bytes:
        self._drop(drawn)
        known = self._known[drawn] = _Known(poem, hashlib.sha256(poem).digest())
        self.size_bytes += len(poem)
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._known)))
        return known.digest

    def _drop(self, drawn: bytes) -> None:
        known = self._known.pop(drawn, None)
        if known is not None:
            self.size_bytes -= len(known.poem)


def sketch(poem: bytes) -> bytes:
    """Give a few bytes of a long poem by which most poems differ: both its ends, and some from all over it."""
    return poem[:_EDGE_BYTES] + poem[:: len(poem) // _SAMPLES] + poem[-_EDGE_BYTES:]
