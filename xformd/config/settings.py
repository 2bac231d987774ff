"""Settings, complete and checked: what a server is made from, wherever each value came from."""

import attrs

from xformd.endpoint import tcp_server
from xformd.limits import Limits
from xformd.plugins import loader
from xformd.plugins.loader import Selection


@attrs.frozen(kw_only=True)
class Settings:
    """What an operator decides.

    Args:
        listen: Twisted server endpoint strings.
        selection: which plugins to load.
        limits: what clients and transforms may do.
        workers: how many worker processes; None for as many as there are CPUs, 0 for none: then every transform runs
            in the reactor.
        inline: transforms that run in the reactor, whatever their author says.
        isolate: transforms that run in a worker, whatever their author says.
    """

    listen: tuple[str, ...] = (tcp_server(),)
    selection: Selection = loader.EVERYTHING
    limits: Limits = attrs.field(factory=Limits)
    workers: int | None = None
    inline: frozenset[str] = frozenset()
    isolate: frozenset[str] = frozenset()
