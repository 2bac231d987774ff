"""``xformd new``: the folder of a plugin of one's own."""

import sys
from pathlib import Path

import click

from xformd.commands.options import print_line
from xformd.kit.new import KINDS, NO_AUTHOR, make_plugin


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
        "xformd serve",
    ):
        print_line(f"  {line}", sys.stdout)
    if NO_AUTHOR in (made / "LICENSE").read_text(encoding="utf-8"):
        print_line("git knows no user.name: put yours into pyproject.toml and LICENSE", sys.stderr)
