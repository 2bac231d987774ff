"""The dashboard and the alert rules name the metrics that a server really exports, and the page explains its labels."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from support.metrics import example
from xformd.errors import ERRORS
from xformd.telemetry.metrics import MAX_TRANSFORMS, NONE, OTHERS, SEVERAL, UNKNOWN

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "monitoring.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]

NAME = re.compile(r"\b(?:xformd|process)_[a-z_]+\b")
LABEL = re.compile(r'\b([a-z_]+)(?:=~|!=|!~|=)"')
GROUPED = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")
PROMETHEUS_OWN = {"instance", "job"}


EXPORTED = example()
SAMPLES = {name for _, _, _, names in EXPORTED.values() for name in names}
LABELS = {label for _, labels, _, _ in EXPORTED.values() for label in labels} | PROMETHEUS_OWN | {"le"}


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    chosen = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return [*asked, *(query.removeprefix("label_values(").removesuffix(")") for query in chosen)]


def test_every_metric_says_what_it_means() -> None:
    assert [name for name, (_, _, meaning, _) in EXPORTED.items() if not meaning.endswith(".")] == []


def test_the_page_explains_every_value_that_is_no_name() -> None:
    assert [label for label in (SEVERAL, UNKNOWN, NONE, OTHERS) if f"`{label}`" not in PAGE] == []
    assert MAX_TRANSFORMS == 1_000


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in RULES)])
def test_every_query_names_metrics_that_are_exported(query: str) -> None:
    names = set(NAME.findall(query)) or {"up"}
    assert names <= SAMPLES | {"up"}
    asked = set(LABEL.findall(query))
    asked |= {label.strip() for group in GROUPED.findall(query) for label in group.split(",")}
    assert asked <= LABELS
    codes = set("|".join(re.findall(r'code=~?"([^"]+)"', query)).split("|")) - {""}
    assert codes <= {*ERRORS, "ok"}


def test_every_alert_has_a_severity_and_advice() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        text = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= LABELS


def test_grafana_can_import_the_dashboard() -> None:
    assert "__inputs" not in DASHBOARD  # for an import by hand alone: a file of a provider gets no answers
    source = DASHBOARD["templating"]["list"][0]
    assert (source["name"], source["type"], source["query"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
    assert DASHBOARD["id"] is None  # otherwise it would replace another
    assert DASHBOARD["schemaVersion"] >= 36
    needed = {need["id"] for need in DASHBOARD["__requires"] if need["type"] == "panel"}
    shown = list(panels())
    assert {panel["type"] for panel in shown} - {"row"} == needed
    assert len({panel["id"] for panel in shown}) == len(shown)
    for panel in (panel for panel in shown if panel["type"] != "row"):
        assert panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for used in (panel, *panel["targets"]):
            assert used["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def test_no_panels_overlap() -> None:
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_every_variable_of_the_dashboard_is_declared() -> None:
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) <= declared
