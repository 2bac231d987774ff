"""xformd: a transform daemon whose transforms are pip-installable plugins.

What authors of plugins and callers from Python import stands here. Importing this installs no reactor and imports
no Twisted: ``TransformProxy`` is loaded when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

import pluggy

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
    "transform",
]

hookimpl = pluggy.HookimplMarker("xformd")
"""Marks a function of a plugin as one of xformd's hooks."""


def __getattr__(name: str) -> object:
    if name == "TransformProxy":
        # The one export that needs Twisted, which a plugin and `xformd --help` do without.
        return importlib.import_module("xformd.client").TransformProxy
    raise AttributeError(f"module 'xformd' has no attribute {name!r}")
