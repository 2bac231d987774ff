"""xformd: a transform daemon whose transforms are pip-installable plugins.

The public names for authors of plugins and for Python clients. Invariant: importing this module installs no reactor
and imports no Twisted; what is not an error is loaded on first use.
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

if TYPE_CHECKING:
    from xformd.blocking import call
    from xformd.client import TransformProxy
    from xformd.plugins.definition import PLUGIN_API, Example, Transform, transform
    from xformd.plugins.hookspecs import hookimpl, set_load_timeout
    from xformd.plugins.job import deadline
    from xformd.plugins.options import Option
    from xformd.plugins.settings import Secret

__version__ = "0.1.0"

__all__ = [
    "PLUGIN_API",
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
    "Secret",
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
    "call",
    "deadline",
    "hookimpl",
    "set_load_timeout",
    "transform",
]


# Loaded on first use: callers need nothing of plugins, and neither plugins nor `xformd --help` need Twisted.
_HOMES = {
    "xformd.blocking": ("call",),
    "xformd.client": ("TransformProxy",),
    "xformd.plugins.definition": ("PLUGIN_API", "Example", "Transform", "transform"),
    "xformd.plugins.hookspecs": ("hookimpl", "set_load_timeout"),
    "xformd.plugins.job": ("deadline",),
    "xformd.plugins.options": ("Option",),
    "xformd.plugins.settings": ("Secret",),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(module), name)
            return found
    raise AttributeError(f"module 'xformd' has no attribute {name!r}")
