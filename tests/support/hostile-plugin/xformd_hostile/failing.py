"""Transforms that fail, and leave their process as it was."""

from typing import Any

import xformd
from xformd_hostile.traces import note


@xformd.transform
def raises(poem: str, *, marker: str = "") -> str:
    """Raise an exception."""
    note(marker)
    raise ValueError("no rhyme today")


@xformd.transform
def wrong_type(poem: str, *, marker: str = "") -> Any:
    """Return what is no poem."""
    note(marker)
    return 42


@xformd.transform(examples=[("Owl", "O", {"size_bytes": 1}), ("", "")])
def huge(poem: str, *, size_bytes: int = 20_000_000, marker: str = "") -> str:
    """Return 20 MB of the poem's first letter."""
    note(marker)
    return poem[:1] * size_bytes


class Clingy(Exception):
    """Cannot be pickled, and has no text."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")

    def __str__(self) -> str:
        raise TypeError("not to be told")


@xformd.transform
def unpicklable(poem: str, *, marker: str = "") -> str:
    """Raise an exception that does not pickle."""
    note(marker)
    error = Clingy()
    error.file = open("/dev/null")  # type: ignore[attr-defined]  # noqa: PTH123, SIM115
    raise error


@xformd.transform
def system_exit(poem: str, *, marker: str = "") -> str:
    """Raise SystemExit."""
    note(marker)
    raise SystemExit(0)


@xformd.transform
def keyboard_interrupt(poem: str, *, marker: str = "") -> str:
    """Raise KeyboardInterrupt."""
    note(marker)
    raise KeyboardInterrupt


TRANSFORMS = (raises, wrong_type, huge, unpicklable, system_exit, keyboard_interrupt)
