"""The caching proxy for transforms: answers from its cache, and asks other servers for the rest."""

from xformd.proxy.service import CachingTransformService

__all__ = ["CachingTransformService"]
