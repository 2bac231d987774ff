"""Transforms that look at their process, change it, and leave things behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import xformd

sys.path.append(os.environ["ISOLATED_SUPPORT"])

from support import process_wide


@xformd.transform
def change(poem: str) -> str:
    """Make the change of that name."""
    exec(process_wide.CHANGES[poem], {})
    return str(os.getpid())


@xformd.transform
def look(poem: str) -> str:
    """Return what can be seen of the process."""
    seen = process_wide.observe()
    del seen["folder"]  # each job has its own
    return json.dumps({"pid": os.getpid(), "seen": seen})


@xformd.transform
def folder(poem: str) -> str:
    """Return this job's folder and what is in it; leave a file and a folder there."""
    here = Path.cwd()
    before = sorted(map(str, here.iterdir()))
    (here / "sub").mkdir()
    (here / "sub" / "file").write_text(poem)
    return json.dumps([str(here), before])


@xformd.transform
def orphan(poem: str) -> str:
    """Leave a process behind, whose parent has ended."""
    script = "sleep 1000 >/dev/null 2>&1 & echo $!"
    return subprocess.run(script, shell=True, capture_output=True, check=True, text=True).stdout


@xformd.transform
def child(poem: str) -> str:
    """Leave a child behind."""
    return str(subprocess.Popen(["sleep", "1000"]).pid)


def _tell(sender: "multiprocessing.connection.Connection") -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    dispositions = [signal.getsignal(number) == signal.SIG_DFL for number in numbers]
    sender.send([dispositions, os.read(0, 10).decode(), subprocess.run(["cat"], capture_output=True).stdout.decode()])


@xformd.transform
def forked(poem: str) -> str:
    """Return how a forked child handles signals, and what it and its own child read from standard input."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender,))
    process.start()
    told = receiver.recv()
    process.join()
    return json.dumps(told)


@xformd.transform
def descriptors(poem: str) -> str:
    """Open as many files as it is told, and leave them open; return the process's id."""
    for _ in range(int(poem)):
        os.open(os.devnull, os.O_RDONLY)
    return str(os.getpid())


@xformd.transform
def irrevocable(poem: str) -> str:
    """Do what cannot be put back; return the process's id."""
    signal.signal(signal.SIGUSR1, _Handler())
    return str(os.getpid())


class _Handler:
    """It cannot be compared with another, so that nobody can see whether it is still there."""

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __hash__(self) -> int:
        return 1

    def __call__(self, *_: object) -> None:
        pass


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [change, look, folder, orphan, child, forked, descriptors, irrevocable]
