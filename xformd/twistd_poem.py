"""``twistd xformd-poem``: what twistd's plugin is made of, in the words of ``xformd poem serve`` and ``poem proxy``."""

from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from xformd.net.defaults import DEFAULT_POEM_PORT, DEFAULT_POEM_PROXY_PORT
from xformd.net.listener import FailFastService, ListeningService
from xformd.poems import app
from xformd.twistd_options import ListeningOptions, duration, size, timeout, told_at_once


class ServeOptions(ListeningOptions):
    """Of ``twistd xformd-poem serve``."""

    synopsis = "[options] FILE"
    default_port = DEFAULT_POEM_PORT
    optParameters = [["slow", None, None, "Bytes a second.", size]]  # noqa: RUF012 - Twisted's form

    def parseArgs(self, file: str, *rest: str) -> None:  # type: ignore[override]
        """Take the poem's file."""
        _need_nothing_after("FILE", rest)
        self["file"] = file

    def make(self, reactor: Any) -> ListeningService:
        """Put the server together."""
        # twistd changes to another folder before it starts.
        file = Path(self["file"]).absolute()
        return app.make_poem_server(file, self.places, reactor, bytes_per_s=self["slow"])


class ProxyOptions(ListeningOptions):
    """Of ``twistd xformd-poem proxy``."""

    synopsis = "[options] UPSTREAM"
    default_port = DEFAULT_POEM_PROXY_PORT
    optParameters = [  # noqa: RUF012 - Twisted's form
        ["ttl", None, None, "A poem is fresh for so many seconds.", duration],
        ["stale", None, None, "For so long after that it stands in for a fresh one.", duration],
        ["max-bytes", None, None, "Take no poem that is longer.", size],
        ["connect-timeout", None, None, "Seconds to wait for the connection to the upstream.", timeout],
        ["timeout", None, None, "And for the whole poem.", timeout],
    ]

    def parseArgs(self, upstream: str, *rest: str) -> None:  # type: ignore[override]
        """Take the address of the upstream."""
        _need_nothing_after("UPSTREAM", rest)
        self["upstream"] = upstream

    def make(self, reactor: Any) -> ListeningService:
        """Put the proxy together."""
        names = {
            "ttl": "ttl_s",
            "stale": "stale_s",
            "max-bytes": "max_bytes",
            "connect-timeout": "connect_timeout_s",
            "timeout": "timeout_s",
        }
        options = {names[flag]: self[flag] for flag in names if self[flag] is not None}
        return app.make_poem_proxy(self["upstream"], self.places, reactor, **options)


class Options(usage.Options):
    """Of ``twistd xformd-poem``."""

    synopsis = "serve FILE | proxy UPSTREAM"
    subCommands = [  # noqa: RUF012 - Twisted's form
        ["serve", None, ServeOptions, "Serve the poem of a file."],
        ["proxy", None, ProxyOptions, "Serve the poem of another server from a cache."],
    ]
    subOptions: ServeOptions | ProxyOptions

    def postOptions(self) -> None:
        """See to it that there is something to do."""
        if self.subCommand is None:
            raise usage.UsageError("say 'serve FILE' or 'proxy UPSTREAM'")


def makeService(options: Options) -> IService:
    """Give twistd the service that its arguments ask for.

    Args:
        options: as they were parsed.

    Returns:
        A service: it listens when it is started.

    Raises:
        SystemExit: something is named that is not there.
    """
    from twisted.internet import reactor

    with told_at_once():
        return FailFastService(options.subOptions.make(reactor), reactor)


def _need_nothing_after(argument: str, rest: tuple[str, ...]) -> None:
    if rest:
        raise usage.UsageError(f"{rest[0]!r} comes after {argument}: options go before it")
