"""``/transform/{spec}``: how a transform is requested, and what the response, the metrics and the log have of it."""

import time
from typing import Any
from urllib.parse import unquote_plus

import pytest
from twisted.internet.defer import Deferred, fail

from support.http_front import Front, ask, connected, request
from support.logs import Log
from support.registries import registry_of
from xformd import transform
from xformd.errors import Cancelled
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.telemetry.timing import RequestTiming

OWL = request("/transform/upper", b"owl")
UPPER_OWL = "/transform/upper?poem=owl"
LATER = request("/transform/later", b"owl")


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
    assert (answer.body, answer.headers["x-transform"]) == (b"OWL..", "upper/1.0+wrap/1.0")


@pytest.mark.parametrize("value", ["%2B", "%2b", "%25", "%3D", "%2C", "%3A", "%2E", "%20", "+", "%26", "%C3%A9"])
def test_a_value_in_a_query_may_be_any_character(value: str) -> None:
    answer = ask(request(f"/transform/wrap?width=5&fill={value}", b"owl"))
    assert answer.body.decode() == "owl" + 2 * unquote_plus(value)


@transform(inline=True, deterministic=True)
def join(poem: str, *, words: list[str]) -> str:
    return poem.join(words)


def serving_join() -> Front:
    front = Front()
    front.service.swap(Generation(registry_of(join), InlineRunner(front.limits.max_result_bytes, front.clock)))
    return front


@pytest.mark.parametrize("query", ["words=a&words=b%2Cc&words=", "words=%5B%22a%22,%22b,c%22,%22%22%5D"])
def test_an_option_that_takes_a_list_is_given_as_one_or_once_for_each_item(query: str) -> None:
    front = serving_join()
    assert front.ask(request(f"/transform/join?poem=-&{query}")).body == b"a-b,c-"
    assert front.ask(request(f"/transform/join?{query}", b"-")).body == b"a-b,c-"


def test_a_poem_is_given_once() -> None:
    answer = serving_join().ask(request("/transform/join?poem=a&poem=b&words=c"))
    assert (answer.status, "'poem' is given twice" in answer.body.decode()) == (400, True)


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("wrap:width=6?width=7", "bad-request", "'width' is given twice"),
        ("wrap?fill=*&width=6&width=6", "bad-request", "'width' is given twice"),
        ("wrap:fill=a?fill=b&fill=c", "bad-request", "'fill' is given twice"),
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


# Poems and responses.


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


@pytest.mark.parametrize(
    ("name", "result", "media_type"),
    [("markup", b"<p>lwo</p>", "text/html; charset=utf-8"), ("backwards", b"owl", "application/octet-stream")],
)
def test_a_result_has_its_media_type_and_a_sandbox(name: str, result: bytes, media_type: str) -> None:
    answer = ask(request(f"/transform/{name}", b"lwo"))
    assert (answer.body, answer.headers["content-type"]) == (result, media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("own", ["a", "0f-4.2:x_Y", "a" * 64])
def test_a_request_id_is_kept(own: str) -> None:
    answer = ask(request("/transform/upper", b"owl", x_request_id=own))
    assert (answer.status, answer.headers["x-request-id"]) == (200, own)


@pytest.mark.parametrize(("server_s", "client_ms", "shorter_s"), [(30, "2000", 2), (3, "20000", 3)])
def test_the_shorter_timeout_applies(server_s: int, client_ms: str, shorter_s: int) -> None:
    later = request("/transform/later", b"owl", x_timeout_ms=client_ms)
    front, client = connected(later, transform_timeout_s=server_s)
    front.advance(shorter_s - 0.1, client)
    assert not client.received()
    front.advance(0.2, client)
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"], front.cancelled) == (504, "timeout", 1)


# GET.


def test_a_short_poem_may_be_in_the_url() -> None:
    assert (ask(request("/transform/upper+wrap:width=6?poem=%C3%A9+%26"))).body.decode() == "É &..."


def test_get_needs_a_poem_which_may_be_empty() -> None:
    assert (ask(request("/transform/upper"))).status == 400
    assert (ask(request("/transform/upper?poem="))).status == 200


def test_a_result_is_cached_and_revalidated() -> None:
    first = ask(request(UPPER_OWL))
    etag = first.headers["etag"]
    assert etag[0] == etag[-1] == '"'
    assert first.headers["cache-control"] == "public, max-age=60"
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = ask(request(UPPER_OWL, if_none_match=known, x_request_id="7e57"))
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        assert (again.headers["x-request-id"], again.headers["cache-control"]) == ("7e57", "public, max-age=60")
        assert "content-length" not in again.headers
    assert (ask(request(UPPER_OWL, if_none_match='"other"'))).status == 200


def test_a_cached_result_hides_no_invalid_option() -> None:
    target = "/transform/wrap?poem=owl&width=wide"
    for data in (request(target, if_none_match="*"), request(target, if_match='"other"')):
        answer = ask(data)
        assert (answer.status, answer.problem["code"]) == (400, "bad-options")


def test_head_is_get_without_the_body() -> None:
    get, head = ask(request(UPPER_OWL)), ask(request(UPPER_OWL, method="HEAD"), to_head=True)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "3")
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", "upper", "GET, HEAD, POST"),
        ("DELETE", "wrap:width=7+upper", "GET, HEAD, POST"),
        ("DELETE", "picky", "POST"),
        ("GET", "picky?poem=owl", "POST"),
        ("HEAD", "picky?poem=owl", "POST"),
        ("PUT", "upper+picky", "POST"),
        ("PUT", "no-such", "POST"),
    ],
)
def test_a_wrong_method_lists_the_allowed_ones(method: str, target: str, allowed: str) -> None:
    answer = ask(request(f"/transform/{target}", method=method), to_head=method == "HEAD")
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


# CORS.


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ([], "https://a.example", None),
        (["https://a.example"], "https://a.example", "https://a.example"),
        (["https://a.example"], "https://b.example", None),
        (["*"], "https://b.example", "*"),
    ],
)
def test_only_allowed_origins_may_call(origins: list[str], origin: str, allowed: str | None) -> None:
    answer = Front(origins=origins).ask(request("/transform/upper", b"owl", origin=origin))
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert ("x-transform" in answer.headers.get("access-control-expose-headers", "")) is bool(origins)


def test_preflight_is_answered_for_an_allowed_origin() -> None:
    call = request(
        "/transform/upper",
        method="OPTIONS",
        origin="https://a.example",
        access_control_request_method="POST",
        access_control_request_headers="x-timeout-ms",
    )
    assert ask(call).problem["code"] == "forbidden"
    answer = Front(origins=["https://a.example"]).ask(call)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert "POST" in answer.headers["access-control-allow-methods"]


# Services that misbehave.


def test_a_result_without_a_version_is_not_cached() -> None:
    answer = Front(version="").ask(request(UPPER_OWL, if_none_match="*"))
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert "etag" not in answer.headers


def front_with(monkeypatch: pytest.MonkeyPatch, xform: Any) -> Front:
    front = Front()
    monkeypatch.setattr(front.service, "xform", xform)
    return front


def fail_at_once(*_: object, **__: object) -> None:
    raise RuntimeError("our fault")


def fail_late(*_: object, **__: object) -> Deferred[bytes]:
    return fail(RuntimeError("our fault"))


@pytest.mark.parametrize("xform", [fail_at_once, fail_late])
def test_an_internal_error_is_logged_with_its_id(xform: Any, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    front = front_with(monkeypatch, xform)
    answer = front.ask(request("/transform/upper", b"owl", x_request_id="7e57"))
    assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (500, "internal", "7e57")
    assert log.lines == ["internal error 7e57"]
    assert len(log.tracebacks) == 1


def test_an_internal_error_in_a_batch_affects_one_line(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    front = front_with(monkeypatch, fail_late)
    answer = front.ask(request("/batch", b'{"spec": "upper", "poem": "owl"}\n{}', x_request_id="7e57"))
    assert b'"code": "internal"' in answer.body
    assert b'"code": "bad-request"' in answer.body
    assert log.lines == ["internal error 7e57"]


def test_server_timing_is_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def xform(*_: object, timing: RequestTiming, **__: object) -> bytes:
        timing.queue_s, timing.run_s = 0.25, 1.5
        return b"owl"

    answer = front_with(monkeypatch, xform).ask(OWL)
    assert answer.headers["server-timing"] == "queue;dur=250.00, run;dur=1500.00"


# Metrics and disconnects.


@pytest.mark.parametrize(
    ("data", "transform", "code"),
    [
        (OWL, "upper", "ok"),
        (request(UPPER_OWL), "upper", "ok"),
        (request("/transform/uppr", b"owl"), "(unknown)", "no-such-transform"),
        (request("/transform/Upper", b"owl"), "(none)", "bad-request"),
        (request("/transform/upper", b"owl", x_timeout_ms="0"), "(none)", "bad-request"),
        (request(UPPER_OWL, x_timeout_ms="0"), "(none)", "bad-request"),
        (request("/transform/upper"), "(none)", "bad-request"),
        (request("/transform/uppr?poem=owl"), "(unknown)", "no-such-transform"),
        (request("/transform/upper", method="PUT"), "(none)", "bad-request"),
        (request("/batch", b"{}", x_timeout_ms="0"), "(none)", "bad-request"),
        (request("/batch", b"{}"), "(none)", "bad-request"),
        (request("/poems"), "(none)", "bad-request"),
        (request("/batch"), "(none)", "bad-request"),
        (request("/transform/upper", b"owl", content_encoding="br"), "(none)", "bad-request"),
        (request(UPPER_OWL, if_match='"other"'), "(none)", "bad-request"),
        (request("/transforms/uppr"), "(unknown)", "no-such-transform"),
        (request(UPPER_OWL, sec_fetch_site="cross-site"), "(none)", "forbidden"),
        (request("/batch", b'{"spec": "uppr", "poem": "owl"}'), "(unknown)", "no-such-transform"),
    ],
)
def test_a_request_is_counted_once(data: bytes, transform: str, code: str, log: Log) -> None:
    front = Front()
    front.ask(data)
    assert front.requests == {(transform, "http", code): 1}
    assert not log.tracebacks


@pytest.mark.parametrize("target", ["/transform/upper", "/batch"])
def test_a_disconnect_while_sending_counts_as_cancelled(target: str, log: Log) -> None:
    front, client = connected(request(target, b"owl")[:-1])
    client.leave()
    assert front.requests == {("(none)", "http", Cancelled.code): 1}
    assert not log.tracebacks


@pytest.mark.parametrize("data", [LATER, request("/batch", b'{"spec": "later", "poem": "owl"}')])
def test_a_response_leaves_nothing_in_flight(data: bytes) -> None:
    front = Front()
    client = front.client(data)
    front.finish(0, client)
    assert client.received()[0].status == 200
    assert not front.service.in_flight


# Reloads, and results that come later.


@pytest.mark.parametrize("content_type", [None, "text/plain; charset=us-ascii"], ids=["fast path", "any other"])
def test_a_reload_between_head_and_body_counts_for_the_request(content_type: str | None) -> None:
    @transform(name="upper", inline=True)
    def other(poem: str) -> str:
        return "new " + poem

    front = Front()
    front.ask(OWL)
    data = request("/transform/upper", b"owl", content_type=content_type)
    client = front.client(data[:-3])
    inline = InlineRunner(front.limits.max_result_bytes, front.clock)
    front.service.swap(Generation(registry_of(other, version="2.0"), inline))
    (answer,) = client.ask(data[-3:])
    assert (answer.body, answer.headers["x-transform"]) == (b"new owl", "upper/2.0")


def test_server_timing_has_the_time_of_a_result_that_comes_later() -> None:
    front, client = connected(LATER)
    front.finish(0, client)
    client.received()
    client.send(LATER)
    time.sleep(0.02)  # what is measured, with the real clock
    front.finish(1, client)
    (answer,) = client.received()
    assert float(answer.headers["server-timing"].rpartition("=")[2]) >= 20
