"""The access log of HTTP: one line for each request, whichever way it ends, without a poem, an option or a path."""

import json
from typing import Any

import pytest

from support.http_front import Client, Front, request
from support.memory import MemoryAccessLog
from xformd.http.application import make_monitoring_application

POEM = "the-owl-and-the-pussycat"
SHOWN = ("method", "endpoint", "transform", "code", "status")
LATER = request("/transform/later", b"owl", x_request_id="owl-1")


@pytest.fixture
def log() -> MemoryAccessLog:
    return MemoryAccessLog()


@pytest.fixture
def front(log: MemoryAccessLog) -> Front:
    return Front(access_log=log, max_request_bytes=1_000, max_in_flight=2, host_names=("a",))


def ask(front: Front, data: bytes) -> tuple[Client, int]:
    """Send a request on a new connection; return its client and its status."""
    client = front.client(data)
    (answer,) = client.received()
    return client, answer.status


def batch(*lines: object) -> bytes:
    body = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return request("/batch", body.encode(), x_request_id="owl-1")


@pytest.mark.parametrize("times", [1, 3])
def test_a_transform_has_one_line_with_all_that_is_known(front: Front, log: MemoryAccessLog, times: int) -> None:
    for _ in range(times):
        assert front.ask(request("/transform/upper", POEM.encode(), x_request_id="owl-1")).body == POEM.upper().encode()
    assert len(log.lines) == times
    line = log.lines[-1]
    assert 0 <= line.pop("run_s") <= line.pop("total_s") < 60
    assert line.pop("time").endswith("Z")
    assert line == {
        "namespace": "access",
        "peer": "127.0.0.1",
        "front": "http",
        "method": "POST",
        "endpoint": "/transform/",
        "transform": "upper",
        "code": "ok",
        "status": 200,
        "poem_bytes": 24,
        "result_bytes": 24,
        "queue_s": 0.0,
        "request_id": "owl-1",
    }


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (request("/transform/wrap?width=6&fill=*", b"owl"), ("POST", "/transform/", "wrap", "ok", 200)),
        (request("/transform/upper+backwards", b"owl"), ("POST", "/transform/", "upper+backwards", "ok", 200)),
        (request(f"/transform/upper?poem={POEM}"), ("GET", "/transform/", "upper", "ok", 200)),
        (request("/transform/upper?poem=a", if_none_match="*"), ("GET", "/transform/", "upper", "ok", 304)),
        (request("/transform/upper?poem=a", if_match='"b"'), ("GET", "/transform/", "upper", "bad-request", 412)),
        (request("/transform/picky?poem=a"), ("GET", "/transform/", "picky", "bad-request", 405)),
        (request("/transform/picky", b"a"), ("POST", "/transform/", "picky", "gibberish", 422)),
        (request("/transform/raises", b"a"), ("POST", "/transform/", "raises", "transform-failed", 500)),
        (request("/transform/uper", b"a"), ("POST", "/transform/", "uper", "no-such-transform", 404)),
        (request(f"/transform/{POEM}=", b"a"), ("POST", "/transform/", None, "bad-request", 400)),
        (request(f"/transform/wrap?width={POEM}", b"a"), ("POST", "/transform/", "wrap", "bad-options", 400)),
        (request(f"/transform/wrap?{POEM}=1", b"a"), ("POST", "/transform/", "wrap", "bad-options", 400)),
        (request("/transform/upper", b"a", method="PUT"), ("PUT", "/transform/", "upper", "bad-request", 405)),
        (request("/transform/upper", b"a", x_timeout_ms=POEM), ("POST", "/transform/", "upper", "bad-request", 400)),
        (
            request("/transform/upper", b"a", content_encoding="gzip"),
            ("POST", "/transform/", "upper", "bad-request", 415),
        ),
        (
            request("/transform/upper", b"\xff", content_type="text/plain; charset=utf-8"),
            ("POST", "/transform/", "upper", "gibberish", 422),
        ),
        (request("/transform/upper", b"a" * 1_001), ("POST", "/transform/", None, "too-large", 413)),
        (request("/", host=POEM), ("GET", "/", None, "bad-request", 421)),
        (request("/", sec_fetch_site="cross-site"), ("GET", "/", None, "forbidden", 403)),
        (request("/"), ("GET", "/", None, "ok", 200)),
        (request(f"/?{POEM}"), ("GET", "/", None, "ok", 200)),
        (request("/transforms"), ("GET", "/transforms", None, "ok", 200)),
        (request("/transforms/upper"), ("GET", "/transforms/", None, "ok", 200)),
        (request(f"/transforms/{POEM}"), ("GET", "/transforms/", None, "no-such-transform", 404)),
        (request("/openapi.json"), ("GET", "/openapi.json", None, "ok", 200)),
        (request("/livez"), ("GET", "/livez", None, "ok", 200)),
        (request("/readyz"), ("GET", "/readyz", None, "ok", 200)),
        (request("/metrics"), ("GET", "/metrics", None, "ok", 200)),
        (request("/metrics", b"a"), ("POST", "/metrics", None, "bad-request", 405)),
        (request(f"/{POEM}"), ("GET", None, None, "bad-request", 404)),
        (request("/batch", method="PUT"), ("PUT", "/batch", None, "bad-request", 405)),
        (request("/batch", b"a", x_timeout_ms="-1"), ("POST", "/batch", None, "bad-request", 400)),
        (f"{POEM.upper()} / HTTP/1.1\r\n\r\n".encode(), (None, None, None, "bad-request", 400)),
        (b"GET / HTTP/1.1\r\n\r\n", ("GET", None, None, "bad-request", 400)),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value.partition(b"\r\n")[0].decode()[:60],
)
def test_every_request_has_one_line(front: Front, log: MemoryAccessLog, data: bytes, line: tuple[Any, ...]) -> None:
    for _ in range(2):
        client, status = ask(front, data)
        assert status == line[-1]
        client.leave()
        assert POEM not in json.dumps(log.lines).lower()
        assert log.take(*SHOWN) == [line]


def test_answers_without_a_body_have_a_line(front: Front, log: MemoryAccessLog) -> None:
    for method in ("HEAD", "OPTIONS"):
        front.client(request("/", method=method))
    assert log.take(*SHOWN) == [("HEAD", "/", None, "ok", 200), ("OPTIONS", "/", None, "ok", 204)]


def test_the_line_of_a_request_has_the_id_of_its_answer(front: Front, log: MemoryAccessLog) -> None:
    for data in (request("/livez"), request("/nowhere"), request("/transform/upper", b"a"), b"no HTTP\r\n\r\n"):
        answer = front.ask(data)
        assert log.take("request_id") == [(answer.headers["x-request-id"],)]


def test_pipelined_requests_have_a_line_each(front: Front, log: MemoryAccessLog) -> None:
    front.client(request("/livez") + request("/transform/upper", b"a") + request("/nowhere"))
    assert log.take("endpoint", "status") == [("/livez", 200), ("/transform/", 200), (None, 404)]


def test_a_request_that_has_to_wait_has_its_line_when_it_is_done(front: Front, log: MemoryAccessLog) -> None:
    client = front.client(LATER)
    assert log.lines == []
    front.finish(0, client)
    client.leave()
    assert log.take("code", "status", "result_bytes") == [("ok", 200, 4)]


# Clients that leave, or are slow.


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (LATER, ("/transform/", "later", "cancelled", 499)),
        (LATER[:-1], ("/transform/", "later", "cancelled", 499)),
        (request("/livez", b"owl")[:-1], ("/livez", None, "bad-request", 405)),  # it has its answer
    ],
)
def test_a_client_that_leaves_has_cancelled_its_request(
    front: Front, log: MemoryAccessLog, data: bytes, line: tuple[Any, ...]
) -> None:
    client = front.client(data)
    client.leave()
    assert log.take(*SHOWN[1:]) == [line]


def test_a_connection_without_a_request_has_no_line(front: Front, log: MemoryAccessLog) -> None:
    client = front.client(b"GET / HT")
    client.leave()
    front.open().leave()
    assert log.lines == []


@pytest.mark.parametrize("begun", [LATER[:-1], LATER[:20]])
def test_a_request_that_is_too_slow_has_a_line(front: Front, log: MemoryAccessLog, begun: bytes) -> None:
    client = front.client(begun)
    front.advance(30, client)
    assert log.take("code", "status") == [("bad-request", 408)]


def test_a_request_that_a_stopping_server_has_in_part_has_a_line(front: Front, log: MemoryAccessLog) -> None:
    client = front.client(LATER[:-1])
    front.factory.drain()
    client.settle()
    assert log.take("code", "status", "request_id") == [("shutting-down", 503, "owl-1")]


# Proxies and batches.


def test_the_client_of_a_trusted_proxy_has_its_own_address(log: MemoryAccessLog) -> None:
    front = Front(access_log=log, trusted_proxies=("127.0.0.1",))
    front.client(request("/livez", x_forwarded_for="10.1.2.3") + request("/livez"))
    assert log.take("peer") == [("10.1.2.3",), ("127.0.0.1",)]


def test_a_batch_has_a_line_for_each_of_its_lines_and_one_of_its_own(front: Front, log: MemoryAccessLog) -> None:
    wrong = {"spec": f"upper:{POEM}=1", "poem": POEM}
    _, status = ask(front, batch({"spec": "upper", "poem": POEM}, POEM, wrong, {"spec": "uper", "poem": POEM}))
    assert status == 200
    assert POEM not in json.dumps(log.lines)
    assert {line["request_id"] for line in log.lines} == {"owl-1"}
    assert log.take(*SHOWN, "poem_bytes") == [
        (None, None, "upper", "ok", 200, 24),
        (None, None, None, "bad-request", 400, None),
        (None, None, "upper", "bad-options", 400, 24),
        (None, None, "uper", "no-such-transform", 404, 24),
        ("POST", "/batch", None, "ok", 200, None),
    ]


def test_a_batch_whose_client_leaves_is_cancelled_with_what_runs(front: Front, log: MemoryAccessLog) -> None:
    client = front.client(batch(*[{"spec": "later", "poem": "owl"}] * 3))
    client.leave()
    assert sorted(log.take("transform", "code", "status"), key=str) == [
        ("later", "cancelled", 499),
        ("later", "cancelled", 499),
        (None, "cancelled", 200),  # it had begun
    ]


def test_the_port_for_monitoring_has_lines_too(log: MemoryAccessLog) -> None:
    front = Front(access_log=log, make=make_monitoring_application)
    front.client(request("/metrics") + request("/transform/upper", b"a"))
    assert log.take("endpoint", "status") == [("/metrics", 200), (None, 404)]
