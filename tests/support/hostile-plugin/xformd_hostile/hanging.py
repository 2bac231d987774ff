"""Transforms that do not come back, or late, or that tell where they run."""

import os
import re
import time

import xformd
from xformd_hostile.traces import LIFE_S, OWL, go_deaf, hang, marked, note


@xformd.transform(examples=OWL)
def sleep(poem: str, *, seconds: float = 0.0, marker: str = "") -> str:
    note(marker)
    time.sleep(min(seconds, LIFE_S))
    return poem


def loop_python(_: str) -> None:
    ends_at = time.monotonic() + LIFE_S
    while time.monotonic() < ends_at:
        pass


def loop_c(_: str) -> None:
    """Loop in C, in a regular expression that takes twice as long for each letter."""
    re.fullmatch("(a+)+", "a" * 30 + "!")


def ignore_signals_and_hang(_: str) -> None:
    go_deaf()
    hang()


@xformd.transform(inline=True, examples=[("Owl", "Owl", {"seconds": 0.0})])
def block_reactor(poem: str, *, seconds: float = 0.1) -> str:
    """Block the server, although its author declared it inline."""
    time.sleep(seconds)
    return poem


@xformd.transform(inline=True)
async def never(poem: str) -> str:
    """Wait for what never comes."""
    from twisted.internet.defer import Deferred

    await Deferred()
    return poem


TRANSFORMS = (
    sleep,
    marked("loop-python", loop_python),
    marked("loop-c", loop_c),
    marked("deaf", ignore_signals_and_hang),
    marked("pid", lambda poem: f"{poem} {os.getpid()}"),
    block_reactor,
    never,
)
