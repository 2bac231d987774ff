"""The hooks that a plugin can implement.

Hooks run when plugins are loaded, never while a request is served. There is one; others will come with a use.
"""

from collections.abc import Iterable

import pluggy

from xformd.plugins.definition import Transform

hookspec = pluggy.HookspecMarker("xformd")

hookimpl = pluggy.HookimplMarker("xformd")
"""Marks a function of a plugin as the implementation of a hook."""


@hookspec
def xformd_transforms() -> Iterable[Transform]:
    """Return the transforms that this plugin provides.

    Called without arguments, once each time the plugins are loaded. It may return any iterable, or yield.
    """
    raise NotImplementedError  # never called: pluggy calls the plugins' implementations
