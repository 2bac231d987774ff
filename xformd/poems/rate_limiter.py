"""How fast a slow server is: which bytes are due when. Pure: the time is told."""

import attrs

CHUNK_BYTES = 65_536
"""A poem is read in pieces of this size; Twisted holds two of them at most for each reader."""

TICK_S = 0.05
"""A slow poem comes in pieces of so many seconds, so that it is seen to come."""


@attrs.frozen
class Step:
    """The next piece of a poem.

    Args:
        size_bytes: how long it is.
        wait_s: how long to wait before it is sent.
    """

    size_bytes: int
    wait_s: float


class RateLimiter:
    """A number of bytes a second, kept over a whole poem: no rounding adds up.

    Args:
        bytes_per_s: how many.
        started_s: when the first byte began to be due.
    """

    def __init__(self, bytes_per_s: float, started_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._started_s = started_s

    def next(self, sent_bytes: int, total_bytes: int, now_s: float) -> Step:
        """Say what to send next.

        Args:
            sent_bytes: how much has been sent.
            total_bytes: of the poem.
            now_s: what time it is.
        """
        piece = max(1, min(CHUNK_BYTES, int(self._bytes_per_s * TICK_S)))
        size_bytes = min(piece, total_bytes - sent_bytes)
        takes_s = (sent_bytes + size_bytes) / self._bytes_per_s
        wait_s = self._started_s + takes_s - now_s
        if wait_s < -TICK_S:
            # The reader stood still. What it missed does not come all at once afterwards.
            self._started_s = now_s - takes_s
        return Step(size_bytes, max(0.0, wait_s))
