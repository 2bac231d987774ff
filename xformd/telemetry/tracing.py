"""OpenTelemetry spans of requests: the door to the SDK, which nothing else imports, and nothing at all unless it is on.

Whether a request is sampled is decided before anything is made for it: how many requests go by until the next one that
is sampled is drawn at once, with the SDK's own probability, so one that is not costs a decrement. Invariant: a span has
names, sizes and times, never a poem, the value of an option or a query; and the reactor waits for no exporter.
"""

import os
import random
import re
import sys
import threading
import time
from math import log, log1p
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError, succeed  # noqa: A004
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd import __version__
from xformd.errors import ERRORS, ConfigError
from xformd.telemetry.metrics import OK

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from xformd.telemetry.access_log import AccessEntry

NEVER = sys.maxsize
"""How many requests are not sampled, where none is."""

FLUSH_S = 3.0
"""How long a stopping server waits until its last spans are sent."""

PROTOCOL = "http/protobuf"

TRACEPARENT_BYTES = 55
_UNSAMPLED = frozenset({b"-00", b"-02"})
"""How its flags end. The rest is not read: to parse it takes longer than all else that is done for such a request."""

_ROUTES = {"/transform/": "/transform/{spec}", "/transforms/": "/transforms/{name}"}

_find_rate = re.compile(r"(?:ParentBased\{root:)?(?:(AlwaysOn)|(AlwaysOff)|TraceIdRatioBased\{([0-9.e-]+)\})").match


class Tracer:
    """Decides which requests are traced: none here, and those that are sampled in an ``OtelTracer``.

    Of the requests without a caller's trace, ``unsampled_left`` are not sampled, then one is.
    """

    is_on = False

    def __init__(self) -> None:
        self.unsampled_left = NEVER

    def skips(self, traceparent: bytes | None) -> bool:  # noqa: ARG002
        """Return whether the next request, of a caller with this trace, is certainly not sampled, and count it then."""
        return True

    def begin(self, traceparent: str | None = None, tracestate: bytes = b"") -> "RequestTrace | None":  # noqa: ARG002
        """Begin the trace of a request, or go on with its caller's; None if it is not sampled."""
        return None

    def start(self) -> None:
        """Start to export. Not before twistd goes into the background, where no thread follows it."""

    def stop(self, reactor: Any) -> Deferred[None]:  # noqa: ARG002
        """Send what is left; fires when that is done, or after ``FLUSH_S``."""
        return succeed(None)


NO_TRACES = Tracer()


def make_tracer(traces: str) -> Tracer:
    """Make the tracer of the setting ``traces``; raise ``ConfigError`` if it cannot work."""
    if traces == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return NO_TRACES
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        message = f"traces = otlp needs OpenTelemetry: pip install 'xformd[otel]' ({error})"
        raise ConfigError(message, setting="traces") from None
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    variable = next((each for each in variables if each in os.environ), "")
    if (given := os.environ.get(variable, PROTOCOL)) != PROTOCOL:
        message = f"{variable} is {given!r}: spans are sent as {PROTOCOL}, mostly to port 4318"
        raise ConfigError(message, setting="traces")
    return OtelTracer()


class OtelTracer(Tracer):
    """Traces with a provider of the SDK: sampler, service name and endpoint are what ``OTEL_*`` variables say.

    Args:
        processor: gets the spans; None for one that sends them, in a thread of its own.
    """

    log = Logger()
    is_on = True

    def __init__(self, processor: Any = None) -> None:
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class SampledIds(RandomIdGenerator):
            """Makes ids of those traces only that the sampler takes: this one has decided before."""

            def generate_trace_id(self) -> int:
                return random.getrandbits(64) << 64 | random.randrange(1, bound)

        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "xformd"}))
        ids = SampledIds()
        self._provider: TracerProvider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
        sampler = self._provider.sampler.get_description()
        bound = TraceIdRatioBased.get_bound_for_rate(_rate(sampler))
        self._log_dropped = -log1p(-bound / 2**64) if 0 < bound < 2**64 else 0.0
        self._unsampled_between = NEVER if bound <= 1 else 0
        self._follows_parent = "remoteParentNotSampled:AlwaysOffSampler" in sampler
        self._tracer = self._provider.get_tracer("xformd", __version__)
        self._extract = TraceContextTextMapPropagator().extract
        self._context, self._server = Context, SpanKind.SERVER
        self._processor = processor
        self.unsampled_left = self._draw()

    def _draw(self) -> int:
        """Draw how many requests are not sampled until the next one is."""
        if not self._log_dropped:
            return self._unsampled_between
        return min(NEVER, int(-log(1 - random.random()) / self._log_dropped))

    def skips(self, traceparent: bytes | None) -> bool:
        """See ``Tracer.skips``."""
        if traceparent is not None:
            is_unsampled = traceparent[-3:] in _UNSAMPLED and len(traceparent) == TRACEPARENT_BYTES
            return is_unsampled and self._follows_parent
        if self.unsampled_left:
            self.unsampled_left -= 1
            return True
        return False

    def begin(self, traceparent: str | None = None, tracestate: bytes = b"") -> "RequestTrace | None":
        """See ``Tracer.begin``."""
        if traceparent is None:
            if self.skips(None):
                return None
            self.unsampled_left = self._draw()
            context = self._context()
        elif self._follows_parent and traceparent[-1] in "02468ace":
            return None
        else:
            headers = {"traceparent": traceparent, "tracestate": tracestate.decode("latin-1")}
            context = self._extract(headers, self._context())
        span = self._tracer.start_span("xformd", context, self._server)
        return RequestTrace(self._tracer, span) if span.is_recording() else None

    def start(self) -> None:
        """See ``Tracer.start``."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider.add_span_processor(self._processor or BatchSpanProcessor(OTLPSpanExporter()))

    def stop(self, reactor: Any) -> Deferred[None]:
        """See ``Tracer.stop``."""
        stopped: Deferred[None] = Deferred()

        def stop() -> None:
            self._provider.shutdown()  # waits for an exporter for up to 30 s
            reactor.callFromThread(stopped.callback, None)

        def too_late(failure: Failure) -> None:
            failure.trap(TimeoutError)
            self.log.warn("the last spans were not sent within {seconds:g} s: they are lost", seconds=FLUSH_S)

        # A daemon, for which the interpreter does not wait at its end.
        threading.Thread(target=stop, name="last spans", daemon=True).start()
        return stopped.addTimeout(FLUSH_S, reactor).addErrback(too_late)


def _rate(sampler: str) -> float:
    """Return the share of traces that a sampler takes, by its description; 1 to have it asked each time."""
    match = _find_rate(sampler)
    return 1.0 if match is None or match[1] else float(match[3] or 0)


@attrs.define
class _Phase:
    """A part of a request's time, by the system's monotonic clock."""

    name: str
    attributes: dict[str, str]
    start_ns: int = attrs.field(factory=time.monotonic_ns)
    end_ns: int = 0


class RequestTrace:
    """The span of a sampled request, and the phases of its ``RequestTiming``, which become children when it ends."""

    def __init__(self, tracer: Any, span: "Span", *, is_part: bool = False) -> None:
        self._tracer, self._span, self._is_part = tracer, span, is_part
        context = span.get_span_context()
        self.trace_id, self.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        self._flags = int(context.trace_flags)
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self._phases: list[_Phase] = []

    @property
    def traceparent(self) -> str:
        """The W3C value that makes others' spans children of this one."""
        return f"00-{self.trace_id}-{self.span_id}-{self._flags:02x}"

    def waits(self) -> None:
        """Begin to wait in a queue."""
        self._phases.append(_Phase("queue", {}))

    def runs(self, name: str, *, in_worker: bool) -> None:
        """Begin to run a transform."""
        where = {"xformd.runs_in": "worker"} if in_worker else {}
        self._phases.append(_Phase(f"run {name}", {"xformd.transform": name, **where}))

    def ends(self) -> None:
        """End to wait, or to run."""
        self._phases[-1].end_ns = time.monotonic_ns()

    def note(self, key: str, value: str) -> None:
        """Set an attribute."""
        self._span.set_attribute(key, value)

    def part(self, name: str, *, is_call: bool = False) -> "RequestTrace":
        """Begin a part of the request, or a call to another server for it."""
        from opentelemetry.trace import SpanKind

        kind = SpanKind.CLIENT if is_call else SpanKind.INTERNAL
        return RequestTrace(self._tracer, self._child(name, None, kind), is_part=True)

    def _child(self, name: str, start_ns: int | None, kind: Any = None, **more: Any) -> "Span":
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        context = set_span_in_context(self._span, Context())
        span: Span = self._tracer.start_span(name, context, kind or SpanKind.INTERNAL, start_time=start_ns, **more)
        return span

    def end(self, code: str) -> None:
        """End with an outcome."""
        for phase in self._phases:
            start_ns, end_ns = phase.start_ns, phase.end_ns or time.monotonic_ns()
            child = self._child(phase.name, start_ns + self._clock_offset_ns, attributes=phase.attributes)
            if phase is self._phases[-1]:
                _set_outcome(child, code)
            child.end(end_ns + self._clock_offset_ns)
        _set_outcome(self._span, code)
        self._span.end(time.monotonic_ns() + self._clock_offset_ns)

    def finish(self, entry: "AccessEntry") -> None:
        """End with all that is known of the request."""
        own = ("transform", "front", "identity", "request_id", "poem_bytes", "result_bytes")
        found: dict[str, Any] = {
            **{f"xformd.{name}": value for name, value in entry.fields().items() if name in own},
            "client.address": entry.peer,
            "network.transport": "unix" if entry.peer == "unix" else "tcp",
        }
        if not self._is_part:
            name, more = _describe(entry)
            self._span.update_name(name)
            found |= more
        self._span.set_attributes({key: value for key, value in found.items() if value is not None})
        self.end(entry.code)


def _describe(entry: "AccessEntry") -> tuple[str, dict[str, Any]]:
    """Return the name of a request's span, and the attributes that its front has."""
    if entry.front != "http":
        return entry.names or "xformd", {
            "rpc.system.name": "xformd",
            "rpc.method": entry.names,
            "rpc.response.status_code": entry.code,
            "network.protocol.name": "netstring",
        }
    route = None if entry.endpoint is None else _ROUTES.get(entry.endpoint, entry.endpoint)
    return " ".join(filter(None, (entry.method or "HTTP", route))), {
        "http.request.method": entry.method or "_OTHER",
        "http.route": route,
        "http.response.status_code": entry.status,
        "network.protocol.name": "http",
    }


def _set_outcome(span: "Span", code: str) -> None:
    """Note an error; only one of the server's own marks its span as failed."""
    from opentelemetry.trace import StatusCode

    if code != OK:
        span.set_attribute("error.type", code)
        if code not in ERRORS or (ERRORS[code].http_status or 500) >= 500:
            span.set_status(StatusCode.ERROR)
