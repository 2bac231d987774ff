"""The pictures that the README shows, drawn from ``results.json``: the same figures give the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "xformd": "xformd",
    "xformd-classic": "xformd",
    "xformd-http": "xformd over HTTP",
    "tutorial": "Twisted tutorial style, kept open",
    "tutorial-classic": "Twisted tutorial style",
    "fastapi": "FastAPI on uvicorn",
    "asgi": "bare ASGI on uvicorn",
    "grpc": "gRPC asyncio",
    "uvloop": "uvloop by hand",
    "echo-c": "echo in C (no transform)",
    "transform alone": "the transform alone",
    "xformd-workers": "xformd's workers",
    "xformd-inline": "xformd, inline",
    "ProcessPoolExecutor": "ProcessPoolExecutor",
    "pebble": "pebble",
}
CAPTIONS = {
    "a": "20 bytes, 4 x 64 in flight",
    "b": "600 bytes, 32 x 1 in flight",
    "c": "600 bytes, 32 x 16 in flight",
    "d": "1 MiB, 4 x 1 in flight",
    "e": "600 bytes, a connection for each",
}
OURS, THEIRS, INK = "#1f6f8b", "#b9c2c9", "#333333"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xformd",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
Works = Mapping[str, Any]


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what was measured.

    Args:
        document: what ``results.json`` holds.
        folder: where the pictures go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    works = document["works"]
    drawn = []
    with mpl.rc_context(_STYLE):
        for name, picture in _PICTURES.items():
            figure = picture(works)
            if figure is not None:
                drawn.append(folder / f"{name}.svg")
                figure.savefig(drawn[-1], metadata={"Date": None}, bbox_inches="tight")
                plt.close(figure)
    return drawn


def _medians(works: Works, work: str, key: str) -> dict[str, float]:
    rows = works.get(work, {}).get("rows", {})
    return {name: row[key]["median"] for name, row in rows.items() if key in row}


def _cpu(works: Works) -> Any:
    """Draw the CPU time of a request: a panel for each work, on one logarithmic axis."""
    panels = {work: _medians(works, work, "cpu_us") for work in CAPTIONS}
    panels = {work: medians for work, medians in panels.items() if medians}
    titles = {work: f"({work}) {caption}" for work, caption in CAPTIONS.items()}
    return _panels(panels, titles, "server CPU time per request, µs, logarithmic (less is better)")


def _panels(panels: Mapping[str, Mapping[str, float]], titles: Mapping[str, str], label: str) -> Any:
    """Draw bars in panels above each other, on one logarithmic axis."""
    if not panels:
        return None
    heights = [len(medians) + 0.8 for medians in panels.values()]
    figure, axes = plt.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(7.5, 0.24 * sum(heights) + 0.6), height_ratios=heights
    )
    for axis, (key, medians) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(axis, medians, lambda value: f"{_three_digits(value)} µs")
        axis.set_xscale("log")
        axis.set_title(titles[key], loc="left", fontsize=9, fontweight="bold")
    lowest = min(min(medians.values()) for medians in panels.values())
    highest = max(max(medians.values()) for medians in panels.values())
    axes[-1, 0].set_xlim(lowest / 2, highest * 3)
    axes[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes[-1, 0].set_xlabel(label)
    figure.tight_layout(h_pad=0.6)
    return figure


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(works: Works) -> Any:
    medians = _medians(works, "f", "kib_each")
    if not medians:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 0.3 * len(medians) + 0.7))
    _bars(axis, medians, "{:.1f} KiB".format)
    axis.set_xlim(0, 1.15 * max(medians.values()))
    axis.set_xlabel("memory of the server's process for each idle connection, KiB (less is better)")
    return figure


def _bars(axis: "Axes", medians: Mapping[str, float], label: Callable[[float], str]) -> None:
    """Draw horizontal bars, the least first, ours in a colour of its own."""
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    colours = [OURS if name.startswith("xformd") else THEIRS for name, _ in ordered]
    bars = axis.barh([NAMES[name] for name, _ in ordered], [value for _, value in ordered], 0.72, color=colours)
    axis.bar_label(bars, [label(value) for _, value in ordered], padding=3, fontsize=8)
    axis.tick_params(axis="y", length=0)


def _connections(works: Works) -> Any:
    """Draw the cost of a request by how many connections are open."""
    rows = works.get("g", {}).get("rows", {})
    lines = {name: _by_crowd(row) for name, row in rows.items() if "error" not in row}
    if not lines:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 3.2))
    for name, points in lines.items():
        ours = name.startswith("xformd")
        axis.plot(*zip(*points, strict=True), marker="o", color=OURS if ours else THEIRS, lw=2.5 if ours else 1.5)
        axis.annotate(NAMES[name], points[-1], xytext=(8, -3), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.set_xticks([size for size, _ in next(iter(lines.values()))])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0)
    axis.set_xlabel("open connections, which take turns with one request of 600 bytes each")
    axis.set_ylabel("server CPU time, µs")
    return figure


def _pools(works: Works) -> Any:
    """Draw the CPU time of a call in a pool of workers: a panel for each size of poem."""
    rows = works.get("j", {}).get("rows", {})
    panels: dict[str, dict[str, float]] = {}
    for key, row in rows.items():
        if "cpu_us" in row:
            panels.setdefault(row["load"], {})[key.partition(",")[0]] = row["cpu_us"]["median"]
    titles = {size: f"{size}, 8 calls in flight" for size in panels}
    return _panels(panels, titles, "CPU time per call, of all processes, µs, logarithmic (less is better)")


def draw_rules(rules: Mapping[str, Sequence[tuple[int, float, float]]], path: Path) -> Path:
    """Draw how rules of balancing compare.

    Args:
        rules: the points of each: how many servers, the 99th percentile in seconds, and the per cent that are lost.
        path: where the picture goes.

    Returns:
        That path.
    """
    labels = ("99th percentile of the waits, s", "requests lost, %")
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.0))
        for column, (axis, label) in enumerate(zip(axes, labels, strict=True), 1):
            for name, points in rules.items():
                ours = name == "xformd"
                line = [(point[0], point[column]) for point in points]
                style: Any = {"color": OURS if ours else THEIRS, "lw": 2.5 if ours else 1.5}
                axis.plot(*zip(*line, strict=True), marker="o", ms=3, label=name, ls=_DASHES.get(name, "-"), **style)
            axis.set_xscale("log")
            axis.set_xticks([point[0] for point in points])
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylim(0)
            axis.set_xlabel("servers, for 10 clients")
            axis.set_title(label, loc="left", fontsize=9)
        axes[1].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    return path


_DASHES = {"random": ":", "round robin": "--", "power of two": "-."}


def _by_crowd(row: Mapping[str, Any]) -> list[tuple[int, float]]:
    return [
        (int(key.rpartition("_")[2]), figure["median"]) for key, figure in row.items() if key.startswith("cpu_us_at")
    ]


_PICTURES: dict[str, Callable[[Works], Any]] = {
    "cpu": _cpu,
    "memory": _memory,
    "connections": _connections,
    "workers": _pools,
}
