"""Registry: a frozen snapshot of which transforms there are, and where each came from.

Nothing here loads anything. A request looks its names up in a dict, and nothing wins by the order of loading.
"""

import difflib
import functools
from collections.abc import Mapping
from typing import Literal

import attrs

from xformd.errors import AmbiguousTransform, NoSuchTransform
from xformd.plugins.definition import Transform

BUILT_IN = "xformd"
"""The distribution of the built-in transforms."""

NOT_SELECTED = "not selected by the setting 'plugins'"
"""The reason of a plugin that nobody blocked by name."""

PluginState = Literal["active", "blocked", "failed"]


def label(name: str, distribution: str, version: str) -> str:
    """Say how messages name a plugin: ``xformd-shout 0.1.0 (shout)``."""
    package = f"{distribution} {version}".rstrip()
    return package if name == distribution else f"{package} ({name})"


@attrs.frozen(kw_only=True)
class Plugin:
    """One entry point or loose file, and what became of it.

    Args:
        name: the entry point's name, or the file's without ``.py``.
        distribution: the installed package that it came with; for a loose file, the file's name.
        version: of the distribution; empty where there is none.
        source: what is imported: ``package.module[:object]``, or the loose file's path.
        state: ``active``, ``blocked`` (never imported) or ``failed``.
        reason: why it is not active, on one line; empty where it is.
        transforms: what it provides.
        import_time_s: how long importing it and calling its hook took, in seconds.
    """

    name: str
    distribution: str
    version: str = ""
    source: str
    state: PluginState = "active"
    reason: str = ""
    transforms: tuple[Transform, ...] = ()
    import_time_s: float = 0.0

    @property
    def label(self) -> str:
        """How messages name it: ``xformd-shout 0.1.0 (shout)``."""
        return label(self.name, self.distribution, self.version)


@attrs.frozen
class Entry:
    """A transform and the plugin that it came from."""

    transform: Transform
    plugin: Plugin


@attrs.frozen
class Conflict:
    """Several plugins provide the same name.

    Args:
        name: the transform's name.
        plugins: who provides it, in the order of discovery.
        winner: who has the name all the same: the built-in, or the preferred one; None leaves it ambiguous.
        preferred: whether the operator chose the winner.
    """

    name: str
    plugins: tuple[Plugin, ...]
    winner: Plugin | None
    preferred: bool = False

    @property
    def distributions(self) -> list[str]:
        """Who provides it, sorted."""
        return sorted(plugin.distribution for plugin in self.plugins)

    def __str__(self) -> str:
        owners = self.distributions
        tellable_apart = len(set(owners)) == len(owners)
        if not tellable_apart:
            owners = sorted(plugin.label for plugin in self.plugins)
        outcome = f"{self.winner.label} has it" if self.winner else "nobody has it"
        if self.preferred:
            advice = ""
        elif tellable_apart:
            choices = " or ".join(f"--prefer {self.name}={owner}" for owner in owners)
            advice = f"; choose with {choices}"
        else:
            advice = "; keep all but one out with --block"
        return f"transform {self.name} is provided by {' and '.join(owners)}: {outcome}{advice}"


@attrs.frozen
class Registry:
    """What one server, or one command, can do.

    Args:
        entries: transform name to transform and plugin; no ambiguous names.
        plugins: every plugin that was found, active or not.
        conflicts: every name that more than one distribution provides.
    """

    entries: Mapping[str, Entry]
    plugins: tuple[Plugin, ...]
    conflicts: tuple[Conflict, ...] = ()

    def resolve(self, name: str) -> Entry:
        """Find a transform.

        Args:
            name: as in a spec.

        Returns:
            The transform and its plugin.

        Raises:
            NoSuchTransform: suggesting the nearest name, where one is near.
            AmbiguousTransform: naming the distributions that provide it.
        """
        if (entry := self.entries.get(name)) is not None:
            return entry
        for conflict in self.conflicts:
            if conflict.name == name:
                raise AmbiguousTransform(str(conflict))
        nearest = _nearest(name, tuple(self.entries))
        advice = f"did you mean {nearest!r}?" if nearest else "see 'xformd list-transforms'"
        raise NoSuchTransform(f"no transform {name!r} here; {advice}")

    def with_state(self, state: PluginState) -> tuple[Plugin, ...]:
        """Give the plugins in this state, in the order of discovery."""
        return tuple(plugin for plugin in self.plugins if plugin.state == state)


# It takes long, and whoever has a name wrong says it again and again.
@functools.lru_cache(maxsize=1_024)
def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    nearest = difflib.get_close_matches(name, names, n=1)
    return nearest[0] if nearest else None
