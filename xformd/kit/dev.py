"""The server of ``xformd dev``: has the plugin of one folder, and loads it again whenever a file is saved.

Invariant: what it serves is what the folder holds. What cannot be loaded is gone until it can, and the page and the log
say why, with the file, the line and the line's text.
"""

import contextlib
import json
import os
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xformd.config import Settings
from xformd.errors import ConfigError
from xformd.http.application import Methods
from xformd.http.messages import Request, Response, TakeBody, header_lines
from xformd.plugins.definition import Transform
from xformd.plugins.discovery import GROUP, loose
from xformd.plugins.registry import BUILT_IN
from xformd.plugins.selection import Selection
from xformd.server.app import Server, make_server
from xformd.server.examples import failing_examples

STEP_MS, DEBOUNCE_MS = 10, 100  # a change is told once nothing more changes for a step, or after this at the latest
TOLD_WITHIN_S = 0.5  # after a load has ended, what it wrote is told no later
LOADS_TO_BE_SURE = 3  # a file that has changed in so many loads in a row is a log or a cache
SOURCES = (".py", ".toml")  # which an author may save in each of them
MAX_COMPARED_BYTES = 1_000_000

MAX_CONNECTIONS = 100  # one person needs no more, and no ``ulimit`` is too low for it


class PluginFolder:
    """The folder of a plugin: of a project, which need not be installed, or of loose files.

    Args:
        folder: where the plugin is.
        metadata: an empty folder, for the metadata that an installation would make of a project.
    """

    def __init__(self, folder: Path, metadata: Path) -> None:
        folder = folder.resolve()  # a job has another current folder
        self.folder, self._metadata = folder, metadata
        self.name = self.read()
        if self.name is None and not [*loose([folder])]:
            raise ConfigError(
                f"no plugin in {folder}: it has no Python file, and no pyproject.toml with "
                f"[project.entry-points.{GROUP}]; 'xformd new NAME' makes one"
            )
        if self.name is not None:
            before = [path for path in sys.path if path.endswith("-packages")][:1]  # an installed one is hidden
            at = sys.path.index(before[0]) if before else len(sys.path)
            sys.path[at:at] = [str(metadata), *(str(each) for each in (folder / "src", folder) if each.is_dir())]

    def read(self) -> str | None:
        """Read ``pyproject.toml``, as an installation would; return the distribution's name, None without a plugin.

        Raises:
            ConfigError: it cannot be read.
        """
        file = self.folder / "pyproject.toml"
        if not file.is_file():
            return None
        try:
            project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
            points: Mapping[str, str] = project.get("entry-points", {}).get(GROUP, {})
            name, version = str(project.get("name", "")), project.get("version", "0")
            lines = [f"[{GROUP}]", *(f"{point} = {target}" for point, target in points.items())]
            if "/" in f"{name}{version}":
                raise ValueError("neither a name nor a version has a '/'")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot read {file}: {error}") from None
        if not name or not points:
            return None
        info = self._metadata / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for other in self._metadata.iterdir():
            if other != info:  # of an earlier version
                (other / "entry_points.txt").unlink(missing_ok=True)
                (other / "METADATA").unlink(missing_ok=True)
                other.rmdir()
        return name

    def select(self, settings: Settings) -> Settings:
        """Return settings with this plugin, beside those that come with xformd."""
        chosen = settings.selection
        folders = (self.folder,) if self.name is None else ()
        selection = Selection(
            distributions=frozenset() if self.name is None else frozenset({self.name}),
            directories=folders,
            settings=chosen.settings,
            commands=chosen.commands,
        )
        limits = attrs.evolve(settings.limits, max_connections=MAX_CONNECTIONS)
        return attrs.evolve(settings, selection=selection, limits=limits, reload_check="off")


class Saves:
    """Tells what the author saves from what loading the plugin writes into its folder, which must not load it again.

    A file that changes during a load is either. It leads to another load, unless it holds what it held before, or has
    changed in each of the last loads, or nothing else has led to the last loads.
    """

    def __init__(self) -> None:
        self.written: set[str] = set()  # by each load: they are not followed
        self._contents: dict[str, bytes | None] = {}
        self._changes: dict[str, bool] = {}  # since the last load began; whether it may be what made them
        self._loads: dict[str, int] = {}  # in how many of the last loads a file has changed
        self._doubtful_loads = 0  # how many in a row only such files have led to, such as logs with a name for each

    def note(self, path: str, *, is_amid_load: bool) -> bool:
        """Take a change into account; return whether the author may have made it."""
        before, now = self._contents.get(path, b""), _content(path)
        self._contents[path] = now
        if path in self.written or (is_amid_load and before == now):
            return False
        self._changes[path] = is_amid_load and self._changes.get(path, True)
        return True

    def take(self) -> bool:
        """Whether something was saved since this was asked last."""
        if not self._changes:
            return False
        doubtful = [path for path, is_amid_load in self._changes.items() if is_amid_load and not path.endswith(SOURCES)]
        self._loads = {path: self._loads.get(path, 0) + 1 for path in doubtful}
        self.written |= {path for path, loads in self._loads.items() if loads >= LOADS_TO_BE_SURE}
        self._doubtful_loads = self._doubtful_loads + 1 if len(doubtful) == len(self._changes) else 0
        is_saved = self._doubtful_loads <= LOADS_TO_BE_SURE and not self._changes.keys() <= self.written
        self._changes.clear()
        return is_saved


def _content(path: str) -> bytes | None:
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - it is called for each change
        content = file.read(MAX_COMPARED_BYTES)
        return content if len(content) < MAX_COMPARED_BYTES else b"%d" % time.time_ns()
    return None


class DevServer:
    """Makes the server, and has it follow the folder.

    Args:
        plugin: what it serves.
        read_settings: returns the settings, each time it is called.
        reactor: the reactor.
    """

    log = Logger()

    def __init__(self, plugin: PluginFolder, read_settings: Callable[[], Settings], reactor: Any) -> None:
        self._plugin, self._reactor = plugin, reactor
        self._version, self._problems = _new_version(), list[str]()
        self._waiting: list[Deferred[Response]] = []
        self._saves, self._is_reloading, self._loaded_at = Saves(), True, 0.0
        self._addresses: tuple[str, ...] = ()
        self._stopping = threading.Event()
        paths: Mapping[bytes, Methods] = {b"/dev": {"GET": self._respond}}

        def read_again() -> Settings:
            if plugin.read() != plugin.name:
                raise ConfigError(f"{plugin.folder} has another plugin now, or none: start 'xformd dev' again")
            return plugin.select(read_settings())

        self.server: Server = make_server(plugin.select(read_settings()), reactor, read_again, dev_paths=paths)
        self.server.listening.addCallback(self._started)
        threading.Thread(target=self._watch, daemon=True).start()  # now, so that it misses nothing
        reactor.addSystemEventTrigger("before", "shutdown", self._stop)

    @property
    def transforms(self) -> list[Transform]:
        """The transforms of the plugin."""
        entries = sorted(self.server.registry.entries.items())
        return [entry.transform for _, entry in entries if entry.plugin.distribution != BUILT_IN]

    @property
    def link(self) -> str:
        """The address of the page with the first transform, and the poem of its first example; empty without a page."""
        page = next((address for address in self._addresses if address.startswith("http")), "")
        if not page or not (transforms := self.transforms):
            return page
        transform = transforms[0]
        example = next((each for each in transform.examples if isinstance(each.poem, str) and not each.options), None)
        return f"{page}/#{transform.name}" + ("" if example is None else f"&poem={quote(str(example.poem), safe='')}")

    def _started(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        self._addresses = addresses
        Deferred.fromCoroutine(self._try_examples(())).addCallback(lambda _: self._loaded())
        return addresses

    def _stop(self) -> None:
        self._stopping.set()
        self._tell(self._problems)

    # Following the folder.

    def _watch(self) -> None:
        """Watch the folder, in a thread, until the server stops."""
        from watchfiles import Change, watch

        more: Any = {"step": STEP_MS, "debounce": DEBOUNCE_MS, "rust_timeout": 1_000, "raise_interrupt": False}
        try:
            for changes in watch(self._plugin.folder, stop_event=self._stopping, **more):
                brief = {path for change, path in changes if change == Change.added and not os.path.lexists(path)}
                self._reactor.callFromThread(self._changed, sorted({path for _, path in changes} - brief))
        except OSError as error:  # the system watches no more files, say
            warn = partial(self.log.error, "cannot watch {folder}, send SIGHUP after a change: {error}")
            self._reactor.callFromThread(warn, folder=self._plugin.folder, error=error)

    def _changed(self, paths: list[str]) -> None:
        is_amid = self._is_reloading or time.monotonic() < self._loaded_at + TOLD_WITHIN_S
        if saved := [path for path in paths if self._saves.note(path, is_amid_load=is_amid)]:
            names = ", ".join(os.path.relpath(path, self._plugin.folder) for path in saved)
            self.log.info("saved: {paths}", paths=names)
        if not self._is_reloading:
            self._reload_if_changed()

    def _reload_if_changed(self) -> None:
        written = len(self._saves.written)
        self._is_reloading = self._saves.take() and not self._stopping.is_set()
        if len(self._saves.written) > written:
            names = ", ".join(sorted(os.path.relpath(path, self._plugin.folder) for path in self._saves.written))
            self.log.info("not followed, because loading the plugin writes it: {paths}", paths=names)
        if self._is_reloading:
            reloading = Deferred.fromCoroutine(self._reload())
            reloading.addErrback(lambda failure: self.log.failure("not reloaded", failure))
            reloading.addCallback(lambda _: self._loaded())

    def _loaded(self) -> None:
        self._loaded_at = time.monotonic()
        self._reload_if_changed()

    async def _reload(self) -> None:
        outcome = await self.server.reload()
        await self._try_examples(outcome.errors)

    async def _try_examples(self, errors: tuple[str, ...]) -> None:
        failed = self.server.registry.with_state("failed")
        problems = [*errors, *(f"plugin {each.label} failed: {reason}" for each in failed for reason in each.reasons)]
        self._tell(problems)  # the page can go on meanwhile
        failing, tried = list[str](), 0
        for transform in self.transforms:
            tried += len(transform.examples)
            failing += [
                line async for line in failing_examples(self.server.service, transform, lambda error: error.message)
            ]
        for line in failing:
            self.log.error("an example fails: {line}", line=line)
        if tried and not failing:
            self.log.info("{tried} examples pass", tried=tried)
        if failing:
            self._tell([*problems, *(f"an example fails: {line}" for line in failing)])

    # Telling the page.

    def _tell(self, problems: list[str]) -> None:
        self._version, self._problems = _new_version(), problems
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(self._news())

    def _respond(self, request: Request) -> Response | TakeBody:
        """Respond with the last change, once that is another than the one that is asked for."""
        if request.query != self._version or self._stopping.is_set():
            return self._news()

        def wait(_: bytes) -> Deferred[Response]:
            answer: Deferred[Response] = Deferred(self._waiting.remove)
            self._waiting.append(answer)
            return answer

        return wait

    def _news(self) -> Response:
        headers = header_lines((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
        body = {"version": self._version.decode(), "problems": self._problems}
        return Response(200, headers, json.dumps(body).encode())


def _new_version() -> bytes:
    return b"%d" % time.time_ns()
