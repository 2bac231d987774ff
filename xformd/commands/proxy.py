"""The caching proxies: ``xformd proxy`` for transforms, ``xformd poem proxy`` for a poem."""

import functools
import math
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import (
    DURATION,
    LIMIT_SETTINGS,
    SIZE,
    TIMEOUT,
    LimitsCommand,
    configuration_options,
    limit_options,
    log_format_option,
    run_server,
    timeout_option,
)
from xformd.commands.poem import max_bytes_option, poem
from xformd.limits import WORKER_LIMITS
from xformd.net.defaults import DEFAULT_POEM_PROXY_PORT, DEFAULT_PROXY_PORT, with_host

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.proxy.app import ProxyServer


@click.command(cls=LimitsCommand)
@click.argument("upstreams", type=with_host, nargs=-1, required=True, metavar="UPSTREAM...")
@configuration_options(DEFAULT_PROXY_PORT, reads_file=False)
@click.option(
    "--cache-bytes",
    type=SIZE,
    default="64MiB",
    show_default=True,
    help="Size of the cache; each result counts for 1 KiB more than its bytes.",
)
@click.option("--ttl", type=TIMEOUT, help="Keep a result this long. [until its plugin changes]")
@click.option(
    "--refresh",
    type=TIMEOUT,
    default="10",
    show_default=True,
    help="How often to ask the upstreams for their transforms: an upgraded plugin is noticed within this time.",
)
@click.option(
    "--max-session-age",
    type=TIMEOUT,
    help="Replace a connection to an upstream before it is older: it may then be to one that came later. [5min]",
)
@log_format_option
@limit_options([name for name in LIMIT_SETTINGS if name not in WORKER_LIMITS])
def proxy(
    upstreams: tuple[str, ...], configuration: "Configuration", cache_bytes: int, refresh: float, **times: float | None
) -> None:
    """Cache the results of deterministic transforms in front of one or several UPSTREAM servers.

    UPSTREAM is HOST:PORT, PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock. Clients that ask for the
    same result at the same time share one request to an upstream.

    \b
    Examples:
      xformd proxy 127.0.0.1:11000
      xformd proxy 10.0.0.1:11000 10.0.0.2:11000 --cache-bytes 1GiB --ttl 5min
      xformd proxy unix:/run/xformd.sock --listen tcp:11001
    """
    settings = configuration.settings

    def make(reactor: Any) -> "ProxyServer":
        from xformd.proxy import app

        given = {f"{name}_s": seconds for name, seconds in times.items() if seconds is not None}
        options = {"cache_bytes": cache_bytes, "refresh_s": refresh, **given}
        return app.make_proxy(upstreams, settings.listen, settings.limits, reactor, **options)

    run_server(make, lambda _: [f"the transforms of {', '.join(upstreams)}"], settings.log_format)


@poem.command("proxy")
@click.argument("upstream", type=with_host)
@configuration_options(DEFAULT_POEM_PROXY_PORT, reads_file=False)
@click.option("--ttl", type=DURATION, help="How long a poem is fresh. [for ever]")
@click.option(
    "--stale",
    type=DURATION,
    default="0",
    show_default=True,
    help="How long after that it is still served while no fresh one can be fetched.",
)
@max_bytes_option
@click.option(
    "--connect-timeout",
    type=TIMEOUT,
    default="10",
    show_default=True,
    help="How long to wait for the connection to the upstream.",
)
@timeout_option("How long to wait for the whole poem.")
@log_format_option
def poem_proxy(
    upstream: str,
    configuration: "Configuration",
    ttl: float | None,
    stale: float,
    max_bytes: int,
    connect_timeout: float,
    timeout: float,
) -> None:
    """Serve another server's poem, fetched once and kept in memory.

    UPSTREAM is HOST:PORT, PORT, or a Twisted client endpoint, such as unix:/run/owl.sock.
    Clients that arrive while it is being fetched wait for that one download. If there is no poem to serve, a client's
    connection is reset.

    \b
    Examples:
      xformd poem proxy poems.example.org:10000
      xformd poem proxy 127.0.0.1:10000 --ttl 60 --stale 5min
    """
    from xformd.poems import app

    settings = configuration.settings
    make = functools.partial(
        app.make_poem_proxy,
        upstream,
        settings.listen,
        ttl_s=math.inf if ttl is None else ttl,
        stale_s=stale,
        max_bytes=max_bytes,
        connect_timeout_s=connect_timeout,
        timeout_s=timeout,
    )
    run_server(make, lambda _: [f"the poem of {upstream}, from a cache"], settings.log_format)
