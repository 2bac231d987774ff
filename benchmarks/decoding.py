"""What decoding costs: a 64 KiB read of the shortest netstrings, against Twisted's ``NetstringReceiver``.

Both decode the same bytes in the same process, in turns; the figure is a ratio of medians, so that a busy machine
does not decide. Exits with 1 when the ratio is above its target.
"""

import statistics
import sys
import time
from collections.abc import Callable

from twisted.internet.testing import StringTransport
from twisted.protocols.basic import NetstringReceiver

from xformd.wire.netstring import Decoder

READ = b"0:," * (64 * 1024 // 3)
ROUNDS = 21
TARGET = 1 / 3


class Receiver(NetstringReceiver):
    """Counts what it receives."""

    received = 0

    def stringReceived(self, string: bytes) -> None:  # noqa: ARG002, N802
        """Count one more."""
        self.received += 1


def decode_ours() -> int:
    return len(Decoder(99_999).decode(READ))


def decode_twisteds() -> int:
    receiver = Receiver()
    receiver.makeConnection(StringTransport())
    receiver.dataReceived(READ)
    return receiver.received


def seconds(decode: Callable[[], int]) -> float:
    start = time.process_time()
    assert decode() == len(READ) // 3
    return time.process_time() - start


def main() -> int:
    rounds = [(seconds(decode_ours), seconds(decode_twisteds)) for _ in range(ROUNDS)]
    ours, twisteds = zip(*rounds, strict=True)
    ratio = statistics.median(ours) / statistics.median(twisteds)
    print(f"a 64 KiB read of '0:,' ({len(READ) // 3} strings), median (min to max) of {ROUNDS} rounds, CPU time")
    for name, times in (("xformd.wire.netstring", ours), ("NetstringReceiver", twisteds)):
        median, low, high = (1000 * value for value in (statistics.median(times), min(times), max(times)))
        print(f"  {name:<22} {median:6.2f} ms ({low:.2f} to {high:.2f})")
    print(f"  ratio                  {ratio:6.2f}    (to reach: at most {TARGET:.2f})")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
