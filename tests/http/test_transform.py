"""What becomes of a transform request besides its answer: in the metrics, in the log, and in what is left running."""

import asyncio
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from support.http_front import Front, request
from support.logs import Log
from support.registries import registry_of
from xformd.errors import Cancelled
from xformd.http.batch import BatchEndpoint
from xformd.http.transform import TransformEndpoint
from xformd.limits import Limits
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

POST = request("/transform/upper", b"owl")


class Broken:
    """A service that does not keep its promises, or one that took its time."""

    registry = registry_of(*Front().service.registry.with_state("active")[0].transforms)

    def __init__(self, *, is_late: bool = False, times_s: tuple[float, float] | None = None) -> None:
        self._is_late = is_late
        self._times_s = times_s

    def xform(self, *_: object, timing: RequestTiming | None = None, **__: object) -> Any:
        if self._times_s is not None:
            assert timing is not None
            timing.queue_s, timing.run_s = self._times_s
            return b"owl"
        result: Deferred[bytes] = Deferred()
        if self._is_late:
            result.errback(RuntimeError("our fault"))
            return result
        raise RuntimeError("our fault")

    def caller_has_room(self, *_: object) -> None:
        """Nothing waits here."""


def transforming(service: Broken) -> Front:
    return Front(application=TransformEndpoint(service, Metrics(), Limits()))


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_fault_of_ours_is_in_the_log_under_the_id_that_the_client_is_told(is_late: bool, log: Log) -> None:
    front = transforming(Broken(is_late=is_late))
    (answer,) = await front.ask(request("/transform/upper", b"owl", x_request_id="7e57"))
    assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (500, "internal", "7e57")
    assert log.lines == ["internal error 7e57"]
    assert len(log.tracebacks) == 1


async def test_so_is_one_in_a_batch_and_the_others_are_answered(log: Log) -> None:
    front = Front(application=BatchEndpoint(Broken(is_late=True), Metrics(), Limits()))
    (answer,) = await front.ask(request("/batch", b'{"spec": "upper", "poem": "owl"}\n{}'))
    assert b'"code": "internal"' in answer.body
    assert b'"code": "bad-request"' in answer.body
    assert [line.partition("error ")[0] for line in log.lines] == ["internal "]


async def test_times_are_told_in_milliseconds() -> None:
    (answer,) = await transforming(Broken(times_s=(0.25, 1.5))).ask(POST)
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


async def test_who_knows_the_result_is_told_nevertheless_what_is_wrong() -> None:
    (answer,) = await Front().ask(request("/transform/wrap?poem=owl&width=wide", if_none_match="*"))
    assert (answer.status, answer.problem["code"]) == (400, "bad-options")
    (answer,) = await Front().ask(request("/transform/wrap?poem=owl", if_none_match="*", x_request_id="7e57"))
    assert (answer.status, answer.headers["x-request-id"]) == (304, "7e57")
    assert answer.headers["cache-control"] == "public, max-age=60"


async def test_what_is_not_there_has_no_methods_but_the_one_that_says_so() -> None:
    (answer,) = await Front().ask(request("/transform/uppr", method="PUT"))
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("target", ["/transform/upper", "/batch"])
async def test_who_goes_away_while_he_sends_has_asked_nothing(target: str, log: Log) -> None:
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
async def test_who_goes_away_while_he_waits_leaves_nothing_behind(data: bytes, running: int, log: Log) -> None:
    front, before = Front(), asyncio.all_tasks()
    client = front.connect()
    await client.send(data)
    client.leave()
    await client.settle()
    assert front.cancelled == running
    assert asyncio.all_tasks() == before
    assert not log.tracebacks


@pytest.mark.parametrize("data", [request("/transform/later", b"owl"), request("/batch", LINE)])
async def test_an_answer_leaves_nothing_behind(data: bytes) -> None:
    front, before = Front(), asyncio.all_tasks()
    client = front.connect()
    await client.send(data)
    front.waiting[0].callback("late")
    await client.settle()
    assert client.received()[0].status == 200
    assert asyncio.all_tasks() == before
