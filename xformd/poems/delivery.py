"""Where poems go that were got: to standard output, one after the other, or each to a file of its server's name.

What writes may block, for a pager that nobody turns over: it does so in a thread, and the other poems go on arriving.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet.threads import deferToThreadPool

from xformd.client.files import write_whole
from xformd.errors import ConfigError
from xformd.poems.progress import Progress

Write = Callable[[str, bytes], None]


def to_stream(stream: BinaryIO) -> Write:
    """Write poems to a stream, byte for byte."""

    def write(address: str, poem: bytes) -> None:  # noqa: ARG001 - one stream for all
        stream.write(poem)
        stream.flush()
        if stream.isatty() and not poem.endswith(b"\n"):
            print(file=sys.stderr)  # what comes next begins on a line of its own, and no byte is added to the poem

    return write


def to_folder(folder: Path, addresses: Sequence[str]) -> Write:
    """Write each poem to a file of its own.

    Args:
        folder: where; it is made when the first poem is there.
        addresses: all of them: their files' names must differ.

    Raises:
        ConfigError: two poems would have one name.
    """
    seen: dict[str, str] = {}
    for address in addresses:
        name = file_name(address)
        if name in seen:
            raise ConfigError(f"--output-dir {folder}: {seen[name]} and {address} would both become {name}")
        seen[name] = address
    return lambda address, poem: write_whole(folder / file_name(address), poem)


def file_name(address: str) -> str:
    """Give the name of the file for a server's poem: its address, with ``_`` for what is trouble in a name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", address).strip("._") or "poem"


class Delivery:
    """Delivers poems, out of the way of what is shown of the others.

    Args:
        write: takes an address and its poem; may block, and raise ``OSError``.
        warn: is told what to say before a poem.
        progress: makes room meanwhile.
        reactor: has the threads.
    """

    def __init__(self, write: Write, warn: Callable[[str], None], progress: Progress, reactor: Any) -> None:
        self._write = write
        self._warn = warn
        self._progress = progress
        self._reactor = reactor

    async def deliver(self, address: str, poem: bytes, warning: str) -> None:
        """Deliver a poem, after a warning if there is one."""
        self._progress.clear()
        if warning:
            self._warn(warning)
        try:
            await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._write, address, poem)
        finally:
            self._progress.draw()

    def complain(self, message: str) -> None:
        """Say something that stays."""
        self._progress.clear()
        self._warn(message)
        self._progress.draw()
