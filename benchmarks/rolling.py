"""A rolling upgrade under load: ``python -m benchmarks.rolling [--requests N]`` prints what became of the requests.

Three servers get a plugin's next version one after the other: first with SIGHUP, then again with SIGTERM and a start;
with ``--quick`` each once, one or the other.
Meanwhile a ``TransformProxy``, and another one by way of ``xformd proxy``, send them requests, and threads POST to each
over HTTP while it is reloaded. With ``--haproxy``, threads POST by way of HAProxy, as docs/deploy/haproxy.cfg has it,
and nothing else does. A request has failed if it has no result, if its result is of a version that no server
had while it was on its way, or if the reply says another version than the one that made it. The exit status is 1 if one
has failed, or if no result came from the cache.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import cluster
from xformd.client import TransformProxy
from xformd.errors import XformError
from xformd.proxy.service import DEFAULT_REFRESH_S
from xformd.spec import parse

NODES = 3
OUTSTANDING = 8  # requests of each load
PAUSE_S = 0.02  # of each client between two: the servers that start need some CPU, too
NOTICED_S = DEFAULT_REFRESH_S + 1.0  # by then no old result is in its cache any more
PATIENCE_S = 60.0
POEMS = 40  # of the proxy's load, so that its cache has them

XFORMD = (sys.executable, "-m", "xformd")
ANYWHERE = "tcp:0:interface=127.0.0.1"

PLUGIN = '''
import xformd

@xformd.transform(deterministic=True, examples=[(b"Owl", b"Owl {version}")])
def edition(poem: bytes) -> bytes:
    """Add the plugin's version."""
    return poem + b" {version}"

@xformd.transform(examples=[(b"Owl", b"Owl {version}")])
def again(poem: bytes) -> bytes:
    """Do the same, and do not say that it always does."""
    return poem + b" {version}"

@xformd.hookimpl
def xformd_transforms():
    return [edition, again]
'''


class Versions:
    """Which versions the servers had, and when."""

    def __init__(self) -> None:
        self._now: dict[str, frozenset[str]] = {}
        self._changes: list[tuple[float, frozenset[str]]] = []

    def has(self, node: str, *versions: str) -> None:
        """Note what a server may answer from now on."""
        self._now[node] = frozenset(versions)
        self._changes.append((time.monotonic(), frozenset().union(*self._now.values())))

    def since(self, moment: float) -> frozenset[str]:
        """Return what any server had since then."""
        before = [found for at, found in self._changes if at <= moment]
        return frozenset().union(*before[-1:], *(found for at, found in self._changes if at > moment))


class Node:
    """A server with a folder of installed distributions of its own, and the same ports after each start."""

    def __init__(self, name: str, folder: Path, versions: Versions) -> None:
        self.name, self._folder, self._versions = name, folder / name, versions
        self._folder.mkdir()
        self._places = [ANYWHERE, ANYWHERE]
        install(self._folder, "1.0")
        self.start()

    def wait(self) -> None:
        """Wait until it listens for the first time."""
        self.address, self.http = ready(self.process, self._folder / "log")
        self._places = [f"tcp:{each.rpartition(':')[2]}:interface=127.0.0.1" for each in (self.address, self.http)]
        self._versions.has(self.name, "1.0")

    def start(self) -> None:
        """Start it; ``ready`` waits for it."""
        arguments = ("--listen", self._places[0], "--http", self._places[1], "--host-names", "localhost")
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*XFORMD, "serve", *arguments, "--plugins=xformd-edition", "--workers=1"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(PYTHONPATH=str(self._folder / "installed")),
            )

    def upgrade(self, version: str, old: str, *, restarts: bool) -> None:
        """Have it offer another version; return when it does."""
        install(self._folder, version)
        self._versions.has(self.name, old, version)
        if restarts:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.start()
            ready(self.process, self._folder / "log")
        else:
            self.process.send_signal(signal.SIGHUP)
        ends_at = time.monotonic() + PATIENCE_S
        while ask(self.address, b"edition") != version:
            if time.monotonic() > ends_at:
                raise RuntimeError(f"{self.name} is not upgraded: {(self._folder / 'log').read_text()}")
            time.sleep(0.05)
        self._versions.has(self.name, version)


def install(folder: Path, version: str) -> None:
    """Replace the plugin by another version at once, as a folder cannot be replaced: by a link to it."""
    place = folder / version
    described = place / f"xformd_edition-{version}.dist-info"
    described.mkdir(parents=True)
    (place / "xformd_edition.py").write_text(PLUGIN.replace("{version}", version))
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xformd-edition\nVersion: {version}\n")
    (described / "entry_points.txt").write_text("[xformd]\nedition = xformd_edition\n")
    link = folder / "new"
    link.symlink_to(place)
    link.replace(folder / "installed")


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a server: this one's, without settings for xformd."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("XFORMD_")}
    path = os.pathsep.join(filter(None, (more.get("PYTHONPATH"), own.get("PYTHONPATH"))))
    return {**own, **more, "PYTHONPATH": path}


def ready(process: "subprocess.Popen[bytes]", log: Path) -> list[str]:
    """Wait until a server listens; return its addresses."""
    found: list[str] = []
    assert process.stdout is not None
    while True:
        if not select.select([process.stdout], [], [], PATIENCE_S)[0] or not (
            line := os.read(process.stdout.fileno(), 9_999)
        ):
            raise RuntimeError(f"a server does not start: {log.read_text()}")
        found += re.findall(r" listening on (?:http://)?(\S+)", line.decode())
        if b"transforms" in line:
            return found


def ask(address: str, spec: bytes) -> str:
    """Return the version that answers one request."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        request = spec + b".Owl"
        connection.sendall(b"%d:%b," % (len(request), request))
        return b"".join(iter(lambda: connection.recv(999), b"")).decode().rstrip(",").rpartition(" ")[2]


class Load:
    """Counts what became of some clients' requests; results may be as old as ``stale_s``."""

    def __init__(self, name: str, versions: Versions, stale_s: float = 0.0) -> None:
        self.name, self._versions, self._stale_s = name, versions, stale_s
        self.by_version: Counter[str] = Counter()
        self.side_by_side = 0  # answers to requests during which servers had different versions
        self.failed: list[str] = []
        self.longest_s = 0.0
        self.is_stopping = False

    @property
    def count(self) -> int:
        """How many have ended."""
        return sum(self.by_version.values()) + len(self.failed)

    def note(self, poem: bytes, result: bytes, told: str | None, sent_at: float) -> None:
        """Take an answer into account; the server has told which version made it, if it has."""
        version = result.removeprefix(poem + b" ").decode()
        possible = self._versions.since(sent_at - self._stale_s)
        if not result.startswith(poem) or version not in possible:
            self.failed.append(f"{result[:80]!r}, though the servers have {', '.join(sorted(possible))}")
        elif told is not None and told.rpartition("/")[2] != version:
            self.failed.append(f"a result of {version} was said to be of {told}")
        else:
            self.by_version[version] += 1
            self.side_by_side += len(self._versions.since(sent_at)) > 1
        self.longest_s = max(self.longest_s, time.monotonic() - sent_at)

    def describe(self) -> str:
        """Return a line for people."""
        found = ", ".join(f"{version}: {count:,}" for version, count in sorted(self.by_version.items()))
        both = f"{self.side_by_side:,} while two versions answered"
        ended = f"{self.count:,} requests, {len(self.failed)} failed"
        return f"{self.name}: {ended}; {found}; {both}; the longest {self.longest_s:.2f} s"


async def send(load: Load, proxy: TransformProxy, poems: Callable[[], bytes], *, is_told: bool) -> None:
    """Send request after request."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    for spec in itertools.cycle((parse("edition"), parse("edition"), parse("again"))):
        if load.is_stopping:
            return
        await deferLater(reactor, PAUSE_S)
        poem, told, sent_at = poems(), [], time.monotonic()
        try:
            result = await proxy.forward(spec, poem, None, timeout=PATIENCE_S, on_version=told.append)
        except XformError as error:
            load.failed.append(f"{error.code}: {error.message}")
        else:
            load.note(poem, result, (told or [None])[0], sent_at)
            if is_told and told != [f"{spec}/{result.rpartition(b' ')[2].decode()}"]:
                load.failed.append(f"the reply said {told}")


def post(load: Load, connection: http.client.HTTPConnection, until: threading.Event) -> None:
    """POST one poem after the other over one connection."""
    for name in itertools.cycle(("edition", "edition", "again")):
        if until.wait(PAUSE_S):
            break
        sent_at = time.monotonic()
        try:
            connection.request("POST", f"/transform/{name}", b"Owl", {"Host": "localhost"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                load.note(b"Owl", body, answer.headers["X-Transform"], sent_at)
            else:
                load.failed.append(f"{answer.status} {body[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            load.failed.append(repr(error))
            connection.close()
    connection.close()


@contextmanager
def servers(folder: Path, versions: Versions) -> Iterator[tuple[list[Node], str]]:
    """Run the nodes, and a proxy before them, until the block ends; yield them, and its address."""
    with ExitStack() as stack:
        nodes = []
        for number in range(1, NODES + 1):
            nodes.append(Node(f"node-{number}", folder, versions))
            stack.callback(lambda node=nodes[-1]: end(node.process))
        for node in nodes:
            node.wait()
        command = [
            *XFORMD,
            "proxy",
            "--listen",
            ANYWHERE,
            *(each.address for each in nodes),
        ]
        with (folder / "proxy.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment())
        stack.callback(end, process)
        yield nodes, ready(process, folder / "proxy.log")[0]


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server."""
    process.terminate()
    try:
        process.wait(PATIENCE_S / 4)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


Step = tuple[Node, str, str, bool]
"""A node, the version that it has, the one that it gets, and whether it starts again for that."""


async def roll(steps: Sequence[Step], loads: Sequence[Load], over_http: Load, requests: int) -> None:
    """Upgrade nodes in turn, spread over the requests."""
    from twisted.internet import reactor as installed
    from twisted.internet.task import deferLater
    from twisted.internet.threads import deferToThread

    reactor: Any = installed
    for number, (node, old, new, restarts) in enumerate(steps, 1):
        while sum(load.count for load in loads) < requests * number // (len(steps) + 1):
            await deferLater(reactor, 0.02)
        until = threading.Event()
        posting = (
            None
            if restarts
            else deferToThread(post, over_http, http.client.HTTPConnection(node.http, timeout=PATIENCE_S), until)
        )
        began_at = time.monotonic()
        await deferToThread(node.upgrade, new, old, restarts=restarts)
        how = "SIGTERM and a start" if restarts else "SIGHUP"
        print(f"{node.name}: {old} -> {new} with {how}, {time.monotonic() - began_at:.1f} s", flush=True)
        until.set()
        if posting is not None:
            await posting
    while sum(load.count for load in loads) < requests:
        await deferLater(reactor, 0.02)


async def measure(folder: Path, requests: int, *, is_quick: bool) -> int:
    """Run it all; return the exit status."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, gatherResults

    versions, numbers = Versions(), itertools.count()
    with servers(folder, versions) as (nodes, front):
        steps = [(node, "1.0", "2.0", is_quick and node is nodes[1]) for node in nodes]
        steps += [] if is_quick else [(node, "2.0", "3.0", True) for node in nodes]
        direct, cached = Load("client", versions), Load("xformd proxy", versions, NOTICED_S)
        over_http = Load("HTTP, while each reloads", versions)
        clients = (
            TransformProxy([each.address for each in nodes], reactor=reactor),
            TransformProxy(front, reactor=reactor),
        )
        running = [
            Deferred.fromCoroutine(send(load, client, poems, is_told=client is clients[0]))
            for load, client, poems in (
                (direct, clients[0], lambda: b"poem %d" % next(numbers)),
                (cached, clients[1], lambda: b"poem %d" % (next(numbers) % POEMS)),
            )
            for _ in range(OUTSTANDING)
        ]
        try:
            await roll(steps, (direct, cached), over_http, requests)
        finally:
            direct.is_stopping = cached.is_stopping = True
            await gatherResults(running)
        hits = (await clients[1].list_transforms())["cache"]["hits"]
        for client in clients:
            await client.close()
    print(f"the cache of xformd proxy: {hits:,} hits")
    return max(int(not hits), report(direct, cached, over_http))


def report(*loads: Load) -> int:
    """Print what became of the requests; return the exit status."""
    for load in loads:
        print(load.describe())
        for line, count in Counter(load.failed).most_common(5):
            print(f"  {count} times: {line}")
    failed = sum(len(load.failed) for load in loads)
    print(json.dumps({"requests": sum(load.count for load in loads), "failed": failed}))
    return int(failed > 0)


def measure_haproxy(folder: Path, requests: int) -> int:
    """Reload the servers behind HAProxy in turn, then start them again; return the exit status."""
    versions, until = Versions(), threading.Event()
    install(folder, "1.0")
    os.environ["PYTHONPATH"] = environment(PYTHONPATH=str(folder / "installed"))["PYTHONPATH"]
    with cluster.running(folder, "--plugins=xformd-edition", "--workers=1", "--drain-delay=2s") as running:
        for name in running.nodes:
            versions.has(name, "1.0")
        load, context = (
            Load("HTTP through HAProxy", versions),
            ssl.create_default_context(cafile=str(running.certificate)),
        )
        connections = [
            http.client.HTTPSConnection("localhost", running.http, timeout=PATIENCE_S, context=context)
            for _ in range(OUTSTANDING)
        ]
        threads = [threading.Thread(target=post, args=(load, each, until)) for each in connections]
        for thread in threads:
            thread.start()
        try:
            install(folder, "2.0")
            for number, (name, node) in enumerate(running.nodes.items(), 1):
                cluster.wait_until(lambda share=number: load.count > requests * share // 5)
                versions.has(name, "1.0", "2.0")
                node.process.send_signal(signal.SIGHUP)
                cluster.wait_until(lambda port=node.ports["http"]: version_at(port) == "2.0", f"the reload of {name}")
                versions.has(name, "2.0")
                print(f"{name}: 1.0 -> 2.0 with SIGHUP", flush=True)
            install(folder, "3.0")
            for name in running.nodes:
                versions.has(name, "2.0", "3.0")
            cluster.rolling_restart(running, lambda event: print(event, flush=True))
            cluster.wait_until(lambda: load.count >= requests)
        finally:
            until.set()
            for thread in threads:
                thread.join()
    return report(load)


def version_at(port: int) -> str:
    """Return the version that answers at a server's port for HTTP."""
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=PATIENCE_S)) as connection:
        connection.request("POST", "/transform/edition", b"Owl")
        return connection.getresponse().read().decode().rpartition(" ")[2]


def main() -> None:
    """Run it as a command."""
    from twisted.internet import task

    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--haproxy", action="store_true")
    arguments = parser.parse_args()
    if arguments.haproxy:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(measure_haproxy(Path(folder), arguments.requests))
    with tempfile.TemporaryDirectory() as folder:
        status: list[int] = []

        async def run(_: Any) -> None:
            status.append(await measure(Path(folder), arguments.requests, is_quick=arguments.quick))

        from twisted.internet.defer import Deferred

        task.react(lambda reactor: Deferred.fromCoroutine(run(reactor)).addCallback(lambda _: None))
    sys.exit(status[0])


if __name__ == "__main__":
    main()
