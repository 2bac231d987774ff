"""Transforms for the tests that need a real server: each does one thing, good or bad."""

import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater

import xformd


@xformd.transform
def backwards(poem: bytes) -> bytes:
    return poem[::-1]


@xformd.transform
def raises(poem: str) -> str:
    raise ValueError("a verse too many")


@xformd.transform
def exits(poem: str) -> str:
    raise SystemExit(3)


@xformd.transform
def dies(poem: str) -> str:
    os._exit(3)


@xformd.transform
def wrong_type(poem: str) -> str:
    return 42  # type: ignore[return-value]


@xformd.transform
def picky(poem: str) -> str:
    raise xformd.GibberishError("this is no sonnet")


@xformd.transform
def prints(poem: str) -> str:
    print("printed by a transform")
    return poem


@xformd.transform
def repeat(poem: str, *, times: int) -> str:
    return poem * times


@xformd.transform(timeout=0.2, inline=True)
async def never(poem: str) -> str:
    await deferLater(reactor, 3600)
    return poem


@xformd.transform(inline=True)
async def gate(poem: str) -> str:
    """Create $GATE/started, and answer once $GATE/open is there."""
    folder = Path(os.environ["GATE"])
    (folder / "started").touch()
    while not (folder / "open").exists():
        await deferLater(reactor, 0.005)
    return poem.upper()


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    print("printed by a plugin while it loads")
    return [backwards, raises, exits, dies, wrong_type, picky, prints, repeat, never, gate]
