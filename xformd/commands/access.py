"""``xformd token``: tokens for an access file."""

import re

import click

from xformd.commands.options import isolated_plugin_output, print_error, print_line
from xformd.errors import ConfigError


@click.group()
def token() -> None:
    """Make tokens, with which callers show who they are.

    \b
    Examples:
      xformd token new ci
      xformd serve --access access.toml
      XFORMD_TOKEN=xformd_... xformd send cummingsify poem.txt
    """


@token.command()
@click.argument("name")
def new(name: str) -> None:
    """Print a new token on standard output, and what the access file needs to know of it on standard error.

    \b
    Examples:
      xformd token new ci > token
      xformd send cummingsify poem.txt --token-file token
    """
    from xformd.access.rules import IDENTITY_NAME, NAME_RULE, new_token

    if not re.match(IDENTITY_NAME, name):
        raise ConfigError(f"{name!r}: {NAME_RULE}")
    made, digest = new_token()
    for line in (
        "# The token is shown this once. This goes into the access file, with names or patterns:",
        f"[identity.{name}]" if re.fullmatch("[A-Za-z0-9_-]+", name) else f'[identity."{name}"]',
        f'token_sha256 = "{digest}"',
        'transforms = []  # such as "wrap" or "format-*"',
    ):
        print_error(line, prefix="")
    with isolated_plugin_output() as stdout:
        print_line(made, stdout)
