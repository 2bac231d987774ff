"""A small client of sessions, by hand: the tests do not use the code that they test."""

import itertools
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import quote

import attrs

from support.processes import DEADLINE_S, Server, netstring

OPENING = netstring(b"xformd/2")


@attrs.frozen
class Answer:
    """An answer, or with id 0 an error of the connection; it came ``at`` a time of the monotonic clock."""

    id: int
    code: str
    attributes: Mapping[str, str]
    poem: bytes
    at: float
    elapsed_s: float


def step(name: str, **options: object) -> str:
    given = ",".join(f"{key}={quote(str(value), safe='').replace('.', '%2E')}" for key, value in options.items())
    return f"{name}:{given}" if given else name


def abort(connection: socket.socket) -> None:
    """Close a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Session:
    """A session, which never waits for longer than ``DEADLINE_S``."""

    def __init__(self, server: Server, source: str = "") -> None:
        self.socket = server.connect(source)
        self._ids = itertools.count(1)
        self._sent_at: dict[int, float] = {}
        self._pending = b""
        self._answers: deque[Answer] = deque()
        self.socket.sendall(OPENING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Reset the connection: after a plain close the server may think that its answers are still wanted."""
        abort(self.socket)

    def send(self, *requests: tuple[str, bytes], timeout_ms: int | None = None) -> list[int]:
        """Send requests in one write, a spec and a poem each; return their ids."""
        attribute = "" if timeout_ms is None else f" timeout={timeout_ms}"
        ids = [next(self._ids) for _ in requests]
        data = b"".join(
            netstring(f"{number} {spec}{attribute}.".encode() + poem)
            for number, (spec, poem) in zip(ids, requests, strict=True)
        )
        self._sent_at.update(dict.fromkeys(ids, time.monotonic()))
        self.socket.sendall(data)
        return ids

    def cancel(self, number: int) -> None:
        self.socket.sendall(netstring(f"{number} !cancel.".encode()))

    def receive(self, within_s: float = DEADLINE_S) -> Answer:
        """Return the next answer, to whatever request."""
        ends_at = time.monotonic() + within_s
        while not self._answers:
            ready, _, _ = select.select([self.socket], [], [], max(0.0, ends_at - time.monotonic()))
            assert ready, f"no answer within {within_s} s; {len(self._sent_at)} requests wait"
            self.read()
        return self._answers.popleft()

    def read(self) -> None:
        """Read what has come for ``receive``; raise ``ConnectionError`` if the server has closed the connection."""
        data = self.socket.recv(1_000_000)
        if not data:
            raise ConnectionError(f"the server closed; {len(self._sent_at)} requests wait")
        self._decode(data, time.monotonic())

    @property
    def waiting(self) -> int:
        return len(self._sent_at)

    def collect(self, ids: Iterable[int]) -> list[Answer]:
        """Return the answers to these requests in their order, and drop others."""
        wanted = list(ids)
        found: dict[int, Answer] = {}
        while not found.keys() >= set(wanted):
            answer = self.receive()
            found[answer.id] = answer
        return [found[number] for number in wanted]

    def ask(self, spec: str, poem: bytes = b"", *, timeout_ms: int | None = None) -> Answer:
        (answer,) = self.collect(self.send((spec, poem), timeout_ms=timeout_ms))
        return answer

    def _decode(self, data: bytes, now: float) -> None:
        pending, start = self._pending + data, 0
        while (colon := pending.find(b":", start)) > 0:
            end = colon + 1 + int(pending[start:colon])
            if len(pending) <= end:
                break
            self._read(pending[colon + 1 : end], now)
            start = end + 1
        self._pending = pending[start:]

    def _read(self, string: bytes, now: float) -> None:
        if string.startswith(b"xformd/2 "):
            return
        head, _, poem = string.partition(b".")
        number, code, *attributes = head.decode().split(" ")
        pairs = dict(attribute.split("=", 1) for attribute in attributes)
        elapsed_s = now - self._sent_at.pop(int(number), now)
        self._answers.append(Answer(int(number), code, pairs, poem, now, elapsed_s))


def read_all(sessions: Sequence[Session]) -> None:
    """Read on all sessions, whichever has something, until each request has its answer."""
    while waiting := {session.socket: session for session in sessions if session.waiting}:
        ready, _, _ = select.select(waiting, [], [], DEADLINE_S)
        assert ready, f"no answer within {DEADLINE_S} s"
        for readable in ready:
            waiting[readable].read()


class Load:
    """Good traffic beside what a test does, in a thread, with ``outstanding`` requests in flight.

    Attributes:
        codes: how many answers had each code; ``wrong`` are those that were ``ok`` with another poem.
        trouble: what ended the traffic too early.
    """

    def __init__(
        self,
        server: Server,
        spec: str,
        *,
        outstanding: int = 8,
        padding_bytes: int = 0,
        seen: Callable[[Answer], None] | None = None,
    ) -> None:
        self.codes: Counter[str] = Counter()
        self.trouble = ""
        self._padding = b"." * padding_bytes
        self._spec = spec
        self._outstanding = outstanding
        self._seen = seen
        self._is_stopping = threading.Event()
        self._session = Session(server)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join(2 * DEADLINE_S)
        assert not self._thread.is_alive()

    @property
    def total(self) -> int:
        return sum(self.codes.values())

    def _run(self) -> None:
        try:
            with self._session as session:
                poems = dict(self._send(session) for _ in range(self._outstanding))
                while poems:
                    answer = session.receive()
                    poem = poems.pop(answer.id)
                    if not self._is_stopping.is_set():
                        poems.update([self._send(session)])
                    self._account(answer, poem)
        except (AssertionError, OSError, KeyError) as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def _send(self, session: Session) -> tuple[int, bytes]:
        poem = f"poem {time.monotonic_ns()}{threading.get_ident()}.".encode() + self._padding
        return session.send((self._spec, poem))[0], poem

    def _account(self, answer: Answer, poem: bytes) -> None:
        is_wrong = answer.code == "ok" and not answer.poem.startswith(poem)
        self.codes["wrong" if is_wrong else answer.code] += 1
        if self._seen is not None:
            self._seen(answer)


def retry_after_s(answer: Answer) -> float:
    return int(answer.attributes["retry-after"]) / 1000
