"""Registries made in a test, without any loading."""

from typing import Any

from xformd.plugins.definition import Transform, transform
from xformd.plugins.registry import Entry, Plugin, Registry


@transform
def plain(poem: str, *, times: int = 1) -> str:
    return poem * times


@transform(inline=True)
def quick(poem: str) -> str:
    return poem


@transform(inline=True)
async def patient(poem: str) -> str:
    return poem


def plugin_of(*transforms: Transform, **fields: Any) -> Plugin:
    """Return a plugin of these transforms; ``fields`` override its own."""
    own = {"name": "verses", "distribution": "xformd-verses", "version": "1.0", "source": "verses"}
    return Plugin(**own | {"transforms": transforms} | fields)


def registry_of(*transforms: Transform, **fields: Any) -> Registry:
    """Return a registry of these transforms, all from one plugin with these ``fields``."""
    plugin = plugin_of(*transforms, **fields)
    return Registry({transform.name: Entry(transform, plugin) for transform in transforms}, (plugin,))


PLACED = registry_of(plain, quick, patient)
"""One transform for each place: a worker, the reactor at once, the reactor while it waits."""
