"""RecordingService keeps a sample of what a server is asked, for ``xformd replay``; the answers do not change.

Invariant: the files never take more than they may, nobody else can read them, and one that cannot be written fails no
request.
"""

import hashlib
import random
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from xformd.config import Settings
from xformd.errors import ConfigError
from xformd.service import ForwardingService
from xformd.spec import Spec

MAX_WRITES = 8  # at a time; what comes meanwhile is not kept
NAME_CHARACTERS = 200  # of a folder's name
FILE_BYTES = 8192  # a file counts for this besides its bytes: the rest of its last block, and a folder


class RecordingService(ForwardingService):
    """A ``Service`` that writes the poem of some requests to ``FOLDER/<spec>/<digest>``.

    Making it makes the folder, and raises ``ConfigError`` if that fails.
    """

    log = Logger()

    def __init__(self, service: Any, settings: Settings, reactor: Any) -> None:
        super().__init__(service)
        assert settings.record is not None
        self._folder, self._only, self._sample = settings.record, settings.record_only, settings.record_sample
        self._max_bytes, self._reactor = settings.record_max_bytes, reactor
        self.on_swap = service.on_swap
        self._writes = 0
        self._is_over = False
        try:
            self._folder.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._folder}: {error.strerror}", setting="record") from None
        self._bytes = sum(FILE_BYTES + file.stat().st_size for file in self._folder.rglob("*") if file.is_file())
        what = ", ".join(sorted(self._only)) or "all transforms"
        message = "records {sample:.2%} of the poems for {what} in {folder}, up to {max_bytes} bytes"
        more = {"sample": self._sample, "folder": str(self._folder), "max_bytes": self._max_bytes}
        self.log.warn(message, what=what, **more)

    def prepare_call(self, words: bytes) -> None:  # noqa: ARG002 - each request goes through ``xform``
        """See ``Service.prepare_call``."""
        return

    def xform(self, spec: Spec, poem: bytes, **more: Any) -> bytes | Deferred[bytes]:
        """See ``Service.xform``."""
        names = {step.name for step in spec.steps}
        is_wanted = names <= self.registry.entries.keys() and (not self._only or bool(names & self._only))
        if is_wanted and not self._is_over and self._writes < MAX_WRITES and random.random() < self._sample:
            self._record(spec, poem)
        return super().xform(spec, poem, **more)

    def _record(self, spec: Spec, poem: bytes) -> None:
        size_bytes = FILE_BYTES + len(poem)
        if self._bytes + size_bytes > self._max_bytes:
            self._is_over = True
            self.log.warn("records no more: {folder} is full (record_max_bytes)", folder=str(self._folder))
            return
        self._bytes += size_bytes
        Deferred.fromCoroutine(self._keep(str(spec), poem, size_bytes))

    async def _keep(self, spec: str, poem: bytes, size_bytes: int) -> None:
        self._writes += 1
        try:
            if not await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._write, spec, poem):
                self._bytes -= size_bytes
        except OSError as error:
            self._is_over = True
            self.log.error("records no more: {reason}", reason=str(error))
        finally:
            self._writes -= 1

    def _write(self, spec: str, poem: bytes) -> bool:
        """Write a poem, unless it is there; return whether it was not."""
        name = spec if len(spec) <= NAME_CHARACTERS else f"{spec[:NAME_CHARACTERS]}~{_digest(spec.encode())}"
        folder = self._folder / name
        self._folder.mkdir(0o700, parents=True, exist_ok=True)  # again, if it is gone
        folder.mkdir(0o700, exist_ok=True)
        path = folder / _digest(poem)
        if path.exists():
            return False
        with tempfile.NamedTemporaryFile(suffix=".partial", dir=folder, delete=False) as partial:
            partial.write(poem)  # the same poem may come twice at a time
        Path(partial.name).replace(path)
        return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
