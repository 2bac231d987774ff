"""From selected plugins to a Registry.

What goes wrong in one plugin, ``SystemExit`` included, fails that plugin alone, and the failure is kept with its
reason. A plugin that is not selected is never imported.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pluggy

from xformd.errors import ConfigError, DefinitionError, one_line, safe_str
from xformd.plugins import discovery, hookspecs
from xformd.plugins.definition import Transform
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import BUILT_IN, NOT_SELECTED, Conflict, Entry, Plugin, Registry

HOOK = "xformd_transforms"


@attrs.frozen(kw_only=True)
class Selection:
    """Which plugins to load. The built-in ones are always loaded, unless they are blocked.

    Args:
        distributions: which installed packages; None for all of them.
        blocked: distributions, entry points or loose files to keep out before they are imported.
        directories: where loose ``*.py`` plugins lie.
        preferred: transform name to the distribution that shall have it.
        strict: whether a failure or an unsettled conflict is an error.
        ignore_unknown: whether a name that is not there is none.
    """

    distributions: frozenset[str] | None = None
    blocked: frozenset[str] = frozenset()
    directories: tuple[Path, ...] = ()
    preferred: Mapping[str, str] = attrs.field(factory=dict)
    strict: bool = False
    ignore_unknown: bool = False


EVERYTHING = Selection()
"""Every plugin that is installed."""


def parse_distributions(text: str) -> frozenset[str] | None:
    """Read the value of the setting ``plugins``.

    Args:
        text: ``all``, ``none``, or distributions with commas between them.

    Returns:
        The distributions; None for all.

    Raises:
        ValueError: there is none, or ``all`` or ``none`` stands beside one.
    """
    if text in ("all", "none"):
        return None if text == "all" else frozenset()
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError("names no distribution; 'none' selects none")
    if names & {"all", "none"}:
        raise ValueError(f"takes 'all' and 'none' alone, not {text!r}")
    return names


def load(selection: Selection = EVERYTHING, only: Callable[[Candidate], bool] | None = None) -> Registry:
    """Find, import and check the selected plugins.

    Args:
        selection: which.
        only: which of them to import; None for all. The others count as blocked.

    Returns:
        Everything that works, and what failed with its reason.

    Raises:
        ConfigError: the selection names something that is not there, or it is strict and something failed.
    """
    candidates = [*discovery.built_in(), *discovery.installed(), *discovery.loose(selection.directories)]
    if not selection.ignore_unknown:
        _check_names(selection, candidates)
    plugins = tuple(_load_one(candidate, _why_not(candidate, selection, only)) for candidate in candidates)
    registry = _assemble(plugins, selection)
    if selection.strict:
        _refuse_problems(registry)
    return registry


def load_distribution(distribution: str, selection: Selection = EVERYTHING) -> tuple[Plugin, ...]:
    """Load one distribution's plugins, and no other installed one's.

    Args:
        distribution: its name, or that of a loose file.
        selection: what else is selected. Who is preferred does not matter: the others are not there.

    Returns:
        Its plugins, in whatever state.

    Raises:
        ConfigError: it is not there, or as for ``load``.
    """
    wanted = normalize(distribution)
    candidates = [*discovery.built_in(), *discovery.installed(), *discovery.loose(selection.directories)]
    named = [candidate for candidate in candidates if normalize(candidate.distribution) == wanted]
    if not named:
        raise ConfigError(_not_installed(distribution, {candidate.distribution for candidate in candidates}))
    installed = {candidate.distribution for candidate in named if not candidate.is_loose}
    only = attrs.evolve(selection, distributions=frozenset(installed), preferred={}, strict=False)
    registry = load(only)
    if selection.strict:
        contested = tuple(one for one in registry.conflicts if one.name not in selection.preferred)
        _refuse_problems(attrs.evolve(registry, conflicts=contested))
    return tuple(plugin for plugin in registry.plugins if normalize(plugin.distribution) == wanted)


def _check_names(selection: Selection, candidates: list[Candidate]) -> None:
    there = {candidate.distribution for candidate in candidates if not candidate.is_loose}
    normal = {normalize(name) for name in there}
    for name in sorted(selection.distributions or ()):
        if normalize(name) not in normal:
            raise ConfigError(_not_installed(name, there), setting="plugins")
    for name in sorted(selection.blocked):
        if not any(candidate.has_name(name) for candidate in candidates):
            listed = ", ".join(sorted({candidate.name for candidate in candidates} | there))
            raise ConfigError(f"there is no plugin or distribution {name!r}; there are {listed}", setting="block")


def _not_installed(name: str, there: Iterable[str]) -> str:
    return f"no distribution {name!r} with xformd plugins is installed; there are {', '.join(sorted(there))}"


def _why_not(candidate: Candidate, selection: Selection, only: Callable[[Candidate], bool] | None) -> str:
    """Say why a plugin is kept out; nothing for one that is not."""
    if only is not None and not only(candidate):
        return "not wanted here"
    if any(candidate.has_name(name) for name in selection.blocked):
        return "blocked by the setting 'block'"
    if selection.distributions is None or candidate.is_built_in or candidate.is_loose:
        return ""
    selected = {normalize(name) for name in selection.distributions}
    return "" if normalize(candidate.distribution) in selected else NOT_SELECTED


def _load_one(candidate: Candidate, why_not: str) -> Plugin:
    plugin = Plugin(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        source=candidate.source,
    )
    if why_not:
        return attrs.evolve(plugin, state="blocked", reason=why_not)
    start = time.perf_counter()
    try:
        transforms = _transforms_of(candidate)
    except BaseException as error:
        plugin = attrs.evolve(plugin, state="failed", reason=one_line(_describe(error)))
    else:
        plugin = attrs.evolve(plugin, transforms=transforms)
    return attrs.evolve(plugin, import_time_s=time.perf_counter() - start)


class _PluginError(Exception):
    """Why a plugin does not load, in words that its author understands."""


def _transforms_of(candidate: Candidate) -> tuple[Transform, ...]:
    try:
        module = candidate.load()
    except DefinitionError:
        raise
    except BaseException as error:
        # Clients are told of this too: a file's name is enough for whoever knows the folder.
        what = candidate.distribution if candidate.is_loose else candidate.source
        raise _PluginError(f"import of {what} failed: {_describe(error)}") from error
    return _validate(_call_hook(candidate, module))


def _call_hook(candidate: Candidate, module: Any) -> list[object]:
    # A manager for each plugin: whatever one leaves behind in it, no other ever sees.
    manager = pluggy.PluginManager("xformd")
    manager.add_hookspecs(hookspecs)
    _register(manager, module, f"{candidate.distribution}:{candidate.name}")
    try:
        results = manager.hook.xformd_transforms()
        given = [transform for result in results for transform in _iterate(result)]
    except _PluginError:
        raise
    except BaseException as error:
        raise _PluginError(f"{HOOK}() failed: {_describe(error)}") from error
    if not results:  # pluggy leaves out None
        raise _PluginError(f"{HOOK}() returned None, not transforms")
    return given


def _iterate(result: Any) -> Iterable[object]:
    if inspect.iscoroutine(result):
        result.close()
        raise _PluginError(f"{HOOK}() must not be async: it is called while nothing runs yet")
    if isinstance(result, Transform):
        raise _PluginError(f"{HOOK}() returned a single Transform; put it into a list")
    return cast(Iterable[object], result)


def _register(manager: pluggy.PluginManager, module: Any, name: str) -> None:
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        reason = str(error).splitlines()[-1]
        raise _PluginError(f"bad hook: {reason}; {HOOK}() takes no arguments") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [caller.name for caller in manager.get_hookcallers(module) or () if not caller.has_spec()]
        raise _PluginError(f"there is no hook {', '.join(unknown)}(); did you mean {HOOK}()?") from error
    if not manager.hook.xformd_transforms.get_hookimpls():
        raise _PluginError(f"it has no hook: define {HOOK}() and decorate it with @xformd.hookimpl")


def _validate(given: list[object]) -> tuple[Transform, ...]:
    transforms: dict[str, Transform] = {}
    for transform in given:
        if not isinstance(transform, Transform):
            kind = type(transform).__name__
            raise _PluginError(f"{HOOK}() gave a {kind}, which is no Transform; decorate it with @xformd.transform")
        if transform.name in transforms:
            raise _PluginError(f"{HOOK}() gave the transform {transform.name!r} twice")
        transforms[transform.name] = transform
    return tuple(transforms.values())


def _describe(error: BaseException) -> str:
    message = safe_str(error)
    if isinstance(error, _PluginError | DefinitionError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _assemble(plugins: tuple[Plugin, ...], selection: Selection) -> Registry:
    owners: dict[str, list[Entry]] = {}
    for plugin in plugins:
        for transform in plugin.transforms:
            owners.setdefault(transform.name, []).append(Entry(transform, plugin))
    preferred = selection.preferred
    if selection.ignore_unknown:
        preferred = {name: wanted for name, wanted in preferred.items() if _is_among(wanted, owners.get(name, ()))}
    entries: dict[str, Entry] = {}
    conflicts: list[Conflict] = []
    for name, rivals in sorted(owners.items()):
        winner = _choose(name, rivals, preferred.get(name))
        if winner is not None:
            entries[name] = winner
        if len(rivals) > 1:
            owned_by = tuple(rival.plugin for rival in rivals)
            conflicts.append(Conflict(name, owned_by, winner.plugin if winner else None, preferred=name in preferred))
    for name in sorted(set(preferred) - set(owners)):
        raise ConfigError(f"no loaded plugin provides a transform {name!r}", setting="prefer", entry=name)
    return Registry(entries, plugins, tuple(conflicts))


def _choose(name: str, rivals: list[Entry], preferred: str | None) -> Entry | None:
    """Say who has a name: the preferred one, else the only one, else the built-in, else nobody."""
    if preferred is not None:
        chosen = [rival for rival in rivals if _is_among(preferred, [rival])]
        if len(chosen) == 1:
            return chosen[0]
        owners = " and ".join(sorted(rival.plugin.label for rival in rivals))
        raise ConfigError(f"{name}={preferred}, but {name} is provided by {owners}", setting="prefer", entry=name)
    if len(rivals) == 1:
        return rivals[0]
    return next((rival for rival in rivals if rival.plugin.distribution == BUILT_IN), None)


def _is_among(distribution: str, rivals: Iterable[Entry]) -> bool:
    return any(normalize(rival.plugin.distribution) == normalize(distribution) for rival in rivals)


def _refuse_problems(registry: Registry) -> None:
    problems = [f"plugin {plugin.label}: {plugin.reason}" for plugin in registry.with_state("failed")]
    problems += [str(conflict) for conflict in registry.conflicts if not conflict.preferred]
    if problems:
        raise ConfigError("these plugins do not all work, or contest a name", details=problems, setting="strict")
