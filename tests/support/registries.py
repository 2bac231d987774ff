"""Registries made in a test, without any loading."""

from xformd.plugins.definition import Transform
from xformd.plugins.registry import Entry, Plugin, Registry


def registry_of(*transforms: Transform) -> Registry:
    """Give a registry of these transforms, all from one plugin."""
    plugin = Plugin(name="verses", distribution="xformd-verses", version="1.0", source="verses", transforms=transforms)
    return Registry({transform.name: Entry(transform, plugin) for transform in transforms}, (plugin,))
