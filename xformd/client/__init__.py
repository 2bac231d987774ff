"""The client: sends poems to transform servers from Twisted, and returns Deferreds of the results.

Invariant: a Deferred fails only with an ``XformError`` that names the server and carries the poem, so that a caller can
fall back to it: ``d.addErrback(lambda failure: failure.value.poem)``.
"""

from xformd.client.proxy import TransformProxy

__all__ = ["TransformProxy"]
