"""Transforms that do what no transform should: fail, hang, die, leave processes behind, meddle.

Each example is harmless, since a worker may prove itself with it. Whatever hangs or lingers ends by itself after
``traces.LIFE_S``, so that a server which fails its tests does not litter the machine for long.
"""

import xformd
from xformd_hostile import dying, failing, hanging, leaving, meddling, serving


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Give the transforms of this plugin."""
    modules = (failing, hanging, dying, leaving, meddling, serving)
    return [transform for module in modules for transform in module.TRANSFORMS]
