"""Transforms that do what no transform should: fail, hang, die, leave processes behind, meddle.

Each example is harmless, since it may be a worker's self-test.
"""

import xformd
from xformd_hostile import dying, failing, hanging, leaving, meddling


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    modules = (failing, hanging, dying, leaving, meddling)
    return [transform for module in modules for transform in module.TRANSFORMS]
