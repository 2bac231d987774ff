"""A transform server, put together from its settings."""

from typing import Any
from unittest.mock import Mock

import attrs
import pytest

from xformd.config import Settings
from xformd.plugins.selection import Selection
from xformd.server import app


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 2),
        ({"http": ()}, 1),
        ({"http": (), "metrics": ("tcp:0",)}, 2),
        ({"metrics": ("tcp:0", "tcp:0")}, 3),
    ],
)
def test_descriptors_are_reserved_for_each_front_that_listens(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], count: int
) -> None:
    reserved: list[int] = []

    def note(limits: Any, *, fronts: int, **_: Any) -> Any:
        reserved.append(fronts)
        return attrs.evolve(limits, max_connections=3)

    monkeypatch.setattr(app, "within_descriptors", note)
    app.make_server(Settings(workers=0, selection=Selection(distributions=frozenset()), **settings), Mock())
    assert reserved == [count]
