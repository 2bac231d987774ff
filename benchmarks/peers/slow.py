"""A plugin whose transform takes 5 ms, and says that a proxy may keep its results."""

import time
from collections.abc import Iterable

import xformd

TAKES_S = 0.005


# It sleeps, so that each worker gives as many answers as one that has a CPU to itself: the most that a server can.
@xformd.transform(deterministic=True)
def slow_cummingsify(poem: str) -> str:
    """Lower-case a poem, and take 5 ms for it."""
    ends_s = time.perf_counter() + TAKES_S
    lower = poem.lower()
    time.sleep(ends_s - time.perf_counter())
    return lower


@xformd.hookimpl
def xformd_transforms() -> Iterable[xformd.Transform]:
    """Return the one that there is."""
    return [slow_cummingsify]
