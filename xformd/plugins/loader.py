"""From selected plugins to a Registry.

Invariant: whatever goes wrong in one plugin, ``SystemExit`` included, fails that plugin alone, with its reason. A
plugin that is not selected is never imported.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import attrs
import pluggy

from xformd.errors import ConfigError, DefinitionError, one_line, safe_str
from xformd.plugins import discovery, hookspecs
from xformd.plugins.definition import Transform
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import BUILT_IN, Conflict, Entry, Plugin, PluginKey, Registry
from xformd.plugins.selection import EVERYTHING, Selection, check_names, not_installed, why_blocked

HOOK = "xformd_transforms"


def load(
    selection: Selection = EVERYTHING,
    *,
    only: Callable[[Plugin], bool] | None = None,
    known: Mapping[PluginKey, Plugin] | None = None,
    around: Callable[[Plugin], AbstractContextManager[object]] = nullcontext,
) -> Registry:
    """Find, import and check the selected plugins.

    Args:
        selection: the plugins to load.
        only: which of them to import; None for all. The others count as blocked.
        known: plugins that are taken as they are, and not imported again.
        around: makes a context for the import of one of them.

    Raises:
        ConfigError: the selection names an unknown plugin, or as for ``check``.
    """
    plugins = []
    for candidate, plugin in _find(selection):
        if plugin.key in (known or {}):
            plugin = (known or {})[plugin.key]
        elif plugin.state == "loading" and only is not None and not only(plugin):
            plugin = attrs.evolve(plugin, state="blocked", reason="not loaded in this process")
        elif plugin.state == "loading":
            plugin = _load_one(candidate, plugin, around)
        plugins.append(plugin)
    registry = assemble(plugins, selection)
    check(registry, selection)
    return registry


def find(selection: Selection = EVERYTHING) -> tuple[Plugin, ...]:
    """Find the plugins without importing any: those that are selected have the state ``loading``."""
    return tuple(plugin for _, plugin in _find(selection))


def _find(selection: Selection) -> list[tuple[Candidate, Plugin]]:
    candidates = [*discovery.built_in(), *discovery.installed(), *discovery.loose(selection.directories)]
    check_names(selection, candidates)
    return [(candidate, _not_loaded(candidate, why_blocked(candidate, selection))) for candidate in candidates]


def _not_loaded(candidate: Candidate, blocked: str) -> Plugin:
    return Plugin(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        source=candidate.source,
        state="blocked" if blocked else "loading",
        reason=blocked or "it is being loaded",
    )


def _load_one(
    candidate: Candidate, plugin: Plugin, around: Callable[[Plugin], AbstractContextManager[object]]
) -> Plugin:
    start = time.perf_counter()
    try:
        with around(plugin):
            transforms = _transforms_of(candidate)
    except BaseException as error:
        plugin = attrs.evolve(plugin, state="failed", reason=one_line(_describe(error)))
    else:
        plugin = attrs.evolve(plugin, state="active", reason="", transforms=transforms)
    return attrs.evolve(plugin, import_time_s=time.perf_counter() - start)


def _transforms_of(candidate: Candidate) -> tuple[Transform, ...]:
    # A loose file's name says which it is; its path would only make the line long.
    with _failing(f"import of {candidate.distribution if candidate.is_loose else candidate.source}"):
        module = candidate.load()
    return _validate(_call_hook(candidate, module))


@contextmanager
def _failing(what: str) -> Iterator[None]:
    try:
        yield
    except DefinitionError:
        raise
    except BaseException as error:
        raise DefinitionError(f"{what} failed: {_describe(error)}") from error


def _call_hook(candidate: Candidate, module: Any) -> list[object]:
    # One manager per plugin, so that no plugin sees what another has registered.
    manager = pluggy.PluginManager("xformd")
    manager.add_hookspecs(hookspecs)
    _register(manager, module, f"{candidate.distribution}:{candidate.name}")
    with _failing(f"{HOOK}()"):
        results = manager.hook.xformd_transforms()
        returned = [transform for result in results for transform in _iterate(result)]
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


def assemble(plugins: Sequence[Plugin], selection: Selection) -> Registry:
    """Make a registry of plugins; names of the selection that match none of them have no effect."""
    owners: dict[str, list[Entry]] = {}
    for plugin in plugins:
        for transform in plugin.transforms:
            owners.setdefault(transform.name, []).append(Entry(transform, plugin))
    entries: dict[str, Entry] = {}
    conflicts: list[Conflict] = []
    for name, rivals in sorted(owners.items()):
        chosen = _preferred(selection.preferred.get(name), rivals)
        winner = chosen or _default(rivals)
        if winner is not None:
            entries[name] = winner
        if len(rivals) > 1:
            owned_by = tuple(rival.plugin for rival in rivals)
            conflicts.append(Conflict(name, owned_by, winner.plugin if winner else None, preferred=chosen is not None))
    return Registry(entries, tuple(plugins), tuple(conflicts))


def _preferred(distribution: str | None, rivals: list[Entry]) -> Entry | None:
    chosen = [
        rival for rival in rivals if distribution and normalize(rival.plugin.distribution) == normalize(distribution)
    ]
    return chosen[0] if len(chosen) == 1 else None


def _default(rivals: list[Entry]) -> Entry | None:
    """Return the only provider of a name, else the built-in, else None."""
    if len(rivals) == 1:
        return rivals[0]
    return next((rival for rival in rivals if rival.plugin.distribution == BUILT_IN), None)


def check(registry: Registry, selection: Selection) -> None:
    """Raise ``ConfigError`` if a preference has no effect, or the selection is strict and anything is wrong."""
    if selection.ignore_unknown:
        return
    for name, distribution in sorted(selection.preferred.items()):
        owners = [plugin for plugin in registry.plugins if any(one.name == name for one in plugin.transforms)]
        chosen = [plugin for plugin in owners if normalize(plugin.distribution) == normalize(distribution)]
        if not owners:
            reason = f"no loaded plugin provides a transform {name!r}; see 'xformd list-transforms'"
            raise ConfigError(reason, setting="prefer", entry=name)
        if len(chosen) != 1:
            labels = " and ".join(sorted(plugin.label for plugin in owners))
            reason = f"{name}={distribution}, but {name} is provided by {labels}"
            raise ConfigError(reason, setting="prefer", entry=name)
    problems = [f"plugin {plugin.label}: {plugin.reason}" for plugin in registry.with_state("failed")]
    problems += [str(conflict) for conflict in registry.conflicts if not conflict.preferred]
    if problems and selection.strict:
        raise ConfigError("some plugins failed or provide the same transform", details=problems, setting="strict")


def of_distribution(distribution: str, plugins: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Return the plugins of one distribution or loose file; raise ``ConfigError`` if there is none."""
    wanted = normalize(distribution)
    found = tuple(plugin for plugin in plugins if normalize(plugin.distribution) == wanted)
    if not found:
        raise ConfigError(not_installed(distribution, {plugin.distribution for plugin in plugins}))
    return found
