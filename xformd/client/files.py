"""Files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path

WRITE_FAILED = 73
"""The exit status of a command that could not write what it had: EX_CANTCREAT."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file. Nobody ever sees half of it: it appears when it is whole.

    Args:
        path: where; its folder is made if it is not there.
        content: what to write.

    Raises:
        OSError: it could not be written; what was there before is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".xformd-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    umask = os.umask(0)  # the only way to read it is to set it
    os.umask(umask)
    return umask
