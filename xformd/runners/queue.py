"""What waits for a worker, in the order in which it came; who has no room for a result waits aside."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from xformd.runners import Caller


class Waiting(Protocol):
    """Something that waits."""

    caller: Caller | None


Item = TypeVar("Item", bound=Waiting)


class Queue(Generic[Item]):
    """A queue from whose middle things can be taken. Every operation takes the same time, however long it is."""

    def __init__(self) -> None:
        self._line: OrderedDict[Item, None] = OrderedDict()
        self._aside: dict[Caller, OrderedDict[Item, None]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, item: Item) -> None:
        """Add something at the end."""
        self._line[item] = None
        self._length += 1

    def first(self) -> Item | None:
        """Give what is next and may begin, and leave it where it is."""
        while self._line:
            item = next(iter(self._line))
            if item.caller is None or item.caller.takes_results:
                return item
            del self._line[item]
            self._aside.setdefault(item.caller, OrderedDict())[item] = None
        return None

    def remove(self, item: Item) -> bool:
        """Take something out, wherever it is; say whether it was there."""
        if item in self._line:
            del self._line[item]
        elif item.caller is not None and item in self._aside.get(item.caller, ()):
            aside = self._aside[item.caller]
            del aside[item]
            if not aside:
                del self._aside[item.caller]
        else:
            return False
        self._length -= 1
        return True

    def caller_has_room(self, caller: Caller) -> None:
        """Put at the end what waited for this."""
        self._line.update(self._aside.pop(caller, ()))

    def clear(self) -> list[Item]:
        """Take out everything."""
        items = [*self._line, *(item for aside in self._aside.values() for item in aside)]
        self._line.clear()
        self._aside.clear()
        self._length = 0
        return items
