"""A reactor that records what it is asked for, and spawns no process."""

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.testing import MemoryReactor


class FakeProcess:
    """Stands in for a process transport."""

    def __init__(self, protocol: Any, args: list[str], channel: socket.socket) -> None:
        self.protocol = protocol
        self.args = args
        self.channel = channel  # the worker's end
        self.stdin_closed = 0

    def closeStdin(self) -> None:
        self.stdin_closed += 1


class FakeReactor(MemoryReactor):
    """Records readers, writers and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.spawning: Callable[[Any], None] = lambda protocol: None

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], env: Any, childFDs: Any) -> FakeProcess:
        self.spawning(protocol)
        process = FakeProcess(protocol, args, socket.socket(fileno=os.dup(childFDs[3])))
        process.channel.settimeout(20)
        self.processes.append(process)
        return process

    def read(self) -> None:
        """Have every reader read what has arrived."""
        for reader in [*self.readers]:
            reader.doRead()
