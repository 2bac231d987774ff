"""HAProxy, as documented, before three servers on loopback, and load on it: to measure and to test."""

import contextlib
import csv
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "docs" / "deploy" / "haproxy.cfg"
NODES = ("one", "two", "three")
PATIENCE_S = 90.0
START_S = 90.0  # of a server whose files are not compiled yet, on a busy machine
ANYWHERE = "tcp:0:interface=127.0.0.1"
XFORMD = (sys.executable, "-m", "xformd")

PLUGIN = '''
import os, time
import xformd

@xformd.transform(deterministic=True)
def work(poem: bytes) -> bytes:
    """Take 5 ms, as most real work takes some."""
    time.sleep(0.005)
    return poem.upper()

@xformd.transform(deterministic=False)
def once(poem: bytes) -> bytes:
    """Write down that it has begun, and take 20 ms."""
    with open(os.environ["BEGUN"], "ab", buffering=0) as file:
        file.write(poem[:16] + b"\\n")
    time.sleep(0.02)
    return poem.upper()

@xformd.transform(deterministic=True)
def slow(poem: bytes, *, seconds: float = 0.2) -> bytes:
    """Take long."""
    time.sleep(seconds)
    return poem.upper()

@xformd.hookimpl
def xformd_transforms():
    return [work, once, slow]
'''


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {PATIENCE_S:g} s")
        time.sleep(0.01)


class Node:
    """One server. Started again, it listens where it did."""

    def __init__(self, name: str, folder: Path, arguments: Sequence[str]) -> None:
        self.name, self._folder, self._arguments = name, folder, arguments
        self.process: Any = None
        self._places = {"http": ANYWHERE, "listen": f"haproxy:{ANYWHERE}", "agent": ANYWHERE, "metrics": ANYWHERE}
        self.ports: dict[str, int] = {}  # of this start, by front

    def start(self, *more: str) -> None:
        """Start it, with more arguments; ``ready`` waits for it."""
        fixed = ("--trusted-proxies=127.0.0.1", "--plugins=none", f"--plugins-dir={self._folder}")
        self.ports = {}
        places = [f"--{front}={place}" for front, place in self._places.items()]
        self.close()
        jobs = (f"--node={self.name}", f"--jobs-dir={self._folder}/{self.name}-jobs")
        log = (self._folder / f"{self.name}.log").open("ab")
        variables = {name: value for name, value in os.environ.items() if not name.startswith("XFORMD_")}
        with log:
            self.process = subprocess.Popen(
                [*XFORMD, "serve", *places, *fixed, *jobs, *self._arguments, *more],
                stdout=subprocess.PIPE,
                bufsize=0,  # so that select sees what has come
                stderr=log,
                env={**variables, "BEGUN": str(self._folder / "begun")},
            )

    def ready(self) -> None:
        """Wait until it listens."""
        stdout = self.process.stdout
        assert stdout is not None
        while True:
            if not select.select([stdout], [], [], START_S)[0] or not (line := stdout.readline().decode()):
                raise RuntimeError(f"{self.name} does not start; see {self._folder}/{self.name}.log")
            if (found := re.search(r" listening on (?:(\w+)://)?\S+:(\d+)$", line.strip())) is None:
                return
            front = "listen" if found[1] is None else "metrics" if found[1] in self.ports else found[1]
            self.ports[front] = int(found[2])
            self._places[front] = self._places[front].replace("tcp:0:", f"tcp:{found[2]}:")

    def kill(self) -> None:
        """Kill it, as a machine that loses its power: its workers end with it."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it, if it was ever started, and forget it."""
        if self.process is not None:
            self.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def stop(self) -> int:
        """End it with SIGTERM; return its exit status once it is gone."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


class Cluster:
    """HAProxy and its servers.

    Attributes:
        nodes: the servers, by their names in the configuration.
        http: port of HAProxy for HTTPS.
        netstrings: its port for netstrings over TLS.
        certificate: file to trust.
    """

    def __init__(self, folder: Path, nodes: dict[str, Node]) -> None:
        self.nodes, self.folder = nodes, folder
        self.certificate = folder / "certificate.pem"
        self.http = self.netstrings = 0

    def states(self, proxy: str = "xformd") -> dict[str, str]:
        """Return what HAProxy thinks of each server: ``UP``, ``DRAIN``, ``DOWN``, ..."""
        return {name: row["status"].split()[0] for name, row in self.statistics(proxy).items()}

    def statistics(self, proxy: str = "xformd") -> dict[str, dict[str, str]]:
        """Return the columns of ``show stat`` for each server."""
        found = csv.DictReader(self.command(f"show stat {proxy} 4 -1").strip().splitlines())
        return {row["svname"]: row for row in found}

    def command(self, command: str) -> str:
        """Run a command of HAProxy's operator."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE_S)
            admin.connect(str(self.folder / "admin.sock"))
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65_536), b"")).decode()

    def wait_for(self, **wanted: str) -> None:
        """Wait until HAProxy thinks so of these servers."""
        wait_until(lambda: wanted.items() <= self.states().items(), f"{wanted}, but {self.states()},")

    def bring_back(self) -> None:
        """Start whoever has ended, and wait until every server gets requests."""
        gone = [node for node in self.nodes.values() if node.process.poll() is not None]
        for node in gone:
            node.start()
        for node in gone:
            node.ready()
        self.wait_for(**dict.fromkeys(self.nodes, "UP"))

    def begun(self) -> list[bytes]:
        """Return the first bytes of the poems of ``once``, once for each time that it has begun."""
        file = self.folder / "begun"
        return file.read_bytes().splitlines() if file.exists() else []


def configure(cluster: Cluster, http: int, netstrings: int, changes: Sequence[tuple[str, str]] = ()) -> str:
    """Return the documented configuration with this cluster's ports; ``http`` and ``netstrings`` are descriptors."""
    text = CONFIGURATION.read_text()
    pem = str(cluster.folder / "haproxy.pem")
    replaced = [
        ("/run/haproxy/admin.sock", str(cluster.folder / "admin.sock")),
        ("    bind :80\n", ""),
        ("bind :443 ssl crt /etc/haproxy/xformd.pem", f"bind fd@{http} ssl crt {pem}"),
        ("bind :11000 ssl crt /etc/haproxy/xformd.pem", f"bind fd@{netstrings} ssl crt {pem}"),
        ("agent-port 8404 ", ""),
        ("bind abns@xformd-once", f"bind abns@{cluster.folder.name}"),
        ("server itself abns@xformd-once", f"server itself abns@{cluster.folder.name}"),
        *changes,
    ]
    for number, (name, node) in enumerate(cluster.nodes.items(), 1):
        agent = f"agent-port {node.ports['agent']}"
        replaced.append(
            (f"server {name} 10.0.0.{number}:11080", f"server {name} 127.0.0.1:{node.ports['http']} {agent}")
        )
        replaced.append((f"10.0.0.{number}:11001", f"127.0.0.1:{node.ports['listen']}"))
    for shown, ours in replaced:
        if text.count(shown) != 1:
            raise ValueError(f"{CONFIGURATION.name} has {shown!r} {text.count(shown)} times")
        text = text.replace(shown, ours)
    return text


@contextlib.contextmanager
def running(folder: Path, *arguments: str, changes: Sequence[tuple[str, str]] = ()) -> Iterator[Cluster]:
    """Run a cluster until the block ends; the ``arguments`` are those of each server."""
    (folder / "cluster_plugin.py").write_text(PLUGIN)
    with contextlib.ExitStack() as stack:
        nodes = {name: Node(name, folder, arguments) for name in NODES}
        cluster = Cluster(folder, nodes)
        for node in nodes.values():
            node.start()
            stack.callback(node.close)
        for node in nodes.values():
            node.ready()
        _make_certificate(folder)
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512)) for _ in range(2)]
        for listener in listeners:
            listener.set_inheritable(True)
        descriptors = [each.fileno() for each in listeners]
        (folder / "haproxy.cfg").write_text(configure(cluster, *descriptors, changes))
        cluster.http, cluster.netstrings = (each.getsockname()[1] for each in listeners)
        log = stack.enter_context((folder / "haproxy.log").open("wb"))
        path = f"{os.environ['PATH']}:/usr/sbin"
        command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=descriptors, env={**os.environ, "PATH": path}
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until((folder / "admin.sock").exists, f"HAProxy's start (see {folder}/haproxy.log)")
        # An agent's report sets this: from then on none gets more than it can queue.
        wait_until(lambda: all(row["agent_status"] == "L7OK" for row in cluster.statistics().values()), "agent checks")
        cluster.wait_for(**dict.fromkeys(nodes, "UP"))
        yield cluster


def _make_certificate(folder: Path) -> None:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {certificate} -days 2"
    )
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made.split(), *names], check=True, capture_output=True)
    (folder / "haproxy.pem").write_bytes(certificate.read_bytes() + key.read_bytes())


# Load


@attrs.define
class Outcome:
    """What became of the requests of a load.

    Attributes:
        waits_s: how long each request took that was answered, in the order of the answers.
        lost: why the others were not.
        repeats: how often the client has sent one again.
    """

    waits_s: list[float] = attrs.field(factory=list)
    lost: list[str] = attrs.field(factory=list)
    repeats: int = 0

    @property
    def count(self) -> int:
        """How many have ended."""
        return len(self.waits_s) + len(self.lost)


Request = tuple[str, bytes]
"""A path, and a poem."""


class HttpLoad:
    """Sends requests through HAProxy, from some clients at once, each over one connection that stays open.

    Args:
        cluster: where.
        requests: what to send.
        clients: how many at a time.
        repeats: whether the client may send a request again, given the poem and HAProxy's status; 0 for a connection
            that was lost.
        address: from where.
    """

    def __init__(
        self,
        cluster: Cluster,
        requests: Iterable[Request],
        clients: int = 12,
        repeats: Callable[[bytes, int], bool] = lambda *_: False,
        address: str = "127.0.0.1",
    ) -> None:
        self.outcome = Outcome()
        self._port, self._address = cluster.http, address
        self._context = ssl.create_default_context(cafile=str(cluster.certificate))
        self._repeats = repeats
        self._requests, self._lock = iter(requests), threading.Lock()
        self.is_ending = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "HttpLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(4 * PATIENCE_S)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have ended, or all; each ends within its own timeout."""
        while self.outcome.count < count and any(each.is_alive() for each in self._threads):
            time.sleep(0.01)

    def _next(self) -> Request | None:
        with self._lock:
            return None if self.is_ending else next(self._requests, None)

    def _run(self) -> None:
        connection = self._connect()
        while (request := self._next()) is not None:
            path, poem = request
            began_s = time.monotonic()
            while (trouble := self._ask(connection, path, poem)) is not None:
                status, text = trouble
                connection.close()
                is_soon = time.monotonic() < began_s + PATIENCE_S
                if status == 200 or not is_soon or not self._repeats(poem, status):
                    self.outcome.lost.append(text)
                    break
                self.outcome.repeats += 1
                time.sleep(0.1 if status in (0, 502) else 0.5)
            else:
                self.outcome.waits_s.append(time.monotonic() - began_s)
        connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self._port, timeout=PATIENCE_S, context=self._context, source_address=(self._address, 0)
        )

    def _ask(self, connection: http.client.HTTPSConnection, path: str, poem: bytes) -> tuple[int, str] | None:
        """Send a request; return None if its answer is right, and otherwise the status and what is wrong."""
        try:
            connection.request("POST", path, poem)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, f"{type(error).__name__}: {error}"
        if response.status != 200:
            with contextlib.suppress(ValueError):
                return response.status, str(json.loads(body)["code"])
            return response.status, f"{response.status}: {body[:200]!r}"
        return None if body == poem.upper() else (200, "a wrong answer")


def ask(
    cluster: Cluster, method: str, path: str, poem: bytes | None = None, **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    """Send one request; return status, headers and body of the answer. ``prefer_x`` is the header ``Prefer-X``."""
    context = ssl.create_default_context(cafile=str(cluster.certificate))
    connection = http.client.HTTPSConnection("localhost", cluster.http, timeout=PATIENCE_S, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, poem, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


SESSIONS = """
import json, sys, time
from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread
from xformd import TransformProxy, XformError
from xformd.client import ClientTls

async def main(reactor, address, ca, spec, clients):
    waits, lost, is_done = [], [], False
    async def client(number):
        async with TransformProxy(address, tls=ClientTls(ca=ca)) as proxy:
            index = 0
            while not is_done:
                index += 1
                poem, began = b"owl %d %d" % (number, index), time.monotonic()
                try:
                    assert await proxy.xform(spec, poem) == poem.upper()
                    waits.append(time.monotonic() - began)
                except XformError as error:
                    lost.append(error.code)
    clients = DeferredList([ensureDeferred(client(each)) for each in range(int(clients))], fireOnOneErrback=True)
    print("started", flush=True)
    await deferToThread(sys.stdin.read)
    is_done = True
    await clients
    print(json.dumps([waits, lost]))

react(main, sys.argv[1:])
"""
"""Clients with a session each, in a process: they send one request after the other until standard input ends."""


@contextlib.contextmanager
def session_load(cluster: Cluster, spec: str = "work", clients: int = 3) -> Iterator[Outcome]:
    """Load the netstring port with sessions until the block ends; the outcome is there after it."""
    outcome = Outcome()
    arguments = [f"localhost:{cluster.netstrings}", str(cluster.certificate), spec, str(clients)]
    command = [sys.executable, "-c", SESSIONS, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield outcome
            process.stdin.close()
            outcome.waits_s, outcome.lost = json.loads(process.stdout.readline())
        finally:
            process.kill()


def classic(cluster: Cluster, spec: str, poem: bytes, address: str = "127.0.0.1") -> bytes:
    """Send one classic request to the netstring port, from an address; return what comes back until the close."""
    context = ssl.create_default_context(cafile=str(cluster.certificate))
    request = b"%b.%b" % (spec.encode(), poem)
    with (
        socket.create_connection(("127.0.0.1", cluster.netstrings), PATIENCE_S, (address, 0)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"%d:%b," % (len(request), request))
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def rolling_restart(cluster: Cluster, note: Callable[[str], object] = lambda *_: None) -> None:
    """End each server with SIGTERM and start it again, one after the other, as an upgrade does."""
    for name, node in cluster.nodes.items():
        note(f"SIGTERM to {name}")
        node.process.send_signal(signal.SIGTERM)
        cluster.wait_for(**{name: "DRAIN"})
        note(f"{name} has ended with status {node.process.wait(PATIENCE_S)}")
        node.start()
        node.ready()
        cluster.wait_for(**{name: "UP"})
        note(f"{name} is back")
