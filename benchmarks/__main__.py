"""``python -m benchmarks``: measure, print a table for each work and the figures to reach, write JSON and pictures."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import kernel, machine, report, servers, targets
from benchmarks.commands import Commands
from benchmarks.in_process import Decoding
from benchmarks.page import PageWork
from benchmarks.plan import Plan, Work
from benchmarks.pools import HOSTS, Isolation, Pools
from benchmarks.proxies import Hits
from benchmarks.real_work import REAL_WORKS
from benchmarks.samples import Result
from benchmarks.siege import Siege
from benchmarks.worker_costs import WorkerCosts
from benchmarks.works import HTTP_PEERS, Beside, Cached, Classic, Crowded, Idle, Steady

HERE = Path(__file__).resolve().parent
MIB = 1024 * 1024
MANY, SOME = 5_000, 1_000
_OTHER_FILES = 200

NETSTRINGS = (
    Steady("a", "20-byte poems, 4 connections with 64 requests in flight; over HTTP 32 with 1", 20, 4, 64),
    Steady("b", "600-byte poems, 32 connections with 1 request in flight", 600, 32, 1),
    Steady("c", "600-byte poems, 32 connections with 16 requests in flight; over HTTP 32 with 1", 600, 32, 16),
)
WORKS: tuple[Work, ...] = (
    *NETSTRINGS,
    Steady("d", "1 MiB poems, 4 connections with 1 request in flight", MIB, 4, 1, with_transform=True),
    Classic("e", "classic: a connection for each 600-byte poem, 8 at a time", 600, 8),
    Idle("f", "memory of the server's process for each idle connection", 600),
    Crowded("g", "600-byte poems, 1 request in flight, by the number of connections that take turns", 600),
    Commands("h", "one command, from start to end, with a 600-byte poem", 600),
    Pools("i", "a pool of 2 workers without a network, 1 call in flight", 1),
    Pools("j", "a pool of 2 workers without a network, 8 calls in flight", 8),
    Isolation("k", "the price of isolation: a server with 2 workers, 8 connections with 1 request in flight", 8),
    Hits(
        "l", "hits of a caching proxy beside asking: 100 KB poems, a transform of 5 ms, 8 connections with 1 in flight"
    ),
    PageWork("page", "the page in a browser, with a poem of 1 KB", 1_000),
    Steady("m", "over HTTP: 600-byte poems, 32 connections with 1 request in flight", 600, 32, 1, HTTP_PEERS),
    Beside(
        "n",
        "netstrings with an HTTP port that nobody uses, and metrics: (a), (b) and (c) again",
        NETSTRINGS,
        (servers.OURS, servers.WITH_HTTP),
    ),
    Beside("r", "with an access file: (a) and (b) again", NETSTRINGS[:2], (servers.OURS, servers.WITH_ACCESS)),
    Siege("o", "over HTTP: 600-byte poems, while 640 slow connections are after 64 slots", 600),
    Cached("p", "over HTTP: GETs of 600-byte poems answered 304, 32 connections with 1 request in flight", 600, 32),
    WorkerCosts("q", "workers: what a start costs, and how often a model that is loaded at import is in memory"),
    *REAL_WORKS,
    Decoding("decoding", "a 64 KiB read of the shortest netstrings"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 0 also where figures are not reached; 1 when xformd failed, or an answer was wrong.
    """
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are ended then, too
    kernel.allow_open_files(MANY + _OTHER_FILES)
    facts = machine.describe() | {"rounds": options.rounds, "seconds": options.seconds}
    print(f"{facts['machine']['processor']}, Python {facts['python']}, {options.rounds} x {options.seconds:g} s")
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="xformd-bench-") as folder:
        servers.compile_echo(Path(folder))
        plan = _plan(options, Path(folder))
        for work in WORKS:
            if options.work and work.key not in options.work:
                continue
            results.append(work.run(plan))
            print("\n" + report.table(results[-1]), flush=True)
    _report(facts, results, options.output, with_pictures=options.beside is None)
    return int(any(map(_has_failed, results)))


def _has_failed(result: Result) -> bool:
    """Return whether xformd failed, or any server answered wrongly. A missing peer is no failure."""
    return any(row.is_wrong or (row.error and name.startswith("xformd")) for name, row in result.rows.items())


def _plan(options: argparse.Namespace, binaries: Path) -> Plan:
    server_cpu, generator_cpu = kernel.cpu_pair()
    known, other = servers.catalog(binaries), options.beside
    if other is not None:
        ours = [server for name, server in known.items() if name.startswith(servers.OURS)]
        known |= {twin.name: twin for twin in (servers.of_other_checkout(server, other) for server in ours)}
    return Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        warm_up_s=options.seconds / 3,
        server_cpu=server_cpu,
        generator_cpu=generator_cpu,
        crowd=SOME if options.quick else MANY,
        servers=known,
        peers=frozenset(options.peers),
        other_checkout=other,
    )


def _report(facts: dict[str, object], results: Sequence[Result], output: Path, *, with_pictures: bool) -> None:
    outcomes = targets.compare({result.key: result for result in results})
    print("\n" + report.verdicts(outcomes))
    if beside := targets.compare_checkouts(results):
        print("\n" + report.checkouts(beside))
    output.mkdir(parents=True, exist_ok=True)
    written = output / "results.json"
    written.write_text(report.to_json(facts, results, outcomes))
    drawn: Sequence[Path] = ()
    if with_pictures:
        from benchmarks import pictures  # here, since matplotlib takes a second to import

        drawn = pictures.draw(json.loads(written.read_text()), output / "pictures")
    print("\n" + "\n".join(f"written: {path}" for path in (written, *drawn)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of less than a minute: 1 round, 0.15 s each")
    parser.add_argument("--work", type=_names, default=[], metavar="A,B", help=", ".join(work.key for work in WORKS))
    in_real_works = [name for work in REAL_WORKS for name in work.names]
    known = [name for name in (*servers.catalog(HERE), *HOSTS, *in_real_works) if not name.startswith(servers.OURS)]
    parser.add_argument("--peers", type=_names, default=[], metavar="X,Y", help=", ".join(known))
    parser.add_argument(
        "--beside", type=Path, metavar="DIR", help="measure the xformd of this other checkout in the same rounds"
    )
    parser.add_argument("--rounds", type=int, help="measurements of each server for each work [7]")
    parser.add_argument("--seconds", type=float, help="how long one lasts [0.7]")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where results.json and pictures/ go [benchmarks, or partial/ in it]"
    )
    options = parser.parse_args(arguments)
    for unknown in {*options.work} - {work.key for work in WORKS} | {*options.peers} - {*known}:
        parser.error(f"there is no {unknown!r}")
    is_whole = not (options.quick or options.work or options.peers or options.beside)
    options.output = options.output or (HERE if is_whole else HERE / "partial")
    options.rounds = options.rounds or (1 if options.quick else 7)
    options.seconds = options.seconds or (0.15 if options.quick else 0.7)
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
