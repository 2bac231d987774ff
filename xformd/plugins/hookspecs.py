"""The hooks that a plugin can implement, and what it can ask for while it is loaded.

Hooks run when plugins are loaded, never while a request is served. Others will come with a use.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pluggy

from xformd.plugins.definition import Transform

hookspec = pluggy.HookspecMarker("xformd")

hookimpl = pluggy.HookimplMarker("xformd")
"""Marks a function of a plugin as the implementation of a hook."""


@hookspec(firstresult=True)
def xformd_settings() -> type:
    """Return the class of this plugin's settings, an attrs class or a dataclass; optional.

    Its annotated fields are what the table ``[plugin."distribution"]`` of a configuration may have.
    """
    raise NotImplementedError


@hookspec
def xformd_transforms(settings: Any) -> Iterable[Transform]:
    """Return the transforms that this plugin provides.

    Called once each time the plugins are loaded. It may return any iterable, or yield.

    Args:
        settings: an instance of the class of ``xformd_settings``, or a mapping; an implementation may leave it out.
    """
    raise NotImplementedError  # never called: pluggy calls the plugins' implementations


_tell_timeout: Callable[[float], object] | None = None


def set_load_timeout(seconds: float) -> None:
    """Ask for more time, or less, than ``plugin_load_timeout_s`` gives a plugin to be loaded, and again to warm up.

    A plugin calls it at the top of its module, before it imports or loads what takes long.

    Args:
        seconds: from now on, above 0.

    Raises:
        ValueError: it is no such number.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"set_load_timeout takes seconds above 0, not {seconds}")
    if _tell_timeout is not None:
        _tell_timeout(float(seconds))


@contextmanager
def timeouts_told_to(tell: Callable[[float], object]) -> Iterator[None]:
    """Within the block, call a function with the seconds that plugins ask for."""
    global _tell_timeout
    before, _tell_timeout = _tell_timeout, tell
    try:
        yield
    finally:
        _tell_timeout = before
