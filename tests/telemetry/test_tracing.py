"""Spans of requests, as the SDK's exporter in memory gets them."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from support.fakes import FakeWorker, Pool, calls_of
from support.http_front import Front, request
from support.logs import Log
from support.memory import MemoryAccessLog, MemoryServer, MemorySession
from support.traces import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, Recorder
from xformd import transform
from xformd.errors import ConfigError
from xformd.runners.worker_handle import Job
from xformd.telemetry.access_log import AccessEntry
from xformd.telemetry.tracing import NO_TRACES, make_tracer
from xformd.wire.netstring import encode

POEM = "TheOwlAndThePussycat"
REQUESTS = 3_000


@transform(inline=True)
def shift(poem: str, *, by: str = "") -> str:
    return poem + by


@transform(inline=True)
def broken(poem: str) -> str:
    raise ValueError(poem)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    return Recorder()


@pytest.fixture
def server(recorder: Recorder) -> MemoryServer:
    return MemoryServer(counts=True, transforms=(shift, broken), tracer=recorder.tracer)


def sampling(monkeypatch: pytest.MonkeyPatch, sampler: str, share: float = 1) -> Recorder:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(share))
    return Recorder()


def parent_of(span: ReadableSpan) -> tuple[str, str] | None:
    return span.parent and (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}")


def id_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def times_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_request_and_each_of_its_steps_have_spans(server: MemoryServer, recorder: Recorder) -> None:
    MemorySession(server).send(encode(f"7 shift:by=S3CRET+shift.{POEM}".encode()))
    first, second, whole = recorder.spans
    assert [first.name, second.name, whole.name] == ["run shift", "run shift", "shift+shift"]
    assert whole.kind == SpanKind.SERVER
    assert parent_of(whole) is None
    assert parent_of(first) == parent_of(second) == id_of(whole)
    assert first.attributes == {"xformd.transform": "shift"}
    starts = [times_of(each)[0] for each in (whole, first, second)]
    ends = [times_of(each)[1] for each in (first, second, whole)]
    assert (starts, ends) == (sorted(starts), sorted(ends))
    assert recorder.attributes("shift+shift") == {
        "rpc.system.name": "xformd",
        "rpc.method": "shift+shift",
        "rpc.response.status_code": "ok",
        "network.protocol.name": "netstring",
        "network.transport": "tcp",
        "client.address": "127.0.0.1",
        "xformd.transform": "shift+shift",
        "xformd.front": "session",
        "xformd.request_id": "7",
        "xformd.poem_bytes": len(POEM),
        "xformd.result_bytes": len(POEM) + 6,
    }


def test_a_caller_s_trace_goes_on(server: MemoryServer, recorder: Recorder) -> None:
    MemorySession(server).send(encode(f"1 shift traceparent={SAMPLED} timeout=100.a".encode()))
    assert parent_of(recorder.span("shift")) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize("wrong", ["", "x", SAMPLED[:-1], f"ff{SAMPLED[2:]}", f"00-{'0' * 32}-{SPAN_ID}-01"])
def test_a_malformed_trace_is_ignored(server: MemoryServer, recorder: Recorder, wrong: str) -> None:
    client = MemorySession(server)
    client.send(encode(f"1 shift traceparent={wrong}.a".encode()))
    assert client.strings() == [b"1 ok.a"]
    assert parent_of(recorder.span("shift")) is None


def test_an_unsampled_trace_stays_so(server: MemoryServer, recorder: Recorder) -> None:
    client = MemorySession(server)
    client.send(encode(f"1 shift traceparent={UNSAMPLED}.a".encode()))
    assert client.strings() == [b"1 ok.a"]
    assert recorder.names == []


@pytest.mark.parametrize(
    ("spec", "code", "status", "failed"),
    [
        ("broken", "transform-failed", StatusCode.ERROR, ["run broken", "broken"]),
        ("shift+broken", "transform-failed", StatusCode.ERROR, ["run broken", "shift+broken"]),
        ("shift:to=x", "bad-options", StatusCode.UNSET, ["shift"]),
        ("shifd", "no-such-transform", StatusCode.UNSET, ["shifd"]),
        ("shift+", "bad-request", StatusCode.UNSET, ["xformd"]),
    ],
)
def test_an_error_is_its_code(
    server: MemoryServer, recorder: Recorder, spec: str, code: str, status: StatusCode, failed: list[str]
) -> None:
    MemorySession(server).send(encode(f"1 {spec}.{POEM}".encode()))
    found = {span.name: span.status.status_code for span in recorder.spans if (span.attributes or {}).get("error.type")}
    assert found == dict.fromkeys(failed, status)
    assert {recorder.attributes(name)["error.type"] for name in failed} == {code}
    assert not any(POEM in span.to_json() for span in recorder.spans)


def test_a_span_names_the_identity_that_asks(recorder: Recorder) -> None:
    entry = entry_of(recorder)
    entry.identity = "ci"
    entry.finish("ok")
    assert recorder.attributes("xformd")["xformd.identity"] == "ci"


def test_a_classic_request_has_a_span_too(server: MemoryServer, recorder: Recorder) -> None:
    server.receive(encode(b"shift.a"))
    assert recorder.attributes("shift")["xformd.front"] == "classic"


def test_a_request_that_is_given_up_ends_with_its_connection(server: MemoryServer, recorder: Recorder) -> None:
    client = MemorySession(server)
    client.ask(1, "later")
    client.protocol.connectionLost(Failure(ConnectionDone()))
    assert recorder.attributes("later")["error.type"] == "cancelled"
    assert recorder.names == ["run later", "later"]


# Over HTTP.


def test_a_request_over_http_has_what_the_conventions_ask_for(recorder: Recorder) -> None:
    front = Front(counts=True, tracer=recorder.tracer)
    for _ in range(2):  # the second would take the fast path
        headers = {"traceparent": SAMPLED, "tracestate": "owl=1", "x_request_id": "o"}
        assert front.ask(request("/transform/upper", POEM.encode(), **headers)).body == POEM.upper().encode()
    first, second = [span for span in recorder.spans if span.kind == SpanKind.SERVER]
    assert first.name == second.name == "POST /transform/{spec}"
    assert parent_of(first) == parent_of(second) == (TRACE_ID, SPAN_ID)
    assert first.context is not None
    assert first.context.trace_state.get("owl") == "1"
    assert dict(first.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/transform/{spec}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "network.transport": "tcp",
        "client.address": "127.0.0.1",
        "xformd.transform": "upper",
        "xformd.front": "http",
        "xformd.request_id": "o",
        "xformd.poem_bytes": len(POEM),
        "xformd.result_bytes": len(POEM),
    }


@pytest.mark.parametrize(
    ("data", "name", "error", "status"),
    [
        (request(f"/transform/upper?poem={POEM}"), "GET /transform/{spec}", None, 200),
        (request(f"/transform/wrap?width={POEM}", b"a"), "POST /transform/{spec}", "bad-options", 400),
        (request("/transform/uper", b"a"), "POST /transform/{spec}", "no-such-transform", 404),
        (request(f"/{POEM}?{POEM}"), "GET", "bad-request", 404),
        (request("/transforms/upper"), "GET /transforms/{name}", None, 200),
        (b"GET / HTTP/9\r\n\r\n", "GET", "bad-request", 400),
    ],
)
def test_each_request_over_http_has_a_span(
    recorder: Recorder, data: bytes, name: str, error: str | None, status: int
) -> None:
    Front(counts=True, tracer=recorder.tracer).client(data)
    found = recorder.attributes(name)
    assert (found.get("error.type"), found["http.response.status_code"]) == (error, status)
    assert not any(POEM in span.to_json() for span in recorder.spans)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_have_none(recorder: Recorder, path: str) -> None:
    log = MemoryAccessLog()
    assert Front(counts=True, access_log=log, tracer=recorder.tracer).ask(request(path)).status == 200
    assert Front(counts=True, tracer=recorder.tracer).ask(request(path)).status == 200
    assert recorder.names == []
    assert len(log.lines) == 1


def test_each_line_of_a_batch_is_a_part_of_it(recorder: Recorder) -> None:
    lines = [{"spec": "upper", "poem": POEM}, {"spec": "picky", "poem": POEM}]
    body = "\n".join(map(json.dumps, lines)).encode()
    Front(counts=True, tracer=recorder.tracer).ask(request("/batch", body))
    first, second = [span for span in recorder.spans if span.name == "line"]
    assert parent_of(first) == parent_of(second) == id_of(recorder.span("POST /batch"))
    assert (first.kind, (first.attributes or {})["xformd.transform"]) == (SpanKind.INTERNAL, "upper")
    assert (second.attributes or {})["error.type"] == "gibberish"
    assert parent_of(recorder.span("run upper")) == id_of(first)


# In workers.


def entry_of(recorder: Recorder) -> AccessEntry:
    return AccessEntry(None, log=None, front="session", peer="unix", trace=recorder.tracer.begin())


def running(pool: Pool) -> tuple[FakeWorker, Job]:
    (worker,) = [each for each in pool.workers if each.has_job]
    return worker, worker._jobs[worker.sent[-1].id]


def test_the_wait_for_a_worker_and_the_steps_that_it_runs_are_spans(recorder: Recorder, clock: Clock) -> None:
    pool, entry = Pool(clock), entry_of(recorder)
    pool.pool.start()
    pool.pool.run(calls_of("upper+lower"), POEM.encode(), timing=entry)
    pool.make_ready()
    worker, job = running(pool)
    job.began(1)
    worker.answer()
    entry.finish("ok")
    assert recorder.names == ["queue", "run upper", "run lower", "xformd"]
    assert recorder.attributes("run upper") == {"xformd.transform": "upper", "xformd.runs_in": "worker"}
    assert recorder.attributes("run lower") == {"xformd.transform": "lower", "xformd.runs_in": "worker"}
    times = [times_of(recorder.span(name)) for name in ("queue", "run upper", "run lower")]
    flat = [time_ns for span in times for time_ns in span]
    assert flat == sorted(flat)


# Which requests are traced.


def count_traced(recorder: Recorder, attribute: str = "") -> tuple[int, list[ReadableSpan]]:
    """Send many requests in reads of all sizes; return how many had answers, and the spans of those traced."""
    server = MemoryServer(counts=True, transforms=(shift, broken), tracer=recorder.tracer)
    client = MemorySession(server)
    sent = 0
    while sent < REQUESTS:
        sizes = 1 + sent % 300
        client.send(b"".join(encode(f"{sent + each + 1} shift{attribute}.a".encode()) for each in range(sizes)))
        sent += sizes
    answers = Counter(string.partition(b".")[0].partition(b" ")[2] for string in client.strings())
    assert answers == {b"ok": sent}
    server.metrics.fold()
    assert server.requests[("shift", "session", "ok")] == sent
    return sent, [span for span in recorder.spans if span.kind == SpanKind.SERVER]


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_the_share_that_is_sampled_is_the_sampler_s(monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    recorder = sampling(monkeypatch, sampler, 0.1)
    sent, spans = count_traced(recorder)
    assert 0.07 < len(spans) / sent < 0.13  # ten standard deviations from a tenth are one in 10**6
    assert len({span.context.trace_id for span in spans if span.context}) == len(spans)


@pytest.mark.parametrize(("sampler", "share"), [("always_off", 1), ("parentbased_always_off", 1), ("traceidratio", 0)])
def test_none_is_traced_where_none_is_sampled(monkeypatch: pytest.MonkeyPatch, sampler: str, share: float) -> None:
    recorder = sampling(monkeypatch, sampler, share)
    assert count_traced(recorder)[1] == []


def test_an_unsampled_caller_of_a_sampler_that_ignores_callers_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = sampling(monkeypatch, "always_on")
    sent, spans = count_traced(recorder, f" traceparent={UNSAMPLED}")
    assert len(spans) == sent


def test_the_service_has_the_name_that_the_environment_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(recorder: Recorder) -> Any:
        recorder.tracer.begin().end("ok")  # type: ignore[union-attr]
        return recorder.spans[-1].resource.attributes["service.name"]

    assert name_of(Recorder()) == "xformd"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "poems")
    assert name_of(Recorder()) == "poems"


def test_without_the_extra_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'xformd\[otel\]'"):
        make_tracer("otlp")


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc': spans are sent as http/protobuf"):
        make_tracer("otlp")


def test_the_sdk_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert make_tracer("otlp") is NO_TRACES


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for() -> None:
    """As without the extra."""
    code = """
import sys
sys.modules["opentelemetry"] = None  # so that importing it fails
import xformd.cli, xformd.server.app, xformd.proxy.service, xformd.runners.worker
from twisted.internet import reactor
from xformd.config import configure
xformd.server.app.make_server(configure().settings, reactor)
xformd.TransformProxy("127.0.0.1:1", reactor=reactor).xform("upper", "a")
assert [name for name in sys.modules if name.startswith("opentelemetry")] == ["opentelemetry"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# In logs.


def test_logs_have_the_ids_of_a_span(recorder: Recorder, log: Log) -> None:
    access = MemoryAccessLog()
    server = MemoryServer(counts=True, access_log=access, transforms=(broken,), tracer=recorder.tracer)
    MemorySession(server).send(encode(b"1 broken.a"))
    ids = dict(zip(("trace_id", "span_id"), id_of(recorder.span("broken")), strict=True))
    (event,) = [each for each in log if "broken" in str(each.get("transform"))]
    for found in (access.lines[0], event):
        assert {key: found[key] for key in ids} == ids


@pytest.mark.parametrize("over_http", [False, True])
def test_logs_have_the_caller_s_trace_where_requests_have_no_spans(log: Log, over_http: bool) -> None:
    access = MemoryAccessLog()
    if over_http:
        Front(access_log=access).ask(request("/transform/raises", b"a", traceparent=UNSAMPLED))
        Front().ask(request("/transform/raises", b"a", traceparent=UNSAMPLED))
    else:
        for access_log in (access, None):
            server = MemoryServer(counts=True, access_log=access_log, transforms=(broken,))
            MemorySession(server).send(encode(f"1 broken traceparent={UNSAMPLED}.a".encode()))
    events = [each for each in log if each.get("transform") in ("broken", "raises")]
    assert [each["trace_id"] for each in (*events, *access.lines)] == [TRACE_ID] * 3
    assert not any("span_id" in each for each in (*events, *access.lines))
