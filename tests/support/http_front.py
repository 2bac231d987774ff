"""The HTTP front in memory: the real application and connections, no sockets, and a clock that the test moves."""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from support.deferreds import result_of
from support.memory import HERE, MemoryServer
from support.wires import Wire
from xformd import GibberishError, transform
from xformd.access.guard import Access, GuardedService
from xformd.counting import CountingService
from xformd.http.application import GuardedApplication, HttpDependencies, make_application
from xformd.http.connection import HttpFactory
from xformd.http.endpoints import HealthEndpoints
from xformd.http.forwarded import TrustedProxies
from xformd.http.requests import TransformRequest
from xformd.http.sites import Sites
from xformd.jobs.manager import JobManager
from xformd.telemetry.access_log import AccessLog
from xformd.telemetry.status import ServerStatus, WorkerHistory
from xformd.telemetry.tracing import NO_TRACES, Tracer

READ_BYTES = 65_536
"""What Twisted reads from a socket at a time."""

READY = ServerStatus(
    queue_length=0,
    max_queue=2,
    workers={"idle": 1},
    proven_workers=1,
    needs_workers=True,
    history=WorkerHistory(),
    quarantined=frozenset(),
    in_flight=3,
    fingerprint="3f9c",
)
"""The status of a server that is ready."""

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*")


@attrs.frozen
class Answer:
    """One answer; the names of its headers are in lower case, and the body is without its framing."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The body of an error."""
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)


def answers(data: bytes, *, to_head: bool = False) -> list[Answer]:
    """Parse complete answers; the last one has no body if it is to a HEAD."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half a head: {head!r}"
        first, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        assert match, f"no status line: {first!r}"
        headers = {name.lower(): value for name, _, value in (line.decode().partition(": ") for line in lines)}
        status = int(match[1])
        body, data = (b"", data) if status in (100, 204, 304) or (to_head and not data) else _body(headers, data)
        found.append(Answer(status, headers, body))
    return found


def _body(headers: Mapping[str, str], data: bytes) -> tuple[bytes, bytes]:
    if headers.get("transfer-encoding") != "chunked":
        if "content-length" not in headers:  # it ends with the connection
            assert headers["connection"] == "close"
            return data, b""
        length = int(headers["content-length"])
        assert len(data) >= length, f"half a body: {data!r}"
        return data[:length], data[length:]
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            return body, data


@attrs.frozen
class Case:
    """A raw request of ``data/http.toml``."""

    name: str
    send: bytes
    status: list[int]
    stays_open: bool
    body: bytes | None


def _case(name: str, send: Any, status: list[int], stays_open: bool, times: int = 1, body: str | None = None) -> Case:
    parts = send if isinstance(send, list) else [send]
    text = "".join(part if isinstance(part, str) else part["text"] * part["times"] for part in parts)
    return Case(name, text.encode("latin-1"), status * times, stays_open, None if body is None else body.encode())


_TABLE = tomllib.loads((Path(__file__).parents[1] / "data" / "http.toml").read_text())
CASES = [_case(**each) for each in _TABLE["request"]]


@transform(inline=True, deterministic=True)
def upper(poem: str) -> str:
    return poem.upper()


@transform(inline=True, deterministic=True, produces="text/html")
def markup(poem: str) -> str:
    return f"<p>{poem}</p>"


@transform(inline=True, deterministic=True)
def wrap(poem: str, *, width: int = 10, fill: str = ".") -> str:
    return poem.ljust(width, fill)


@transform(inline=True, deterministic=True)
def repeat(poem: str, *, times: int) -> str:
    return poem * times


@transform(inline=True, deterministic=True)
def backwards(poem: bytes) -> bytes:
    return poem[::-1]


@transform(inline=True)
def picky(poem: str) -> str:
    raise GibberishError("this is no sonnet")


@transform(inline=True)
def raises(poem: str) -> str:
    raise ValueError("a verse too many")


TRANSFORMS = (upper, markup, wrap, repeat, backwards, picky, raises)


class Client:
    """A client of the front, on one connection."""

    def __init__(self, front: "Front", peer: IAddress = HERE) -> None:
        self._clock = front.clock
        self.wire = Wire()
        self.wire.max_held_bytes = sys.maxsize  # the client reads
        self.protocol: Any = front.factory.buildProtocol(peer)
        assert self.protocol is not None
        self.wire.peerAddr = peer
        self.protocol.makeConnection(self.wire)

    @property
    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self.wire.write_closed or self.wire.disconnecting or self.wire.disconnected

    def send(self, data: bytes, step: int = READ_BYTES) -> None:
        """Send data in steps of some bytes, while the server reads; then let it work."""
        for start in range(0, len(data), step):
            if self.wire.producerState != "producing":
                self.settle()
            self.protocol.dataReceived(data[start : start + step])
        self.settle()

    def settle(self) -> None:
        """Let the server work until it has nothing left to do now."""
        while any(call.getTime() <= self._clock.seconds() for call in self._clock.getDelayedCalls()):
            self._clock.advance(0)

    def received(self, *, to_head: bool = False) -> list[Answer]:
        """Return the answers so far, and forget them."""
        found = answers(self.wire.value(), to_head=to_head)
        self.wire.clear()
        return found

    def ask(self, data: bytes) -> list[Answer]:
        """Send data, and return the answers."""
        self.send(data)
        return self.received()

    def stop_reading(self) -> None:
        """Let the next write fill the connection."""
        self.wire.max_held_bytes = 0

    def leave(self) -> None:
        """Disconnect, and let the server work."""
        self.protocol.connectionLost(Failure(ConnectionResetError()))
        self.settle()


class Front(MemoryServer):
    """A server that answers HTTP, with a few transforms, and ``later``, whose results the test decides.

    Args:
        make: makes the application.
        origins: that may call it from a browser.
        host_names: of the server; any, unless the test says which.
        health: its endpoints for health checks.
        access_log: gets a line for each request.
        trusted_proxies: whose headers it believes.
        jobs_dir: where it keeps jobs, on ``node-1``; it has none if None.
        disk: runs what reads and writes them; at once, unless the test says how.
        access: who may do what; everybody may do everything if None.
        tracer: says which requests are traced.
        more: for ``MemoryServer``.
    """

    def __init__(
        self,
        *,
        make: Callable[[HttpDependencies], Any] = make_application,
        origins: Iterable[str] = (),
        host_names: Iterable[str] = ("*",),
        health: HealthEndpoints | None = None,
        access_log: AccessLog | None = None,
        trusted_proxies: Iterable[str] = (),
        jobs_dir: Path | None = None,
        disk: Callable[..., Deferred[Any]] = maybeDeferred,
        access: Access | None = None,
        tracer: Tracer = NO_TRACES,
        **more: Any,
    ) -> None:
        super().__init__(transforms=TRANSFORMS, **more)
        self._disk = disk
        dependencies = HttpDependencies(
            service=self.service,
            metrics=self.metrics,
            health=health or HealthEndpoints(lambda: READY, lambda: False),
            render_metrics=lambda names_shares=False: b"xformd_in_flight 0\n" + names_shares * b"by share\n",
            sites=Sites([*host_names], [*origins], is_behind_proxy=bool(trusted_proxies)),
            access_log=access_log,
            tracer=tracer,
            jobs=None if jobs_dir is None else self._make_jobs(jobs_dir, access),
        )
        self.application: Any = make(dependencies) if access is None else GuardedApplication(access, dependencies, make)
        proxies = TrustedProxies([*trusted_proxies])
        self.factory = HttpFactory(self.application, self.metrics, self.service, self.limits, self.clock, proxies)

    def _make_jobs(self, folder: Path, access: Access | None) -> JobManager:
        def service_of(owner: str) -> CountingService:
            grant = None if access is None else access.by_name(owner)
            return CountingService(
                self.service if grant is None else GuardedService(self.service, grant), self.metrics, "http"
            )

        self.jobs = JobManager(
            folder, "node-1", self.service, service_of, TransformRequest.headers_of, self.clock, self._disk
        )
        result_of(Deferred.fromCoroutine(self.jobs.open()))
        self.jobs.resume()
        return self.jobs

    def open(self, peer: IAddress = HERE) -> Client:
        """Open a connection."""
        return Client(self, peer)

    def client(self, sends: bytes) -> Client:
        """Open a connection, and send data on it."""
        client = self.open()
        client.send(sends)
        return client

    def ask(self, data: bytes, *, to_head: bool = False) -> Answer:
        """Send a request on a new connection, and return its answer."""
        (answer,) = (self.client(data)).received(to_head=to_head)
        return answer

    def finish(self, number: int, client: Client, result: str = "late") -> None:
        """Let the ``later`` with this number return, and the server work."""
        self.results[number].callback(result)
        client.settle()

    def advance(self, seconds: float, client: Client) -> None:
        """Let time pass, and the server work."""
        self.clock.advance(seconds)
        client.settle()


def connected(sends: bytes, **settings: Any) -> tuple[Front, Client]:
    """Make a server, and a client that has sent it data."""
    front = Front(**settings)
    return front, front.client(sends)


def ask(data: bytes, *, to_head: bool = False) -> Answer:
    """Send a request to a new server, and return its answer."""
    return Front().ask(data, to_head=to_head)


def request(target: str, body: bytes | None = None, *, method: str | None = None, **headers: str | None) -> bytes:
    """Build a request: a POST if there is a body; in the names of headers ``_`` is ``-``, and None omits a header."""
    given: dict[str, str | None] = {"host": "a"}
    if body is not None:
        given["content-length"] = str(len(body))
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
