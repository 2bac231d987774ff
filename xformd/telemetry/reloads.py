"""How reloads end: counted, and kept where ``xformd reload`` finds it.

A server writes it to a file that has no path and that only its own user and root can open, through ``/proc``: a memfd.
Invariant: who waits for a reload is told the outcome of one that began after the signal.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import attrs
from twisted.logger import Logger

from xformd.errors import ConfigError, ConnectionFailed, ConnectionLost, TransformTimeout

FILE_NAME = "xformd-reloads"
LOOK_S = 0.05  # how often to look for the outcome


@attrs.frozen
class ReloadOutcome:
    """What a reload has changed, a line for each thing, and what stays as it was and why: of a failed one."""

    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    def __add__(self, other: "ReloadOutcome") -> "ReloadOutcome":
        return ReloadOutcome(self.notes + other.notes, self.errors + other.errors)

    @classmethod
    def of_mistakes(cls, error: ConfigError) -> "ReloadOutcome":
        """Return that of a reload whose settings have mistakes."""
        return cls(errors=(*error.details, error.message))

    def logged(self, log: Logger) -> "ReloadOutcome":
        """Log each line; return the same."""
        for line in self.notes:
            log.info("{line}", line=line)
        for line in self.errors:
            log.error("not reloaded: {line}", line=line)
        return self


@attrs.define
class ReloadHistory:
    """The reloads of a server. Its start counts as the first success, so that there is a time of the last."""

    requested: int = 0
    succeeded: int = 0
    failed: int = 0
    last_success_at: float = attrs.field(factory=time.time)  # in seconds since 1970
    last: ReloadOutcome = attrs.field(factory=ReloadOutcome)

    def ended(self, outcome: ReloadOutcome) -> ReloadOutcome:
        """Note how a reload has ended, and return that."""
        self.last = outcome
        if outcome.errors:
            self.failed += 1
        else:
            self.succeeded, self.last_success_at = self.succeeded + 1, time.time()
        return outcome


class ReloadFile:
    """The file of a server."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create(FILE_NAME)

    def write(self, history: ReloadHistory) -> None:
        """Write how the last reload has ended, and how many have."""
        finished = history.succeeded + history.failed
        found = {"requested": history.requested, "finished": finished, **attrs.asdict(history.last)}
        data = json.dumps(found).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def close(self) -> None:
        """Remove it."""
        os.close(self._descriptor)


def find_servers() -> list[int]:
    """Return the process ids of the servers that this user may reload."""
    return sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal() and _file_of(each))


def reload(pid: int, timeout_s: float) -> ReloadOutcome:
    """Have a server reload, and wait for the outcome.

    Raises:
        ConnectionFailed: no server has this process id, or it is another user's.
        ConnectionLost: it ended meanwhile.
        TransformTimeout: the outcome did not come in time.
    """
    process = Path(f"/proc/{pid}")
    file = _file_of(process)
    before = None if file is None else next(filter(None, (_read(file) for _ in range(100))), None)
    if file is None or before is None:
        raise ConnectionFailed(f"process {pid} is not a running xformd server, or is another user's: then ask as root")
    os.kill(pid, signal.SIGHUP)
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        time.sleep(LOOK_S)
        found = _read(file)
        if found is not None and found["finished"] > before["requested"]:
            return ReloadOutcome(tuple(found["notes"]), tuple(found["errors"]))
        if not file.exists():
            raise ConnectionLost(f"process {pid} has ended before the reload did")
    raise TransformTimeout(f"process {pid} has not reloaded within {timeout_s:g} s; its log says what it does")


def the_only_server() -> int:
    """Return the process id of the only server here; raise an ``XformError`` if there is none, or another."""
    found = find_servers()
    if len(found) == 1:
        return found[0]
    if found:
        pids = [*map(str, found)]
        which = f"choose one with --pid {' or '.join(pids)}; 'ps -fp {','.join(pids)}' shows which is which"
        raise ConfigError(f"several servers run here: {which}")
    raise ConnectionFailed("no xformd server of this user runs here; run this as root for another user's, with --pid")


def _file_of(process: Path) -> Path | None:
    try:
        descriptors = [*(process / "fd").iterdir()]
    except OSError:  # it is another user's, or has ended
        return None
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor).startswith(f"/memfd:{FILE_NAME} "):  # noqa: PTH115 - faster
                return descriptor
        except OSError:
            continue
    return None


def _read(file: Path) -> dict[str, Any] | None:
    """Return what the file has now, or None if that is being written, or if its server has ended."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found
