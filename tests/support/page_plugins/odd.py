"""Transforms for the tests of the page: of every kind, and with markup wherever their author may write something."""

import time
from datetime import date
from typing import Annotated, Literal

from annotated_types import Ge, Interval

import xformd

MARKUP = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@xformd.transform(examples=[(MARKUP, f"{MARKUP}{MARKUP}", {"text": MARKUP})])
def odd(poem: str, *, text: str = MARKUP, pick: Literal["<b>one</b>", "two"] = "two") -> str:
    """<img src=x onerror="document.title='taken'"> <script>document.title='taken'</script>."""
    return f"{poem}{text}"


@xformd.transform
def hold(poem: str, *, seconds: float = 0.0) -> str:
    """Take some time."""
    time.sleep(seconds)
    return f"after {seconds}"


@xformd.transform
def fields(
    poem: str,
    *,
    who: str,
    number: int,
    share: float = 0.5,
    loud: bool = False,
    tone: Literal["low", "high"] = "low",
    constructor: str = "none",
) -> str:
    """Tell its options."""
    return f"{who!r} {number} {share} {loud} {tone} {constructor}"


@xformd.transform(examples=[("an example", "1 None None None ['x,y', 'z']", {"tags": ["x,y", "z"]})])
def typed(
    poem: str,
    *,
    width: Annotated[int, Interval(ge=1, le=10)] = 1,
    since: Annotated[date, Ge(date(2026, 1, 1))] | None = None,
    tone: Literal["low", "high"] | None = None,
    loud: bool | None = None,
    tags: list[str] = ["a", "b"],  # noqa: B006 - each call gets its own
) -> str:
    """Tell its options.

    :param width: how wide.
    """
    return f"{width} {since} {tone} {loud} {tags}"


@xformd.transform(examples=[(b"\xff\x00", b"\x00\xff")])
def flip(poem: bytes) -> bytes:
    """Turn every bit of it."""
    return bytes(255 - byte for byte in poem)


@xformd.transform
def refuse(poem: str, *, timeout: int = 1) -> str:
    """Refuse every poem."""
    raise xformd.GibberishError("refuse finds no <b>verse</b> in it")


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [odd, hold, fields, typed, flip, refuse]
