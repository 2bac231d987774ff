"""The works that plugins are for: the same library behind xformd and behind what people would put it behind instead.

Each measurement has fresh servers, since what hangs in a peer stays there. It loads one as usual; then again, with one
request in a hundred that hangs. Those have connections of their own and nobody waits for them, so that what the good
ones lose is the server's doing.
"""

import base64
import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks import servers, traffic
from benchmarks.answers import WrongAnswer
from benchmarks.kernel import process_tree
from benchmarks.load import Address, Connection, Generator, generator, open_connection
from benchmarks.peers.hang import HANG
from benchmarks.plan import Plan, interleave
from benchmarks.samples import STEADY_COLUMNS, Column, Figures, Result, Row
from benchmarks.servers import ROOT, Server
from benchmarks.traffic import Traffic
from benchmarks.works import measure_load

OURS = "xformd"
CPUS = os.cpu_count() or 1
_GOOD_FOR_EACH = 99
_ROUNDS = 5
_MOST_LEADS = 5
_WHOLE_S = 0.5  # whoever asks for less than that wants a smoke run
_WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}  # a process cannot be forked with them
_PHOTO = (1024, 768)
_CONTENT_BYTES = 2_048
_FILES = ("xformd/*.py", "docs/*.md", "docs/*.yml", "xformd/http/page/*", "benchmarks/pictures/*", "benchmarks/*.json")
_SOURCE = '''"""Numbers of verse NUMBER."""
import os,sys
def longest(verses,least = 10):
    found={ 'NUMBER':[], "none" : None }
    for verse in verses :
        if len(verse.words())>least and verse.author is not None:
            found['NUMBER'].append((verse.number,len(verse.words()),verse.title.upper() , os.linesep))
    return sorted(found ['NUMBER'],key=lambda each:(-each[1],each[0]))
'''
_FASTAPI = ("fastapi", "uvicorn", "uvloop", "httptools")

Pairs = Sequence[tuple[bytes, bytes]]
"""Poems, all of one size, and their results."""


@attrs.frozen
class Side:
    """A server, where it takes poems, and what a request's body and its reply's look like there."""

    server: Server
    path: str
    media_type: str
    ask: Callable[[bytes], bytes] = bytes
    answer: Callable[[bytes], bytes] = bytes

    def traffic(self, pairs: Pairs) -> Traffic:
        """Return what is sent, and what must come back."""
        requests = tuple(self.request(poem) for poem, _ in pairs)
        return Traffic(b"", False, requests, tuple(self.answer(result) for _, result in pairs), is_http=True)

    def request(self, poem: bytes) -> bytes:
        """Return a whole request."""
        body = self.ask(poem)
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {self.media_type}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class WithHangs(Generator):
    """A load of one request at a time on each connection, in which one in a hundred is another one, which hangs."""

    def __init__(self, address: Address, traffic: Traffic, connections: int, hanging: bytes) -> None:
        super().__init__(address, traffic, connections, 1)
        self._address, self._traffic, self._hanging = address, traffic, hanging
        self.hung: list[socket.socket] = []
        self.answered = self.failed = 0

    def run_for(self, seconds: float) -> None:
        """Load the server for some time; what it has not answered then stays in flight."""
        until = time.perf_counter() + seconds
        for each in self._connections:
            self._fill(each)
        while (left_s := until - time.perf_counter()) > 0:
            for descriptor, event in self._poll.poll(left_s):
                each = self._by_descriptor[descriptor]
                if event & select.EPOLLOUT:
                    self._send(each)
                if event & ~select.EPOLLOUT:
                    self._receive(each)

    def _receive(self, each: Connection) -> None:
        try:
            if not each.receive():
                return
        except (WrongAnswer, ConnectionError):  # a good request that the server gave up for a bad one
            self.failed += 1
            self._replace(each)
            return
        self.answered += 1
        self._fill(each)
        if self.answered % _GOOD_FOR_EACH == 0:
            self.hung.append(open_connection(self._address, self._traffic))
            self.hung[-1].sendall(self._hanging)

    def _replace(self, each: Connection) -> None:
        del self._by_descriptor[each.socket.fileno()]
        each.socket.close()
        new = Connection(self._address, self._traffic, 1)
        self._connections[self._connections.index(each)] = self._by_descriptor[new.socket.fileno()] = new
        self._poll.register(new.socket, select.EPOLLIN)
        self._fill(new)

    def close(self) -> None:
        """Close all connections."""
        super().close()
        for each in self.hung:
            each.close()


@attrs.frozen(kw_only=True)
class RealWork:
    """One kind of work.

    Attributes:
        key: what it is called.
        title: what is done.
        plugin: the module among the peers that ours loads.
        needs: what must be installed.
        path: where ours takes poems.
        media_type: of a request's body.
        peers: what is measured beside ours.
        pairs: makes poems and results, with the library itself.
        connections: how many there are, with a request in flight on each.
        hang: a poem that hangs.
        least_s: how long to measure, at least.
        beside: another server that all of them ask.
        columns: of the table.
    """

    key: str
    title: str
    plugin: str
    needs: tuple[str, ...]
    path: str
    media_type: str
    peers: tuple[Side, ...]
    pairs: Callable[[], Pairs]
    connections: int
    hang: bytes = HANG
    least_s: float = 2.0
    beside: Server | None = None
    columns: tuple[Column, ...] = (
        *STEADY_COLUMNS[:-1],
        Column("hung_per_s", "requests/s, 1 in 100 hangs", ",.0f"),
        Column("kept", "kept", ".0%", has_range=True),
        Column("failed", "failed of 1,000", ".1f"),
    )

    @property
    def names(self) -> list[str]:
        """The servers, ours first."""
        return [OURS, *(side.server.name for side in self.peers)]

    def run(self, plan: Plan) -> Result:
        """Measure it. Nothing is pinned: each side has a process for each CPU."""
        ours = servers.ours_over_http(OURS, "--plugins", self.plugin, *servers.FOR_EVER)
        sides = dict(zip(self.names, (Side(ours, self.path, self.media_type), *self.peers), strict=True))
        with self._environ() as environ:
            known = {name: attrs.evolve(side.server, environ=environ, needs=self.needs) for name, side in sides.items()}
            own = attrs.evolve(plan, server_cpu=None, servers=known)
            rows = own.rows(sides)
            measures = {name: functools.partial(self._measure, sides[name], row, own) for name, row in rows.items()}
            interleave(rows, measures, min(_ROUNDS, plan.rounds))
        return Result(self.key, self.title, self.columns, rows)

    @contextlib.contextmanager
    def _environ(self) -> Iterator[dict[str, str]]:
        """Install the plugin, start what all sides ask, and yield the variables that they need."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            servers.install(Path(folder), self.plugin)
            environ = servers.with_plugins_of(folder) | _WITHOUT_THREADS
            if self.beside is not None:
                started, _ = stack.enter_context(servers.running([self.beside], None))
                for each in started:
                    environ["BENCH_API"] = "http://{}:{}".format(*each.address)
            yield environ

    def _measure(self, side: Side, row: Row, plan: Plan) -> Figures:
        seconds = max(self.least_s, plan.seconds) if plan.seconds >= _WHOLE_S else plan.seconds
        longer = attrs.evolve(plan, seconds=seconds, warm_up_s=seconds / 2)
        messages = side.traffic(_pairs(self.pairs))
        with plan.running({row.name: row}) as started:
            if not started:
                raise RuntimeError(row.error)
            address, pid = started[0].address, started[0].pid
            try:
                with generator(address, messages, self.connections, 1) as opened:
                    figures = measure_load(opened, pid, longer)
                hanging = WithHangs(address, messages, self.connections, side.request(self.hang))
                with contextlib.closing(hanging):
                    return figures | _beside_hangs(hanging, seconds, figures["per_s"])
            finally:
                if side.server.name != OURS:  # whose processes would hang on
                    _end(process_tree(pid)[1:])


def _beside_hangs(load: WithHangs, seconds: float, usual_per_s: float) -> Figures:
    for _ in range(_MOST_LEADS):  # until what hangs has had every process
        load.run_for(seconds)
        if len(load.hung) >= 2 * CPUS:
            break
    answered, failed = load.answered, load.failed
    load.run_for(seconds)
    answered, failed = load.answered - answered, load.failed - failed
    return {
        "hung_per_s": answered / seconds,
        "kept": answered / seconds / usual_per_s,
        "failed": 1_000 * failed / max(1, answered + failed),
    }


_pairs = functools.cache(lambda make: make())


def _end(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _sources() -> Pairs:
    from benchmarks.peers.format_python import format_python

    sources = [_SOURCE.replace("NUMBER", str(number)) for number in range(100, 164)]
    return [(source.encode(), format_python(source).encode()) for source in sources]


def _photos() -> Pairs:
    """Make photos of 1024 x 768, as far as noise and a gradient make one; what follows a JPEG's end is ignored."""
    from PIL import Image

    from benchmarks.peers.thumbnail import make_thumbnail

    photos = []
    for number in range(8):
        bands = [Image.effect_noise(_PHOTO, 20 + 5 * number), *[Image.radial_gradient("L").resize(_PHOTO)] * 2]
        written = io.BytesIO()
        Image.merge("RGB", bands).save(written, "JPEG", quality=85)
        photos.append(written.getvalue())
    size = max(map(len, photos))
    return [(photo.ljust(size, b"\0"), make_thumbnail(photo)) for photo in photos]


def _contents() -> Pairs:
    """Take the beginnings of this checkout's files, in several languages and formats."""
    from benchmarks.peers.content_type import identify

    paths = [path for pattern in _FILES for path in sorted(ROOT.glob(pattern))[:16]]
    contents = [path.read_bytes()[:_CONTENT_BYTES] for path in paths if path.stat().st_size >= _CONTENT_BYTES]
    return list(zip(contents, map(str.encode, identify(contents)), strict=True))


def _to_json(content: bytes) -> bytes:
    return json.dumps({"content": base64.b64encode(content).decode()}).encode()


def _from_json(label: bytes) -> bytes:
    return json.dumps({"label": label.decode()}, separators=(",", ":")).encode()


def _peer(name: str, module: str, *arguments: str) -> Server:
    return Server(name, servers.peer(module, *arguments), None)


REAL_WORKS = (
    RealWork(
        key="black",
        title="Black: files of 370 bytes, 8 connections with 1 request in flight",
        plugin="format_python",
        needs=("black", "aiohttp"),
        path="/transform/format-python",
        media_type="text/x-python",
        peers=(Side(_peer("blackd", "on_blackd"), "/", "text/x-python"),),
        pairs=_sources,
        connections=8,
        hang=b"a[1] = " * 150 + b"1\n",  # takes Black minutes
    ),
    RealWork(
        key="thumbnail",
        title="Pillow: thumbnails of photos of 1024 x 768, 8 connections with 1 request in flight",
        plugin="thumbnail",
        needs=("PIL", *_FASTAPI),
        path="/transform/thumbnail",
        media_type="image/jpeg",
        peers=(Side(_peer("fastapi-pool", "fastapi_thumbnail"), "/thumbnail", "image/jpeg"),),
        pairs=_photos,
        connections=8,
    ),
    RealWork(
        key="magika",
        title="magika: what files are, in batches of up to 32, 64 connections with 1 request in flight",
        plugin="content_type",
        needs=("magika", "litserve"),
        path="/transform/content-type",
        media_type="application/octet-stream",
        peers=(Side(_peer("litserve", "on_litserve"), "/predict", "application/json", _to_json, _from_json),),
        pairs=_contents,
        connections=64,
        least_s=4.0,
    ),
    RealWork(
        key="api",
        title="an API that takes 50 ms, asked with httpx on asyncio, 40 connections with 1 request in flight",
        plugin="ask_api",
        needs=("httpx", *_FASTAPI),
        path="/transform/ask-api",
        media_type="text/plain",
        peers=(
            Side(_peer("fastapi-1", "fastapi_api"), "/ask-api", "text/plain"),
            Side(_peer("fastapi-per-cpu", "fastapi_api", "--process-per-cpu"), "/ask-api", "text/plain"),
        ),
        pairs=lambda: [(poem, traffic.cummingsify(poem)) for poem in traffic.poems(600, 1)],
        connections=40,
        least_s=4.0,
        beside=_peer("api", "slow_api"),
    ),
)
