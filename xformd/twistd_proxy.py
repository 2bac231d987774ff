"""``twistd xformd-proxy``: what twistd's plugin is made of, in the words of ``xformd proxy``."""

from typing import Any

import attrs
from twisted.application.service import IService
from twisted.python import usage

from xformd.config import TABLE, configure
from xformd.limits import WORKER_LIMITS, Limits
from xformd.net.allocator import keep_freed_memory
from xformd.net.defaults import DEFAULT_PROXY_PORT
from xformd.net.listener import FailFastService
from xformd.proxy import app
from xformd.twistd_options import ListeningOptions, size, timeout, told_at_once

_LIMITS = [TABLE[field.name] for field in attrs.fields(Limits) if field.name not in WORKER_LIMITS]
_OWN = {"cache-bytes": "cache_bytes", "ttl": "ttl_s", "refresh": "refresh_s"}


class Options(ListeningOptions):
    """Of ``twistd xformd-proxy``."""

    synopsis = "[options] UPSTREAM..."
    default_port = DEFAULT_PROXY_PORT
    optParameters = [  # noqa: RUF012 - Twisted's form
        ["cache-bytes", None, None, "Keep so much; a result counts for 1 KiB more than it has.", size],
        ["ttl", None, None, "Keep a result for so many seconds.", timeout],
        ["refresh", None, None, "Ask the upstreams so often what they have, in seconds.", timeout],
        *([setting.flag.removeprefix("--"), None, None, setting.reason] for setting in _LIMITS),
    ]

    def parseArgs(self, *upstreams: str) -> None:
        """Take the addresses of the upstreams."""
        if not upstreams:
            raise usage.UsageError("name an UPSTREAM: HOST:PORT, or a Twisted client endpoint")
        for word in upstreams:
            if word.startswith("-"):
                raise usage.UsageError(f"{word!r} comes after UPSTREAM: options go before it")
        self["upstreams"] = upstreams

    def make(self, reactor: Any) -> app.ProxyServer:
        """Put the proxy together.

        Raises:
            ConfigError: a limit or an address is none.
        """
        given = {setting.name: (setting.flag, self[setting.flag.removeprefix("--")]) for setting in _LIMITS}
        limits = configure(flags={name: flag for name, flag in given.items() if flag[1] is not None}).settings.limits
        options = {_OWN[flag]: self[flag] for flag in _OWN if self[flag] is not None}
        return app.make_proxy(self["upstreams"], self.places, limits, reactor, **options)


def makeService(options: Options) -> IService:
    """Give twistd the service that its arguments ask for.

    Args:
        options: as they were parsed.

    Returns:
        A service: it asks the upstreams what they have, and listens, when it is started.

    Raises:
        SystemExit: something is named that is not there.
    """
    from twisted.internet import reactor

    with told_at_once():
        proxy = options.make(reactor)
    keep_freed_memory()
    return FailFastService(proxy, reactor)
