"""Transforms that meddle with what a process has: its standard streams, its folder, its settings."""

import locale
import os
import signal
import sys
from contextlib import suppress

import xformd
from xformd_hostile.traces import OWL, go_deaf, marked, note


@xformd.transform(examples=OWL)
def prints(poem: str, *, marker: str = "") -> str:
    """Print netstrings to standard output: in Python, and straight to file descriptor 1."""
    note(marker)
    print(f"7:1 ok.{marker},", flush=True)
    os.write(1, f"7:1 ok.{marker}-1,\n".encode())
    return poem


def change_signals(_: str) -> None:
    go_deaf()
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def set_umask(_: str) -> None:
    os.umask(0o077)


def set_locale(_: str) -> None:
    locale.setlocale(locale.LC_ALL, "C")


TRANSFORMS = (
    prints,
    marked("reads-stdin", lambda poem: poem + os.read(0, 1_000).decode() + sys.stdin.read(), OWL),
    marked("chdir", lambda _: os.chdir("/")),
    marked("umask", set_umask),
    marked("set-locale", set_locale),
    marked("signals", change_signals),
)
