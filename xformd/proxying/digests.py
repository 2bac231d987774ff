"""The hash of a poem. A long one costs more than all else of a hit, so those of the last poems are remembered."""

import hashlib

LONG_BYTES = 8 * 1024
"""A shorter poem is hashed about as soon as it is found."""


class Digests:
    """Gives the SHA-256 of poems.

    Args:
        max_bytes: of the poems that are remembered together with their hashes, the last ones that were new.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._known: dict[bytes, bytes] = {}
        self.size_bytes = 0

    def of(self, poem: bytes) -> bytes:
        """Give the hash of a poem."""
        if not LONG_BYTES <= len(poem) <= self._max_bytes:
            return hashlib.sha256(poem).digest()
        known = self._known.get(poem)
        return self._add(poem) if known is None else known

    def _add(self, poem: bytes) -> bytes:
        digest = self._known[poem] = hashlib.sha256(poem).digest()
        self.size_bytes += len(poem)
        while self.size_bytes > self._max_bytes:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self.size_bytes -= len(oldest)
        return digest
