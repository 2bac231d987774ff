"""Transforms for the tests that need a real server: each does one thing, good or bad."""

import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater

import xformd


@xformd.transform
def backwards(poem: bytes) -> bytes:
    """Reverse the bytes."""
    return poem[::-1]


@xformd.transform
def raises(poem: str) -> str:
    """Raise."""
    raise ValueError("a verse too many")


@xformd.transform
def exits(poem: str) -> str:
    """Try to end the process."""
    raise SystemExit(3)


@xformd.transform
def wrong_type(poem: str) -> str:
    """Return no poem."""
    return 42  # type: ignore[return-value]


@xformd.transform
def picky(poem: str) -> str:
    """Refuse every poem."""
    raise xformd.GibberishError("this is no sonnet")


@xformd.transform
def prints(poem: str) -> str:
    """Print, as code that was written in a hurry does."""
    print("printed by a transform")
    return poem


@xformd.transform
def repeat(poem: str, *, times: int) -> str:
    """Repeat the poem."""
    return poem * times


@xformd.transform(timeout=0.2)
async def never(poem: str) -> str:
    """Never answer."""
    await deferLater(reactor, 3600)
    return poem


running: list[str] = []


@xformd.transform
async def gate(poem: str) -> str:
    """Say in $GATE/started that it runs, and in $GATE/most how many ran at once; answer when $GATE/open is there."""
    folder = Path(os.environ["GATE"])
    running.append(poem)
    with (folder / "most").open("a") as most:
        print(len(running), file=most)
    (folder / "started").touch()
    while not (folder / "open").exists():
        await deferLater(reactor, 0.005)
    running.pop()
    return poem.upper()


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Give the transforms of this file."""
    print("printed by a plugin while it loads")
    return [backwards, raises, exits, wrong_type, picky, prints, repeat, never, gate]
