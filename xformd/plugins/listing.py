"""A Registry as JSON for programs, back from that JSON, and as a table for people.

The JSON's shape is a promise: ``http/openapi.json`` describes it, and fields are added but never renamed. Invariant: it
names no file, because servers send it to their clients; ``public`` leaves out what they may not learn.

A server imports only the plugins whose transforms it runs itself: it makes its registry from a worker's listing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import attrs

from xformd.errors import printable
from xformd.plugins.definition import Example, Transform
from xformd.plugins.options import BOUNDS, Option, options_schema, read_json
from xformd.plugins.registry import NOT_SELECTED, Conflict, Entry, Plugin, PluginKey, Registry, label
from xformd.spec import plain_value

IsIsolated = Callable[[Transform], bool]  # whether a transform runs in a worker

_PLAIN_FIELDS = (
    *("produces", "batch", "batch_wait_s", "concurrency", "inline", "asynchronous", "returns_deferred"),
    *("timeout_s", "memory_bytes", "deterministic"),
)
_PLAIN_PLUGIN_FIELDS = ("name", "distribution", "version", "state", "reason", "settings")
"""Fields of a Transform and of a Plugin that JSON holds as they are."""


def to_json(registry: Registry, quarantined: Collection[str] = ()) -> dict[str, Any]:
    """Return the registry as values that ``json.dumps`` takes, always in the same order."""
    transforms = [_transform_to_json(entry, quarantined) for _, entry in sorted(registry.entries.items())]
    return {
        "fingerprint": fingerprint(transforms),
        "transforms": transforms,
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
    withheld = {"reason": "", "import_time_ms": 0.0, "warm_up_time_ms": 0.0}
    told = ("active", "blocked", "loading")  # whose reasons are our own words
    plugins = [{**each, **({} if each.get("state") in told else withheld)} for each in listed["plugins"]]
    for plugin in plugins:
        plugin.pop("settings", None)  # their names are the operator's too
    return {**listed, "plugins": plugins}


_OFFERED = *("kind", "result_kind", "accepts", "options", "produces", "deterministic"), "distribution", "version"
"""What a transform is to its callers, besides its name: servers behind one address should have the same of each."""


def fingerprint(transforms: Iterable[Mapping[str, Any]]) -> str:
    """Return a short hash of listed transforms: the same on every machine, in whatever order they are listed.

    Whoever sees a listing can make it, so that it tells nothing about what that leaves out.
    """
    offered = sorted(json.dumps([each["name"], *map(each.get, _OFFERED)], sort_keys=True) for each in transforms)
    return hashlib.sha256("\n".join(offered).encode()).hexdigest()[:12]


def differences(listings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how the listings of servers differ from what most of them have, a line for each server and distribution.

    Args:
        listings: what each server answers to ``!list``, by its address.
    """
    prints = {server: fingerprint(listed["transforms"]) for server, listed in listings.items()}
    alike = [*prints.values()]
    most = max(alike, key=alike.count, default="")
    same = [server for server in listings if prints[server] == most]
    others = [server for server in listings if prints[server] != most]
    whose = f"{same[0]}{_more(len(same) - 1)}" if same else ""
    return [f"{each} {line}" for each in others for line in _compare(listings[each], listings[same[0]], whose)]


def _compare(listed: Mapping[str, Any], model: Mapping[str, Any], whose: str) -> Iterable[str]:
    own, theirs = ({each["name"]: each for each in each["transforms"]} for each in (listed, model))
    found: dict[tuple[str, str], list[str]] = {}  # what is said before and after the names
    for name in sorted(own.keys() | theirs.keys()):
        here, there = own.get(name), theirs.get(name)
        if here is None or there is None:
            said = ("has", f"({_source(here)}), unknown to {whose}") if here else ("lacks", f"({_source(there)})")
        elif _source(here) != _source(there):
            said = "has", f"of {_source(here)}, and {whose} of {_source(there)}"
        elif changed := [field for field in _OFFERED if here.get(field) != there.get(field)]:
            said = "has", f"({_source(here)}) with {', '.join(changed)} other than those of {whose}"
        else:
            continue
        found.setdefault(said, []).append(name)
    return [f"{verb} {', '.join(names[:5])}{_more(len(names) - 5)} {rest}" for (verb, rest), names in found.items()]


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _source(transform: Mapping[str, Any] | None) -> str:
    return f"{transform['distribution']} {transform['version']}".rstrip() if transform else ""


def _transform_to_json(entry: Entry, quarantined: Collection[str]) -> dict[str, Any]:
    transform = entry.transform
    return {
        "name": transform.name,
        "summary": transform.summary,
        "kind": _kind(transform.kind),
        "result_kind": _kind(transform.result_kind),
        "accepts": [*transform.accepts],
        "options": [_option_to_json(option) for option in transform.options],
        "options_schema": options_schema(transform.options),
        "examples": [_example_to_json(example) for example in transform.examples],
        **{field: getattr(transform, field) for field in _PLAIN_FIELDS},
        "media_type": transform.produces,  # the name of "produces" before 0.2
        "state": "quarantined" if transform.name in quarantined else "active",
        "plugin": entry.plugin.name,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
    }


def _kind(kind: str) -> str:
    return "text" if kind == "text" else "bytes"  # whether bytes come in a file is between a worker and its transform


def _option_to_json(option: Option) -> dict[str, Any]:
    described = {"name": option.name, "type": option.type, "required": option.required, "takes": option.takes}
    others = {
        "default": plain_value(option.default),
        "choices": plain_value(option.choices) or None,
        "description": option.description or None,
        "list": option.is_list or None,
        **{bound: plain_value(limit) for bound, limit in option.bounds.items()},
    }
    return {**described, **{field: value for field, value in others.items() if value is not None}}


def _example_to_json(example: Example) -> dict[str, Any]:
    options = {name: plain_value(value) for name, value in example.options.items()}
    return {"poem": _text(example.poem), "result": _text(example.result), "options": options}


def _text(poem: str | bytes) -> str:
    # JSON has no bytes: each byte becomes the character with its number, as in ISO 8859-1.
    return poem if isinstance(poem, str) else poem.decode("latin-1")


def _plugin_to_json(plugin: Plugin) -> dict[str, Any]:
    return {
        **{field: getattr(plugin, field) for field in _PLAIN_PLUGIN_FIELDS},
        "transforms": sorted(transform.name for transform in plugin.transforms),
        "import_time_ms": round(plugin.import_time_s * 1000, 3),
        "warm_up_time_ms": round(plugin.warm_up_time_s * 1000, 3),
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
    return f"it runs in the server, which cannot load it: {plugin.reason}"


def _transform_from_json(described: Mapping[str, Any]) -> Transform:
    kind, result_kind = described["kind"], described["result_kind"]
    options = tuple(_option_from_json(option) for option in described["options"])
    return Transform(
        name=described["name"],
        function=_not_here,
        kind=kind,
        result_kind=result_kind,
        accepts=tuple(described["accepts"]),
        options=options,
        summary=described["summary"],
        examples=tuple(_example_from_json(example, kind, result_kind, options) for example in described["examples"]),
        **{field: described[field] for field in _PLAIN_FIELDS},
    )


def _not_here(*_: object) -> NoReturn:
    raise RuntimeError("this transform runs in a worker")


def _option_from_json(described: Mapping[str, Any]) -> Option:
    kind, default = described["type"], described.get("default")
    return Option(
        name=described["name"],
        type=kind,
        default=read_json(default, kind),
        choices=tuple(described.get("choices", ())),
        description=described.get("description", ""),
        is_optional=default is None and not described["required"],
        is_list=described.get("list", False),
        bounds={name: read_json(described[name], kind) for name in BOUNDS if name in described},
    )


def _example_from_json(described: Mapping[str, Any], kind: str, result_kind: str, options: Iterable[Option]) -> Example:
    poem, result = (
        described[part] if each == "text" else described[part].encode("latin-1")
        for part, each in (("poem", kind), ("result", result_kind))
    )
    types = {option.name: option.type for option in options}
    values = {name: read_json(value, types[name]) for name, value in described["options"].items()}
    return Example(poem, result, values)


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
        warm_up_time_s=described["warm_up_time_ms"] / 1000,
    )


def _conflict_from_json(described: Mapping[str, Any], plugins: list[Plugin]) -> Conflict:
    name = described["name"]
    owners = [plugin for plugin in plugins if any(transform.name == name for transform in plugin.transforms)]
    winner = next((plugin for plugin in owners if plugin.distribution == described["winner"]), None)
    return Conflict(name, tuple(owners), winner, described["preferred"])


def to_table(listed: Mapping[str, Any]) -> str:
    """Return the listing of ``to_json`` as a table, then one line per problem, without a final newline."""
    rows = [("NAME", "OPTIONS", "SUMMARY", "FROM"), *map(_row, listed["transforms"])]
    excess = len(max(lines := align(rows), key=len)) - shutil.get_terminal_size((160, 24)).columns
    if excess > 0:  # long summaries are cut, so that each row fits on one line of the terminal
        most = max(20, max(len(row[2]) for row in rows) - excess)
        lines = align([(name, options, _shorten(summary, most), source) for name, options, summary, source in rows])
    return "\n".join([*lines, *map(printable, _notes(listed))])


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [printable("  ".join(map(str.ljust, row, widths)).rstrip()) for row in rows]


def _notes(listed: Mapping[str, Any]) -> Iterable[str]:
    """Yield one line per problem, and one for a proxy's cache."""
    for transform in listed["transforms"]:
        if transform.get("state") == "quarantined":  # absent from servers before 0.2
            yield f"quarantined: transform {transform['name']}: it killed its worker too often"
    for plugin in listed["plugins"]:
        if plugin["state"] != "active" and plugin["reason"] != NOT_SELECTED:
            reasons = (plugin["reason"] or "see the log of the server").split("\n")
            yield from (f"{plugin['state']}: plugin {_label(plugin)}: {reason}" for reason in reasons)
    if others := [_label(plugin) for plugin in listed["plugins"] if plugin["reason"] == NOT_SELECTED]:
        yield f"blocked: {NOT_SELECTED}: {', '.join(others)}"
    for conflict in listed["conflicts"]:
        yield f"conflict: {conflict['message']}"
    if (cache := listed.get("cache")) is not None:  # only a proxy has one
        yield f"cache: {cache['hits']:,} hits, {cache['misses']:,} misses, {cache['bytes']:,} bytes"


def _label(plugin: Mapping[str, Any]) -> str:
    return label(plugin["name"], plugin["distribution"], plugin["version"])


def _row(transform: Mapping[str, Any]) -> tuple[str, str, str, str]:
    # Each row has the width of the longest.
    options = _shorten(",".join(map(_signature, transform["options"])), 200)
    return transform["name"], options, transform["summary"], _source(transform)


def _signature(option: Mapping[str, Any]) -> str:
    default, kind = option.get("default"), f"<{option['type']}{'...' if option.get('list') else ''}>"
    shown = str(default).lower() if isinstance(default, bool) else kind if default is None else str(default)
    least, most = (option.get(f"{end}imum", option.get(f"exclusive_{end}imum", "")) for end in ("min", "max"))
    bounds = f" ({least}..{most})" if f"{least}{most}" else ""
    signature = f"{option['name']}={shown if shown.strip() == shown else repr(shown)}{bounds}"
    return signature if option["required"] or default is not None else f"[{signature}]"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
