"""The command ``proxy``: other servers' results, from a cache."""

import functools
import math
from typing import Any

import attrs
import click

from xformd.commands.options import (
    isolated_plugin_output,
    listening_lines,
    log_format_option,
    only_flags,
    read_size,
    read_timeout,
)
from xformd.commands.serve import SettingsCommand, limit_flag
from xformd.limits import WORKER_LIMITS, Limits
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PROXY_PORT, tcp_server

_LIMITS = tuple(field for field in attrs.fields(Limits) if field.name not in WORKER_LIMITS)


def _limit_flags(command: Any) -> Any:
    for field in reversed(_LIMITS):
        command = limit_flag(field)(command)
    return command


@click.command(cls=SettingsCommand)
@click.argument("upstreams", nargs=-1, required=True, metavar="UPSTREAM...")
@click.option("--host", help="Address of the interface to listen on. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port to listen on; 0 takes a free one. [11001]")
@click.option(
    "--listen",
    multiple=True,
    metavar="ENDPOINT",
    help="Where to listen: a Twisted server endpoint, such as unix:/run/proxy.sock. May be repeated.",
)
@click.option(
    "--cache-bytes",
    callback=read_size,
    default="64MiB",
    show_default=True,
    metavar="N",
    help="Keep so much; a result counts for 1 KiB more than it has.",
)
@click.option("--ttl", callback=read_timeout, metavar="S", help="Keep a result for so long. [until its plugin changes]")
@click.option(
    "--refresh",
    callback=read_timeout,
    default="10",
    show_default=True,
    metavar="S",
    help="Ask the upstreams so often what they have: an upgraded plugin is noticed within this time.",
)
@log_format_option
@_limit_flags
def proxy(
    upstreams: tuple[str, ...], host: str | None, port: int | None, listen: tuple[str, ...], **given: Any
) -> None:
    """Answer from a cache where that is right, and ask one of the UPSTREAM servers where it is not.

    UPSTREAM is HOST:PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock. Kept are the results of
    transforms that say that they are deterministic; whoever asks for one that is on its way waits for the same answer.

    \b
    Examples:
      xformd proxy 127.0.0.1:11000
      xformd proxy 10.0.0.1:11000 10.0.0.2:11000 --cache-bytes 1GiB --ttl 5min
      xformd proxy unix:/run/xformd.sock --listen tcp:11001
    """
    from xformd.config import configure
    from xformd.net import run

    places = listen if host is None and port is None else (_place(host, port), *listen)
    flags = {field.name: ("--" + field.name.replace("_", "-"), given[field.name]) for field in _LIMITS}
    limits = configure(flags={name: flag for name, flag in flags.items() if flag[1] is not None}).settings.limits
    options = {"cache_bytes": given["cache_bytes"], "refresh_s": given["refresh"]}
    options["ttl_s"] = math.inf if given["ttl"] is None else given["ttl"]

    run.prepare_to_serve(given["log_format"])
    from xformd.proxy import app  # after the reactor has been chosen

    def make(reactor: Any) -> app.ProxyServer:
        return app.make_proxy(upstreams, places or (_place(host, port),), limits, reactor, **options)

    with isolated_plugin_output() as stdout, only_flags():
        run.run_server(
            make,
            lambda _, addresses: [*listening_lines(addresses), f"the transforms of {', '.join(upstreams)}"],
            functools.partial(click.echo, file=stdout),
        )


def _place(host: str | None, port: int | None) -> str:
    return tcp_server(host or DEFAULT_HOST, DEFAULT_PROXY_PORT if port is None else port)
