"""What waits for a worker: a line for each caller, and each caller has a turn, so that nobody waits for one with much.

Who has no room for a result waits aside.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from xformd.runners import Caller


class Waiting(Protocol):
    """Something that waits."""

    caller: Caller | None


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """A line for each caller, from whose middle things can be taken; who has none of his own is a line by himself.

    Every operation takes the same time, however much waits.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[object, OrderedDict[Item, None]] = OrderedDict()  # whose turn is next is first
        self._aside: dict[object, OrderedDict[Item, None]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, item: Item) -> None:
        """Add something at the end of its caller's line."""
        key = _key(item)
        lines = self._aside if key in self._aside else self._lines
        lines.setdefault(key, OrderedDict())[item] = None
        self._length += 1

    def first(self) -> Item | None:
        """Give what is next and may begin, and leave it where it is."""
        while self._lines:
            key, line = next(iter(self._lines.items()))
            item = next(iter(line))
            if item.caller is None or item.caller.takes_results:
                return item
            self._aside[key] = self._lines.pop(key)
        return None

    def remove(self, item: Item) -> bool:
        """Take something out, wherever it is, and let its caller's turn be last; say whether it was there."""
        key = _key(item)
        for lines in (self._lines, self._aside):
            line = lines.get(key)
            if line is not None and item in line:
                del line[item]
                del lines[key]
                if line:
                    lines[key] = line
                self._length -= 1
                return True
        return False

    def caller_has_room(self, caller: Caller) -> None:
        """Put back in line what waited for this."""
        if (line := self._aside.pop(caller, None)) is not None:
            self._lines[caller] = line

    def clear(self) -> list[Item]:
        """Take out everything."""
        items = [item for lines in (self._lines, self._aside) for line in lines.values() for item in line]
        self._lines.clear()
        self._aside.clear()
        self._length = 0
        return items


def _key(item: Item) -> object:
    return item if item.caller is None else item.caller
