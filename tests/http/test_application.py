"""Which endpoint answers which path, and how errors are answered."""

import json

import pytest

from support.http_front import Front, request
from support.logs import Log
from xformd.http.application import METRICS_MEDIA_TYPE, HttpDependencies, make_application, make_monitoring_application
from xformd.http.endpoints import HealthEndpoints


def dependencies() -> HttpDependencies:
    whole = Front()

    def fail() -> object:
        raise RuntimeError("our fault")

    return HttpDependencies(
        service=whole.service,
        metrics=whole.metrics,
        limits=whole.limits,
        health=HealthEndpoints(fail, fail),  # type: ignore[arg-type]
        render_metrics=lambda: b"xformd_in_flight 0\n",
    )


@pytest.mark.parametrize("is_whole", [True, False])
async def test_metrics_are_read_by_prometheus(is_whole: bool) -> None:
    front = Front(application=(make_application if is_whole else make_monitoring_application)(dependencies()))
    (answer,) = await front.ask(request("/metrics"))
    assert (answer.status, answer.body) == (200, b"xformd_in_flight 0\n")
    assert answer.headers["content-type"] == METRICS_MEDIA_TYPE
    assert answer.headers["cache-control"] == "no-store"
    for target in ("/transforms", "/batch", "/"):
        (answer,) = await front.ask(request(target))
        assert (answer.status == 404) is not is_whole


async def test_an_internal_error_shows_only_its_id(log: Log) -> None:
    front = Front(application=make_application(dependencies()))
    (answer,) = await front.ask(request("/readyz", x_request_id="7e57"))
    assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (500, "internal", "7e57")
    assert answer.headers["x-request-id"] == "7e57"
    assert "internal error 7e57" in log.lines


@pytest.mark.parametrize(
    ("target", "method", "status", "detail"),
    [
        ("/poems", "GET", 404, "no GET /poems here: see GET /openapi.json"),
        ("/batch", "GET", 405, "no GET /batch here: see GET /openapi.json"),
        ("/transforms/wrp", "GET", 404, None),
        ("/transform/wrp", "GET", 400, None),
        ("/transform/wrp", "PUT", 405, "PUT is not supported: POST the poem"),
    ],
)
async def test_every_error_is_a_problem_with_its_request_id(
    target: str, method: str, status: int, detail: str | None
) -> None:
    (answer,) = await Front().ask(request(target, method=method, x_request_id="7e57"))
    assert (answer.status, answer.problem["status"], answer.problem["request_id"]) == (status, status, "7e57")
    assert answer.headers["x-request-id"] == "7e57"
    assert answer.headers["cache-control"] == "no-store"
    assert detail in (None, answer.problem["detail"])
    if status == 405:
        assert answer.headers["allow"] == "POST"


async def test_the_monitoring_address_names_its_endpoints() -> None:
    (answer,) = await Front(application=make_monitoring_application(dependencies())).ask(request("/transforms"))
    assert answer.problem["detail"] == "no GET /transforms here: this address has /metrics, /livez and /readyz only"


async def test_listings_are_revalidated() -> None:
    front, found = Front(max_request_bytes=4_321), {}
    for target in ("/", "/transforms", "/transforms/markup", "/openapi.json"):
        (answer,) = await front.ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-cache")
        found[target] = answer.body
    assert json.loads(found["/transforms/markup"]) in json.loads(found["/transforms"])["transforms"]
    assert "/transform/{spec}" in json.loads(found["/openapi.json"])["paths"]
    assert b"at most 4321 bytes" in found["/openapi.json"]
