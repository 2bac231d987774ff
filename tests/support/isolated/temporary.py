"""A plugin that makes a temporary folder when it is imported, and has an exit handler."""

import atexit
import os
import tempfile
from pathlib import Path

import xformd

FOLDER = tempfile.TemporaryDirectory(prefix="of-a-plugin-")
NOTES = Path(os.environ["ISOLATED_NOTES"])

(NOTES / "made").open("a").write(f"{os.getpid()} {FOLDER.name}\n")
atexit.register(lambda: (NOTES / "exited").open("a").write(f"{os.getpid()}\n"))


@xformd.transform
def where(poem: str) -> str:
    """Return the folder's path, if it is there, and have this worker do something when it exits."""
    atexit.register(lambda: (NOTES / "exited").open("a").write(f"job {os.getpid()}\n"))
    print("the end of a line is missing", end="")
    return FOLDER.name if Path(FOLDER.name).is_dir() else "gone"


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [where]
