"""Registry: a frozen snapshot of the available transforms and the plugins that they came from.

Nothing here loads anything. Invariant: which of two plugins gets a name never depends on the order of loading.
"""

import difflib
import functools
import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

import attrs

from xformd.errors import AmbiguousTransform, DefinitionError, Forbidden, NoSuchTransform, Unavailable
from xformd.plugins.definition import Transform
from xformd.spec import is_valid_name

BUILT_IN = "xformd"  # the distribution of the built-in transforms

SEE_LIST = "see 'xformd list-transforms'"

RETRY_AFTER_LOADING_MS = 1_000

LOADING, WARMING_UP = "it takes long to be loaded", "it is warming up"  # the reasons of a plugin that is still loading
NOT_SELECTED = "not selected by the setting 'plugins'"  # the reason of a plugin that the setting 'plugins' leaves out

PluginState = Literal["active", "blocked", "failed", "loading"]

PluginKey = tuple[str, str]  # a plugin's distribution and name: no two have both in common


def label(name: str, distribution: str, version: str) -> str:
    """Return a plugin's name for messages: ``xformd-shout 0.1.0 (shout)``."""
    package = f"{distribution} {version}".rstrip()
    return package if name == distribution else f"{package} ({name})"


@attrs.frozen(kw_only=True)
class Plugin:
    """One entry point or loose file, and the outcome of loading it."""

    name: str  # the entry point's name, or the file's without ``.py``
    distribution: str  # the installed package that provides it; for a loose file, the file's name
    version: str = ""  # of the distribution; empty if it has none
    source: str  # the import path, ``package.module[:object]``, or the loose file's path
    state: PluginState = "active"  # ``active``, ``blocked`` (never imported), ``failed`` or ``loading`` (it takes long)
    reason: str = ""  # why it is not active, on one line; on one for each mistake in its settings
    transforms: tuple[Transform, ...] = ()  # the transforms that it provides
    settings: Mapping[str, str] = attrs.field(factory=dict)  # the settings that it takes, with their types
    secrets: Sequence[str] = attrs.field(default=(), repr=False)  # the values of those that must not show
    import_time_s: float = 0.0  # time to import it and call its hook, in seconds
    warm_up_time_s: float = 0.0  # time that its transforms' warm-ups took, in seconds

    @property
    def key(self) -> PluginKey:
        """What tells it from every other plugin."""
        return self.distribution, self.name

    @property
    def label(self) -> str:
        """Its name in messages: ``xformd-shout 0.1.0 (shout)``."""
        return label(self.name, self.distribution, self.version)

    @property
    def reasons(self) -> list[str]:
        """Its reason, line by line."""
        return self.reason.split("\n")

    @property
    def progress(self) -> str:
        """What it is still doing, if it is not loaded yet."""
        return "warming up" if self.reason == WARMING_UP else "loading"


@attrs.frozen
class Entry:
    """A transform and the plugin that it came from."""

    transform: Transform
    plugin: Plugin


def show_versions(entries: Iterable[Entry]) -> str:
    """Return the names and versions of transforms that run in turn: ``wrap/0.1.0+upper/0.1.0``."""
    return "+".join(f"{each.transform.name}/{each.plugin.version or '-'}" for each in entries)


@attrs.frozen
class Conflict:
    """Several plugins provide the same name."""

    name: str  # the transform's name
    plugins: tuple[Plugin, ...]  # its providers, in the order of discovery
    winner: Plugin | None  # the provider that is used, the preferred one or the built-in; None if it is ambiguous
    preferred: bool = False  # whether the operator chose the winner

    @property
    def distributions(self) -> list[str]:
        """The providers' distributions, sorted."""
        return sorted(plugin.distribution for plugin in self.plugins)

    def __str__(self) -> str:
        owners = " and ".join(sorted(plugin.label for plugin in self.plugins))
        outcome = f"{self.winner.label if self.winner else 'none'} is used"
        advice = "" if self.preferred else f"; choose with --prefer {self.name}=DISTRIBUTION, or --block the others"
        return f"transform {self.name} is provided by {owners}: {outcome}{advice}"


@attrs.frozen
class Registry:
    """The transforms of one server or one command."""

    entries: Mapping[str, Entry]  # transform name to transform and plugin; no ambiguous names
    plugins: tuple[Plugin, ...]  # every discovered plugin, active or not
    conflicts: tuple[Conflict, ...] = ()  # every name that several plugins provide
    forbidden: frozenset[str] = frozenset()  # names of transforms that whoever asks may know of, and not use

    @classmethod
    def of(cls, *transforms: Transform) -> "Registry":
        """Make a registry of a program's own transforms; raise ``DefinitionError`` if two have the same name."""
        program = Plugin(name="program", distribution="program", source="program", transforms=transforms)
        entries = {transform.name: Entry(transform, program) for transform in transforms}
        if len(entries) < len(transforms):
            raise DefinitionError(f"two transforms have the same name: {', '.join(each.name for each in transforms)}")
        return cls(entries, (program,))

    def visible(self, may_use: Callable[[str], bool], *, knows_all: bool = False) -> "Registry":
        """Return what is left for someone who may use only some transforms, and may or may not know of the others."""
        entries = {name: entry for name, entry in self.entries.items() if may_use(name)}
        seen = {entry.plugin.key for entry in entries.values()}
        loading = Plugin(name="a plugin", distribution="a plugin", source="", state="loading", reason=LOADING)
        plugins = [plugin for plugin in self.plugins if plugin.key in seen]
        plugins += [loading] if self.with_state("loading") else []
        conflicts = tuple(conflict for conflict in self.conflicts if may_use(conflict.name))
        return Registry(
            entries, tuple(plugins), conflicts, frozenset(self.entries.keys() - entries if knows_all else ())
        )

    def resolve(self, name: str) -> Entry:
        """Return the transform of this name, with its plugin.

        Raises ``Forbidden`` if it must not be used, ``NoSuchTransform`` with the nearest name, ``AmbiguousTransform``
        with the distributions that provide it, or ``Unavailable`` while a plugin that may provide it is being loaded.
        """
        if (entry := self.entries.get(name)) is not None:
            return entry
        if name in self.forbidden:
            raise forbidden_transform(name)
        for conflict in self.conflicts:
            if conflict.name == name:
                raise AmbiguousTransform(str(conflict))
        if missing := self.missing:
            raise Unavailable(f"no transform {name!r} here yet: {missing}", retry_after_ms=RETRY_AFTER_LOADING_MS)
        failed = self.with_state("failed")
        advice = [f"plugin {plugin.label} failed" for plugin in failed]
        if len(failed) > 1:  # which of them has it nobody knows
            failed, advice = (), [f"{len(failed)} plugins failed; {SEE_LIST}"]
        reason = "".join(f": {'; '.join(plugin.reasons)}" for plugin in failed)  # not for clients
        raise no_such_transform(name, self.entries, advice, reason)

    @property
    def missing(self) -> str:
        """Which plugins are still being loaded, in words; empty if none is."""
        return ", ".join(f"still {plugin.progress} {plugin.label}" for plugin in self.with_state("loading"))

    def with_state(self, state: PluginState) -> tuple[Plugin, ...]:
        """Return the plugins in this state, in the order of discovery."""
        return tuple(plugin for plugin in self.plugins if plugin.state == state)


def no_such_transform(
    name: str, known: Collection[str], advice: Sequence[str] = (), reason: str = ""
) -> NoSuchTransform:
    """Return the error for a name that is not among those known; the reason is for the log alone."""
    nearest = _nearest(name, tuple(known)) if is_valid_name(name) else None  # a long one is not remembered
    advice = [*([f"did you mean {nearest!r}?"] if nearest else []), *advice]
    message = f"no transform {name!r} here; {' '.join(advice) or SEE_LIST}"
    return NoSuchTransform(message, log_message=message + reason)


def forbidden_transform(name: str) -> Forbidden:
    """Return the error for a transform that whoever asks may know of, and not use."""
    return Forbidden(f"these credentials may not use {name!r}")


# Cached because the search is slow, and a client with a wrong name repeats it.
@functools.lru_cache(maxsize=1_024)
def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    # Among those with the same letters: comparing 300 similar names takes up to 66 ms, and finding those 0.3 ms.
    similar = heapq.nsmallest(8, names, lambda each: (len({*name} ^ {*each}), abs(len(name) - len(each))))
    nearest = difflib.get_close_matches(name, similar, n=1)
    return nearest[0] if nearest else None
