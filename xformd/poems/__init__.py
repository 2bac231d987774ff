"""Poems over the network: a server, a client, and a caching proxy, as services and Deferreds.

The protocol is the tutorial's: a client connects and sends nothing, the server sends the poem and closes. A close in
order is the only end of a poem, so every other end is a failure (``docs/poetry.md``).
"""

from xformd.poems.client import get_poem
from xformd.poems.proxy import CachingProxyService
from xformd.poems.server import PoemFactory, PoemService

__all__ = ["CachingProxyService", "PoemFactory", "PoemService", "get_poem"]
