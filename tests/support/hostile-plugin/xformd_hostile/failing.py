"""Transforms that fail, and leave their process as it was."""

from typing import Any

import xformd
from xformd_hostile.traces import marked, note


@xformd.transform(examples=[("Owl", "O", {"size_bytes": 1}), ("", "")])
def huge(poem: str, *, size_bytes: int = 20_000_000, marker: str = "") -> str:
    """Return 20 MB of the poem's first letter."""
    note(marker)
    return poem[:1] * size_bytes


class Clingy(Exception):
    """Cannot be pickled, and has no text."""

    def __init__(self) -> None:
        self.file = open("/dev/null")  # noqa: PTH123, SIM115

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")

    def __str__(self) -> str:
        raise TypeError("has no text")


def fail(error: type[BaseException], *arguments: object) -> None:
    raise error(*arguments)


TRANSFORMS = (
    marked("raises", lambda _: fail(ValueError, "no rhyme today")),
    marked("wrong-type", lambda _: 42),
    huge,
    marked("unpicklable", lambda _: fail(Clingy)),
    marked("system-exit", lambda _: fail(SystemExit, 0)),
    marked("keyboard-interrupt", lambda _: fail(KeyboardInterrupt)),
)
