"""A Registry as JSON for programs, back from that JSON, and as a table for people.

The JSON's shape is a promise: ``docs/cli.md`` describes it, and fields are added but never renamed. Invariant: it
names no file, because servers send it to their clients; ``public`` leaves out what they may not learn.

A server imports only the plugins whose transforms it runs itself: it makes its registry from a worker's listing.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

import attrs

from xformd.errors import printable
from xformd.plugins.definition import Example, Transform
from xformd.plugins.options import Option, options_schema
from xformd.plugins.registry import NOT_SELECTED, Conflict, Entry, Plugin, PluginKey, Registry, label

IsIsolated = Callable[[Transform], bool]
"""Whether a transform runs in a worker."""

_PLAIN_FIELDS = ("inline", "asynchronous", "timeout_s", "memory_bytes", "deterministic", "media_type")
_PLAIN_PLUGIN_FIELDS = ("name", "distribution", "version", "state", "reason")
"""Fields of a Transform and of a Plugin that JSON holds as they are."""


def to_json(registry: Registry, quarantined: Collection[str] = ()) -> dict[str, Any]:
    """Return the registry as values that ``json.dumps`` takes, always in the same order."""
    return {
        "transforms": [_transform_to_json(entry, quarantined) for _, entry in sorted(registry.entries.items())],
        "plugins": [_plugin_to_json(plugin) for plugin in registry.plugins],
        "conflicts": [
            {
                "name": conflict.name,
                "distributions": conflict.distributions,
                "winner": conflict.winner.distribution if conflict.winner else None,
                "preferred": conflict.preferred,
                "message": str(conflict),
            }
            for conflict in registry.conflicts
        ],
    }


def public(listed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a listing for clients. Why a plugin failed is the operator's: it may quote a path or a password."""
    withheld = {"reason": "", "import_time_ms": 0.0}
    told = ("active", "blocked", "loading")  # whose reasons are our own words
    plugins = [each if each.get("state") in told else {**each, **withheld} for each in listed["plugins"]]
    return {**listed, "plugins": plugins}


def _transform_to_json(entry: Entry, quarantined: Collection[str]) -> dict[str, Any]:
    transform = entry.transform
    return {
        "name": transform.name,
        "summary": transform.summary,
        "kind": transform.kind,
        "options": [_option_to_json(option) for option in transform.options],
        "options_schema": options_schema(transform.options),
        "examples": [_example_to_json(example) for example in transform.examples],
        **{field: getattr(transform, field) for field in _PLAIN_FIELDS},
        "state": "quarantined" if transform.name in quarantined else "active",
        "plugin": entry.plugin.name,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
    }


def _option_to_json(option: Option) -> dict[str, Any]:
    described: dict[str, Any] = {"name": option.name, "type": option.type, "required": option.required}
    if not option.required:
        described["default"] = option.default
    if option.choices:
        described["choices"] = list(option.choices)
    if option.description:
        described["description"] = option.description
    return described


def _example_to_json(example: Example) -> dict[str, Any]:
    return {"poem": _text(example.poem), "result": _text(example.result), "options": dict(example.options)}


def _text(poem: str | bytes) -> str:
    # JSON has no bytes: each byte becomes the character with its number, as in ISO 8859-1.
    return poem if isinstance(poem, str) else poem.decode("latin-1")


def _plugin_to_json(plugin: Plugin) -> dict[str, Any]:
    return {
        **{field: getattr(plugin, field) for field in _PLAIN_PLUGIN_FIELDS},
        "transforms": sorted(transform.name for transform in plugin.transforms),
        "import_time_ms": round(plugin.import_time_s * 1000, 3),
    }


def plugins_run_here(listed: Mapping[str, Any], is_isolated: IsIsolated) -> frozenset[PluginKey]:
    """Return the key of each listed plugin with a transform that does not run in a worker."""
    return frozenset(
        _key(described) for described in listed["transforms"] if not is_isolated(_transform_from_json(described))
    )


def from_json(listed: Mapping[str, Any], own: Registry, is_isolated: IsIsolated) -> Registry:
    """Make a registry from the listing of a worker, and from what this process has imported for what runs in it.

    A plugin with a transform that runs in this process, and that this process cannot import, has failed.
    """
    owned = {plugin.key: plugin for plugin in own.plugins}
    transforms = {described["name"]: _transform_from_json(described) for described in listed["transforms"]}
    plugins = {
        _key(described, "name"): _plugin_from_json(described, transforms, owned) for described in listed["plugins"]
    }
    entries: dict[str, tuple[PluginKey, Entry]] = {}
    for described in listed["transforms"]:
        name, key = described["name"], _key(described)
        entry = Entry(transforms[name], plugins[key]) if is_isolated(transforms[name]) else own.entries.get(name)
        if entry is not None:
            entries[name] = key, entry
        else:
            reason = _why_not_here(owned.get(key))
            plugins[key] = attrs.evolve(plugins[key], state="failed", reason=reason, transforms=())
    return Registry(
        {name: entry for name, (key, entry) in entries.items() if plugins[key].state == "active"},
        tuple(plugins.values()),
        tuple(_conflict_from_json(described, [*plugins.values()]) for described in listed["conflicts"]),
    )


def _key(described: Mapping[str, Any], name: str = "plugin") -> PluginKey:
    return described["distribution"], described[name]


def _why_not_here(plugin: Plugin | None) -> str:
    if plugin is None or plugin.state == "active":
        return "it runs in the server, which finds other transforms in it than a worker: restart the server"
    return f"it runs in the server, which cannot import it: {plugin.reason}"


def _transform_from_json(described: Mapping[str, Any]) -> Transform:
    kind = described["kind"]
    return Transform(
        name=described["name"],
        function=_not_here,
        kind=kind,
        options=tuple(_option_from_json(option) for option in described["options"]),
        summary=described["summary"],
        examples=tuple(_example_from_json(example, kind) for example in described["examples"]),
        **{field: described[field] for field in _PLAIN_FIELDS},
    )


def _not_here(*_: object) -> NoReturn:
    raise RuntimeError("this transform runs in a worker")


def _option_from_json(described: Mapping[str, Any]) -> Option:
    choices = tuple(described.get("choices", ()))
    description = described.get("description", "")
    return Option(described["name"], described["type"], described.get("default"), choices, description)


def _example_from_json(described: Mapping[str, Any], kind: str) -> Example:
    poem, result = described["poem"], described["result"]
    if kind == "bytes":
        poem, result = poem.encode("latin-1"), result.encode("latin-1")
    return Example(poem, result, described["options"])


def _plugin_from_json(
    described: Mapping[str, Any], transforms: Mapping[str, Transform], owned: Mapping[PluginKey, Plugin]
) -> Plugin:
    own = owned.get(_key(described, "name"))
    return Plugin(
        **{field: described[field] for field in _PLAIN_PLUGIN_FIELDS},
        source=own.source if own is not None else "",
        # An ambiguous transform is listed by its name alone, and no request can reach it.
        transforms=tuple(
            transforms.get(name) or Transform(name, _not_here, "text") for name in described["transforms"]
        ),
        import_time_s=described["import_time_ms"] / 1000,
    )


def _conflict_from_json(described: Mapping[str, Any], plugins: list[Plugin]) -> Conflict:
    name = described["name"]
    owners = [plugin for plugin in plugins if any(transform.name == name for transform in plugin.transforms)]
    winner = next((plugin for plugin in owners if plugin.distribution == described["winner"]), None)
    return Conflict(name, tuple(owners), winner, described["preferred"])


def to_table(listed: Mapping[str, Any]) -> str:
    """Return the listing of ``to_json`` as a table, then one line per problem, without a final newline."""
    rows = [("NAME", "OPTIONS", "SUMMARY", "FROM"), *map(_row, listed["transforms"])]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    # Long summaries are cut, so that each row fits on one line of the terminal.
    fixed = widths[0] + widths[1] + max(len(row[3]) for row in rows) + 6
    widths[2] = max(20, min(widths[2], shutil.get_terminal_size((160, 24)).columns - fixed))
    lines = [
        f"{name:<{widths[0]}}  {options:<{widths[1]}}  {_shorten(summary, widths[2]):<{widths[2]}}  {source}"
        for name, options, summary, source in rows
    ]
    return "\n".join(map(printable, [*lines, *_notes(listed)]))


def _notes(listed: Mapping[str, Any]) -> Iterable[str]:
    """Yield one line per problem, and one for a proxy's cache."""
    for transform in listed["transforms"]:
        if transform.get("state") == "quarantined":  # absent from servers before 0.2
            yield f"quarantined: transform {transform['name']}: it killed its worker too often"
    for plugin in listed["plugins"]:
        if plugin["state"] != "active" and plugin["reason"] != NOT_SELECTED:
            yield f"{plugin['state']}: plugin {_label(plugin)}: {plugin['reason'] or 'see the log of the server'}"
    if others := [_label(plugin) for plugin in listed["plugins"] if plugin["reason"] == NOT_SELECTED]:
        yield f"blocked: {NOT_SELECTED}: {', '.join(others)}"
    for conflict in listed["conflicts"]:
        yield f"conflict: {conflict['message']}"
    if (cache := listed.get("cache")) is not None:  # only a proxy has one
        yield f"cache: {cache['hits']:,} hits, {cache['misses']:,} misses, {cache['bytes']:,} bytes"


def _label(plugin: Mapping[str, Any]) -> str:
    return label(plugin["name"], plugin["distribution"], plugin["version"])


def _row(transform: Mapping[str, Any]) -> tuple[str, str, str, str]:
    options = _shorten(",".join(map(_signature, transform["options"])), 200)  # each row has the width of the longest
    source = f"{transform['distribution']} {transform['version']}".rstrip()
    return transform["name"], options, transform["summary"], source


def _signature(option: Mapping[str, Any]) -> str:
    name = option["name"]
    if option["required"]:
        return f"{name}=<{option['type']}>"
    default = option.get("default")
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{name}={shown if shown.strip() == shown else repr(shown)}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
