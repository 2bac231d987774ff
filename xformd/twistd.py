"""``twistd xformd``, ``xformd-proxy`` and ``xformd-poem``: their options, and the services that twistd runs.

A settings file says how a server works; an option is only what a file cannot say.
Invariant: a mistake in either ends twistd before it goes into the background.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
from twisted.application.service import IService
from twisted.python import usage

from xformd.config import configure
from xformd.config.types import parse_duration, parse_size, parse_timeout
from xformd.errors import ConfigError
from xformd.net.allocator import keep_freed_memory
from xformd.net.deadline import use_monotonic_clock
from xformd.net.defaults import DEFAULT_POEM_PORT, DEFAULT_POEM_PROXY_PORT, DEFAULT_PROXY_PORT, tcp_server
from xformd.net.listener import FailFastService
from xformd.poems.app import make_poem_proxy, make_poem_server
from xformd.proxy.app import make_proxy
from xformd.server.app import make_server


class ServerOptions(usage.Options):
    """The options of ``twistd xformd``."""

    synopsis = "[--config FILE]"
    optParameters: ClassVar = [["config", "c", None, "TOML file with the settings, as 'xformd config' prints it."]]

    def make(self, reactor: Any) -> FailFastService:
        """Make the server, with the settings of the file and the environment."""
        file = self["config"] or os.environ.get("XFORMD_CONFIG")
        configuration = configure(Path(file) if file else None, os.environ)
        selection = configuration.settings.selection
        folders = tuple(folder.absolute() for folder in selection.directories)  # twistd may change to another folder
        selection = attrs.evolve(selection, directories=folders)
        try:
            server = make_server(attrs.evolve(configuration.settings, selection=selection), reactor)
        except ConfigError as error:
            raise configuration.locate(error) from error
        keep_freed_memory()
        return FailFastService(server, reactor, configuration.locate)


class _ListeningOptions(usage.Options):
    """Options and arguments of a server without a settings file: ``--listen``, then what it serves."""

    argument: ClassVar[str]
    default_port: ClassVar[int]
    takes_several: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.endpoints: list[str] = []
        self.words: tuple[str, ...] = ()

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen: a Twisted server endpoint; may be repeated."""
        self.endpoints.append(endpoint)

    @property
    def listen(self) -> tuple[str, ...]:
        """The endpoints to listen on."""
        return tuple(self.endpoints) or (tcp_server(port=self.default_port),)

    def parseArgs(self, *words: str) -> None:
        """Take the arguments."""
        for word in words:
            if word.startswith("-"):
                raise usage.UsageError(f"{word!r} comes after {self.argument}: put options first")
        if not words or (len(words) > 1 and not self.takes_several):
            raise usage.UsageError(f"name {'at least one' if self.takes_several else 'one'} {self.argument}")
        self.words = words

    def given(self, **names: str) -> dict[str, Any]:
        """Return the options that were given, under the names of the parameters that they set."""
        return {name: self[option] for option, name in names.items() if self[option] is not None}


def _locate(error: ConfigError) -> ConfigError:
    return error if error.setting is None else error.located_at(f"--{error.setting}")


class ProxyOptions(_ListeningOptions):
    """The options of ``twistd xformd-proxy``."""

    synopsis = "[options] UPSTREAM..."
    argument = "UPSTREAM"
    default_port = DEFAULT_PROXY_PORT
    takes_several = True
    optParameters: ClassVar = [
        ["config", "c", None, "TOML file with the limits of connections; its other settings are not used."],
        ["cache-bytes", None, None, "Size of the cache; each result counts for 1 KiB more than its bytes.", parse_size],
        ["ttl", None, None, "Keep a result this long.", parse_timeout],
        ["refresh", None, None, "How often to ask the upstreams for their transforms.", parse_timeout],
        ["max-session-age", None, None, "Replace a connection to an upstream before it is older.", parse_timeout],
    ]

    def make(self, reactor: Any) -> FailFastService:
        """Make the proxy."""
        limits = configure(Path(self["config"]) if self["config"] else None).settings.limits
        sizes = {"cache-bytes": "cache_bytes", "max-session-age": "max_session_age_s"}
        options = self.given(ttl="ttl_s", refresh="refresh_s", **sizes)
        service = FailFastService(make_proxy(self.words, self.listen, limits, reactor, **options), reactor, _locate)
        keep_freed_memory()
        return service


class PoemServerOptions(_ListeningOptions):
    """The options of ``twistd xformd-poem serve``."""

    synopsis = "[options] FILE"
    argument = "FILE"
    default_port = DEFAULT_POEM_PORT
    optParameters: ClassVar = [["slow", None, None, "Bytes a second for each client.", parse_size]]

    def make(self, reactor: Any) -> FailFastService:
        """Make the poem server."""
        file = Path(*self.words).absolute()  # twistd may change to another folder
        return FailFastService(make_poem_server(file, self.listen, reactor, bytes_per_s=self["slow"]), reactor, _locate)


class PoemProxyOptions(_ListeningOptions):
    """The options of ``twistd xformd-poem proxy``."""

    synopsis = "[options] UPSTREAM"
    argument = "UPSTREAM"
    default_port = DEFAULT_POEM_PROXY_PORT
    optParameters: ClassVar = [
        ["ttl", None, None, "How long a poem is fresh.", parse_duration],
        ["stale", None, None, "How long after that it is still served if no fresh one can be fetched.", parse_duration],
        ["max-bytes", None, None, "Reject a poem longer than this.", parse_size],
        ["connect-timeout", None, None, "How long to wait for the connection to the upstream.", parse_timeout],
        ["timeout", None, None, "How long to wait for the whole poem.", parse_timeout],
    ]

    def make(self, reactor: Any) -> FailFastService:
        """Make the poem proxy."""
        (upstream,) = self.words
        limits = {"max-bytes": "max_bytes", "connect-timeout": "connect_timeout_s", "timeout": "timeout_s"}
        options = self.given(ttl="ttl_s", stale="stale_s", **limits)
        return FailFastService(make_poem_proxy(upstream, self.listen, reactor, **options), reactor, _locate)


class PoemOptions(usage.Options):
    """The options of ``twistd xformd-poem``."""

    synopsis = "serve FILE | proxy UPSTREAM"
    subCommands: ClassVar = [
        ["serve", None, PoemServerOptions, "Serve the poem in a file."],
        ["proxy", None, PoemProxyOptions, "Cache another server's poem."],
    ]
    subOptions: PoemServerOptions | PoemProxyOptions

    def postOptions(self) -> None:
        """Require a command."""
        if self.subCommand is None:
            raise usage.UsageError("name a command: 'serve FILE' or 'proxy UPSTREAM'")

    def make(self, reactor: Any) -> FailFastService:
        """Make the server of the command."""
        return self.subOptions.make(reactor)


def make_service(options: ServerOptions | ProxyOptions | PoemOptions) -> IService:
    """Make the service that twistd's arguments describe; it listens once it is started.

    Raises:
        SystemExit: an argument or a setting names something that does not exist.
    """
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    try:
        return options.make(reactor)
    except ConfigError as error:
        lines = (*error.details, f"{error.code}: {error.message}")
        raise SystemExit("\n".join(f"xformd: {line}" for line in lines)) from None


# What twistd/xformd_services.py names: twistd looks up Options and makeService in each.
server = SimpleNamespace(Options=ServerOptions, makeService=make_service)
caching_proxy = SimpleNamespace(Options=ProxyOptions, makeService=make_service)
poem = SimpleNamespace(Options=PoemOptions, makeService=make_service)
