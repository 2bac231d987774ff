"""What a Registry holds, told to a program (JSON) and to a person (a table).

The JSON's shape is a promise: ``docs/cli.md`` describes it, fields are added and never renamed. It names no file,
because a server will tell it to its clients.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from xformd.errors import printable
from xformd.plugins.definition import Example
from xformd.plugins.options import Option, options_schema
from xformd.plugins.registry import NOT_SELECTED, Entry, Plugin, Registry, label


def to_json(registry: Registry, quarantined: Collection[str] = ()) -> dict[str, Any]:
    """Give the registry as values that ``json.dumps`` takes.

    Args:
        registry: what to describe.
        quarantined: names of transforms that are in quarantine.

    Returns:
        ``{"transforms": [...], "plugins": [...], "conflicts": [...]}``, each sorted the same way every time.
    """
    return {
        "transforms": [_transform(entry, quarantined) for _, entry in sorted(registry.entries.items())],
        "plugins": [_plugin(plugin) for plugin in registry.plugins],
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


def _transform(entry: Entry, quarantined: Collection[str]) -> dict[str, Any]:
    transform = entry.transform
    return {
        "name": transform.name,
        "summary": transform.summary,
        "kind": transform.kind,
        "options": [_option(option) for option in transform.options],
        "options_schema": options_schema(transform.options),
        "examples": [_example(example) for example in transform.examples],
        "inline": transform.inline,
        "asynchronous": transform.asynchronous,
        "timeout_s": transform.timeout_s,
        "memory_bytes": transform.memory_bytes,
        "deterministic": transform.deterministic,
        "media_type": transform.media_type,
        "state": "quarantined" if transform.name in quarantined else "active",
        "plugin": entry.plugin.name,
        "distribution": entry.plugin.distribution,
        "version": entry.plugin.version,
    }


def _option(option: Option) -> dict[str, Any]:
    described: dict[str, Any] = {"name": option.name, "type": option.type, "required": option.required}
    if not option.required:
        described["default"] = option.default
    if option.choices:
        described["choices"] = list(option.choices)
    return described


def _example(example: Example) -> dict[str, Any]:
    return {
        "poem": _text(example.poem),
        "result": _text(example.result),
        "options": dict(example.options),
    }


def _text(poem: str | bytes) -> str:
    """A poem in JSON; of bytes, each is the character with its number, as in ISO 8859-1."""
    return poem if isinstance(poem, str) else poem.decode("latin-1")


def _plugin(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "state": plugin.state,
        "reason": plugin.reason,
        "transforms": sorted(transform.name for transform in plugin.transforms),
        "import_time_ms": round(plugin.import_time_s * 1000, 3),
    }


def to_table(listed: Mapping[str, Any]) -> str:
    """Give a listing as a table, then a line for everything that is not as one would wish.

    Args:
        listed: what ``to_json`` gives, here or on a server.

    Returns:
        Lines, without a final newline.
    """
    rows = [("NAME", "OPTIONS", "SUMMARY", "FROM"), *map(_row, listed["transforms"])]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    # Long summaries give way, so that a row stays a row on the terminal at hand.
    fixed = widths[0] + widths[1] + max(len(row[3]) for row in rows) + 6
    widths[2] = max(20, min(widths[2], shutil.get_terminal_size((160, 24)).columns - fixed))
    lines = [
        f"{name:<{widths[0]}}  {options:<{widths[1]}}  {_shorten(summary, widths[2]):<{widths[2]}}  {source}"
        for name, options, summary, source in rows
    ]
    return "\n".join(map(printable, [*lines, *_remarks(listed)]))


def _remarks(listed: Mapping[str, Any]) -> Iterable[str]:
    """Give one line for everything that is not as one would wish, and for a proxy's cache."""
    for transform in listed["transforms"]:
        if transform.get("state") == "quarantined":  # servers before 0.2 do not say
            yield f"quarantined: transform {transform['name']}: it has killed its worker too often"
    for plugin in listed["plugins"]:
        if plugin["state"] != "active" and plugin["reason"] != NOT_SELECTED:
            yield f"{plugin['state']}: plugin {_label(plugin)}: {plugin['reason']}"
    if others := [_label(plugin) for plugin in listed["plugins"] if plugin["reason"] == NOT_SELECTED]:
        yield f"blocked: {NOT_SELECTED}: {', '.join(others)}"
    for conflict in listed["conflicts"]:
        yield f"conflict: {conflict['message']}"
    if (cache := listed.get("cache")) is not None:  # which a proxy has
        yield f"cache: {cache['hits']:,} hits, {cache['misses']:,} misses, {cache['bytes']:,} bytes"


def _label(plugin: Mapping[str, Any]) -> str:
    return label(plugin["name"], plugin["distribution"], plugin["version"])


def _row(transform: Mapping[str, Any]) -> tuple[str, str, str, str]:
    options = ",".join(map(_signature, transform["options"]))
    source = f"{transform['distribution']} {transform['version']}".rstrip()
    return transform["name"], options, transform["summary"], source


def _signature(option: Mapping[str, Any]) -> str:
    name = option["name"]
    if option["required"]:
        return f"{name}=<{option['type']}>"
    default = option["default"]
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{name}={shown if shown.strip() == shown else repr(shown)}"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"
