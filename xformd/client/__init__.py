"""The client: sends poems to transform servers, from Twisted, and gives Deferreds of the results.

Whatever goes wrong, a Deferred fails with an ``XformError`` that names the server and carries the poem, so that a
caller can fall back to it: ``d.addErrback(lambda failure: failure.value.poem)``.
"""

from xformd.client.proxy import TransformProxy

__all__ = ["TransformProxy"]
