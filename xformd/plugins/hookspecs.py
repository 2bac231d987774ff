"""The hooks that a plugin can implement.

A hook runs when plugins load and never on the path of a request. There is one; others come with a user who needs
them.
"""

from collections.abc import Iterable

import pluggy

from xformd.plugins.definition import Transform

hookspec = pluggy.HookspecMarker("xformd")


@hookspec
def xformd_transforms() -> Iterable[Transform]:
    """Give the transforms that this plugin provides.

    Called once, without arguments, each time the plugins are loaded. A list, a tuple and a generator all do.
    """
    raise NotImplementedError  # a specification: pluggy calls the plugins' functions, never this one
