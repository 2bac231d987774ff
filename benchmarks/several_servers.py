"""``python -m benchmarks.several_servers``: real servers with no balancer before them, while some are killed.

Three servers of one worker each, on loopback. A client asks them through ``TransformProxy``, or through ``xformd
proxy``, while one server after the other is killed with SIGKILL and started again. Then one of them has a request of
3 s beside quick ones; and two share what takes 50 ms each. ``tests/integration/test_several_servers.py`` does the same
with fewer requests, and has machines vanish. ``benchmarks.scale`` simulates more servers.
"""

import argparse
import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

XFORMD = (sys.executable, "-m", "xformd")
START_S, KB = 90.0, 1_000
KNOWN = 200  # after so many requests a client knows what its servers have, and how long it takes
PLUGIN = '''
import os, time
import xformd

def begun(name, poem):
    with open(os.environ["BEGUN"], "ab", buffering=0) as file:
        file.write(name + b" " + poem[:16] + b"\\n")

@xformd.transform(deterministic=True)
def work(poem: bytes, *, seconds: float = 0.005) -> bytes:
    """Take some time."""
    begun(b"work", poem)
    time.sleep(seconds)
    return poem.upper()

@xformd.transform
def once(poem: bytes, *, seconds: float = 0.005) -> bytes:
    """Take some time, and not twice."""
    begun(b"once", poem)
    time.sleep(seconds)
    return poem.upper()

@xformd.hookimpl
def xformd_transforms():
    return [work, once]
'''


class Server:
    """One server, or a proxy. Started again, it listens where it did."""

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        self._folder, self._name, self._command = folder, name, command
        self._place = "tcp:0:interface=127.0.0.1"
        self._process: Any = None
        self.address = ""

    def start(self) -> "Server":
        """Start it."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("XFORMD_")}
        extra = {"BEGUN": str(self._folder / "begun"), "XFORMD_HTTP": "none"}
        with (self._folder / f"{self._name}.log").open("ab") as log:
            command = [*XFORMD, *self._command, "--listen", self._place]
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, bufsize=0, env=variables | extra
            )
        return self

    def ready(self) -> None:
        """Wait until it listens."""
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        if not ready or not (line := self._process.stdout.readline().decode()):
            raise RuntimeError(f"{self._name} does not start; see {self._folder}/{self._name}.log")
        self.address = line.split()[-1]
        self._place = f"tcp:{self.address.rpartition(':')[2]}:interface=127.0.0.1"

    def kill(self) -> None:
        """Kill it, as a machine that loses its power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def running(folder: Path, count: int, *, through_proxy: bool = False) -> Iterator[tuple[list[Server], str]]:
    """Run servers, and a proxy before them if one is asked for; yield them, and the addresses to ask."""
    (folder / "worked.py").write_text(PLUGIN)
    serve = ("serve", "--workers=1", "--plugins=none", f"--plugins-dir={folder}", "--max-request-bytes=4000000")
    servers = [Server(folder, f"server-{number}", *serve).start() for number in range(count)]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
        for server in servers:
            server.ready()
        asked = ",".join(server.address for server in servers)
        if through_proxy:
            limits = ("--max-request-bytes=4000000", "--cache-bytes=1MiB")
            proxy = Server(folder, "proxy", "proxy", *asked.split(","), *limits).start()
            stack.callback(proxy.kill)
            proxy.ready()
            asked = proxy.address
        yield servers, asked


@attrs.frozen
class Answered:
    """What became of one request."""

    number: int
    code: str
    waited_s: float
    ended_s: float  # by the monotonic clock, which all processes share
    message: str


class Load:
    """A client in a process of its own, and what became of its requests so far."""

    def __init__(self, servers: str, spec: str, count: int, *, at_once: int = 12, **options: Any) -> None:
        """Start it; ``options`` are ``sizes``, ``timeout`` and ``hedge`` of requests, ``pause_s`` and ``command``."""
        self.answered: list[Answered] = []
        command = options.pop("command", ())
        told = {"servers": servers, "spec": spec, "count": count, "at_once": at_once, **options}
        program = [*command, sys.executable, "-m", "benchmarks.several_servers", "--client", json.dumps(told)]
        here = Path(__file__).resolve().parents[1]
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            program, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}, cwd=here
        )
        self._reader = threading.Thread(target=self._read, daemon=True)  # a full pipe would delay the client
        self._reader.start()

    def read(self, until: int | None = None, seconds: float = 600.0) -> list[Answered]:
        """Wait until so many are answered, or for so long, or to the end; return all that are."""
        end = time.monotonic() + seconds
        while self._reader.is_alive() and (until is None or len(self.answered) < until) and time.monotonic() < end:
            self._reader.join(0.01)
        return self.answered

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answered.append(Answered(*json.loads(line)))

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._reader.join()
        self._process.communicate()


def client(told: dict[str, Any]) -> None:
    """Send the requests, some at once, and print what becomes of each."""
    from twisted.internet import defer, task

    from xformd import TransformProxy, XformError

    sizes, timeout = told.get("sizes", [KB]), told.get("timeout")

    async def main(reactor: Any) -> None:
        numbers = iter(range(told["count"]))
        async with TransformProxy(told["servers"].split(","), hedge=told.get("hedge", False)) as proxy:

            async def ask() -> None:
                for number in numbers:
                    poem = (b"%d " % number).ljust(16) + b"owl " * (sizes[number % len(sizes)] // 4 - 4)
                    started, code, message = time.monotonic(), "ok", ""
                    try:
                        spec = "work:seconds=3" if number == told.get("long_one") else told["spec"]
                        result = await proxy.xform(spec, poem, timeout=timeout)
                        code = "ok" if result == poem.upper() else "wrong"
                    except XformError as error:
                        code, message = error.code, error.message
                    ended = time.monotonic()
                    print(json.dumps([number, code, ended - started, ended, message]), flush=True)
                    if (pause_s := told.get("pause_s")) is not None:
                        await task.deferLater(reactor, pause_s)

            asking = [defer.Deferred.fromCoroutine(ask()) for _ in range(told["at_once"])]
            await defer.gatherResults(asking, consumeErrors=True)

    task.react(main)


SIZES = [KB] * 40 + [64 * KB] * 9 + [1_000 * KB]  # of poems: 32 KB on average


def killed(folder: Path, count: int, *, through_proxy: bool, kills: int) -> dict[str, "Outcome"]:
    """Kill one server after the other under load, and start each again half a second later.

    Args:
        folder: for the plugin and the logs.
        count: how many requests there are of each transform: ``work``, which is deterministic, and ``once``.
        through_proxy: whether ``xformd proxy`` is asked.
        kills: how many times a server is killed.
    """
    with running(folder, 3, through_proxy=through_proxy) as (servers, asked), contextlib.ExitStack() as stack:
        loads = {name: Load(asked, name, count, sizes=SIZES, at_once=6) for name in ("work", "once")}
        for load in loads.values():
            stack.callback(load.end)
            load.read(KNOWN)
        first = loads["work"]
        for server in itertools.islice(itertools.cycle(servers), kills):
            first.read(len(first.answered) + count // (2 * kills + 2))
            server.kill()
            first.read(seconds=0.5)
            server.start().ready()
        found = {name: load.read() for name, load in loads.items()}
    begun: dict[str, Counter[int]] = {name: Counter() for name in found}
    for line in (folder / "begun").read_text().splitlines():
        begun[line.split()[0]][int(line.split()[1])] += 1
    return {name: Outcome(answered, begun[name]) for name, answered in found.items()}


@attrs.frozen
class Outcome:
    """What became of the requests, and how often each has begun."""

    answered: list[Answered]
    begun: Counter[int]

    @property
    def lost(self) -> list[Answered]:
        """Those that failed."""
        return [each for each in self.answered if each.code != "ok"]

    @property
    def on_their_way(self) -> list[Answered]:
        """Those that failed, and were on their way to a worker when their server was killed."""
        return [each for each in self.lost if not self.begun[each.number]]

    @property
    def unexplained(self) -> list[Answered]:
        """Those that failed without an error that says that they may have begun."""
        return [each for each in self.lost if "may have run" not in each.message]

    @property
    def longest_s(self) -> float:
        """The longest wait."""
        return max(each.waited_s for each in self.answered)


def beside_long_one(folder: Path, count: int, *, at_once: int = 4, through_proxy: bool = False) -> float:
    """Return the longest wait of quick requests beside one of 3 s, once the client knows its servers."""
    with running(folder, 3, through_proxy=through_proxy) as (_, asked):
        load = Load(asked, "work", count + KNOWN, at_once=at_once, long_one=KNOWN)
        answered = load.read()
        load.end()
    return max(each.waited_s for each in answered if each.number > KNOWN)


def shared(folder: Path, count: int) -> tuple[float, float]:
    """Return how many tasks of 50 ms one server does in a second, and how many two do."""
    rates = []
    with running(folder, 2) as (servers, asked):
        for some in (servers[0].address, asked):
            load = Load(some, "work:seconds=0.05", count + 20, at_once=8)
            ends = sorted(each.ended_s for each in load.read())[20:]
            load.end()
            rates.append((len(ends) - 1) / (ends[-1] - ends[0]))
    return rates[0], rates[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what becomes of the requests; the exit status is 1 if one was lost that may run twice."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_servers", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="of each kind, where servers are killed [10000]")
    parser.add_argument("--kills", type=int, default=6, help="how many servers are killed in each of these [6]")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.client:
        client(json.loads(options.client))
        return 0
    failures = 0
    for through_proxy in (False, True):
        with tempfile.TemporaryDirectory(prefix="xformd-servers-") as folder:
            outcomes = killed(Path(folder), options.requests, through_proxy=through_proxy, kills=options.kills)
        way = "xformd proxy" if through_proxy else "TransformProxy"
        for name, found in outcomes.items():
            failures += len(found.lost if name == "work" else found.unexplained)
            print(
                f"servers killed, {'' if name == 'work' else 'not '}deterministic, through {way}: "
                f"{len(found.answered):,} requests, {len(found.lost)} lost ({len(found.on_their_way)} of them on their "
                f"way to a worker, {len(found.unexplained)} without an error that says that they may have run), "
                f"{sum(found.begun.values()) - len(found.begun)} begun twice; longest wait {found.longest_s:.2f} s",
                flush=True,
            )
    for through_proxy in (False, True):
        with tempfile.TemporaryDirectory(prefix="xformd-servers-") as folder:
            longest_s = beside_long_one(Path(folder), 180, through_proxy=through_proxy)
        way = "xformd proxy" if through_proxy else "TransformProxy"
        print(f"180 quick requests beside one of 3 s, through {way}: longest wait {longest_s:.2f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="xformd-servers-") as folder:
        one, two = shared(Path(folder), 200)
    print(f"tasks of 50 ms: one server {one:.1f} in a second, two {two:.1f}: {two / one:.2f} times")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
