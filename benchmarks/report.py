"""Results as tables for people, and as JSON for whatever comes later."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from benchmarks.samples import Column, Result, Row
from benchmarks.targets import Outcome

_VERDICTS = {True: "reached", False: "NOT REACHED", None: "not measured"}


def table(result: Result) -> str:
    """Write one work: a line for each server, medians, with the least and the most of what matters."""
    has_shape = any(row.shape for row in result.rows.values())
    headings = ["server", *(["load"] if has_shape else []), *[column.heading for column in result.columns]]
    lines = [headings]
    for row in result.rows.values():
        cells = (
            [_cell(row, column) for column in result.columns] if row.rounds and not row.error else [row.error or "-"]
        )
        lines.append([row.name, *([row.shape] if has_shape else []), *cells])
    return f"({result.key}) {result.title}\n" + _align(lines)


def verdicts(outcomes: Sequence[Outcome]) -> str:
    """Write the figures to reach, and whether they are."""
    lines = [["work", "figure", "measured", "to reach", ""]]
    for outcome in outcomes:
        target = outcome.target
        bound = f"{'at least' if target.at_least else 'at most'} {target.limit:.3g}"
        lines.append([f"({target.work})", target.text, _measured(outcome), bound, _VERDICTS[outcome.is_reached]])
    return "The figures to reach\n" + _align(lines)


def checkouts(ratios: Iterable[tuple[str, str, float, float, float]]) -> str:
    """Write what ours costs beside another checkout's."""
    lines = [["work", "server", "CPU time, this checkout / the other"]]
    lines += [[f"({key})", name, f"{middle:.3f} ({low:.3f} to {high:.3f})"] for key, name, middle, low, high in ratios]
    return "Beside the other checkout\n" + _align(lines)


def _measured(outcome: Outcome) -> str:
    if outcome.value is None or outcome.low is None or outcome.high is None:
        return "-"
    text = f"{outcome.value:.3g}"
    return text if outcome.low == outcome.high else f"{text} ({outcome.low:.3g} to {outcome.high:.3g})"


def _cell(row: Row, column: Column) -> str:
    values = row.values(column.key)
    if any(map(math.isnan, values)):
        return "-"
    written = [format(value, column.format) for value in (statistics.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*written) if column.has_range and len(values) > 1 else written[0]


def _align(lines: Sequence[Sequence[str]]) -> str:
    """Make columns. What stands last in a short line, a reason, takes the room that it needs."""
    full = max(map(len, lines))
    widths = [max(len(line[index]) for line in lines if len(line) == full) for index in range(full)]
    padded = [[f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)] for line in lines]
    return "\n".join("  " + "  ".join(line).rstrip() for line in padded)


def to_json(facts: Mapping[str, Any], results: Iterable[Result], outcomes: Iterable[Outcome]) -> str:
    """Write everything that was measured."""
    document = {
        **facts,
        "works": {result.key: _work(result) for result in results},
        "targets": [_target(outcome) for outcome in outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _work(result: Result) -> dict[str, Any]:
    return {"title": result.title, "rows": {name: _row(row, result.columns) for name, row in result.rows.items()}}


def _row(row: Row, columns: Iterable[Column]) -> dict[str, Any]:
    if row.error:
        return {"error": row.error}
    figures = {column.key: _summary(row.values(column.key)) for column in columns}
    known = {key: figure for key, figure in figures.items() if figure}
    return ({"load": row.shape} if row.shape else {}) | known


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    """Return the middle, the ends and all of a figure's values; JSON has no word for one that is not there."""
    if not values or any(map(math.isnan, values)):
        return None
    rounded = [float(f"{value:.5g}") for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "rounds": rounded}


def _target(outcome: Outcome) -> dict[str, Any]:
    target = attrs.asdict(outcome.target, filter=lambda attribute, _: attribute.name != "values")
    found = {"value": outcome.value, "min": outcome.low, "max": outcome.high}
    return target | found | {"is_reached": outcome.is_reached}
