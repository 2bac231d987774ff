"""What a request costs a client: CPU time of ``xformd.aio`` and ``xformd.blocking`` beside ``TransformProxy``'s.

    python -m benchmarks.clients [--rounds 7] [--requests 8000]

Each client, in a process of its own, sends 600-byte poems to the same server with 16 in flight, the poems of work (c).
They take turns; a ratio is that of one round, and the median of all rounds is printed, with what it may be at most.
"""

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import kernel, servers

POEM = "The Owl and the Pussy-cat went to sea in a beautiful pea-green boat. " * 9
POEM = POEM[:600]
RESULT = POEM.lower()
IN_FLIGHT = 16
TARGETS = {"asyncio": 1.3, "blocking": 1.0}


async def _loop(client: Any, numbers: Any) -> None:
    for _ in numbers:
        assert await client.xform("cummingsify", POEM) == RESULT


def _shared(requests: int) -> Any:
    return itertools.islice(itertools.count(), requests)


def with_twisted(address: str, measure: Callable[[], Callable[[], None]], requests: int) -> None:
    """Measure ``TransformProxy``."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, gatherResults

    from xformd import TransformProxy

    async def run() -> None:
        async with TransformProxy(address) as proxy:
            for count, told in ((requests // 4, lambda: lambda: None), (requests, measure)):
                numbers, done = _shared(count), told()
                await gatherResults([Deferred.fromCoroutine(_loop(proxy, numbers)) for _ in range(IN_FLIGHT)])
                done()

    done = Deferred.fromCoroutine(run())
    done.addBoth(lambda result: (print(result or "", file=sys.stderr), reactor.stop()))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def with_asyncio(address: str, measure: Callable[[], Callable[[], None]], requests: int) -> None:
    """Measure ``xformd.aio``."""
    from xformd.aio import TransformClient

    async def run() -> None:
        async with TransformClient(address) as client:
            for count, told in ((requests // 4, lambda: lambda: None), (requests, measure)):
                numbers, done = _shared(count), told()
                await asyncio.gather(*[_loop(client, numbers) for _ in range(IN_FLIGHT)])
                done()

    asyncio.run(run())


def with_sockets(address: str, measure: Callable[[], Callable[[], None]], requests: int) -> None:
    """Measure ``map`` of ``xformd.blocking``."""
    from xformd.blocking import TransformClient

    with TransformClient(address) as client:
        for count, told in ((requests // 4, lambda: lambda: None), (requests, measure)):
            done = told()
            for result in client.map("cummingsify", itertools.repeat(POEM, count), in_flight=IN_FLIGHT):
                assert result == RESULT
            done()


def with_threads(address: str, measure: Callable[[], Callable[[], None]], requests: int) -> None:
    """Measure ``xform`` of ``xformd.blocking`` in as many threads."""
    from xformd.blocking import TransformClient

    with TransformClient(address) as client:
        for count, told in ((requests // 4, lambda: lambda: None), (requests, measure)):
            done = told()

            def work(each: int = count // IN_FLIGHT) -> None:
                for _ in range(each):
                    assert client.xform("cummingsify", POEM) == RESULT

            threads = [threading.Thread(target=work) for _ in range(IN_FLIGHT)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            done()


CLIENTS = {
    "Twisted": with_twisted,
    "asyncio": with_asyncio,
    "blocking": with_sockets,
    "blocking, in threads": with_threads,
}


def measure(name: str, address: str, requests: int) -> float:
    """Return the microseconds of CPU time for each request of one client, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.clients", "--one", name, address, "--requests", str(requests)]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return float(done.stdout)


def compare(rounds: int, requests: int) -> dict[str, tuple[float, float]]:
    """Return each client's median of microseconds for each request, and of ratios to ``TransformProxy``."""
    seen: dict[str, list[float]] = {name: [] for name in CLIENTS}
    with tempfile.TemporaryDirectory(prefix="xformd-bench-") as folder:
        ours = servers.catalog(Path(folder))[servers.OURS]
        server_cpu, client_cpu = kernel.cpu_pair()
        with servers.running([ours], server_cpu) as (started, errors), kernel.pinned(client_cpu):
            if not started:
                raise SystemExit(str(errors))
            address = "{}:{}".format(*started[0].address)
            for _ in range(rounds):
                for name, figures in seen.items():
                    figures.append(measure(name, address, requests))
    base = seen["Twisted"]
    return {
        name: (
            statistics.median(figures),
            statistics.median(each / twisted for each, twisted in zip(figures, base, strict=True)),
        )
        for name, figures in seen.items()
    }


def main() -> None:
    """Print a line for each client."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=8_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:

        def begin() -> Callable[[], None]:
            before = time.process_time()
            return lambda: print(1e6 * (time.process_time() - before) / options.requests)

        CLIENTS[options.one[0]](options.one[1], begin, options.requests)
        return
    for name, (cpu_us, ratio) in compare(options.rounds, options.requests).items():
        target = f"  at most {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:22} {cpu_us:6.1f} us of CPU for each request  {ratio:5.2f} of TransformProxy{target}")


if __name__ == "__main__":
    main()
