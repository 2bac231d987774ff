"""A reactor that records what it is asked for, and spawns no process."""

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer


class FakeProcess:
    """Stands in for a process transport."""

    def __init__(self, protocol: Any, args: list[str], channel: socket.socket) -> None:
        self.protocol = protocol
        self.args = args
        self.channel = channel  # the worker's end
        self.stdin_closed = 0

    def closeStdin(self) -> None:
        self.stdin_closed += 1


@implementer(IReactorFDSet)
class FakeReactor:
    """Records readers, writers and processes."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.processes: list[FakeProcess] = []
        self.error: Exception | None = None
        self.spawning: Callable[[Any], None] = lambda protocol: None

    def addReader(self, reader: Any) -> None:
        if self.error is not None:
            raise self.error
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def removeAll(self) -> list[Any]:
        return []

    def getReaders(self) -> list[Any]:
        return [*self.readers]

    def getWriters(self) -> list[Any]:
        return [*self.writers]

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
