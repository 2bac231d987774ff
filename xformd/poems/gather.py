"""Getting poems from several servers at once, with a line for each on the terminal while they arrive.

Invariant: a server that fails never stops the rest, and where the transform fails the original poem is written.
"""

import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from xformd import spec as specs
from xformd.client import TransformProxy
from xformd.client.batch import Batch, Item
from xformd.client.batch import to_stream as to_any_stream
from xformd.errors import XformError, printable
from xformd.net.run import make_room
from xformd.poems.client import get_poem

LONGEST_DELAY_S = 1.0  # before another attempt to reach a transform server: the original poem is at hand
SOME_FAILED = 1  # the exit status when some poems came as asked for and some did not
REDRAW_PERIOD_S = 0.1  # nobody reads faster than this

_UP_AND_CLEAR = "\x1b[{lines}A\r\x1b[J"

Write = Callable[[str, bytes], None]


async def get_poems(
    addresses: Sequence[str],
    write: Write,  # takes an address and its poem; may block, and raise ``OSError``
    print_line: Callable[[str], None],  # what goes wrong
    *,
    spec: str | None,  # that each poem goes through
    via: tuple[str, ...],  # the addresses of the transform servers
    timeout_s: float,  # how long to wait for each whole poem, and then for its transform
    max_bytes: int,  # the longest poem to accept
    ordered: bool,  # by address, not as they arrive
) -> int:
    """Get poems from several servers at once; raise what is wrong with the spec, or with an address in ``via``.

    Returns:
        The exit status: 0 if all came, 1 if some did, that of the first failure if none did. A poem that came but was
        not transformed counts as a failure and as a poem.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    make_room(len(addresses), 0)
    progress = Progress(sys.stderr if sys.stderr and sys.stderr.isatty() else None, reactor.seconds)

    def fetch(address: str) -> Deferred[bytes]:
        progress.update(address, "connecting")
        return get_poem(
            address,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            progressed=lambda received: progress.update(address, f"{received:,} bytes"),
            reactor=reactor,
        )

    def report(item: Item[str]) -> None:
        progress.clear()
        print_line(describe_failure(item, spec, name_it=len(addresses) > 1))
        progress.draw()

    async def write_in_thread(address: str, poem: bytes) -> None:
        # It may block, in front of a pager for example; the other poems go on arriving.
        progress.clear()
        try:
            await deferToThreadPool(reactor, reactor.getThreadPool(), write, address, poem)
        finally:
            progress.draw()

    batch = Batch(
        fetch=fetch,
        transform=None if spec is None else make_transform(spec, via, timeout_s, reactor),
        write=write_in_thread,
        report=report,
        watch=lambda item: progress.update(item.source, describe_state(item, spec)),
        fallback=True,
        ordered=ordered,
    )
    summary = await batch.run(addresses)
    return SOME_FAILED if summary.failed and summary.written else summary.exit_status


def make_transform(
    spec: str, via: tuple[str, ...], timeout_s: float, reactor: Any
) -> Callable[[bytes], Deferred[bytes]]:
    """Return a function that sends a poem to the transform servers; raise now what is wrong with spec or address."""
    built = str(specs.build(spec, {}))
    proxy = TransformProxy(via, reactor=reactor, longest_delay_s=LONGEST_DELAY_S)
    return lambda poem: proxy.xform(built, poem, timeout=timeout_s)


def describe_failure(item: Item[str], transform: str | None, *, name_it: bool) -> str:
    """Describe what went wrong, on one line; ``name_it`` if there are several poems to tell apart."""
    error = item.error
    if not isinstance(error, XformError):
        assert error is not None
        verb = "get" if item.poem is None else "write"
        return f"xformd: cannot {verb} the poem of {item.source}: {error.strerror or error}"
    if item.poem is None:
        return f"xformd: {error.code}: {error.message}"
    whose = f" (the poem of {item.source})" if name_it else ""
    return f"{transform} failed: {error.code}: {error.message}{whose}; original poem follows"


def describe_state(item: Item[str], transform: str | None) -> str:
    """Describe how far a poem is, on part of a line."""
    if item.poem is None:
        return f"failed: {item.error.code}" if isinstance(item.error, XformError) else "failed"
    size = f"{len(item.poem):,} bytes"
    if transform is None:
        return f"{size}, whole"
    if item.error is not None:
        return f"{size}, {transform} failed"
    return (
        f"{size}, {transform} is running" if item.result is None else f"{size}, {len(item.result):,} after {transform}"
    )


def to_stream(stream: BinaryIO) -> Write:
    """Write poems to a stream, byte for byte."""
    write_bytes = to_any_stream(stream)

    def write(address: str, poem: bytes) -> None:
        write_bytes(address, poem)
        if stream.isatty() and not poem.endswith(b"\n"):
            print(file=sys.stderr)  # so that what follows begins on a new line, and the poem has no byte more

    return write


def file_name(address: str) -> str:
    """Return the name of the file for a server's poem: its address, with ``_`` for what is awkward in a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", address).strip("._") or "poem"


class Progress:
    """Shows a line for each address on a terminal, if there is one, rewritten in place."""

    def __init__(self, terminal: TextIO | None, seconds: Callable[[], float]) -> None:
        self._terminal = terminal
        self._seconds = seconds
        self._states: dict[str, str] = {}
        self._drawn_lines = 0
        self._drawn_at = -math.inf
        self._is_held = False

    def update(self, address: str, state: str) -> None:
        """Change a line, and show it unless the lines were drawn a moment ago."""
        self._states[address] = state
        if not self._is_held and self._seconds() - self._drawn_at >= REDRAW_PERIOD_S:
            self.draw()

    def draw(self) -> None:
        """Show the lines as they are now."""
        self._is_held = False
        if self._terminal is None:
            return
        columns, rows = shutil.get_terminal_size()
        lines = format_lines(self._states, columns, rows)
        self._terminal.write(self._clearing() + "".join(line + "\n" for line in lines))
        self._terminal.flush()
        self._drawn_lines = len(lines)
        self._drawn_at = self._seconds()

    def clear(self) -> None:
        """Remove the lines, to make room for output that stays, and show none until ``draw()``."""
        self._is_held = True
        if self._terminal is not None:
            self._terminal.write(self._clearing())
            self._terminal.flush()
        self._drawn_lines = 0

    def _clearing(self) -> str:
        return _UP_AND_CLEAR.format(lines=self._drawn_lines) if self._drawn_lines else ""


def format_lines(states: Mapping[str, str], columns: int, rows: int) -> list[str]:
    """Return a line for each address; or as many as fit into the rows, and one that says how many are left out."""
    width = max(map(len, states), default=0)
    lines = [printable(f"{address:<{width}}  {state}")[: max(1, columns - 1)] for address, state in states.items()]
    room = max(1, rows - 2)
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], f"... and {len(lines) - room + 1} more"[: max(1, columns - 1)]]
