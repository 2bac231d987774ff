"""What a second server on the same port adds (``--reuse-port``): ``python -m benchmarks.reuse_port [ROUNDS]``.

One server and two of them get the same load in alternating rounds, over HTTP and in sessions. The generator runs on the
same CPUs, so that with two of these the second server gets only what the generator leaves: the throughput shows
little. What counts is capacity: what the servers would answer if each had a CPU of its own, and the generator another
machine. One is full after ``requests / its CPU seconds``. Two are full once the busier one is, as the kernel and not
the load decides who gets a connection: after ``requests / CPU seconds of the busier one``.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.kernel import cpu_seconds
from benchmarks.load import Generator
from benchmarks.traffic import Dialect, session, xformd_http

CONNECTIONS, POEM_BYTES, SECONDS = 400, 600, 2.0
DIALECTS: dict[str, Dialect] = {"HTTP": xformd_http, "sessions": session}
ANYWHERE = "tcp:0:interface=127.0.0.1"


@attrs.frozen
class Site:
    """Some servers on one port for HTTP and one for sessions."""

    processes: Sequence[subprocess.Popen[bytes]]
    ports: dict[str, int]

    def measure(self, dialect: str) -> tuple[float, float, float, list[float]]:
        """Load it; return requests a second, capacity, how idle the machine was, and each server's part of the CPU."""
        generator = Generator(("127.0.0.1", self.ports[dialect]), DIALECTS[dialect](POEM_BYTES, 1), CONNECTIONS, 1)
        with contextlib.closing(generator):
            generator.run(SECONDS / 4)
            before, idle_s = [cpu_seconds(each.pid) for each in self.processes], _idle_s()
            load = generator.run(SECONDS)
            used = [cpu_seconds(each.pid) - was for each, was in zip(self.processes, before, strict=True)]
            idle = (_idle_s() - idle_s) / load.wall_s / (os.cpu_count() or 1)
        return load.requests / load.wall_s, load.requests / max(used), idle, [each / sum(used) for each in used]


def _idle_s() -> float:
    """Return for how long the machine's CPUs have had nothing to do."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(count: int) -> Iterator[Site]:
    """Run some servers on the same ports until the block ends."""
    with contextlib.ExitStack() as stack:
        places, processes, ports = [f"--listen={ANYWHERE}", f"--http={ANYWHERE}"], [], dict[str, int]()
        for _ in range(count):
            flags = ("--reuse-port", "--workers=0", "--plugins=none", f"--metrics={ANYWHERE}", f"--agent={ANYWHERE}")
            command = (sys.executable, "-m", "xformd", "serve", *places, *flags)
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            lines = [process.stdout.readline().decode().strip() for _ in range(5)]
            ports = {"sessions": int(lines[0].rpartition(":")[2]), "HTTP": int(lines[1].rpartition(":")[2])}
            fixed = [ANYWHERE.replace("tcp:0:", f"tcp:{ports[name]}:") for name in ("sessions", "HTTP")]
            places = [f"--listen={fixed[0]}", f"--http={fixed[1]}"]
            processes.append(process)
        yield Site(processes, ports)


def main(rounds: int) -> None:
    """Print a line for each dialect."""
    print(f"{CONNECTIONS} connections, {os.cpu_count()} CPUs; medians of {rounds} rounds of {SECONDS:g} s", flush=True)
    with serving(1) as one, serving(2) as two:
        time.sleep(1)
        for dialect in DIALECTS:
            pairs = [(one.measure(dialect), two.measure(dialect)) for _ in range(rounds)]
            throughput = statistics.median(with_two[0] / alone[0] for alone, with_two in pairs)
            capacity = statistics.median(with_two[1] / alone[1] for alone, with_two in pairs)
            idle = [statistics.median(measured[index][2] for measured in pairs) for index in (0, 1)]
            busier = statistics.median(max(with_two[3]) for _, with_two in pairs)
            facts = (
                f"capacity {capacity:.2f} times that of one, with {busier:.0%} of the load on the busier one",
                f"throughput beside the generator {throughput:.2f} times",
                f"the machine's CPUs idle {idle[0]:.0%} with one, {idle[1]:.0%} with two",
            )
            print(f"{dialect}: {'; '.join(facts)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse_port", description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5, help="how many [%(default)s]")
    main(parser.parse_args().rounds)
