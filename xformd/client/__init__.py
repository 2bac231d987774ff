"""The client: sends poems to transform servers from Twisted, and returns Deferreds of the results.

Invariant: a Deferred fails only with an ``XformError`` that names the server and carries the poem, so that a caller can
fall back to it: ``d.addErrback(lambda failure: failure.value.poem)``. ``TransformProxy`` is loaded on first use: the
clients without Twisted share modules of this package.
"""

import importlib
from typing import TYPE_CHECKING

from xformd.net.tls import ClientTls

if TYPE_CHECKING:
    from xformd.client.proxy import TransformProxy

__all__ = ["ClientTls", "TransformProxy"]


def __getattr__(name: str) -> object:
    if name == "TransformProxy":
        return importlib.import_module("xformd.client.proxy").TransformProxy
    raise AttributeError(f"module 'xformd.client' has no attribute {name!r}")
