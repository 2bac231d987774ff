"""What three servers behind HAProxy lose while they die and are upgraded: ``python -m benchmarks.haproxy``.

HAProxy has the documented configuration. The load and the servers share this machine, so that only a ratio, a count or
a difference within the run says anything. Prints a row for each figure.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import cluster as clusters
from benchmarks.cluster import Cluster, HttpLoad, Outcome, Request

SHORTEST, LONGEST = 1_000, 1_000_000
BUFFER_BYTES = 131_072
QUICK, LONG_S = 180, 3.0


def requests(name: str, count: int) -> Iterator[Request]:
    """Yield requests with poems of 1 KB to 1 MB, of each order of magnitude as many; each begins with its number."""
    chance = random.Random(17)
    for number in range(count):
        size = int(SHORTEST * (LONGEST / SHORTEST) ** chance.random())
        yield f"/transform/{name}", (b"%d " % number).ljust(16) + b"o" * (size - 16)


def row(what: str, outcome: Outcome, *more: str) -> None:
    """Print what became of the requests of one load."""
    lost = ", ".join(f"{count} {code}" for code, count in Counter(outcome.lost).items())
    worst_s = max(outcome.waits_s, default=0)
    facts = [
        f"{outcome.count:,} requests",
        f"{len(outcome.lost)} lost{lost and f' ({lost})'}",
        f"worst {worst_s:.2f} s",
    ]
    print(f"{what}: {'; '.join([*facts, *more])}", flush=True)


def may_repeat(poem: bytes, status: int) -> bool:
    """Repeat what HAProxy cannot: what does not fit into its buffer."""
    return len(poem) > BUFFER_BYTES and status in (0, 502)


def killed(cluster: Cluster, count: int) -> None:
    """Kill a server with SIGKILL after a third of the requests."""
    with HttpLoad(cluster, requests("work", count), repeats=may_repeat) as quiet:
        pass
    row("nothing happens", quiet.outcome)
    with HttpLoad(cluster, requests("work", count), repeats=may_repeat) as load:
        load.wait_for(count // 3)
        cluster.nodes["two"].kill()
    more_s = max(load.outcome.waits_s) - max(quiet.outcome.waits_s)
    repeats = f"{load.outcome.repeats} above {BUFFER_BYTES:,} bytes repeated by the client"
    row("SIGKILL of one, deterministic", load.outcome, f"{more_s:+.2f} s", repeats)
    cluster.bring_back()
    with HttpLoad(cluster, requests("once", count)) as load:
        load.wait_for(count // 3)
        cluster.nodes["three"].kill()
    begun = Counter(cluster.begun())
    twice = sum(times > 1 for times in begun.values())
    row("SIGKILL of one, not deterministic", load.outcome, f"{len(begun):,} have begun, {twice} of them twice")
    cluster.bring_back()


def upgraded(cluster: Cluster, count: int) -> None:
    """Restart each server with SIGTERM in turn, under load on both ports."""
    with clusters.session_load(cluster) as sessions, HttpLoad(cluster, requests("work", 100 * count)) as load:
        clusters.rolling_restart(cluster)
        load.wait_for(count)
        load.is_ending = True
    row("SIGTERM of each in turn, HTTP", load.outcome)
    row("SIGTERM of each in turn, sessions", sessions)


def beside_long_ones(cluster: Cluster) -> None:
    """Send quick requests beside a long one on a server of two workers."""
    quick = [("/transform/work", b"owl %d" % number) for number in range(QUICK)]
    long = [(f"/transform/slow:seconds={LONG_S:g}", b"owl")]
    with HttpLoad(cluster, long, clients=1) as slow:
        time.sleep(0.3)  # which it certainly runs by then
        with HttpLoad(cluster, quick, clients=2) as load:
            pass
    row(f"quick ones beside one of {LONG_S:g} s", load.outcome, f"the long one took {slow.outcome.waits_s[0]:.2f} s")


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.haproxy", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="of each row [10000]")
    count = parser.parse_args().requests
    limits = ("--workers=2", "--max-queue=100", "--drain-delay=2s")
    with tempfile.TemporaryDirectory(prefix="xformd-") as folder, clusters.running(Path(folder), *limits) as cluster:
        with HttpLoad(cluster, requests("work", 50)):
            pass  # HAProxy learns that this may run twice
        killed(cluster, count)
        upgraded(cluster, count)
        beside_long_ones(cluster)


if __name__ == "__main__":
    main()
