"""From a listing that another process gave back to a Registry: how a server learns what its workers have loaded.

A process that has imported a plugin keeps that code until it ends. So after an upgrade a server asks a fresh worker
what there is now, and takes from its own modules only what it runs itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from xformd.plugins.definition import Example, Transform
from xformd.plugins.options import Option
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry


def runs_here(listed: Mapping[str, Any], is_isolated: Callable[[Transform], bool]) -> frozenset[tuple[str, str]]:
    """Say which plugins have a transform that does not run in a worker.

    Args:
        listed: what ``listing.to_json`` gave in a worker.
        is_isolated: whether a transform runs in a worker.

    Returns:
        The distribution and the name of each.
    """
    return frozenset(
        (described["distribution"], described["plugin"])
        for described in listed["transforms"]
        if not is_isolated(_transform(described))
    )


def registry_from(listed: Mapping[str, Any], own: Registry, is_isolated: Callable[[Transform], bool]) -> Registry:
    """Make a registry of what a worker has, and of what runs here.

    Args:
        listed: what ``listing.to_json`` gave in the worker.
        own: what this process has imported.
        is_isolated: whether a transform runs in a worker.

    Returns:
        The worker's plugins and conflicts; of its transforms, those that run in a worker, and those of the same
        version that this process has too.
    """
    sources = {(plugin.distribution, plugin.name): plugin.source for plugin in own.plugins}
    transforms = {described["name"]: _transform(described) for described in listed["transforms"]}
    plugins = [_plugin(described, transforms, sources) for described in listed["plugins"]]
    by_name = {(plugin.distribution, plugin.name): plugin for plugin in plugins}
    entries: dict[str, Entry] = {}
    for described in listed["transforms"]:
        name = described["name"]
        if is_isolated(transforms[name]):
            entries[name] = Entry(transforms[name], by_name[described["distribution"], described["plugin"]])
        elif name in own.entries:
            entries[name] = own.entries[name]
    return Registry(entries, tuple(plugins), tuple(_conflict(described, plugins) for described in listed["conflicts"]))


def _transform(described: Mapping[str, Any]) -> Transform:
    kind = described["kind"]
    return Transform(
        name=described["name"],
        function=_run_elsewhere,
        kind=kind,
        options=tuple(_option(option) for option in described["options"]),
        summary=described["summary"],
        examples=tuple(_example(example, kind) for example in described["examples"]),
        inline=described["inline"],
        asynchronous=described["asynchronous"],
        timeout_s=described["timeout_s"],
        memory_bytes=described["memory_bytes"],
        deterministic=described["deterministic"],
        media_type=described["media_type"],
    )


def _contested(name: str) -> Transform:
    """Stand for a transform that no request can reach, of which a listing gives no more than its name."""
    return Transform(name, _run_elsewhere, "text")


def _run_elsewhere(*_: object) -> NoReturn:
    raise RuntimeError("this transform is known by its description, and runs in a worker")


def _option(described: Mapping[str, Any]) -> Option:
    choices = tuple(described.get("choices", ()))
    return Option(described["name"], described["type"], described.get("default"), choices)


def _example(described: Mapping[str, Any], kind: str) -> Example:
    poem, result = described["poem"], described["result"]
    if kind == "bytes":
        poem, result = poem.encode("latin-1"), result.encode("latin-1")
    return Example(poem, result, described["options"])


def _plugin(
    described: Mapping[str, Any], transforms: Mapping[str, Transform], sources: Mapping[tuple[str, str], str]
) -> Plugin:
    distribution, name = described["distribution"], described["name"]
    return Plugin(
        name=name,
        distribution=distribution,
        version=described["version"],
        source=sources.get((distribution, name), ""),
        state=described["state"],
        reason=described["reason"],
        transforms=tuple(transforms.get(name) or _contested(name) for name in described["transforms"]),
        import_time_s=described["import_time_ms"] / 1000,
    )


def _conflict(described: Mapping[str, Any], plugins: list[Plugin]) -> Conflict:
    name = described["name"]
    owners = [plugin for plugin in plugins if any(transform.name == name for transform in plugin.transforms)]
    winner = next((plugin for plugin in owners if plugin.distribution == described["winner"]), None)
    return Conflict(name, tuple(owners), winner, described["preferred"])
