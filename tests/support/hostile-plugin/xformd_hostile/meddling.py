"""Transforms that meddle with what a process has: its standard streams, its folder, its settings."""

import locale
import os
import signal
import sys
from contextlib import suppress

import xformd
from xformd_hostile.traces import go_deaf, note


@xformd.transform(examples=[("Owl", "Owl")])
def prints(poem: str, *, marker: str = "") -> str:
    """Print netstrings to standard output: in Python, and straight to file descriptor 1."""
    note(marker)
    print(f"7:1 ok.{marker},", flush=True)
    os.write(1, f"7:1 ok.{marker}-1,\n".encode())
    return poem


@xformd.transform(examples=[("Owl", "Owl")])
def reads_stdin(poem: str, *, marker: str = "") -> str:
    """Add what comes from standard input: nothing."""
    note(marker)
    return poem + os.read(0, 1_000).decode() + sys.stdin.read()


@xformd.transform
def chdir(poem: str, *, marker: str = "") -> str:
    """Change the working directory."""
    note(marker)
    os.chdir("/")
    return poem


@xformd.transform
def umask(poem: str, *, marker: str = "") -> str:
    """Let nobody else read what this process writes from now on."""
    note(marker)
    os.umask(0o077)
    return poem


@xformd.transform
def set_locale(poem: str, *, marker: str = "") -> str:
    """Change the locale."""
    note(marker)
    locale.setlocale(locale.LC_ALL, "C")
    return poem


@xformd.transform
def signals(poem: str, *, marker: str = "") -> str:
    """Change how signals are handled, of children too."""
    note(marker)
    go_deaf()
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return poem


TRANSFORMS = (prints, reads_stdin, chdir, umask, set_locale, signals)
