"""Discovery: the order never depends on the machine, and the first distribution on the path wins."""

import importlib.metadata
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from xformd.plugins import discovery


class Distribution:
    """An installed package with one entry point for each of these names."""

    def __init__(self, name: str, version: str, *entry_points: str) -> None:
        self.metadata = {"Name": name, "Version": version}
        self.entry_points = EntryPoints(EntryPoint(point, f"{point}_module", "xformd") for point in entry_points)

    def read_text(self, name: str) -> str | None:
        return "[xformd]\n" if name == "entry_points.txt" and self.entry_points else None


def test_plugins_are_sorted_by_distribution_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Distribution("Zoo", "1", "owl", "cat"), Distribution("boat", "1", "pea"), Distribution("plain", "1")]
    for order in (found, found[::-1]):
        monkeypatch.setattr(importlib.metadata, "distributions", lambda order=order: iter(order))
        assert [f"{one.distribution} {one.name}" for one in discovery.installed()] == ["boat pea", "Zoo cat", "Zoo owl"]


def test_the_first_distribution_of_a_name_on_the_path_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Distribution("The-Owl", "2", "owl"), Distribution("the_owl", "1", "owl")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    assert [(one.distribution, one.version) for one in discovery.installed()] == [("The-Owl", "2")]
