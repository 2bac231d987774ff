"""A poem server that sends segments of two bytes: what its poem costs the client in memory."""

import tracemalloc

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from support.deferreds import result_of
from xformd.poems.client import PoemReader

pytestmark = pytest.mark.slow

POEM_BYTES = 2_000_000


def test_a_poem_in_segments_of_two_bytes_costs_no_more_than_its_length() -> None:
    reader = PoemReader("the server", 10 * POEM_BYTES, lambda received: None)
    tracemalloc.start()
    try:
        for _ in range(POEM_BYTES // 2):
            reader.dataReceived(bytes(bytearray(b"ab")))  # a new object each time, as from a socket
        held_bytes, _ = tracemalloc.get_traced_memory()
        reader.connectionLost(Failure(ConnectionDone()))
        poem = result_of(reader.poem)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{held_bytes / POEM_BYTES:.1f} bytes for each while it arrives, {peak_bytes / POEM_BYTES:.1f} at most")
    assert poem == b"ab" * (POEM_BYTES // 2)
    assert held_bytes < 1.5 * POEM_BYTES
    assert peak_bytes < 3 * POEM_BYTES
