"""``/transform/{spec}``: how a transform is requested, and what the response, the metrics and the log say."""

import asyncio
from typing import Any
from urllib.parse import unquote_plus

import pytest
from twisted.internet.defer import fail

from support.http_front import Answer, Front, request, run, upper
from support.logs import Log
from support.registries import plugin_of
from xformd.errors import Cancelled
from xformd.http.batch import BatchEndpoint
from xformd.http.transform import TransformEndpoint
from xformd.limits import Limits
from xformd.plugins.registry import Entry, Registry
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

UPPER_OWL = "/transform/upper?poem=owl"


def ask(data: bytes, front: Front | None = None, *, to_head: bool = False) -> Answer:
    """Send one request on a new connection, and return its answer."""
    found: list[Answer] = []

    async def test() -> None:
        client = (front or Front()).connect()
        await client.send(data)
        found.extend(client.received(to_head=to_head))

    run(test())
    (answer,) = found
    return answer


# Specs.


@pytest.mark.parametrize(
    "target",
    [
        "wrap:width=6,fill=%2A",
        "wrap:width=6,fill=*",
        "wrap%3Awidth%3D6%2Cfill%3D%252A",
        "wrap%3Awidth%3D6%2Cfill%3D*",
        "wrap?width=6&fill=*",
        "wrap?width=6&fill=%2A",
        "wrap:width=6?fill=*",
        "wrap%3Afill%3D%252A?width=6",
    ],
)
def test_options_are_read_in_every_notation(target: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert (answer.status, answer.body) == (200, b"owl***")


@pytest.mark.parametrize("target", ["upper+wrap:width=5", "upper%2Bwrap%3Awidth%3D5", "upper%2bwrap:width=5"])
def test_several_transforms_run_in_sequence(target: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert answer.body == b"OWL.."
    assert answer.headers["x-transform"] == "upper/1.0+wrap/1.0"


@pytest.mark.parametrize("value", ["%2B", "%2b", "%25", "%3D", "%2C", "%3A", "%2E", "%20", "+", "%26", "%C3%A9"])
def test_a_value_in_a_query_may_be_any_character(value: str) -> None:
    answer = ask(request(f"/transform/wrap?width=5&fill={value}", b"owl"))
    assert answer.body.decode() == "owl" + 2 * unquote_plus(value)


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("wrap:width=6?width=7", "bad-request", "twice"),
        ("wrap?width=6&width=6", "bad-request", "twice"),
        ("wrap?width", "bad-request", "malformed"),
        ("wrap?width=%ff", "bad-request", "malformed"),
        ("wrap?width=wide", "bad-options", "width"),
        ("wrap?depth=3", "bad-options", "depth"),
        ("repeat", "bad-options", "times"),
        ("upper+wrap?width=6", "bad-request", ""),
        ("wrap:width", "bad-request", ""),
        ("Upper", "bad-request", ""),
        ("upper+", "bad-request", ""),
        ("upper/wrap", "bad-request", ""),
    ],
)
def test_an_invalid_spec_is_rejected(target: str, code: str, word: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert (answer.status, answer.problem["code"]) == (400, code)
    assert word in answer.problem["detail"]


# Poems.


@pytest.mark.parametrize(
    ("content_type", "poem"),
    [
        (None, "é".encode()),
        ("text/plain", "é".encode()),
        ("text/plain; charset=utf-8", "é".encode()),
        ('text/plain; charset="UTF-8"', "é".encode()),
        ("text/plain; charset=latin-1", b"\xe9"),
        ("text/plain;charset=ISO-8859-1; format=flowed", b"\xe9"),
        ("text/plain; charset=utf-16", "é".encode("utf-16")),
        ("application/x-www-form-urlencoded", "é".encode()),
        ("image/png", "é".encode()),
    ],
)
def test_the_content_type_decides_only_the_charset(content_type: str | None, poem: bytes) -> None:
    answer = ask(request("/transform/upper", poem, content_type=content_type))
    assert (answer.status, answer.body.decode()) == (200, "É")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_poem_not_in_its_charset_is_gibberish() -> None:
    for poem, content_type in ((b"\xe9", "text/plain; charset=utf-8"), (b"\xe9", "text/plain; charset=ascii")):
        answer = ask(request("/transform/upper", poem, content_type=content_type))
        assert (answer.status, answer.problem["code"]) == (422, "gibberish")


def test_bytes_are_not_recoded() -> None:
    answer = ask(request("/transform/backwards", b"\xe9\x00", content_type="text/plain; charset=latin-1"))
    assert answer.body == b"\x00\xe9"
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_result_has_its_media_type_and_a_sandbox() -> None:
    answer = ask(request("/transform/markup", b"owl"))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


# Responses.


@pytest.mark.parametrize("own", ["a", "0f-4.2:x_Y", "a" * 64])
def test_a_request_id_is_kept(own: str) -> None:
    for target, status in (("upper", 200), ("uppr", 404)):
        answer = ask(request(f"/transform/{target}", b"owl", x_request_id=own))
        assert (answer.status, answer.headers["x-request-id"]) == (status, own)
        if status == 404:
            assert answer.problem["request_id"] == own


@pytest.mark.parametrize(("server_s", "client_ms", "shorter_s"), [(30, "2000", 2), (3, "20000", 3)])
async def test_the_shorter_timeout_applies(server_s: int, client_ms: str, shorter_s: int) -> None:
    front = Front(transform_timeout_s=server_s)
    client = front.connect()
    await client.send(request("/transform/later", b"owl", x_timeout_ms=client_ms))
    front.clock.advance(shorter_s - 0.1)
    await client.settle()
    assert not client.received()
    front.clock.advance(0.2)
    await client.settle()
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (504, "timeout")
    assert front.cancelled == 1


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("picky", 422, "gibberish"), ("raises", 500, "transform-failed"), ("uppr", 404, "no-such-transform")],
)
def test_an_error_of_the_table_has_its_status(name: str, status: int, code: str) -> None:
    answer = ask(request(f"/transform/{name}", b"owl"))
    assert (answer.status, answer.problem["code"]) == (status, code)
    assert answer.problem["type"] == f"urn:xformd:error:{code}"
    assert answer.headers["cache-control"] == "no-store"
    if name == "uppr":
        assert answer.problem["nearest"] == "upper"


# GET.


def test_a_short_poem_may_be_in_the_url() -> None:
    answer = ask(request("/transform/upper+wrap:width=6?poem=%C3%A9+%26"))
    assert answer.body.decode() == "É &..."


def test_get_needs_a_poem_which_may_be_empty() -> None:
    assert ask(request("/transform/upper")).status == 400
    assert ask(request("/transform/upper?poem=")).status == 200


def test_a_result_is_cached_and_revalidated() -> None:
    first = ask(request(UPPER_OWL))
    etag = first.headers["etag"]
    assert etag[0] == etag[-1] == '"'
    assert "max-age=" in first.headers["cache-control"]
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = ask(request(UPPER_OWL, if_none_match=known))
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-length" not in again.headers
    assert ask(request(UPPER_OWL, if_none_match='"other"')).status == 200


def test_head_is_get_without_the_body() -> None:
    get, head = ask(request(UPPER_OWL)), ask(request(UPPER_OWL, method="HEAD"), to_head=True)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == "3"
    assert head.headers["etag"] == get.headers["etag"]


def test_a_transform_that_is_not_deterministic_has_no_head() -> None:
    answer = ask(request("/transform/dice?poem=owl", method="HEAD"), to_head=True)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "upper", "GET, HEAD, POST"),
        ("DELETE", "wrap:width=7+upper", "GET, HEAD, POST"),
        ("DELETE", "dice", "POST"),
        ("GET", "dice?poem=owl", "POST"),
        ("PUT", "upper+dice", "POST"),
        ("PUT", "no-such", "POST"),
    ],
)
def test_a_wrong_method_lists_the_allowed_ones(method: str, target: str, allowed: str) -> None:
    answer = ask(request(f"/transform/{target}", method=method))
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


# CORS.


def test_only_allowed_origins_may_call() -> None:
    call = request("/transform/upper", b"owl", origin="https://a.example")
    assert "access-control-allow-origin" not in ask(call).headers
    named = Front(origins=frozenset({"https://a.example"}))
    answer = ask(call, named)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-transform" in answer.headers["access-control-expose-headers"].lower()
    other = request("/transform/upper", b"owl", origin="https://b.example")
    assert "access-control-allow-origin" not in ask(other, named).headers
    assert ask(other, Front(origins=frozenset({"*"}))).headers["access-control-allow-origin"] == "*"


def test_preflight_is_answered_for_an_allowed_origin() -> None:
    call = request(
        "/transform/upper",
        method="OPTIONS",
        origin="https://a.example",
        access_control_request_method="POST",
        access_control_request_headers="x-timeout-ms",
    )
    assert ask(call).status == 405
    answer = ask(call, Front(origins=frozenset({"https://a.example"})))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "POST" in answer.headers["access-control-allow-methods"]


POST = request("/transform/upper", b"owl")


class FakeService:
    """A service that has internal errors, or one that answers at once with the given times."""

    def __init__(
        self, *, is_late: bool = False, times_s: tuple[float, float] | None = None, version: str = "1"
    ) -> None:
        plugin = plugin_of(upper, version=version)
        self.registry = Registry({"upper": Entry(upper, plugin)}, (plugin,))
        self._is_late = is_late
        self._times_s = times_s

    def xform(self, *_: object, timing: RequestTiming | None = None, **__: object) -> Any:
        if self._times_s is not None:
            assert timing is not None
            timing.queue_s, timing.run_s = self._times_s
            return b"owl"
        if self._is_late:
            return fail(RuntimeError("our fault"))
        raise RuntimeError("our fault")

    def caller_has_room(self, *_: object) -> None: ...


def front_with(service: Any) -> Front:
    return Front(application=TransformEndpoint(service, Metrics(), Limits()))


async def test_a_result_without_a_version_is_not_cached() -> None:
    front = front_with(FakeService(times_s=(0, 0), version=""))
    (answer,) = await front.ask(request(UPPER_OWL, if_none_match="*"))
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert "etag" not in answer.headers


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_internal_error_is_logged_with_its_id(is_late: bool, log: Log) -> None:
    front = front_with(FakeService(is_late=is_late))
    (answer,) = await front.ask(request("/transform/upper", b"owl", x_request_id="7e57"))
    assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (500, "internal", "7e57")
    assert log.lines == ["internal error 7e57"]
    assert len(log.tracebacks) == 1


async def test_an_internal_error_in_a_batch_affects_one_line(log: Log) -> None:
    service: Any = FakeService(is_late=True)
    front = Front(application=BatchEndpoint(service, Metrics(), Limits()))
    (answer,) = await front.ask(request("/batch", b'{"spec": "upper", "poem": "owl"}\n{}'))
    assert b'"code": "internal"' in answer.body
    assert b'"code": "bad-request"' in answer.body
    assert [line.partition("error ")[0] for line in log.lines] == ["internal "]


async def test_server_timing_is_in_milliseconds() -> None:
    (answer,) = await front_with(FakeService(times_s=(0.25, 1.5))).ask(POST)
    assert answer.headers["server-timing"] == "queue;dur=250.00, run;dur=1500.00"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (POST, ("upper", "http", "ok")),
        (request("/transform/upper?poem=owl"), ("upper", "http", "ok")),
        (request("/transform/uppr", b"owl"), ("(unknown)", "http", "no-such-transform")),
        (request("/transform/Upper", b"owl"), ("(none)", "http", "bad-request")),
        (request("/transform/upper", b"owl", x_timeout_ms="0"), ("(none)", "http", "bad-request")),
        (request("/transform/upper?poem=owl", x_timeout_ms="0"), ("(none)", "http", "bad-request")),
        (request("/transform/upper"), ("(none)", "http", "bad-request")),
        (request("/transform/uppr?poem=owl"), ("(unknown)", "http", "no-such-transform")),
        (request("/transform/upper", method="PUT"), ("(none)", "http", "bad-request")),
        (request("/batch", b"{}", x_timeout_ms="0"), ("(none)", "http", "bad-request")),
        (request("/batch", b"{}"), ("(none)", "http", "bad-request")),
        (request("/batch", b'{"spec": "uppr", "poem": "owl"}'), ("(unknown)", "http", "no-such-transform")),
    ],
)
async def test_a_request_is_counted_once(data: bytes, counted: tuple[str, str, str], log: Log) -> None:
    front = Front()
    await front.ask(data)
    assert front.metrics.requests == {counted: 1}
    assert not log.tracebacks


async def test_a_cached_result_hides_no_invalid_option() -> None:
    (answer,) = await Front().ask(request("/transform/wrap?poem=owl&width=wide", if_none_match="*"))
    assert (answer.status, answer.problem["code"]) == (400, "bad-options")
    (answer,) = await Front().ask(request("/transform/wrap?poem=owl", if_none_match="*", x_request_id="7e57"))
    assert (answer.status, answer.headers["x-request-id"]) == (304, "7e57")
    assert answer.headers["cache-control"] == "public, max-age=60"


@pytest.mark.parametrize("target", ["/transform/upper", "/batch"])
async def test_a_disconnect_while_sending_counts_as_cancelled(target: str, log: Log) -> None:
    front = Front()
    client = front.connect()
    await client.send(request(target, b"owl")[:-1])
    client.leave()
    await client.settle()
    assert front.metrics.requests == {("(none)", "http", Cancelled.code): 1}
    assert not log.tracebacks


LINE = b'{"spec": "later", "poem": "owl"}\n'


@pytest.mark.parametrize(
    ("data", "running"), [(request("/transform/later", b"owl"), 1), (request("/batch", LINE * 2), 2)]
)
async def test_a_disconnect_while_waiting_leaves_no_task(data: bytes, running: int, log: Log) -> None:
    front, before = Front(), asyncio.all_tasks()
    client = front.connect()
    await client.send(data)
    client.leave()
    await client.settle()
    assert front.cancelled == running
    assert asyncio.all_tasks() == before
    assert not log.tracebacks


@pytest.mark.parametrize("data", [request("/transform/later", b"owl"), request("/batch", LINE)])
async def test_a_response_leaves_no_task(data: bytes) -> None:
    front, before = Front(), asyncio.all_tasks()
    client = front.connect()
    await client.send(data)
    front.waiting[0].callback("late")
    await client.settle()
    assert client.received()[0].status == 200
    assert asyncio.all_tasks() == before
