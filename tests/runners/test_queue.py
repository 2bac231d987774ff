"""The queue against a plain list that does the same slowly."""

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from support.fakes import Asker
from xformd.runners.queue import FairQueue


@attrs.define(eq=False)
class Item:
    number: int
    caller: Any = None


def test_things_come_out_in_the_order_in_which_they_went_in() -> None:
    queue: FairQueue[Item] = FairQueue()
    items = [Item(number) for number in range(3)]
    for item in items:
        queue.put(item)
    for item in items:
        assert queue.first() is item
        assert queue.first() is item
        assert queue.remove(item)
        assert not queue.remove(item)
    assert queue.first() is None
    assert len(queue) == 0


def test_a_caller_with_little_does_not_wait_for_one_with_much() -> None:
    queue: FairQueue[Item] = FairQueue()
    greedy, modest = Asker(), Asker()
    for number in range(4):
        queue.put(Item(number, greedy))
    queue.put(Item(10, modest))
    queue.put(Item(20))
    order = []
    while (item := queue.first()) is not None:
        order.append(item.number)
        queue.remove(item)
    assert order == [0, 10, 20, 1, 2, 3]


def test_who_has_no_room_waits_aside_and_comes_back_at_the_end() -> None:
    queue: FairQueue[Item] = FairQueue()
    full = Asker()
    full.takes_results = False
    held, free = Item(0, full), Item(1)
    queue.put(held)
    queue.put(free)
    assert queue.first() is free
    assert len(queue) == 2
    full.takes_results = True
    assert queue.first() is free
    queue.caller_has_room(full)
    queue.remove(free)
    assert queue.first() is held


def test_nothing_is_kept_of_a_caller_whose_things_are_gone() -> None:
    queue: FairQueue[Item] = FairQueue()
    full = Asker()
    full.takes_results = False
    items = [Item(number, full) for number in range(2)]
    for item in items:
        queue.put(item)
    assert queue.first() is None
    assert all(map(queue.remove, items))
    assert not queue._aside
    assert not queue.remove(Item(3, full))


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "remove", "full", "room", "clear"]), st.integers(0, 3)), max_size=60
)


class Model:
    """The line of each caller, in the order of their turns, and the callers that are aside."""

    def __init__(self) -> None:
        self.lines: list[list[Item]] = []
        self.aside: list[list[Item]] = []

    def _line_of(self, item: Item) -> list[Item]:
        for line in self.lines + self.aside:
            if item.caller is not None and line[0].caller is item.caller:
                return line
        self.lines.append([])
        return self.lines[-1]

    def put(self, item: Item) -> None:
        self._line_of(item).append(item)

    def first(self) -> Item | None:
        while self.lines and self.lines[0][0].caller is not None and not self.lines[0][0].caller.takes_results:
            self.aside.append(self.lines.pop(0))
        return self.lines[0][0] if self.lines else None

    def remove(self, item: Item) -> bool:
        for lines in (self.lines, self.aside):
            for line in lines:
                if item in line:
                    lines.remove(line)
                    lines.extend([rest] if (rest := [other for other in line if other is not item]) else [])
                    return True
        return False

    def caller_has_room(self, caller: Any) -> None:
        back = [line for line in self.aside if line[0].caller is caller]
        self.aside = [line for line in self.aside if line[0].caller is not caller]
        self.lines += back

    def items(self) -> list[Item]:
        return [item for line in self.lines + self.aside for item in line]


@given(OPERATIONS)
def test_it_does_what_plain_lists_do(operations: list[tuple[str, int]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    model = Model()
    askers = [None, None, Asker(), Asker()]
    items: list[Item] = []
    for operation, number in operations:
        asker = askers[number]
        if operation == "put":
            items.append(Item(len(items), asker))
            queue.put(items[-1])
            model.put(items[-1])
        elif operation == "take":
            item = queue.first()
            assert item is model.first()
            assert item is None or queue.remove(item) is model.remove(item) is True
        elif operation == "remove" and items:
            item = items[number % len(items)]
            assert queue.remove(item) is model.remove(item)
        elif operation == "clear" and number == 0:
            assert {item.number for item in queue.clear()} == {item.number for item in model.items()}
            model = Model()
        elif asker is not None and operation in ("full", "room"):
            asker.takes_results = operation == "room"
            if asker.takes_results:
                queue.caller_has_room(asker)
                model.caller_has_room(asker)
        assert len(queue) == len(model.items())
