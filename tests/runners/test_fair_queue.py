"""The queue in front of the workers, against plain lists that do the same slowly."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.fakes import Asker
from xformd.runners.pool import FairQueue, PoolJob


def job(caller: Asker | None = None) -> PoolJob:
    unused: Any = None
    return PoolJob(unused, (), b"", caller)


def test_a_caller_with_little_does_not_wait_for_one_with_much() -> None:
    queue = FairQueue()
    greedy, modest = Asker(), Asker()
    first, second, third = jobs = [job(greedy) for _ in range(3)]
    little, single = job(modest), job()
    for each in (*jobs, little, single):
        queue.put(each)
    order = []
    while (taken := queue.first()) is not None:
        order.append(taken)
        assert queue.remove(taken)
    assert order == [first, little, single, second, third]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "remove", "full", "room", "clear"]), st.integers(0, 3)), max_size=60
)


class Model:
    """One list per caller, in the order of their turns, and those of the callers that are set aside."""

    def __init__(self) -> None:
        self.lists: list[list[PoolJob]] = []
        self.aside: list[list[PoolJob]] = []

    def put(self, job: PoolJob) -> None:
        for each in self.lists + self.aside:
            if job.caller is not None and each[0].caller is job.caller:
                each.append(job)
                return
        self.lists.append([job])

    def first(self) -> PoolJob | None:
        while self.lists and (caller := self.lists[0][0].caller) is not None and not caller.takes_results:
            self.aside.append(self.lists.pop(0))
        return self.lists[0][0] if self.lists else None

    def remove(self, job: PoolJob) -> bool:
        for lists in (self.lists, self.aside):
            for each in lists:
                if job in each:
                    lists.remove(each)
                    lists.extend([rest] if (rest := [other for other in each if other is not job]) else [])
                    return True
        return False

    def caller_has_room(self, caller: Asker) -> None:
        self.lists += [each for each in self.aside if each[0].caller is caller]
        self.aside = [each for each in self.aside if each[0].caller is not caller]

    def jobs(self) -> set[PoolJob]:
        return {job for each in self.lists + self.aside for job in each}


@given(OPERATIONS)
def test_it_does_what_plain_lists_do(operations: list[tuple[str, int]]) -> None:
    queue, model = FairQueue(), Model()
    askers = [None, None, Asker(), Asker()]
    jobs: list[PoolJob] = []
    for operation, number in operations:
        asker = askers[number]
        if operation == "put":
            jobs.append(job(asker))
            queue.put(jobs[-1])
            model.put(jobs[-1])
        elif operation == "take":
            taken = queue.first()
            assert taken is model.first()
            assert taken is None or queue.remove(taken) is model.remove(taken) is True
        elif operation == "remove" and jobs:
            removed = jobs[number % len(jobs)]
            assert queue.remove(removed) is model.remove(removed)
        elif operation == "clear" and number == 0:
            assert {*queue.clear()} == model.jobs()
            model = Model()
        elif asker is not None and operation in ("full", "room"):
            asker.takes_results = operation == "room"
            if asker.takes_results:
                queue.caller_has_room(asker)
                model.caller_has_room(asker)
        assert len(queue) == len(model.jobs())
        assert len(queue._set_aside) == len(model.aside)
