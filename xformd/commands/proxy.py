"""The caching proxies: ``xformd proxy`` for transforms, ``xformd poem proxy`` for a poem."""

import math
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import (
    DURATION,
    LIMIT_SETTINGS,
    SIZE,
    TIMEOUT,
    config_option,
    configuration_options,
    log_options,
    quantity_option,
    run_server,
    setting_options,
    timeout_option,
)
from xformd.commands.poem import max_bytes_option, poem
from xformd.commands.poem_options import upstream_options
from xformd.errors import ConfigError
from xformd.limits import WORKER_LIMITS
from xformd.net.defaults import DEFAULT_POEM_PROXY_PORT, DEFAULT_PROXY_PORT, with_host

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.net.listener import ListeningService
    from xformd.proxy.service import ProxyServer
    from xformd.telemetry.reloads import ReloadOutcome


@click.command()
@click.argument("upstreams", type=with_host, nargs=-1, required=True, metavar="UPSTREAM...")
@configuration_options(DEFAULT_PROXY_PORT, reads_file=False)
@config_option("TOML file with the limits of connections, TLS and access.")
@quantity_option("--cache-bytes", SIZE, "64MiB", "Size of the cache; each result counts for 1 KiB more than its bytes.")
@click.option("--ttl", type=TIMEOUT, help="Keep a result this long. [until its plugin changes]")
@setting_options("access")
@upstream_options
@click.option("--hedge", is_flag=True, help="Ask a second upstream too where a deterministic transform takes long.")
@log_options
@setting_options("traces", *(name for name in LIMIT_SETTINGS if name not in WORKER_LIMITS))
def proxy(
    upstreams: tuple[str, ...],
    configuration: "Configuration",
    cache_bytes: int,
    ttl: float | None,
    hedge: bool,
    client: dict[str, Any],
) -> None:
    """Cache the results of deterministic transforms in front of one or several UPSTREAM servers.

    UPSTREAM is HOST:PORT, PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock. Clients that ask for the
    same result at the same time share one request to an upstream.

    \b
    Examples:
      xformd proxy 127.0.0.1:11000
      xformd proxy 10.0.0.1:11000 10.0.0.2:11000 --cache-bytes 1GiB --ttl 5min
      xformd proxy unix:/run/xformd.sock --listen tcp:11001
      xformd proxy one.internal:11000 --upstream-tls --upstream-tls-ca ca.pem
    """
    settings = configuration.settings

    def make(reactor: Any) -> "ProxyServer":
        from xformd.net.tls import server_tls
        from xformd.proxy.service import make_proxy

        more: dict[str, Any] = {
            "access": settings.access,
            "tls": server_tls(settings, reactor),
            "client": {**client, "hedge": hedge},
            "traces": settings.traces,
            "cache_bytes": cache_bytes,
            "ttl_s": math.inf if ttl is None else ttl,
        }
        server = make_proxy(upstreams, settings.listen, settings.limits, reactor, **more)
        server.on_reload.append(lambda: read_again(server))
        return server

    def read_again(server: "ProxyServer") -> "ReloadOutcome":
        from xformd.telemetry.reloads import ReloadOutcome

        nonlocal settings
        before = settings
        try:
            new = configuration.read_again().settings
            settings = before.with_changes(new, ("listen_backlog", "max_result_bytes", "max_in_flight"))
            server.change(settings)
        except ConfigError as error:
            settings = before
            return ReloadOutcome.of_mistakes(error).logged(server.log)
        return ReloadOutcome(tuple(settings.changes(before, new))).logged(server.log)

    run_server(make, lambda _: [f"the transforms of {', '.join(upstreams)}"], settings)


@poem.command("proxy")
@click.argument("upstream", type=with_host)
@configuration_options(DEFAULT_POEM_PROXY_PORT, reads_file=False)
@click.option("--ttl", type=DURATION, help="How long a poem is fresh. [for ever]")
@quantity_option("--stale", DURATION, "0", "How long after that it is still served while no fresh one can be fetched.")
@max_bytes_option
@quantity_option("--connect-timeout", TIMEOUT, "10", "How long to wait for the connection to the upstream.")
@timeout_option("How long to wait for the whole poem.")
@log_options
@setting_options("drain_delay_s")
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
    settings = configuration.settings

    def make(reactor: Any) -> "ListeningService":
        from xformd.net.tls import server_tls
        from xformd.poems.proxy import CachingProxyService
        from xformd.poems.server import make_poem_server

        cached = CachingProxyService(
            upstream,
            ttl_s=math.inf if ttl is None else ttl,
            stale_s=stale,
            max_bytes=max_bytes,
            connect_timeout_s=connect_timeout,
            timeout_s=timeout,
            reactor=reactor,
        )
        more: Any = {"tls": server_tls(settings, reactor), "drain_delay_s": settings.limits.drain_delay_s}
        return make_poem_server(cached, settings.listen, reactor, **more)

    run_server(make, lambda _: [f"the poem of {upstream}, from a cache"], settings)
