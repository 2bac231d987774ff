"""Which endpoint answers which path, and how errors are answered."""

import json
from typing import Any

import pytest

from support.http_front import Front, ask, request
from support.logs import Log
from xformd.http.application import METRICS_MEDIA_TYPE, make_application, make_monitoring_application
from xformd.http.endpoints import HealthEndpoints


@pytest.mark.parametrize(("make", "other_status"), [(make_application, 200), (make_monitoring_application, 404)])
def test_metrics_are_read_by_prometheus(make: Any, other_status: int) -> None:
    front = Front(make=make)
    answer = front.ask(request("/metrics"))
    assert answer.status == 200
    assert answer.body.startswith(b"xformd_in_flight 0\n")
    assert answer.headers["content-type"] == METRICS_MEDIA_TYPE.decode()
    assert answer.headers["cache-control"] == "no-store"
    for target in ("/openapi.json", "/", "/transforms"):
        answer = front.ask(request(target))
        assert answer.status == other_status
    assert other_status == 200 or answer.problem["detail"] == (
        "no GET /transforms here: this address has /metrics, /livez and /readyz only"
    )


@pytest.mark.parametrize(("make", "is_told"), [(make_application, False), (make_monitoring_application, True)])
def test_who_uses_the_workers_is_told_on_the_port_for_monitoring_alone(make: Any, is_told: bool) -> None:
    assert (b"by share" in Front(make=make).ask(request("/metrics")).body) is is_told


def test_an_internal_error_shows_only_its_id(log: Log) -> None:
    def fail() -> Any:
        raise RuntimeError("our fault")

    answer = Front(health=HealthEndpoints(fail, fail)).ask(request("/readyz", x_request_id="7e57"))
    assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (500, "internal", "7e57")
    assert answer.headers["x-request-id"] == "7e57"
    assert "internal error 7e57" in log.lines


@pytest.mark.parametrize(
    ("target", "method", "status", "detail"),
    [
        ("/poems", "GET", 404, "no GET /poems here: see GET /openapi.json"),
        ("/batch", "GET", 405, "no GET /batch here: see GET /openapi.json"),
        ("/transforms/wrp", "GET", 404, "no transform 'wrp' here; did you mean 'wrap'?"),
        ("/transforms/wrap/", "GET", 404, "no transform 'wrap/' here; see 'xformd list-transforms'"),
        ("/transforms/", "GET", 404, "no transform '' here; see 'xformd list-transforms'"),
        ("/transforms/wrap", "POST", 405, "no POST /transforms/wrap here: see GET /openapi.json"),
        ("/transform/wrp", "GET", 400, "GET needs the poem as ?poem=...; to send it as the body, use POST"),
        ("/transform/wrp", "PUT", 405, "PUT is not supported: POST the poem"),
    ],
)
def test_every_error_is_a_problem_with_its_request_id(target: str, method: str, status: int, detail: str) -> None:
    answer = ask(request(target, method=method, x_request_id="7e57"))
    assert (answer.status, answer.problem["status"], answer.problem["request_id"]) == (status, status, "7e57")
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("7e57", "no-store")
    assert answer.problem["detail"] == detail
    allowed = "GET, HEAD" if target.startswith("/transforms") else "POST"
    assert answer.headers.get("allow") == (allowed if status == 405 else None)


def test_listings_are_revalidated() -> None:
    front, found = Front(max_request_bytes=4_321), {}
    for target in ("/", "/transforms", "/transforms/markup", "/openapi.json"):
        answer = front.ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-cache")
        found[target] = answer.body
    assert json.loads(found["/transforms/markup"]) in json.loads(found["/transforms"])["transforms"]
    assert "/transform/{spec}" in json.loads(found["/openapi.json"])["paths"]
    assert b"at most 4321 bytes" in found["/openapi.json"]
