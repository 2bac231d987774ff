"""Transforms that tell where they run, and two that run in the server itself."""

import os
import time

import xformd
from xformd_hostile.traces import note


@xformd.transform
def pid(poem: str, *, marker: str = "") -> str:
    """Add the id of the process that this runs in."""
    note(marker)
    return f"{poem} {os.getpid()}"


@xformd.transform(inline=True, examples=[("Owl", "Owl", {"seconds": 0.0})])
def block_reactor(poem: str, *, seconds: float = 0.1) -> str:
    """Hold the server up, although its author gave his word."""
    time.sleep(seconds)
    return poem


@xformd.transform
async def never(poem: str) -> str:
    """Wait for what never comes."""
    from twisted.internet.defer import Deferred

    await Deferred()
    return poem


TRANSFORMS = (pid, block_reactor, never)
