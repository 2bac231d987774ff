"""``xformd mcp``: the transforms of a server as tools for language models."""

import importlib.util
from typing import Any

import click

from xformd.commands.options import print_line
from xformd.commands.poem_options import server_options
from xformd.errors import ConfigError


@click.command()
@server_options
@click.option("--only", metavar="PATTERN", multiple=True, help="Offer only such transforms: wrap, 'to-*'. Repeatable.")
@click.option("--http", metavar="ENDPOINT", help="Serve many over HTTP at this address, such as 127.0.0.1:11082.")
@click.option(
    "--allow-host",
    metavar="NAME",
    multiple=True,
    help="With --http: a name under which a proxy on this machine offers it. Repeatable.",
)
def mcp(
    servers: tuple[str, ...],
    timeout: float,
    client: dict[str, Any],
    only: tuple[str, ...],
    http: str | None,
    allow_host: tuple[str, ...],
) -> None:
    """Offer the transforms of a server as tools of MCP, on standard input and output, or over HTTP.

    \b
    Examples:
      xformd mcp
      xformd mcp --server transforms.internal --tls --token-file token --only 'format-*'
      xformd mcp --http 127.0.0.1:11082
    """
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError("MCP needs more packages: pip install 'xformd[mcp]'")
    from xformd.mcp import TransformTools, listen, run_on_http, run_on_stdio
    from xformd.net.defaults import with_host

    tools = TransformTools(servers, client, only=only, timeout_s=timeout)
    if http is None:
        run_on_stdio(tools)
        return
    listener = listen(with_host(http))
    host, port = listener.getsockname()[:2]
    print_line(f"MCP on http://{f'[{host}]' if ':' in host else host}:{port}/mcp")
    run_on_http(tools, listener, allow_host)
