"""A reactor that remembers what it was asked for, and does nothing."""

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from zope.interface import implementer


class FakeProcess:
    """What ``spawnProcess`` gives."""

    def __init__(self, protocol: Any, args: list[str], channel: socket.socket) -> None:
        self.protocol = protocol
        self.args = args
        self.channel = channel  # the worker's end
        self.stdin_closed = 0

    def closeStdin(self) -> None:
        self.stdin_closed += 1


@implementer(IReactorFDSet)
class FakeReactor:
    """Spawns processes that are none."""

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
        """Let every reader take what is there."""
        for reader in [*self.readers]:
            reader.doRead()
