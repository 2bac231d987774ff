"""From selected plugins to a Registry.

Invariant: whatever goes wrong in one plugin, ``SystemExit`` included, fails that plugin alone, with its reason. A
plugin that is not selected is never imported.
"""

import difflib
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import attrs
import pluggy

from xformd.errors import ConfigError, DefinitionError, one_line, safe_str
from xformd.plugins import discovery, hookspecs
from xformd.plugins.definition import PLUGIN_API, Transform
from xformd.plugins.discovery import Candidate, normalize
from xformd.plugins.registry import BUILT_IN, Conflict, Entry, Plugin, PluginKey, Registry
from xformd.plugins.selection import EVERYTHING, Selection, check_names, check_required, not_installed, why_blocked
from xformd.plugins.settings import Table, hide, make_settings, read_class

HOOK = "xformd_transforms"
HOOKS = (HOOK, "xformd_settings")

AroundPlugin = Callable[[Plugin], AbstractContextManager[object]]
"""Makes a context for the import of a plugin, or for its warm-ups."""


def load(
    selection: Selection = EVERYTHING,
    *,
    only: Callable[[Plugin], bool] = lambda _: True,  # the others count as blocked
    known: Mapping[PluginKey, Plugin] = MappingProxyType({}),  # taken as they are, and not imported again
    around: AroundPlugin = nullcontext,
) -> Registry:
    """Find, import and check the selected plugins; raise ``ConfigError`` for an unknown one, or as ``check`` does."""
    plugins = []
    for candidate, plugin in _find(selection):
        if plugin.key in known:
            plugin = known[plugin.key]
        elif plugin.state == "loading" and not only(plugin):
            plugin = attrs.evolve(plugin, state="blocked", reason="not loaded in this process")
        elif plugin.state == "loading":
            table = selection.settings.get(normalize(plugin.distribution), Table())
            plugin = _load_one(candidate, plugin, around, table)
        plugins.append(plugin)
    registry = assemble(plugins, selection)
    check(registry, selection)
    return registry


def find(selection: Selection = EVERYTHING) -> tuple[Plugin, ...]:
    """Find the plugins without importing any: those that are selected have the state ``loading``."""
    return tuple(plugin for _, plugin in _find(selection))


def _find(selection: Selection) -> list[tuple[Candidate, Plugin]]:
    candidates = [*discovery.built_in(), *discovery.installed(), *discovery.loose(selection.directories)]
    candidates += discovery.commands(selection.commands)
    check_names(selection, candidates)
    found = [(candidate, _not_loaded(candidate, why_blocked(candidate, selection))) for candidate in candidates]
    if not selection.ignore_unknown:
        check_required(selection, [plugin for _, plugin in found])
    return found


def _not_loaded(candidate: Candidate, blocked: str) -> Plugin:
    same: Any = {name: getattr(candidate, name) for name in ("name", "distribution", "version", "source")}
    return Plugin(**same, state="blocked" if blocked else "loading", reason=blocked or "it is being loaded")


def _load_one(candidate: Candidate, plugin: Plugin, around: AroundPlugin, table: Table) -> Plugin:
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        with around(plugin):
            transforms = _transforms_of(candidate, table, found)
    except BaseException as error:
        plugin = attrs.evolve(plugin, state="failed", reason=_describe(error))
    else:
        plugin = attrs.evolve(plugin, state="active", reason="", transforms=transforms)
    return attrs.evolve(plugin, **found, import_time_s=time.perf_counter() - start)


def _transforms_of(candidate: Candidate, table: Table, found: dict[str, Any]) -> tuple[Transform, ...]:
    # A loose file's name says which it is; its path would only make the line long.
    with _failing(f"import of {candidate.distribution if candidate.is_loose else candidate.source}"):
        module = candidate.load()
    _check_api(sys.modules.get(candidate.source.partition(":")[0], module))
    # One manager per plugin, so that no plugin sees what another has registered.
    manager = pluggy.PluginManager("xformd")
    manager.add_hookspecs(hookspecs)
    _register(manager, module, f"{candidate.distribution}:{candidate.name}")
    settings, found["secrets"] = _make_settings(manager, candidate, table, found)
    return _validate(_call_hook(manager, settings, found["secrets"]))


def _check_api(module: object) -> None:
    wanted = getattr(module, "xformd_api", PLUGIN_API)
    if type(wanted) is not int:
        raise DefinitionError(f"xformd_api must be the number of a plugin API such as {PLUGIN_API}, not {wanted!r}")
    if wanted != PLUGIN_API:
        advice = f"install {'a newer' if wanted > PLUGIN_API else 'an older'} xformd, or another version of the plugin"
        raise DefinitionError(f"it needs plugin API {wanted}, and this xformd has plugin API {PLUGIN_API}: {advice}")


@contextmanager
def _failing(what: str, secrets: Iterable[str] = ()) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # of a command: each line says where
        raise
    except DefinitionError as error:
        raise DefinitionError(hide(error.message, secrets)) from error
    except BaseException as error:
        raise DefinitionError(hide(f"{what} failed: {_describe(error)}", secrets)) from error


def _make_settings(
    manager: pluggy.PluginManager, candidate: Candidate, table: Table, found: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return what ``xformd_transforms`` gets, and the secrets in it; note the types of the settings."""
    with _failing("xformd_settings()"):
        cls = manager.hook.xformd_settings()
        fields = None if cls is None else read_class(cls)
    found["settings"] = {name: field.type for name, field in (fields or {}).items()}
    if fields is None and not any("settings" in each.argnames for each in _implementations(manager)):
        fields = {}  # it takes none
    return make_settings(cls or dict, fields, table, candidate.distribution)


def _call_hook(manager: pluggy.PluginManager, settings: object, secrets: Iterable[str]) -> list[object]:
    with _failing(f"{HOOK}()", secrets):
        results = manager.hook.xformd_transforms(settings=settings)
        returned = [transform for result in results for transform in _iterate(result)]
    if not results:  # pluggy leaves out None
        raise DefinitionError(f"{HOOK}() returned None; return a list of transforms")
    return returned


def _implementations(manager: pluggy.PluginManager) -> list[pluggy.HookImpl]:
    return manager.hook.xformd_transforms.get_hookimpls()


def _iterate(result: Any) -> Iterable[object]:
    _refuse_coroutine(result, f"{HOOK}()")
    if isinstance(result, Transform):
        raise DefinitionError(f"{HOOK}() returned a single Transform; put it in a list")
    return cast(Iterable[object], result)


def _register(manager: pluggy.PluginManager, module: Any, name: str) -> None:
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        reason = str(error).splitlines()[-1]
        takes = f"{HOOK}() takes settings or no arguments, and xformd_settings() takes no arguments"
        raise DefinitionError(f"bad hook: {reason}; {takes}") from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [caller.name for caller in manager.get_hookcallers(module) or () if not caller.has_spec()]
        nearest = difflib.get_close_matches(unknown[0], HOOKS, n=1) or [HOOK]
        raise DefinitionError(f"unknown hook {unknown[0]}(); did you mean {nearest[0]}()?") from error
    if not _implementations(manager):
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
    """Return why loading has failed: a line, or one for each mistake in the plugin's settings."""
    if isinstance(error, ConfigError) and error.details:
        return "\n".join(error.details)
    message = safe_str(error)
    if not isinstance(error, DefinitionError):
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return one_line(f"{message}; worker_memory_bytes is too low for it" if isinstance(error, MemoryError) else message)


def is_warmed_up(plugin: Plugin, transform: Transform, wanted: frozenset[str] | None) -> bool:
    """Whether a transform is to be warmed up: it, or its distribution (normalized), is wanted; None stands for all."""
    return wanted is None or not wanted.isdisjoint((transform.name, normalize(plugin.distribution)))


def warm_up(
    registry: Registry, selection: Selection, is_due: Callable[[Plugin, Transform], bool], around: AroundPlugin
) -> Registry:
    """Call the warm-ups of the transforms that are due, each function once for each plugin; one that raises fails it.

    The selection is that for which the registry was loaded.
    """
    plugins = [
        _warm_up_one(each, [*filter(partial(is_due, each), each.transforms)], around) for each in registry.plugins
    ]
    return registry if plugins == [*registry.plugins] else assemble(plugins, selection)


def _warm_up_one(plugin: Plugin, transforms: Sequence[Transform], around: AroundPlugin) -> Plugin:
    if not any(each.warm_up for each in transforms):
        return plugin
    start, called = time.perf_counter(), list[object]()
    try:
        with around(plugin):
            for each in transforms:
                if each.warm_up is not None and each.warm_up not in called:
                    called.append(each.warm_up)
                    with _failing(f"warm-up of {each.name}", plugin.secrets):
                        _refuse_coroutine(each.warm_up(), f"warm_up of {each.name}")
    except BaseException as error:
        return attrs.evolve(plugin, state="failed", reason=_describe(error), transforms=())
    return attrs.evolve(plugin, warm_up_time_s=plugin.warm_up_time_s + time.perf_counter() - start)


def _refuse_coroutine(result: object, what: str) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise DefinitionError(f"{what} must not be async: it is called before the event loop runs")


def assemble(plugins: Sequence[Plugin], selection: Selection) -> Registry:
    """Make a registry of plugins; names of the selection that match none of them have no effect."""
    owners: dict[str, list[Entry]] = {}
    for plugin in plugins:
        for transform in plugin.transforms:
            owners.setdefault(transform.name, []).append(Entry(transform, plugin))
    entries: dict[str, Entry] = {}
    conflicts: list[Conflict] = []
    for name, rivals in sorted(owners.items()):
        if len(rivals) == 1:
            entries[name] = rivals[0]
            continue
        wanted = normalize(selection.preferred.get(name, ""))
        chosen = [each for each in rivals if wanted and normalize(each.plugin.distribution) == wanted]
        built_in = [each for each in rivals if each.plugin.distribution == BUILT_IN]
        is_chosen = len(chosen) == 1
        winner = next(iter(chosen if is_chosen else built_in), None)
        if winner is not None:
            entries[name] = winner
        owned_by = tuple(rival.plugin for rival in rivals)
        conflicts.append(Conflict(name, owned_by, winner.plugin if winner else None, preferred=is_chosen))
    return Registry(entries, tuple(plugins), tuple(conflicts))


def check(registry: Registry, selection: Selection) -> None:
    """Raise ``ConfigError`` if a preference has no effect, or the selection is strict and anything is wrong."""
    if selection.ignore_unknown:
        return
    for name, distribution in sorted(selection.preferred.items()):
        owners = [plugin for plugin in registry.plugins if any(one.name == name for one in plugin.transforms)]
        chosen = [plugin for plugin in owners if normalize(plugin.distribution) == normalize(distribution)]
        if not owners:
            reason = f"no loaded plugin provides a transform {name!r}; see 'xformd list-transforms'"
            raise ConfigError(reason, setting="prefer")
        if len(chosen) != 1:
            labels = " and ".join(sorted(plugin.label for plugin in owners))
            reason = f"{name}={distribution}, but {name} is provided by {labels}"
            raise ConfigError(reason, setting="prefer")
    problems = [f"plugin {plugin.label}: {why}" for plugin in registry.with_state("failed") for why in plugin.reasons]
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
