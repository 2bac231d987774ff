"""From selected plugins to a Registry.

Invariant: whatever goes wrong in one plugin, ``SystemExit`` included, fails that plugin alone, with its reason. A
plugin that is not selected is never imported.
"""

import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import attrs
import pluggy

from xformd.errors import ConfigError, DefinitionError, one_line, safe_str
from xformd.plugins import discovery, hookspecs
from xformd.plugins.definition import Transform
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import BUILT_IN, Conflict, Entry, Plugin, Registry
from xformd.plugins.selection import EVERYTHING, Selection, check_names, not_installed, why_blocked

HOOK = "xformd_transforms"


def load(selection: Selection = EVERYTHING, only: Callable[[Candidate], bool] | None = None) -> Registry:
    """Find, import and check the selected plugins.

    Args:
        selection: the plugins to load.
        only: which of them to import; None for all. The others count as blocked.

    Returns:
        Everything that works, and every failure with its reason.

    Raises:
        ConfigError: the selection names an unknown plugin, or it is strict and a plugin failed.
    """
    candidates = _candidates(selection)
    check_names(selection, candidates)
    plugins = tuple(_load_one(candidate, why_blocked(candidate, selection, only)) for candidate in candidates)
    registry = _assemble(plugins, selection)
    if selection.strict:
        _reject_problems(registry)
    return registry


def load_distribution(distribution: str, selection: Selection = EVERYTHING) -> tuple[Plugin, ...]:
    """Load the plugins of one distribution, and of no other installed one.

    Args:
        distribution: its name, or that of a loose file.
        selection: the rest of the selection. Preferences have no effect, as their distributions are not loaded.

    Returns:
        Its plugins, in any state.

    Raises:
        ConfigError: the distribution is unknown, or as for ``load``.
    """
    wanted = normalize(distribution)
    candidates = _candidates(selection)
    named = [candidate for candidate in candidates if normalize(candidate.distribution) == wanted]
    if not named:
        raise ConfigError(not_installed(distribution, {candidate.distribution for candidate in candidates}))
    installed = frozenset(candidate.distribution for candidate in named if not candidate.is_loose)
    registry = load(attrs.evolve(selection, distributions=installed, preferred={}, strict=False))
    if selection.strict:
        ambiguous = tuple(one for one in registry.conflicts if one.name not in selection.preferred)
        _reject_problems(attrs.evolve(registry, conflicts=ambiguous))
    return tuple(plugin for plugin in registry.plugins if normalize(plugin.distribution) == wanted)


def _candidates(selection: Selection) -> list[Candidate]:
    return [*discovery.built_in(), *discovery.installed(), *discovery.loose(selection.directories)]


def _load_one(candidate: Candidate, blocked: str) -> Plugin:
    plugin = Plugin(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        source=candidate.source,
    )
    if blocked:
        return attrs.evolve(plugin, state="blocked", reason=blocked)
    start = time.perf_counter()
    try:
        transforms = _transforms_of(candidate)
    except BaseException as error:
        plugin = attrs.evolve(plugin, state="failed", reason=one_line(_describe(error)))
    else:
        plugin = attrs.evolve(plugin, transforms=transforms)
    return attrs.evolve(plugin, import_time_s=time.perf_counter() - start)


def _transforms_of(candidate: Candidate) -> tuple[Transform, ...]:
    try:
        module = candidate.load()
    except DefinitionError:
        raise
    except BaseException as error:
        # The reason is sent to clients too, so it holds a loose file's name and not its path.
        what = candidate.distribution if candidate.is_loose else candidate.source
        raise DefinitionError(f"import of {what} failed: {_describe(error)}") from error
    return _validate(_call_hook(candidate, module))


def _call_hook(candidate: Candidate, module: Any) -> list[object]:
    # One manager per plugin, so that no plugin sees what another has registered.
    manager = pluggy.PluginManager("xformd")
    manager.add_hookspecs(hookspecs)
    _register(manager, module, f"{candidate.distribution}:{candidate.name}")
    try:
        results = manager.hook.xformd_transforms()
        returned = [transform for result in results for transform in _iterate(result)]
    except DefinitionError:
        raise
    except BaseException as error:
        raise DefinitionError(f"{HOOK}() failed: {_describe(error)}") from error
    if not results:  # pluggy leaves out None
        raise DefinitionError(f"{HOOK}() returned None; return a list of transforms")
    return returned


def _iterate(result: Any) -> Iterable[object]:
    if inspect.iscoroutine(result):
        result.close()
        raise DefinitionError(f"{HOOK}() must not be async: it is called before the event loop runs")
    if isinstance(result, Transform):
        raise DefinitionError(f"{HOOK}() returned a single Transform; put it in a list")
    return cast(Iterable[object], result)


def _register(manager: pluggy.PluginManager, module: Any, name: str) -> None:
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        reason = str(error).splitlines()[-1]
        raise DefinitionError(f"bad hook: {reason}; {HOOK}() takes no arguments") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [caller.name for caller in manager.get_hookcallers(module) or () if not caller.has_spec()]
        raise DefinitionError(f"unknown hook {', '.join(unknown)}(); did you mean {HOOK}()?") from error
    if not manager.hook.xformd_transforms.get_hookimpls():
        raise DefinitionError(f"it implements no hook: define {HOOK}() and decorate it with @xformd.hookimpl")


def _validate(returned: list[object]) -> tuple[Transform, ...]:
    transforms: dict[str, Transform] = {}
    for transform in returned:
        if not isinstance(transform, Transform):
            kind = type(transform).__name__
            raise DefinitionError(f"{HOOK}() returned a {kind}, not a Transform; decorate it with @xformd.transform")
        if transform.name in transforms:
            raise DefinitionError(f"{HOOK}() returned the transform {transform.name!r} twice")
        transforms[transform.name] = transform
    return tuple(transforms.values())


def _describe(error: BaseException) -> str:
    message = safe_str(error)
    if isinstance(error, DefinitionError):
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
        raise ConfigError(
            f"no loaded plugin provides a transform {name!r}; see 'xformd list-transforms'",
            setting="prefer",
            entry=name,
        )
    return Registry(entries, plugins, tuple(conflicts))


def _choose(name: str, rivals: list[Entry], preferred: str | None) -> Entry | None:
    """Return the preferred provider of a name, else its only one, else the built-in, else None."""
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


def _reject_problems(registry: Registry) -> None:
    problems = [f"plugin {plugin.label}: {plugin.reason}" for plugin in registry.with_state("failed")]
    problems += [str(conflict) for conflict in registry.conflicts if not conflict.preferred]
    if problems:
        raise ConfigError("some plugins failed or provide the same transform", details=problems, setting="strict")
