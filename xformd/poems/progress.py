"""A line for each server on a terminal, rewritten in place while poems arrive."""

import math
import shutil
from collections.abc import Callable, Mapping
from typing import TextIO

from xformd.errors import printable

PERIOD_S = 0.1
"""Faster than this nobody reads."""

_UP_AND_CLEAR = "\x1b[{lines}A\r\x1b[J"


def block(states: Mapping[str, str], columns: int, rows: int) -> list[str]:
    """Write the lines.

    Args:
        states: what to say of each address, in order.
        columns: of the terminal.
        rows: of the terminal: what scrolls away cannot be rewritten.

    Returns:
        A line for each address, or as many as there is room for and one that says how many are left out.
    """
    width = max(map(len, states), default=0)
    lines = [printable(f"{address:<{width}}  {state}")[: max(1, columns - 1)] for address, state in states.items()]
    room = max(1, rows - 2)
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... and {len(lines) - room + 1} more"[: max(1, columns - 1)]]


class Progress:
    """Shows how each poem gets on.

    Args:
        terminal: where; None to show nothing.
        seconds: gives the time.
    """

    def __init__(self, terminal: TextIO | None, seconds: Callable[[], float]) -> None:
        self._terminal = terminal
        self._seconds = seconds
        self._states: dict[str, str] = {}
        self._drawn_lines = 0
        self._drawn_at = -math.inf
        self._is_held = False

    def says(self, address: str, state: str) -> None:
        """Note a poem's state, and show it unless the last drawing is just over."""
        self._states[address] = state
        if not self._is_held and self._seconds() - self._drawn_at >= PERIOD_S:
            self.draw()

    def draw(self) -> None:
        """Show the states as they are now."""
        self._is_held = False
        if self._terminal is None:
            return
        columns, rows = shutil.get_terminal_size()
        lines = block(self._states, columns, rows)
        self._terminal.write(self._clearing() + "".join(line + "\n" for line in lines))
        self._terminal.flush()
        self._drawn_lines = len(lines)
        self._drawn_at = self._seconds()

    def clear(self) -> None:
        """Take the lines away, to make room for something that stays, and show none until ``draw()``."""
        self._is_held = True
        if self._terminal is not None:
            self._terminal.write(self._clearing())
            self._terminal.flush()
        self._drawn_lines = 0

    def _clearing(self) -> str:
        return _UP_AND_CLEAR.format(lines=self._drawn_lines) if self._drawn_lines else ""
