"""Registry: a frozen snapshot of the available transforms and the plugins that they came from.

Nothing here loads anything. Invariant: which of two plugins gets a name never depends on the order of loading.
"""

import difflib
import functools
import heapq
from collections.abc import Mapping
from typing import Literal

import attrs

from xformd.errors import AmbiguousTransform, DefinitionError, NoSuchTransform, Unavailable
from xformd.plugins.definition import Transform
from xformd.spec import is_valid_name

BUILT_IN = "xformd"
"""The distribution of the built-in transforms."""

SEE_LIST = "see 'xformd list-transforms'"

RETRY_AFTER_LOADING_MS = 1_000

NOT_SELECTED = "not selected by the setting 'plugins'"
"""The reason of a plugin that the setting 'plugins' leaves out."""

PluginState = Literal["active", "blocked", "failed", "loading"]

PluginKey = tuple[str, str]
"""A plugin's distribution and name: no two have both in common."""


def label(name: str, distribution: str, version: str) -> str:
    """Return a plugin's name for messages: ``xformd-shout 0.1.0 (shout)``."""
    package = f"{distribution} {version}".rstrip()
    return package if name == distribution else f"{package} ({name})"


@attrs.frozen(kw_only=True)
class Plugin:
    """One entry point or loose file, and the outcome of loading it.

    Args:
        name: the entry point's name, or the file's without ``.py``.
        distribution: the installed package that provides it; for a loose file, the file's name.
        version: of the distribution; empty if it has none.
        source: the import path, ``package.module[:object]``, or the loose file's path.
        state: ``active``, ``blocked`` (never imported), ``failed`` or ``loading`` (it takes long).
        reason: why it is not active, on one line.
        transforms: the transforms that it provides.
        import_time_s: time to import it and call its hook, in seconds.
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
    def key(self) -> PluginKey:
        """What tells it from every other plugin."""
        return self.distribution, self.name

    @property
    def label(self) -> str:
        """Its name in messages: ``xformd-shout 0.1.0 (shout)``."""
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
        plugins: its providers, in the order of discovery.
        winner: the provider that is used: the preferred one, or the built-in; None if the name is ambiguous.
        preferred: whether the operator chose the winner.
    """

    name: str
    plugins: tuple[Plugin, ...]
    winner: Plugin | None
    preferred: bool = False

    @property
    def distributions(self) -> list[str]:
        """The providers' distributions, sorted."""
        return sorted(plugin.distribution for plugin in self.plugins)

    def __str__(self) -> str:
        owners = self.distributions
        are_distinct = len(set(owners)) == len(owners)
        if not are_distinct:
            owners = sorted(plugin.label for plugin in self.plugins)
        nobody = "neither" if len(owners) == 2 else "none"
        outcome = f"{self.winner.label if self.winner else nobody} is used"
        if self.preferred:
            advice = ""
        elif are_distinct:
            choices = " or ".join(f"--prefer {self.name}={owner}" for owner in owners)
            advice = f"; choose with {choices}"
        else:
            advice = "; block all but one with --block"
        return f"transform {self.name} is provided by {' and '.join(owners)}: {outcome}{advice}"


@attrs.frozen
class Registry:
    """The transforms of one server or one command.

    Args:
        entries: transform name to transform and plugin; no ambiguous names.
        plugins: every discovered plugin, active or not.
        conflicts: every name that several plugins provide.
    """

    entries: Mapping[str, Entry]
    plugins: tuple[Plugin, ...]
    conflicts: tuple[Conflict, ...] = ()

    @classmethod
    def of(cls, *transforms: Transform) -> "Registry":
        """Make a registry of a program's own transforms; raise ``DefinitionError`` if two have the same name."""
        program = Plugin(name="program", distribution="program", source="program", transforms=transforms)
        entries = {transform.name: Entry(transform, program) for transform in transforms}
        if len(entries) < len(transforms):
            raise DefinitionError(f"two transforms have the same name: {', '.join(each.name for each in transforms)}")
        return cls(entries, (program,))

    def resolve(self, name: str) -> Entry:
        """Return the transform of this name, with its plugin.

        Raises:
            NoSuchTransform: suggesting the nearest name.
            AmbiguousTransform: naming the distributions that provide it.
            Unavailable: a plugin that may provide it is still being loaded.
        """
        if (entry := self.entries.get(name)) is not None:
            return entry
        for conflict in self.conflicts:
            if conflict.name == name:
                raise AmbiguousTransform(str(conflict))
        if missing := self.missing:
            raise Unavailable(f"no transform {name!r} here yet: {missing}", retry_after_ms=RETRY_AFTER_LOADING_MS)
        nearest = _nearest(name, tuple(self.entries)) if is_valid_name(name) else None  # a long one is not remembered
        advice = [f"did you mean {nearest!r}?"] if nearest else []
        failed = self.with_state("failed")[:1]
        advice += [f"plugin {plugin.label} failed" for plugin in failed]
        message = f"no transform {name!r} here; {' '.join(advice) or SEE_LIST}"
        reason = "".join(f": {plugin.reason}" for plugin in failed)  # not for clients
        raise NoSuchTransform(message, log_message=message + reason)

    @property
    def missing(self) -> str:
        """Which plugins are still being loaded, in words; empty if none is."""
        labels = [plugin.label for plugin in self.with_state("loading")]
        return f"still loading {', '.join(labels)}" if labels else ""

    def with_state(self, state: PluginState) -> tuple[Plugin, ...]:
        """Return the plugins in this state, in the order of discovery."""
        return tuple(plugin for plugin in self.plugins if plugin.state == state)


# Cached because the search is slow, and a client with a wrong name repeats it.
@functools.lru_cache(maxsize=1_024)
def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    # Among those with the same letters: comparing 300 similar names takes up to 66 ms, and finding those 0.3 ms.
    similar = heapq.nsmallest(8, names, lambda each: (len({*name} ^ {*each}), abs(len(name) - len(each))))
    nearest = difflib.get_close_matches(name, similar, n=1)
    return nearest[0] if nearest else None
