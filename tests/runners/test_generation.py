"""One generation: where the steps of a spec run, and what is still to be answered."""

import json

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.registries import registry_of
from xformd import BadOptions, NoSuchTransform, transform
from xformd.runners.generation import MAX_PLANS, Generation
from xformd.runners.inline import InlineRunner
from xformd.runners.placement import Placement
from xformd.runners.quarantine import MAX_DEATHS, Quarantine
from xformd.spec import parse


@transform
def plain(poem: str, *, times: int = 1) -> str:
    return poem * times


@transform(inline=True)
def quick(poem: str) -> str:
    return poem


@transform
async def patient(poem: str) -> str:
    return poem


REGISTRY = registry_of(plain, quick, patient)


class Workers(InlineRunner):
    """Stands for workers."""

    def __init__(self) -> None:
        super().__init__(1_000, Clock())
        self.had_room: list[object] = []

    def caller_has_room(self, caller: object) -> None:
        self.had_room.append(caller)


@pytest.fixture
def workers() -> Workers:
    return Workers()


def make(workers: Workers | None, **placement: frozenset[str]) -> Generation:
    return Generation(REGISTRY, InlineRunner(1_000, Clock()), workers, Placement(**placement))


def shape(generation: Generation, spec: str) -> str:
    """Write the steps of a worker together, in brackets."""
    stages = [
        (isinstance(stage.runner, Workers), "+".join(call.name for call in stage.calls))
        for stage in generation.plan(parse(spec))
    ]
    return " ".join(f"[{names}]" if isolated else names for isolated, names in stages)


def test_neighbours_that_need_a_worker_go_to_one_together(workers: Workers) -> None:
    generation = make(workers)
    assert shape(generation, "plain") == "[plain]"
    assert shape(generation, "plain+plain+quick+quick+plain+patient") == "[plain+plain] quick quick [plain] patient"


def test_the_operator_may_say_otherwise(workers: Workers) -> None:
    generation = make(workers, inline=frozenset({"plain"}), isolate=frozenset({"quick"}))
    assert shape(generation, "plain+quick+quick") == "plain [quick+quick]"


def test_without_workers_the_reactor_runs_all() -> None:
    generation = make(None, isolate=frozenset({"quick"}))
    assert shape(generation, "plain+quick+patient") == "plain quick patient"
    generation.caller_has_room(object())  # type: ignore[arg-type]


def test_a_plan_is_made_once_and_not_for_what_means_nothing(workers: Workers) -> None:
    generation = make(workers)
    spec = parse("plain:times=2")
    assert generation.plan(spec) is generation.plan(spec)
    assert generation.plan(spec)[0].calls[0].options == {"times": 2}
    with pytest.raises(NoSuchTransform):
        generation.plan(parse("plain+nope"))
    with pytest.raises(BadOptions):
        generation.plan(parse("plain:times=x"))


def test_plans_take_a_bounded_place(workers: Workers) -> None:
    generation = make(workers)
    for number in range(2 * MAX_PLANS + 10):
        generation.plan(parse(f"plain:times={number}"))
    assert len(generation._plans) <= MAX_PLANS
    long = parse("+".join(["plain"] * 30) + "+plain:times=" + "1" * 200)
    generation.plan(long)
    assert long not in generation._plans


def test_room_for_results_is_told_to_the_workers(workers: Workers) -> None:
    asker = object()
    make(workers).caller_has_room(asker)  # type: ignore[arg-type]
    assert workers.had_room == [asker]


def test_it_is_finished_when_the_last_request_has_its_outcome(workers: Workers) -> None:
    generation = make(workers)
    requests: list[Deferred[bytes]] = [Deferred() for _ in range(3)]
    for request in requests:
        generation.note(request)
    requests[0].callback(b"1")
    finished = generation.finished()
    requests[1].callback(b"2")
    assert not has_fired(finished)
    requests[2].errback(ValueError("3"))
    assert has_fired(finished)
    assert [result_of(request) for request in requests[:2]] == [b"1", b"2"]
    error_of(requests[2], ValueError)


def test_one_that_has_nothing_to_do_is_finished(workers: Workers) -> None:
    assert has_fired(make(workers).finished())


def test_all_can_be_given_up(workers: Workers) -> None:
    generation = make(workers)
    first: Deferred[bytes] = Deferred()
    second: Deferred[bytes] = Deferred()
    generation.note(first)
    generation.note(second)
    first.addErrback(lambda _: second.cancel())
    finished = generation.finished()
    generation.cancel_all()
    error_of(second, CancelledError)
    assert has_fired(finished)


def test_it_tells_which_transforms_are_in_quarantine(workers: Workers) -> None:
    quarantine = Quarantine()
    for _ in range(MAX_DEATHS):
        quarantine.died("plain", 0)
    generation = Generation(REGISTRY, workers, workers, None, quarantine)
    states = {described["name"]: described["state"] for described in generation.describe()["transforms"]}
    assert states == {"patient": "active", "plain": "quarantined", "quick": "active"}


def test_its_listing_is_made_anew_when_a_quarantine_begins_or_ends_alone(workers: Workers) -> None:
    quarantine = Quarantine()
    generation = Generation(REGISTRY, workers, workers, None, quarantine)
    told = [generation.listing(), generation.listing()]
    assert told[0] is told[1]
    for _ in range(MAX_DEATHS):
        quarantine.died("plain", 0)
    told.append(generation.listing())
    quarantine.begin("plain")
    quarantine.survived("plain")
    told.append(generation.listing())
    assert [b'"quarantined"' in listing for listing in told] == [False, False, True, False]
    assert json.loads(told[0]) == generation.describe()


def test_what_came_last_is_given_up_first(workers: Workers) -> None:
    # It may wait behind what runs, and would otherwise take its place, only to be ended there.
    generation = make(workers)
    given_up: list[int] = []
    for number in range(20):
        request: Deferred[bytes] = Deferred(lambda _, number=number: given_up.append(number))
        generation.note(request)
        request.addErrback(lambda _: None)
    generation.cancel_all()
    assert given_up == [*reversed(range(20))]
