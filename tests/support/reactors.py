"""A reactor that records what it is asked for, moves its clock when told to, and spawns no process."""

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ProcessDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure


class FakeProcess:
    """Stands in for a process transport."""

    def __init__(self, protocol: Any, args: list[str], childFDs: Any) -> None:
        self.protocol = protocol
        self.args = args
        self.channel = socket.socket(fileno=os.dup(childFDs[3]))  # the process's end
        self.channel.settimeout(90)
        self.output = os.fdopen(os.dup(childFDs[1]), "wb", buffering=0)
        self.stdin_closed = 0

    def closeStdin(self) -> None:
        self.stdin_closed += 1

    def end(self, reason: Exception | None = None) -> None:
        """End, in order or for a reason."""
        self.protocol.processExited(Failure(reason or ProcessDone(0)))
        self.close()

    def close(self) -> None:
        """Close the process's descriptors."""
        self.channel.close()
        self.output.close()


class FakeReactor(MemoryReactorClock):
    """Records readers, writers, timers and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.spawning: Callable[[Any], None] = lambda protocol: None

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], env: Any, childFDs: Any) -> FakeProcess:
        self.spawning(protocol)
        self.processes.append(FakeProcess(protocol, args, childFDs))
        return self.processes[-1]

    def read(self) -> None:
        """Have every reader read what has arrived, as a reactor does."""
        for reader in [*self.readers]:
            if reader in self.readers and (lost := reader.doRead()) is not None:
                self.removeReader(reader)
                reader.connectionLost(Failure(lost))
