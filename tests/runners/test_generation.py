"""One generation: where the steps of a spec run, and what is still to be answered."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from support.deferreds import error_of, has_fired, result_of
from support.logs import Log
from support.registries import PLACED
from xformd import BadOptions, GibberishError, InternalError, NoSuchTransform, ShuttingDown
from xformd.errors import Cancelled
from xformd.runners.calls import Call
from xformd.runners.generation import Generation, RequestsInFlight
from xformd.runners.inline import InlineRunner
from xformd.runners.policy import LONG_POEM_BYTES, MAX_DEATHS, QUARANTINE_S, Placement, Quarantine
from xformd.spec import parse


class Workers(InlineRunner):
    """Stands for workers."""

    size = 1

    def __init__(self) -> None:
        super().__init__(1_000_000, Clock())
        self.had_room: list[object] = []
        self.ran: list[str] = []

    def run(self, calls: Sequence[Call], poem: bytes, *others: Any, **named: Any) -> bytes | Deferred[bytes]:
        self.ran += [call.name for call in calls]
        return super().run(calls, poem, *others, **named)

    def has_room(self, caller: object) -> None:
        self.had_room.append(caller)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def make(workers: Workers | None, **placement: Any) -> Generation:
    return Generation(PLACED, InlineRunner(1_000_000, Clock()), workers, Placement(**placement))


def shape(generation: Generation, spec: str, poem_bytes: int = 0) -> str:
    """Write the steps of a worker together, in brackets."""
    stages = [
        (isinstance(stage.runner, Workers), "+".join(call.name for call in stage.calls))
        for stage in generation.plan(parse(spec), poem_bytes)
    ]
    return " ".join(f"[{names}]" if isolated else names for isolated, names in stages)


def test_neighbours_that_need_a_worker_go_to_one_together(workers: Workers) -> None:
    generation = make(workers)
    assert shape(generation, "plain") == "[plain]"
    assert shape(generation, "plain+plain+quick+quick+plain+patient") == "[plain+plain] quick quick [plain] patient"


def test_the_operator_may_say_otherwise(workers: Workers) -> None:
    generation = make(workers, inline=frozenset({"plain"}), isolate=frozenset({"quick"}))
    assert shape(generation, "plain+quick+quick") == "plain [quick+quick]"


def test_a_long_poem_goes_to_a_worker_with_all_its_neighbours(workers: Workers) -> None:
    spec = "plain+plain+quick+quick+plain+patient"
    assert shape(make(workers), spec, LONG_POEM_BYTES) == "[plain+plain] quick quick [plain] patient"
    assert shape(make(workers), spec, LONG_POEM_BYTES + 1) == "[plain+plain+quick+quick+plain] patient"
    kept = make(workers, inline=frozenset({"quick"}))
    assert shape(kept, "plain+quick", LONG_POEM_BYTES + 1) == "[plain] quick"


@pytest.mark.parametrize(("poem_bytes", "ran"), [(LONG_POEM_BYTES, []), (LONG_POEM_BYTES + 1, ["quick"])])
def test_a_poem_that_an_earlier_step_has_made_long_goes_to_a_worker(
    workers: Workers, poem_bytes: int, ran: list[str]
) -> None:
    first, second = make(workers, inline=frozenset({"plain"})).plan(parse("plain+quick"))
    assert second.run(first.run(b"x" * poem_bytes)) == b"x" * poem_bytes  # type: ignore[arg-type]
    assert workers.ran == ran


def test_without_workers_the_reactor_runs_all() -> None:
    generation = make(None, isolate=frozenset({"quick"}))
    for poem_bytes in (0, LONG_POEM_BYTES + 1):
        assert shape(generation, "plain+quick+patient", poem_bytes) == "plain quick patient"
    generation.has_room(object())  # type: ignore[arg-type]


def test_a_plan_is_made_once_and_not_for_what_means_nothing(workers: Workers) -> None:
    generation = make(workers)
    spec = parse("plain:times=2")
    assert generation.plan(spec) is generation.plan(spec)
    assert generation.plan(spec)[0].calls[0].options == {"times": 2}
    with pytest.raises(NoSuchTransform):
        generation.plan(parse("plain+nope"))
    with pytest.raises(BadOptions):
        generation.plan(parse("plain:times=x"))


def test_room_for_results_is_told_to_the_workers(workers: Workers) -> None:
    asker = object()
    make(workers).has_room(asker)  # type: ignore[arg-type]
    assert workers.had_room == [asker]


def waiting(count: int) -> tuple[RequestsInFlight, list[Deferred[bytes]]]:
    """Return so many requests in flight, the first of which is the oldest; cancelled, they fail as a service's do."""
    in_flight = RequestsInFlight()
    requests = [Deferred[bytes](lambda request: request.errback(Cancelled("cancelled"))) for _ in range(count)]
    for request in requests:
        in_flight.add(request)
    return in_flight, requests


def test_requests_are_in_flight_until_they_end(log: Log) -> None:
    assert has_fired(RequestsInFlight().emptied())
    in_flight, requests = waiting(3)
    requests[0].callback(b"1")
    emptied = in_flight.emptied()
    requests[1].callback(b"2")
    assert (len(in_flight), has_fired(emptied)) == (1, False)
    requests[2].errback(GibberishError("3"))
    assert (len(in_flight), has_fired(emptied)) == (0, True)
    assert [result_of(request) for request in requests[:2]] == [b"1", b"2"]
    error_of(requests[2], GibberishError)
    assert log.lines == []


def test_a_request_that_fails_with_anything_else_is_an_internal_error(log: Log) -> None:
    _, (request,) = waiting(1)
    request.errback(ValueError("a bug"))
    error = error_of(request, InternalError)
    assert log.lines == [f"internal error {error.message}"]
    assert log.tracebacks[0]["error"] == "ValueError"


def test_a_stop_cancels_every_request_the_last_first() -> None:
    # The last may wait behind the first, and would otherwise take its worker, only to lose it at once.
    in_flight, requests = waiting(20)
    cancelled: list[int] = []

    def note(failure: Failure, number: int) -> Failure:
        cancelled.append(number)
        return failure

    for number, request in enumerate(requests):
        request.addErrback(note, number)
    in_flight.stop()
    assert cancelled == [*reversed(range(20))]
    for request in requests:
        assert error_of(request, ShuttingDown).retry_after_ms is None


def test_a_stop_goes_well_with_a_request_that_cancels_another() -> None:
    in_flight, (first, second) = waiting(2)
    second.addErrback(lambda _: first.cancel())
    emptied = in_flight.emptied()
    in_flight.stop()
    error_of(first, ShuttingDown)
    assert has_fired(emptied)


def test_its_listing_is_made_anew_when_a_quarantine_begins_or_ends_alone(workers: Workers) -> None:
    quarantine = Quarantine()
    generation = Generation(PLACED, workers, workers, None, quarantine)
    first = generation.listing()
    assert generation.listing() is first
    for each in range(MAX_DEATHS):
        quarantine.died("plain", 0, share=f"{each}")
    states = {described["name"]: described["state"] for described in json.loads(generation.listing())["transforms"]}
    assert states == {"patient": "active", "plain": "quarantined", "quick": "active"}
    quarantine.begin("plain", QUARANTINE_S)
    quarantine.survived("plain")
    assert generation.listing() == first
    assert json.loads(first) == generation.describe()
