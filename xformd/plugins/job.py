"""What a transform can ask about the job that runs it, and the files in the job's folder."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from errno import EINVAL, ELOOP
from pathlib import Path

from xformd.errors import TooLarge, TransformFailed

_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)

in_worker: tuple[int, int] | None = None  # in a worker: how many bytes a result, and a command's file, may have


def deadline() -> float | None:
    """Return how many seconds are left to the job that runs, for a call that takes a timeout.

    Returns:
        At least 0; None outside of a job.
    """
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


@contextmanager
def ends_in(seconds: float) -> Iterator[None]:
    """Within the block, ``deadline`` counts down from this many seconds, or from what was left if that is less."""
    ends_at, now_s = _ends_at.get(), time.monotonic()
    token = _ends_at.set(now_s + seconds if ends_at is None else min(ends_at, now_s + seconds))
    try:
        yield
    finally:
        _ends_at.reset(token)


def free_path(folder: str | Path, stem: str, suffix: str) -> Path:
    """Return the path of a new file in the job's folder, where those of an earlier step may be."""
    number = 1
    while os.path.lexists(path := Path(folder, f"{stem}{number if number > 1 else ''}{suffix}")):
        number += 1
    return path


def read_file(name: str, path: Path, folder: str | Path, max_result_bytes: int) -> bytes:
    """Return what a file that a transform has made has; raise ``TransformFailed`` if it is none in the job's folder."""
    place = Path(folder).resolve()
    path = place / path
    try:
        if not path.parent.resolve().is_relative_to(place):
            raise TransformFailed(f"{name} returned a file outside of its job's folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: it has a null character
        number = getattr(error, "errno", None)
        reason = "is a link" if number == ELOOP else f"cannot be read: {os.strerror(number or EINVAL)}"
        raise TransformFailed(f"{name} returned a file that {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise TransformFailed(f"{name} returned something that is not a regular file")
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if status.st_size > max_result_bytes:
            raise too_large(name, f"has {status.st_size}", max_result_bytes)
        return file.read()


def too_large(name: str, has: str, max_result_bytes: int) -> TooLarge:
    """Return the error for a result that exceeds its limit."""
    return TooLarge(f"the result of {name} {has} bytes; the limit is {max_result_bytes} bytes")
