"""CachingTransformService: a ``Service`` that answers from its cache, or asks one of the servers behind it; its server.

Invariant: a cached result is returned only for the same poem, the same spec and the same version of each plugin, as the
upstream says itself that made it; a cache that fails never fails a request.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from cachetools import LRUCache
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.access.guard import Access, GuardedService
from xformd.cache import ReadThrough
from xformd.client import TransformProxy
from xformd.config import Settings
from xformd.counting import FinishingService
from xformd.errors import (
    BadFrame,
    Busy,
    InternalError,
    NoSuchTransform,
    RequestRefused,
    ShuttingDown,
    TransformFailed,
    TransformTimeout,
    Unauthorized,
    Unavailable,
    XformError,
)
from xformd.limits import MIB, Limits
from xformd.net.deadline import within
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.net.tls import ServerTls
from xformd.net.turns import Turns
from xformd.net.write_buffer import PART_BYTES
from xformd.protocol import TransformFactory
from xformd.proxy.catalog import LONGEST_DELAY_S, Catalog, CatalogPoller
from xformd.runners import PROGRAM, Caller, Reader
from xformd.runners.generation import RequestsInFlight
from xformd.runners.shares import FairQueue
from xformd.spec import Spec, SpecCache
from xformd.telemetry import logs
from xformd.telemetry.metrics import OK
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracing import NO_TRACES, RequestTrace, Tracer, make_tracer

DEFAULT_CACHE_BYTES = 64 * MIB
DEFAULT_REFRESH_S = 10.0

ENTRY_BYTES = 1_024  # a result counts for this besides its bytes: a million short ones would take a gigabyte
LONG_POEM_BYTES = 8 * 1024  # a shorter poem is hashed about as fast as its digest is looked up
CLOSE_TIMEOUT_S = 1.0  # an upstream that does not answer must not keep the proxy from stopping

RETRY_AFTER_MS = 1_000


@attrs.define(eq=False)
class _PendingRequest:
    """A client's request that waits for its turn, or for the call to an upstream that answers it."""

    cancel: Callable[["_PendingRequest"], None]
    caller: Caller
    spec: Spec
    poem: bytes
    timing: RequestTiming | None
    ends_at: float | None = None  # by the clock, if the upstream should heed that
    key: bytes = b""  # of its result in the cache; empty if that is not kept
    size_bytes: int = attrs.field(init=False)
    answer: Deferred[bytes] = attrs.field(init=False)
    call: Deferred[bytes] | None = None
    is_admitted: bool = False
    is_of_listed_version: bool = False  # as the upstream says; classic ones never do

    def __attrs_post_init__(self) -> None:
        self.size_bytes = len(self.poem)
        self.answer = Deferred(lambda _: self.cancel(self))


class CachingTransformService:
    """Answers requests from its cache, or from other servers. Making it raises ``ConfigError`` for a bad address."""

    log = Logger()
    stopwatch = staticmethod(time.perf_counter)

    def __init__(
        self,
        upstreams: Sequence[str],  # in the forms that ``TransformProxy`` takes
        limits: Limits,
        reactor: Any,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        ttl_s: float = math.inf,  # how long a result is kept
        refresh_s: float = DEFAULT_REFRESH_S,  # how long after an answer to ask an upstream again what it has
        client: Mapping[str, Any] = MappingProxyType({}),  # more for it: how to be known to the upstreams
    ) -> None:
        self.max_result_bytes = limits.max_result_bytes
        self._limits = limits
        self._reactor = reactor
        self.turns = Turns(reactor)
        self._catalog, self._addresses = Catalog(), upstreams
        self._poller = CatalogPoller(
            upstreams, self._catalog, refresh_s=refresh_s, changed=self._forget_listings, reactor=reactor, client=client
        )
        # Clients learn what happened, but no upstream's address: it may be a path.
        self._upstreams = TransformProxy(
            upstreams,
            reactor=reactor,
            address="an upstream",
            max_result_bytes=limits.max_result_bytes,
            longest_delay_s=LONGEST_DELAY_S,
            **client,
        )
        digest_bytes = cache_bytes // 8
        self._digests: LRUCache[object, tuple[bytes, bytes]] = LRUCache(
            digest_bytes, getsizeof=lambda kept: len(kept[0])
        )
        self._results: ReadThrough[bytes, bytes] = ReadThrough(
            cache_bytes - digest_bytes, reactor, size_of=lambda result: len(result) + ENTRY_BYTES, ttl_s=ttl_s
        )
        self._key_prefixes: SpecCache[Spec, bytes | None] = SpecCache(self._make_key_prefix)
        self.on_swap: list[Callable[[], object]] = [self._key_prefixes.clear]
        self._in_flight = RequestsInFlight()
        self._max_running = limits.max_in_flight * len(upstreams)
        self._running = 0
        self._fetched_for: dict[bytes, str] = {}  # the share of the last call for a key, while that runs
        self._listed = self._listing = b""
        self._listing_ends_at = 0.0
        self._queue: FairQueue[_PendingRequest] = FairQueue(
            limits.max_queue, limits.max_queue_bytes, max_running=max(1, self._max_running * 3 // 4)
        )

    def set_limits(self, limits: Limits) -> None:
        """Hold to these limits of time and of the queue from now on."""
        self._limits, self._queue.max_jobs, self._queue.max_bytes = limits, limits.max_queue, limits.max_queue_bytes

    def start(self) -> Deferred[Any]:
        """Ask the upstreams what they have; fires when each has answered or failed."""
        return self._poller.start()

    def stop(self) -> None:
        """See ``Service.stop``."""
        self._in_flight.stop()

    def close(self) -> Deferred[Any]:
        """Close the connections to the upstreams; fires when they are, or after ``CLOSE_TIMEOUT_S``."""
        closing: Deferred[Any] = DeferredList([self._poller.stop(), self._upstreams.close()], consumeErrors=True)
        return closing.addTimeout(CLOSE_TIMEOUT_S, self._reactor)

    def listing(self) -> bytes:
        """Return what the upstreams have, and what the cache has done. Within a second, a long one is made once."""
        if (now := self._reactor.seconds()) >= self._listing_ends_at:
            size_bytes = self._results.size_bytes + int(self._digests.currsize)
            cache = {"hits": self._results.hits, "misses": self._results.misses, "bytes": size_bytes}
            self._listed = self._listed or json.dumps(self._catalog.describe()).encode()[:-1]
            self._listing = b'%b, "cache": %b}' % (self._listed, json.dumps(cache).encode())
            self._listing_ends_at = now + (len(self._listing) > PART_BYTES)
        return self._listing

    def missing(self) -> str:
        """Return nothing: a proxy loads no plugin."""
        return ""

    def versions(self, _: Spec) -> None:
        """Return None: which upstream answers is not known before it has."""

    def prepare_call(self, _: bytes) -> None:
        """Return None: each request has to be looked for in the cache."""

    def has_room(self, reader: Reader) -> None:
        """See ``Service.has_room``."""
        self._queue.has_room(reader)
        self._run_next()

    def xform(
        self,
        spec: Spec,
        poem: bytes,
        *,
        timeout_s: float | None = None,
        caller: Caller = PROGRAM,
        timing: RequestTiming | None = None,
    ) -> bytes | Deferred[bytes]:
        """Return the result from the cache, or ask an upstream; see ``Service.xform``."""
        key_prefix = self._key_prefixes[spec]
        limit_s = self._limits.transform_timeout_s
        allowed_s = limit_s if timeout_s is None else min(limit_s, timeout_s)
        if key_prefix is None:
            ends_at = self._reactor.seconds() + max(allowed_s, 0.001)
            _note_cache(timing, "bypass")
            pending = _PendingRequest(self._cancel, caller, spec, poem, timing, ends_at)
            return self._in_time(self._ask(pending), allowed_s, timing)
        # Requests that share a call may have different deadlines: each has its own, and the last one cancels the call.
        pending = _PendingRequest(self._cancel, caller, spec, poem, timing, key=key_prefix + self._digest(poem))
        found = self._join(pending) if self._may_join(pending) else self._results.fresh(pending.key)
        _note_cache(timing, "miss" if found is None else "hit" if isinstance(found, bytes) else "shared")
        found = self._ask(pending) if found is None else found
        return found if isinstance(found, bytes) else self._in_time(found, allowed_s, timing)

    def _digest(self, poem: bytes) -> bytes:
        # Hashing is most of a hit on a long poem: for 100 KB, a hit costs 133 µs of CPU time with it and 58 µs without.
        # So the digests of the last long poems are kept with the poems, found by length and ends, and compared whole.
        if not LONG_POEM_BYTES <= len(poem) <= self._digests.maxsize:
            return hashlib.sha256(poem).digest()
        mark = len(poem), poem[:64], poem[-64:]
        kept = self._digests.get(mark)
        if kept is None or kept[0] != poem:
            kept = self._digests[mark] = poem, hashlib.sha256(poem).digest()
        return kept[1]

    def _ask(self, pending: _PendingRequest) -> Deferred[bytes]:
        for each in self._queue.put(pending):
            message = f"{self._running + len(self._queue)} requests are waiting for the upstreams; try again"
            each.answer.errback(Busy(message, retry_after_ms=RETRY_AFTER_MS))
        if pending.timing is not None:
            pending.timing.waits()
        self._run_next()
        return pending.answer

    def _run_next(self) -> None:
        """Start the requests whose turn it is; the others wait here, where the clients take turns.

        Until then each keeps its own place: none waits in that of another client, whose turn may never come.
        """
        while self._running < self._max_running and (pending := self._queue.first(self._reactor.seconds())) is not None:
            self._queue.remove(pending)
            if pending.timing is not None:
                pending.timing.ends()
            found = self._join(pending) if pending.key else self._fetch(pending)
            if isinstance(found, bytes):
                pending.answer.callback(found)
            else:
                pending.call = found.addBoth(self._note_answered, pending)

    def _join(self, pending: _PendingRequest) -> bytes | Deferred[bytes]:
        """Return the result from the cache, or join the call for it, or make one."""
        share = self._fetched_for[pending.key] if self._may_join(pending) else pending.caller.share
        fetch = partial(self._fetch, pending)
        return self._results.get(pending.key, fetch, share, lambda: pending.is_of_listed_version)

    def _may_join(self, pending: _PendingRequest) -> bool:
        """Return whether the call for its result is its own share's, or that of a share with no other call.

        Of a share with several, the upstream may answer the others first.
        """
        share = self._fetched_for.get(pending.key)
        return share is not None and (share == pending.caller.share or self._queue.running(share) <= 1)

    def _fetch(self, pending: _PendingRequest) -> Deferred[bytes]:
        self._fetched_for[pending.key] = pending.caller.share
        return self._forward(pending).addBoth(self._note_fetched, pending)

    def _note_fetched(self, outcome: Any, pending: _PendingRequest) -> Any:
        if self._fetched_for.get(pending.key) == pending.caller.share:
            del self._fetched_for[pending.key]
        return outcome

    def _forward(self, pending: _PendingRequest) -> Deferred[bytes]:
        now = self._reactor.seconds()
        self._running += 1
        charged_s = self._queue.started(pending)
        timeout_s = None if pending.ends_at is None else max(0.001, pending.ends_at - now)
        client, timing = pending.caller.share or None, pending.timing
        call = None if timing is None or timing.trace is None else timing.trace.part("upstream", is_call=True)
        traceparent = call.traceparent if call is not None else None if timing is None else timing.traceparent
        check = partial(self._check_version, pending) if pending.key else None
        may_run_twice = True if pending.key else None  # otherwise as the upstreams say
        outcome = self._upstreams.forward(
            pending.spec,
            pending.poem,
            client,
            timeout=timeout_s,
            traceparent=traceparent,
            may_run_twice=may_run_twice,
            on_version=check,
        )
        return outcome.addBoth(self._note_forwarded, pending, call, charged_s, now)

    def _check_version(self, pending: _PendingRequest, version: str | None) -> None:
        """Keep a result only if it is of the version that its key stands for: that may be listed again later."""
        if version == self._catalog.versions(pending.spec):
            key_prefix = self._key_prefixes[pending.spec]
            pending.is_of_listed_version = key_prefix is not None and pending.key.startswith(key_prefix)
        elif version is not None:  # a caching proxy never says
            self._poller.look_soon()

    def _note_forwarded(
        self, outcome: Any, pending: _PendingRequest, call: RequestTrace | None, charged_s: float, sent_at: float
    ) -> Any:
        if call is not None:
            call.end(getattr(outcome.value, "code", InternalError.code) if isinstance(outcome, Failure) else OK)
        self._running -= 1
        self._queue.ended(pending, charged_s, self._reactor.seconds() - sent_at)
        self._run_next()
        return outcome

    def _note_answered(self, outcome: Any, pending: _PendingRequest) -> None:
        if not pending.answer.called:
            pending.answer.callback(outcome)

    def _cancel(self, pending: _PendingRequest) -> None:
        if not self._queue.remove(pending) and pending.call is not None:
            pending.call.cancel()  # which answers it

    def _in_time(self, work: Deferred[bytes], allowed_s: float, timing: RequestTiming | None) -> Deferred[bytes]:
        def too_late() -> XformError:
            return TransformTimeout(f"no answer from an upstream within {allowed_s:g} s")

        request = within(self._reactor, allowed_s, "the request", work, too_late)
        return self._in_flight.add(request.addErrback(self._explain), timing)

    def _explain(self, failure: Failure) -> Failure:
        """Translate an upstream's failure into what it means to a client of this server."""
        error = failure.value
        if isinstance(error, NoSuchTransform):
            self._poller.look_soon()
            message, failed, _ = error.message.partition(" failed: ")  # why a plugin did, from an older server
            return Failure(NoSuchTransform(message + failed.removesuffix(": "), log_message=error.log_message))
        if isinstance(error, Unauthorized):  # which the client is here
            self._poller.look_soon()
            message = "an upstream does not know this proxy: its operator has to give it a token (--token-file)"
            return Failure(Unavailable(message, retry_after_ms=RETRY_AFTER_MS, log_message=error.log_message))
        if isinstance(error, RequestRefused):
            return Failure(TransformFailed(error.message, log_message=error.log_message))
        # These errors are about the connection to the upstream, neither about the request nor about the client's own.
        if isinstance(error, XformError) and (error.http_status is None or isinstance(error, ShuttingDown | BadFrame)):
            wait_ms = error.retry_after_ms or RETRY_AFTER_MS
            return Failure(Unavailable(error.message, retry_after_ms=wait_ms, log_message=error.log_message))
        return failure

    def _make_key_prefix(self, spec: Spec) -> bytes | None:
        """Return the start of the cache keys of a spec's results; None where they must not be cached."""
        origins = self._catalog.origins(spec)
        return None if origins is None else hashlib.sha256(repr((str(spec), origins)).encode()).digest()

    def _forget_listings(self) -> None:
        for forget in self.on_swap:
            forget()
        self._upstreams.tell(map(self._catalog.listing, self._addresses))
        self._listed, self._listing_ends_at = b"", 0.0


def _note_cache(timing: RequestTiming | None, found: str) -> None:
    """Note for a trace what the cache has had."""
    if timing is not None and timing.trace is not None:
        timing.trace.note("xformd.cache", found)


class ProxyServer(ListeningService):
    """A caching proxy for transforms. It answers what it has accepted before it stops."""

    def __init__(
        self,
        service: CachingTransformService,
        listen: tuple[str, ...],
        limits: Limits,
        reactor: Any,
        access: Access | None = None,
        tls: ServerTls | None = None,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        finish: Callable[[Any], Any] = FinishingService if tracer.is_on else lambda service: service
        if access is not None:
            access.make_service = lambda _, grant: finish(GuardedService(service, grant))
        factory = TransformFactory(finish(service), limits, reactor, tracer=tracer, access=access)
        more: Any = {"is_eager": True, "flags": "--port or --listen", "tls": tls}
        super().__init__(listen, factory, reactor, **more)
        if access is not None:
            self.on_reload.append(access.reload)
        self._service, self._tracer, self._access = service, tracer, access

    def change(self, settings: Settings) -> None:
        """Hold to settings that a reload has changed."""
        logs.set_level(settings.log_level)
        limits = within_descriptors(settings.limits, workers=0, open_now=len(self._factory.connections))
        self.set_limits(limits)
        self._service.set_limits(limits)

    async def _start(self) -> tuple[str, ...]:
        if self._access is not None:
            self._access.start()
        await self._service.start()
        self._tracer.start()
        shown = await super()._start() if self.running else ()
        self._warn_of_tls(has_access_file=self._access is not None)
        return shown

    async def _stop(self) -> None:
        await super()._stop()
        await self._service.close()
        await self._tracer.stop(self._reactor)
        if self._access is not None:
            self._access.stop()


def make_proxy(
    upstreams: tuple[str, ...],
    listen: tuple[str, ...],
    limits: Limits,
    reactor: Any,
    *,
    access: Path | None = None,
    tls: ServerTls | None = None,
    traces: str = "none",
    **options: Any,
) -> ProxyServer:
    """Put a caching proxy together, not started; raise ``ConfigError`` if an address or the access file is invalid."""
    limits = within_descriptors(limits, workers=0)
    service = CachingTransformService(upstreams, limits, reactor, **options)
    rules, tracer = None if access is None else Access(access, reactor), make_tracer(traces)
    return ProxyServer(service, listen, limits, reactor, rules, tls, tracer)
