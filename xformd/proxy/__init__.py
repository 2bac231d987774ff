"""The caching proxy for transforms: other servers' results, kept where that is right.

The law: a result is kept under the version of the plugin that gave it, and never given for another one; whatever the
cache does, a request that the upstreams would answer is answered.
"""

from xformd.proxy.service import CachingTransformService

__all__ = ["CachingTransformService"]
