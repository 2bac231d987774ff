"""Which path is answered by what, and what each answer says besides."""

import json

import pytest

from support.http_front import Front, request
from support.logs import Log
from xformd.http.application import METRICS_MEDIA_TYPE, HttpDependencies, make_application, make_monitoring_application
from xformd.http.endpoints import HealthEndpoints


def parts() -> HttpDependencies:
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
    front = Front(application=(make_application if is_whole else make_monitoring_application)(parts()))
    (answer,) = await front.ask(request("/metrics"))
    assert (answer.status, answer.body) == (200, b"xformd_in_flight 0\n")
    assert answer.headers["content-type"] == METRICS_MEDIA_TYPE
    assert answer.headers["cache-control"] == "no-store"
    for target in ("/transforms", "/batch", "/"):
        (answer,) = await front.ask(request(target))
        assert (answer.status == 404) is not is_whole


async def test_a_fault_of_ours_is_told_by_its_id_alone(log: Log) -> None:
    front = Front(application=make_application(parts()))
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
async def test_every_refusal_has_the_same_form(target: str, method: str, status: int, detail: str | None) -> None:
    (answer,) = await Front().ask(request(target, method=method, x_request_id="7e57"))
    assert (answer.status, answer.problem["status"], answer.problem["request_id"]) == (status, status, "7e57")
    assert answer.headers["x-request-id"] == "7e57"
    assert answer.headers["cache-control"] == "no-store"
    assert detail in (None, answer.problem["detail"])
    if status == 405:
        assert answer.headers["allow"] == "POST"


async def test_who_watches_is_told_what_there_is_to_watch() -> None:
    (answer,) = await Front(application=make_monitoring_application(parts())).ask(request("/transforms"))
    assert answer.problem["detail"] == "no GET /transforms here: this address has /metrics, /livez and /readyz only"


async def test_what_there_is_is_asked_for_anew_each_time() -> None:
    front = Front(max_request_bytes=4_321)
    for target in ("/", "/transforms", "/transforms/markup", "/openapi.json"):
        (answer,) = await front.ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-cache")
        if target == "/transforms/markup":
            assert json.loads(answer.body)["name"] == "markup"
    assert "/transform/{spec}" in json.loads(answer.body)["paths"]
    assert b"4321" in answer.body or b"4,321" in answer.body


async def test_the_page_comes_with_its_policy() -> None:
    (answer,) = await Front().ask(request("/"))
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
