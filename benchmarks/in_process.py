"""The works without a server: what the transform costs by itself, and what decoding does."""

import time

import attrs

from benchmarks import decoding, traffic
from benchmarks.kernel import pinned
from benchmarks.plan import Plan
from benchmarks.samples import MICROSECONDS, STEADY_COLUMNS, Column, Figures, Result, Row

TRANSFORM_ALONE = "transform alone"
DECODER, RECEIVER = "xformd.wire.netstring", "NetstringReceiver"
_ROUNDS_IN_ONE = 3  # a round takes milliseconds


def transform_alone(size: int, plan: Plan) -> Figures:
    """Measure the transform on the servers' CPU. It has no other figure than its CPU time."""
    poems = traffic.poems(size, 1)
    count = 0
    with pinned(plan.server_cpu):
        cpu = time.process_time()
        until = time.perf_counter() + plan.seconds / 2
        while time.perf_counter() < until:
            traffic.cummingsify(poems[count % len(poems)])
            count += 1
        cpu_s = time.process_time() - cpu
    nothing = dict.fromkeys([column.key for column in STEADY_COLUMNS], float("nan"))
    return nothing | {"cpu_us": MICROSECONDS * cpu_s / count}


@attrs.frozen
class Decoding:
    """A read full of the shortest netstrings, decoded by what we have and by what Twisted has."""

    key: str
    title: str
    columns: tuple[Column, ...] = (Column("cpu_ms", "CPU ms", ".2f", has_range=True),)

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = {name: Row(name) for name in (DECODER, RECEIVER)}
        with pinned(plan.server_cpu):
            for _ in range(_ROUNDS_IN_ONE * plan.rounds):
                rows[DECODER].rounds.append({"cpu_ms": 1000 * decoding.seconds(decoding.decode_ours)})
                rows[RECEIVER].rounds.append({"cpu_ms": 1000 * decoding.seconds(decoding.decode_twisteds)})
        return Result(self.key, self.title, self.columns, rows)
