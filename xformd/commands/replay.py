"""``xformd replay``: saved poems through two servers, or a server and this environment, and what differs."""

import contextlib
import difflib
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

from xformd.commands.options import (
    isolated_plugin_output,
    plugin_options,
    print_error,
    print_line,
    timeout_option,
)
from xformd.commands.poem_options import client_options
from xformd.commands.transforms import Transform, produced, transform_here
from xformd.errors import XformError
from xformd.net.defaults import with_host

if TYPE_CHECKING:
    from xformd.config import Settings
    from xformd.spec import Spec

HERE = "here"
DIFFERS, FAILED = 1, 66  # exit statuses; 66 if there is nothing to send

Answer = tuple[bytes | XformError, float]


@attrs.frozen
class _Side:
    """What answers: a server or this environment, with the media type of its results, if that is known."""

    name: str
    ask: Transform
    produces: str

    async def time(self, poem: bytes) -> Answer:
        """Return the result, or the error, and how many seconds it took."""
        from twisted.internet.defer import Deferred

        start_s = time.monotonic()
        try:
            asked = self.ask(poem)
            result: bytes | XformError = await asked if isinstance(asked, Deferred) else asked
        except XformError as error:
            result = error
        return result, time.monotonic() - start_s

    def describe(self, result: bytes | XformError) -> str:
        """Return a line for what is not a text."""
        if isinstance(result, XformError):
            return f"{result.code}: {result.message}"
        return f"{len(result)} bytes" + (f" of {self.produces}" if self.produces else "")


def _side_name(value: str) -> str:
    return value if value == HERE else with_host(value)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.argument("spec")
@click.option("--old", metavar="SERVER", required=True, type=_side_name, help="The server to compare with.")
@click.option(
    "--new",
    metavar="SERVER",
    default=HERE,
    show_default=True,
    type=_side_name,
    help="The other server; here for the plugins of this environment, without a server.",
)
@timeout_option("How long to wait for each answer.")
@client_options
@plugin_options
def replay(
    folder: Path,
    spec: str,
    old: str,
    new: str,
    timeout: float,
    client: Mapping[str, Any],
    settings: "Settings",
) -> None:
    """Send saved poems to an old and a new version of a transform, and print what differs.

    FOLDER has the poems, such as `xformd serve --record` keeps; SPEC is the transform. They are sent one by one,
    so that times can be compared. The exit status is 0 if all results are the same, and 1 if not.

    \b
    Examples:
      xformd replay poems wrap:width=40 --old transforms.internal
      xformd replay records/format-python format-python --old 127.0.0.1:11000 --new 127.0.0.1:11001
      xformd replay poems thumbnail --old 11000 --plugins-dir .
    """
    from xformd import spec as specs
    from xformd.client import batch
    from xformd.net import run
    from xformd.telemetry import logs

    logs.start()
    built = specs.build(spec, {})
    comparison = _Comparison()
    with isolated_plugin_output() as stdout:
        sources = batch.find_files([folder])
        if not sources:
            print_error(f"{folder} has no files")
            sys.exit(FAILED)

        async def replay_all() -> None:
            async with contextlib.AsyncExitStack() as sides:
                before, after = [
                    await sides.enter_async_context(_side(each, built, timeout, client, settings))
                    for each in (old, new)
                ]
                for source in sources:
                    await comparison.compare(source, before, after, stdout)
                print_line(comparison.summary(before, after), stdout)

        run.run_until_done(replay_all())
    sys.exit(comparison.exit_status)


@contextlib.asynccontextmanager
async def _side(
    server: str, spec: "Spec", timeout_s: float, client: Mapping[str, Any], settings: "Settings"
) -> AsyncIterator[_Side]:
    from xformd.client import TransformProxy

    if server == HERE:
        async with transform_here(settings, spec, timeout_s=timeout_s) as (transform, produces):
            yield _Side(server, transform, produces)
        return
    async with TransformProxy(server, **client) as proxy:
        listed = await proxy.list_transforms(timeout=timeout_s)
        yield _Side(server, lambda poem: proxy.xform(str(spec), poem, timeout=timeout_s), produced(listed, spec))


@attrs.define
class _Comparison:
    """What was found so far; the times are those of the answers, in seconds."""

    differing: int = 0
    unread: int = 0
    old_s: list[float] = attrs.field(factory=list)
    new_s: list[float] = attrs.field(factory=list)

    async def compare(self, source: Path, old: _Side, new: _Side, stdout: TextIO) -> None:
        """Send a poem to one side and then to the other, and print what differs."""
        try:
            poem = source.read_bytes()
        except OSError as error:
            self.unread += 1
            print_error(f"{source}: {error.strerror}")
            return
        before, old_s = await old.time(poem)
        after, new_s = await new.time(poem)
        self.old_s.append(old_s)
        self.new_s.append(new_s)
        if lines := _differences(before, after, old, new):
            self.differing += 1
            print_line(f"{source}: differs ({1000 * old_s:.1f} ms before, {1000 * new_s:.1f} ms after)", stdout)
            for line in lines:
                print_line(f"  {line}", stdout)

    def summary(self, old: _Side, new: _Side) -> str:
        """Return the result in a line."""
        if not self.old_s:
            return "no poem was sent"
        count, sides = len(self.old_s), ((self.old_s, old.name), (self.new_s, new.name))
        medians = ", ".join(f"{1000 * median(times):.1f} ms with {name}" for times, name in sides)
        return f"{count - self.differing} of {count} results are the same; median time {medians}"

    @property
    def exit_status(self) -> int:
        return DIFFERS if self.differing else FAILED if self.unread else 0


def _differences(before: bytes | XformError, after: bytes | XformError, old: _Side, new: _Side) -> list[str]:
    described = [f"- {old.describe(before)}", f"+ {new.describe(after)}"]
    if isinstance(before, bytes) and isinstance(after, bytes):
        if before == after:
            return []
        try:
            was, now = before.decode().splitlines(), after.decode().splitlines()
        except UnicodeDecodeError:
            return described
        return [*difflib.unified_diff(was, now, old.name, new.name, lineterm="")] or ["the ends of lines differ"]
    if isinstance(before, XformError) and isinstance(after, XformError) and before.code == after.code:
        return []
    return described
