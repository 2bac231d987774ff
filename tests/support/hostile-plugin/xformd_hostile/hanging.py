"""Transforms that do not come back."""

import re
import time

import xformd
from xformd_hostile.traces import LIFE_S, go_deaf, hang, note


@xformd.transform(examples=[("Owl", "Owl")])
def sleep(poem: str, *, seconds: float = 0.0, marker: str = "") -> str:
    """Give the poem back, after a while."""
    note(marker)
    time.sleep(min(seconds, LIFE_S))
    return poem


@xformd.transform
def loop_python(poem: str, *, marker: str = "") -> str:
    """Loop in Python."""
    note(marker)
    ends_at = time.monotonic() + LIFE_S
    while time.monotonic() < ends_at:
        pass
    return poem


@xformd.transform
def loop_c(poem: str, *, marker: str = "") -> str:
    """Loop in C, in a regular expression that takes twice as long for each letter."""
    note(marker)
    re.fullmatch("(a+)+", "a" * 30 + "!")
    return poem


@xformd.transform
def deaf(poem: str, *, marker: str = "") -> str:
    """Ignore SIGTERM and every other signal that can be ignored, and hang."""
    note(marker)
    go_deaf()
    hang()
    return poem


TRANSFORMS = (sleep, loop_python, loop_c, deaf)
