"""What a transform does with a poem that makes it hang, here and in the peers."""

import time

HANG = b"a poem that makes a transform hang"
_FOR_S = 60.0  # much longer than anybody measures


def hang_at(poem: bytes) -> None:
    """Use a CPU up for a minute if this is that poem."""
    until = time.monotonic() + _FOR_S
    while poem == HANG and time.monotonic() < until:
        pass
