"""A request of a client: which server gets it, what may be sent again, when a second server is asked too.

Written once for every runtime, as ``client/servers.py`` is. Invariant: a request is sent again only if the server is
known not to have run it, or if it may run twice because its transforms are deterministic.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from xformd import spec as specs
from xformd.client.balancer import ANYTHING, Kind, kind_of, offers_of, workers_of
from xformd.client.servers import Address, NotInTime, Server, Servers
from xformd.errors import (
    Cancelled,
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    GibberishError,
    InternalError,
    NoSuchTransform,
    RequestRefused,
    ShuttingDown,
    XformError,
    one_line,
)
from xformd.spec import OptionValue, Spec
from xformd.wire.client import ClassicExchange, ClientSession, NotSent, Pending
from xformd.wire.session import Control, decode_listing, read_traceparent

PATIENCE_S = 0.5  # how long a request waits for a connection to be made while there are other servers to try
LOOK_AGAIN_S = 0.25  # whether a server has room: one that has confirmed that a request is cancelled does not say so
LIST_TIMEOUT_S, LIST_GAP_S = 5.0, 1.0
MAX_REPEATS = 2  # of a request that may have run: it may be what its servers died of; and of one to a single server

Text = TypeVar("Text", str, bytes)


class Request(NamedTuple):
    """A poem to be transformed, for a ``client`` of this program, by a time."""

    spec: Spec
    poem: bytes
    ends_at: float | None
    client: str | None = None
    traceparent: str | None = None
    on_version: Callable[[str | None], None] | None = None

    def send(self, core: ClientSession, waiter: Any, now: float) -> Pending:
        """Send it on a session."""
        return core.request(waiter, now, *self)


class Question:
    """A control message; once it is sent, it knows the ``server``'s name and version."""

    spec = Spec(())
    client = None
    server = ""

    def __init__(self, control: Control) -> None:
        self._control = control

    def send(self, core: ClientSession, waiter: Any, now: float) -> Pending:
        """Send it on a session."""
        self.server = core.hello.server if core.hello else ""
        return core.control(waiter, now, self._control)


class Attempts:
    """Which servers a request was sent to, and whether it may be sent once more."""

    tries = repeats = 0
    may_reconnect = False

    def __init__(self, may_run_twice: bool | None, kind: Kind | None = None, tried: list[Any] | None = None) -> None:
        self.may_run_twice, self.kind = may_run_twice, kind
        self.tried: list[Any] = [] if tried is None else tried


class Client(Servers):
    """What every client does with a request."""

    def __init__(self, *arguments: Any, hedge: bool) -> None:
        super().__init__(*arguments)
        self._hedge = hedge
        self._turns: dict[str | None, dict[Any, None]] = {}  # who wait until a server has room, by client
        self._accepted: set[object] = set()  # requests that have not ended: closing waits for them
        self._all_ended: Any = None

    async def _xform(
        self,
        transform: str,
        poem: str | bytes,
        timeout: float | None,
        traceparent: str | None,
        result: type[Any] | None,
        hedge: bool | None,
        options: dict[str, OptionValue | None],
    ) -> Any:
        ends_at = self._end(timeout)
        try:
            trace = read_traceparent((traceparent or current_traceparent()).encode())
            request = Request(specs.build(transform, options), to_bytes(poem), ends_at, None, trace)
            return in_type(await self._send(request, None, hedge), poem, result)
        except XformError as error:
            error.poem = poem
            raise

    async def _list(self, timeout: float | None) -> dict[str, Any]:
        return decode_listing((await self._control("list", timeout))[1])

    async def _ping(self, timeout: float | None) -> str:
        server, answer = await self._control("ping", timeout)
        missing = one_line(answer.decode(errors="replace"))
        return f"{server}, {missing}" if missing else server

    async def _control(self, control: Control, timeout: float | None) -> tuple[str, bytes]:
        self._end(timeout)
        question = Question(control)
        answer = await self._send(question, may_run_twice=True, hedge=False)
        return question.server, answer

    async def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._accepted and self._all_ended is None:
                self._all_ended = self._waiter()
        try:
            if self._all_ended is not None:
                await self._wait(self._all_ended, None)
        finally:  # also if who closes waits no longer
            links = self._cut_off()
        for link in links:
            await self._wait(link.closed, None)

    def _forget_connections(self) -> None:
        super()._forget_connections()
        self._turns.clear()
        self._accepted.clear()
        self._all_ended = None

    def _end(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        return self._now() + timeout

    async def _send(self, request: Request | Question, may_run_twice: bool | None, hedge: bool | None) -> bytes:
        with self._lock:
            if self._is_closed:
                raise self._closed()
            self._accepted.add(this := object())
        try:
            if isinstance(request, Question) or len(self._balancer.nodes) <= 1:
                return await self._try_servers(Attempts(may_run_twice), request)
            kind = kind_of(request.spec, len(request.poem))
            if self._hedge if hedge is None else hedge:
                if may_run_twice is None:
                    may_run_twice = self._balancer.may_run_twice(request.spec)
                after_s = self._balancer.hedge_after_s(kind) if may_run_twice else None
                if after_s is not None:
                    return await self._send_to_two(request, kind, after_s)
            return await self._try_servers(Attempts(may_run_twice, kind), request)
        finally:
            with self._lock:
                self._accepted.discard(this)
                all_ended = None if self._accepted else self._all_ended
            if all_ended is not None:
                self._settle(all_ended, None)

    async def _send_to_two(self, request: Request, kind: Kind, after_s: float) -> bytes:
        """Send a request once more if there is no answer after some time. The first answer counts."""
        tried: list[Any] = []
        answer = self._waiter()
        calls: list[Any] = []
        running: list[int] = []

        async def call(number: int) -> None:
            outcome: Any
            try:
                outcome = await self._try_servers(Attempts(True, kind, tried), request)
            except Exception as error:
                outcome = error
            running.remove(number)
            if not (running and isinstance(outcome, Exception)):
                self._settle(answer, outcome)

        def start() -> None:
            running.append(number := len(calls))
            calls.append(self._start(call(number)))

        try:
            start()
            with contextlib.suppress(NotInTime):
                return await self._wait(answer, after_s)  # type: ignore[no-any-return]
            with self._lock:
                is_second = any(node not in tried for node in self._nodes()) and self._balancer.may_hedge()
            if is_second:
                start()
            return await self._wait(answer, None)  # type: ignore[no-any-return]
        except GeneratorExit:  # the program ends
            running.clear()
            raise
        finally:
            for number in [*running]:
                calls[number].cancel()

    async def _try_servers(self, attempts: Attempts, request: Request | Question) -> bytes:
        while True:
            if attempts.kind is not None:
                await self._wait_for_room(request, attempts.kind)
            node, others = self._choose(request.spec, attempts.tried)
            attempts.tried += node, node.server
            sent_at = self._now()
            try:
                if isinstance(node, Server):
                    node = await self._open(node, PATIENCE_S if others else None)
                    attempts.tried.append(node)
                asking = self._ask_classic(node, request) if node is node.server else node.link.ask(request)
                answer: bytes = await asking
            except BaseException as error:
                if not isinstance(error, GeneratorExit):  # which comes with the end of the program
                    self._note(node, attempts.kind, sent_at, error)
                await self._go_on_after(error, attempts, request.spec, node, others)
            else:
                self._note(node, attempts.kind, sent_at, None)
                return answer

    async def _ask_classic(self, server: Server, request: Request | Question) -> bytes:
        if isinstance(request, Question):
            only = f"{server.address} speaks only the classic dialect: it transforms poems and nothing else"
            raise RequestRefused(only)
        with self._lock:
            server.classic_requests += 1
        try:
            exchange = ClassicExchange(server.address, request.spec, request.poem, self._max_result_bytes)
            link = await self._dial(server, exchange, ())
            return bytes(await link.opening(None))
        except ConnectionFailed as error:
            server.classic_until = 0.0  # the server that comes back may be a newer one
            self._note_failure(server)
            raise NotSent(error) from error
        finally:
            with self._lock:
                server.classic_requests -= 1

    def _note(self, node: Address | Server, kind: Kind | None, sent_at: float, error: BaseException | None) -> None:
        if kind is None:
            node.is_probed = False  # this says nothing of how the server transforms
        elif isinstance(node, Address):
            if isinstance(error, NotSent):
                error = error.error
            elif error is not None and not isinstance(error, XformError):
                error = Cancelled("")  # given up
            with self._lock:
                self._balancer.note(node, kind, self._now() - sent_at, error)
        if self._turns:
            self._let_one_in()

    async def _go_on_after(self, error: BaseException, attempts: Attempts, spec: Spec, node: Any, others: int) -> None:
        """Return if the request may be sent again; otherwise raise what its caller gets."""
        attempts.tries += 1
        if isinstance(error, NotInTime):
            node.server.is_slow = attempts.may_reconnect = True
        elif isinstance(error, NotSent):
            attempts.may_reconnect |= error.may_reconnect
            most = max(MAX_REPEATS, len(self._servers), len(self._balancer.nodes))
            if not (others or (attempts.may_reconnect and attempts.tries <= most)):
                raise error.error from error.error.__cause__
        elif isinstance(error, NoSuchTransform) and others and self._others_may_have(spec, attempts.tried):
            pass
        elif isinstance(error, RequestRefused) or not isinstance(error, ConnectionLost | ShuttingDown | InternalError):
            raise error
        elif await self._may_repeat(attempts, spec, node, error) and (others or not isinstance(error, InternalError)):
            attempts.repeats += 1
        else:
            if isinstance(error, ConnectionLost):
                error.message = f"{error.message}; the request may have run: repeat it only if that is harmless"
                error.log_message = error.message
                error.args = (error.message,)
            raise error

    async def _may_repeat(self, attempts: Attempts, spec: Spec, node: Any, error: Exception) -> bool:
        if attempts.may_run_twice is None:
            if isinstance(error, ConnectionLost):
                await self._learn_anew(node.server)
            attempts.may_run_twice = self._balancer.may_run_twice(spec)
        return attempts.may_run_twice and attempts.repeats < MAX_REPEATS

    # Which server.

    def _choose(self, spec: Spec, tried: Sequence[Any]) -> tuple[Any, int]:
        """Return the server for a request, and how many others are left to be tried: addresses, or whole servers."""
        with self._lock:
            if self._is_cut_off:
                raise self._closed()
            if len(self._servers) == 1 and len(nodes := self._nodes_of(only := self._servers[0])) <= 1:
                return (nodes[0] if nodes else only), 0
            return self._choose_among(spec, tried)

    def _choose_among(self, spec: Spec, tried: Sequence[Any]) -> tuple[Any, int]:
        ready: list[Any] = []
        closed: list[Server] = []
        for server in self._servers:
            ready += (found := self._nodes_of(server))
            if not found:
                closed.append(server)
        doors = [server for server in closed if server.rests_until <= self._now()]
        untried = [node for node in ([*ready, *doors] if ready else closed) if node not in tried]
        others = max(0, len(untried) - 1)
        if len(ready) > 1:
            for node in ready:
                self._ask_what_it_offers(node)
        if ready and (not untried or any(node in ready for node in untried)):
            for server in doors:
                self._reach(server)  # without making a request wait: it may accept and never answer
            return self._balancer.choose(ready, spec, tried), others
        return self._choose_closed(untried or closed, doors, spec), others

    def _choose_closed(self, closed: Sequence[Server], doors: Sequence[Server], spec: Spec) -> Server:
        """Return the server to open a session to, of those that no request has one to."""
        pool = [server for server in closed if server in doors]
        if not pool:
            return min(closed, key=lambda server: server.rests_until)
        hopeful = [server for server in pool if not server.is_failing]
        for server in pool if hopeful else ():
            if server.is_failing:
                self._reach(server)
        return self._balancer.choose(hopeful or pool, spec)

    def _others_may_have(self, spec: Spec, tried: Sequence[Any]) -> bool:
        """Whether the server that does not have a transform is not the only one; all are asked anew what they have."""
        with self._lock:
            nodes: list[Any] = [node for server in self._servers for node in self._nodes_of(server) or [server]]
            for node in nodes:
                self._ask_what_it_offers(node, anew=True)
            return any(node not in tried and not node.lacks(spec) for node in nodes)

    def _ask_what_it_offers(self, node: Address | Server, *, anew: bool = False) -> None:
        """Ask for its list of transforms, once on each session, or ``anew`` if the last answer may be out of date."""
        if isinstance(node, Server):  # without a session: it may have anything
            node.offers = ANYTHING
        elif (told := node.server.told) is not None:
            node.offers, node.workers = told, node.server.workers
        elif (node.asked_at is None or (anew and node.asked_at + LIST_GAP_S <= self._now())) and node.link.is_open:
            node.asked_at = self._now()
            self._start(self._learn(node))

    async def _learn_anew(self, server: Server) -> None:
        """Ask what has taken the place of a server that is lost what may run twice, if no server has said so yet."""
        if any(node.offers for node in self._balancer.nodes):
            return
        with contextlib.suppress(NotInTime, NotSent, XformError):
            node = await self._open(server, PATIENCE_S)
            if isinstance(node, Address):
                await self._learn(node, PATIENCE_S)

    async def _learn(self, address: Address, within_s: float = LIST_TIMEOUT_S) -> None:
        link = address.link
        try:
            listing = decode_listing(await self._within(within_s, link.ask(Question("list"))))
            address.offers, address.workers = offers_of(listing), workers_of(listing)
        except Exception:
            if link.is_open:
                address.offers = ANYTHING

    # Whose turn it is, where all servers are busy.

    async def _wait_for_room(self, request: Request | Question, kind: Kind) -> None:
        """Wait until a server could begin with the request. The clients take turns."""
        while True:
            with self._lock:
                if self._balancer.has_room(self._nodes(), request.spec, kind):
                    return
                turns = self._turns.setdefault(request.client, {})
                turns[turn := self._waiter()] = None
            try:
                await self._wait(turn, LOOK_AGAIN_S)
            except NotInTime:
                pass
            finally:
                self._leave(request.client, turn)

    def _leave(self, client: str | None, turn: Any) -> None:
        with self._lock:
            turns = self._turns.get(client, {})
            turns.pop(turn, None)
            if not turns:
                self._turns.pop(client, None)

    def _let_one_in(self) -> None:
        with self._lock:
            if not self._turns:
                return
            client = next(iter(self._turns))
            turns = self._turns.pop(client)
            turn = next(iter(turns))
            del turns[turn]
            if turns:
                self._turns[client] = turns  # behind the others
        self._settle(turn, None)


def addresses_of(servers: object, port: object) -> list[Any]:
    """Return the addresses of one server, which may have a port, or of several; raise ``ConfigError``."""
    if isinstance(port, str) and not port.isdecimal():
        raise ConfigError(f"port {port!r} is no number; several servers are a list: [{servers!r}, {port!r}]")
    if port is not None:
        return [f"[{servers}]:{port}" if ":" in str(servers) else f"{servers}:{port}"]
    return [*servers] if isinstance(servers, list | tuple) else [servers]


def current_traceparent() -> str:
    """Return that of the current span, if this program uses OpenTelemetry and there is one."""
    if (trace := sys.modules.get("opentelemetry.trace")) is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def to_bytes(poem: object) -> bytes:
    """Return a poem as it is sent."""
    if isinstance(poem, bytes | bytearray | memoryview):
        return bytes(poem)
    if not isinstance(poem, str):
        raise TypeError(f"a poem must be str or bytes, not {type(poem).__name__}")
    try:
        return poem.encode()
    except UnicodeEncodeError:
        raise GibberishError("the poem contains a lone surrogate: it cannot be sent as UTF-8") from None


def in_type(answer: bytes, poem: Any, result: type[Any] | None = None) -> Any:
    """Return a result as ``str`` or ``bytes``: of the type that is asked for, or else of the poem's."""
    if not issubclass(result or type(poem), str):
        return answer
    try:
        return answer.decode()
    except UnicodeDecodeError:
        raise GibberishError("the result is not UTF-8: send the poem as bytes to get bytes", poem=poem) from None
