"""What twistd's plugins have in common: kinds of values, where to listen, and how a mistake is told."""

import contextlib
from collections.abc import Iterator

from twisted.python import usage

from xformd.config import quantities
from xformd.errors import ConfigError
from xformd.net.defaults import tcp_server


def size(text: str) -> int:
    """Read a number of bytes."""
    size_bytes = quantities.read_size(text)
    if not size_bytes:
        raise ValueError(f"{text!r} is no number of bytes above 0")
    return size_bytes


def duration(text: str) -> float:
    """Read a number of seconds."""
    duration_s = quantities.read_duration(text)
    if duration_s is None:
        raise ValueError(f"{text!r} is no number of seconds")
    return duration_s


def timeout(text: str) -> float:
    """Read a number of seconds above 0."""
    if not (duration_s := duration(text)):
        raise ValueError(f"{text!r} is no number of seconds above 0")
    return duration_s


class ListeningOptions(usage.Options):
    """Those of a server that listens on a port of its own unless it is told where."""

    default_port: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen: a Twisted server endpoint; may be repeated."""
        self["listen"].append(endpoint)

    @property
    def places(self) -> tuple[str, ...]:
        """Where to listen."""
        return tuple(self["listen"]) or (tcp_server(port=self.default_port),)


@contextlib.contextmanager
def told_at_once() -> Iterator[None]:
    """Say of a setting that cannot be, and end twistd, before it goes into the background.

    Raises:
        SystemExit: the block raised a ``ConfigError``.
    """
    try:
        yield
    except ConfigError as error:
        lines = (*error.details, f"{error.code}: {error.message}")
        raise SystemExit("\n".join(f"xformd: {line}" for line in lines)) from None
