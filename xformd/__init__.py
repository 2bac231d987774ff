"""xformd: a transform daemon whose transforms are pip-installable plugins.

The public names for authors of plugins and for Python clients. Invariant: importing this module installs no reactor
and imports no Twisted; ``TransformProxy`` is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING

from xformd.errors import (
    AmbiguousTransform,
    BadFrame,
    BadOptions,
    BadRequest,
    Busy,
    Cancelled,
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    DefinitionError,
    Forbidden,
    GibberishError,
    InternalError,
    ListenFailed,
    NoSuchTransform,
    RequestRefused,
    ShuttingDown,
    TooLarge,
    TransformDied,
    TransformFailed,
    TransformTimeout,
    Unauthorized,
    Unavailable,
    XformError,
)
from xformd.plugins.definition import Example, Transform, transform
from xformd.plugins.hookspecs import hookimpl, set_load_timeout
from xformd.plugins.options import Option

if TYPE_CHECKING:
    from xformd.client import TransformProxy

__version__ = "0.1.0"

__all__ = [
    "AmbiguousTransform",
    "BadFrame",
    "BadOptions",
    "BadRequest",
    "Busy",
    "Cancelled",
    "ConfigError",
    "ConnectionFailed",
    "ConnectionLost",
    "DefinitionError",
    "Example",
    "Forbidden",
    "GibberishError",
    "InternalError",
    "ListenFailed",
    "NoSuchTransform",
    "Option",
    "RequestRefused",
    "ShuttingDown",
    "TooLarge",
    "Transform",
    "TransformDied",
    "TransformFailed",
    "TransformProxy",
    "TransformTimeout",
    "Unauthorized",
    "Unavailable",
    "XformError",
    "__version__",
    "hookimpl",
    "set_load_timeout",
    "transform",
]


def __getattr__(name: str) -> object:
    if name == "TransformProxy":
        # Loaded lazily because it needs Twisted, which plugins and `xformd --help` should not have to import.
        return importlib.import_module("xformd.client").TransformProxy
    raise AttributeError(f"module 'xformd' has no attribute {name!r}")
