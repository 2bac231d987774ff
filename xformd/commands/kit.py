"""``xformd new`` and ``dev``: the folder of a plugin of one's own, and a server that follows it."""

import importlib.util
import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import configuration_options, log_options, print_line, run_server, setting_options
from xformd.errors import ConfigError
from xformd.kit.new import KINDS, NO_AUTHOR, make_plugin
from xformd.net.defaults import DEFAULT_PORT

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.server.app import Server

_SCREENS = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"}  # without one of them, a browser would take the terminal


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice([*KINDS]),
    default="text",
    show_default=True,
    help="What it takes, or how it runs: async for many at a time, batch for several per call, command for a program.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    metavar="DIR",
    help="Where to make its folder. [.]",
)
def new(name: str, kind: str, folder: Path) -> None:
    """Make a plugin: a folder with a transform, its tests, and all that a package needs.

    \b
    Examples:
      xformd new shout
      xformd new thumbnail --kind bytes
      xformd new summarise --kind async --folder ~/src
    """
    made, *files = make_plugin(name, kind, folder)
    for file in files:
        print_line(f"made {file}", sys.stdout)
    transform = made.name.removeprefix("xformd-")
    print_line("", sys.stdout)
    print_line("Next:", sys.stdout)
    for line in (
        f"pip install -e '{made}[test]'",
        f"pytest {made}",
        f"{KINDS[kind]} | xformd run {transform}",
        f"xformd dev {made}  # follows what you save; first: pip install 'xformd[dev]'",
    ):
        print_line(f"  {line}", sys.stdout)
    if NO_AUTHOR in (made / "LICENSE").read_text(encoding="utf-8"):
        print_line("git knows no user.name: put yours into pyproject.toml and LICENSE", sys.stderr)


@click.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser. [where there is a screen]")
@configuration_options(DEFAULT_PORT)
@setting_options("http", "workers")
@log_options
def dev(configuration: "Configuration", folder: Path, browser: bool) -> None:
    """Serve the plugin in FOLDER while you write it: loads it again, and runs its examples, whenever a file is saved.

    It need not be installed, but for what it depends on. The page shows each change, and what is wrong with file, line
    and the line's text.

    \b
    Examples:
      xformd dev
      xformd dev xformd-shout --no-browser
      xformd dev --config xformd.toml --http tcp:8001:interface=127.0.0.1
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("'xformd dev' needs one more package: pip install 'xformd[dev]'")
    from xformd.kit.dev import DevServer, PluginFolder

    metadata = tempfile.TemporaryDirectory(prefix="xformd-dev-")
    click.get_current_context().call_on_close(metadata.cleanup)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # what is saved twice within a second would be taken for the same
    plugin = PluginFolder(folder, Path(metadata.name))
    made: list[DevServer] = []

    def make(reactor: Any) -> "Server":
        made.append(DevServer(plugin, lambda: configuration.read_again().settings, reactor))
        made[0].server.listening.addCallback(show)
        return made[0].server

    def show(addresses: tuple[str, ...]) -> tuple[str, ...]:
        if browser and made[0].link and (sys.platform != "linux" or _SCREENS & {*os.environ}):
            webbrowser.open(made[0].link)
        return addresses

    def describe(server: "Server") -> Iterator[str]:
        for each in server.registry.with_state("failed"):
            yield from (f"failed: plugin {each.label}: {reason}" for reason in each.reasons)
        names = ", ".join(each.name for each in made[0].transforms)
        yield f"following {folder}: {names or 'no transform yet'}"

    run_server(make, describe, plugin.select(configuration.settings))
