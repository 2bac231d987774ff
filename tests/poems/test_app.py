"""The poem servers as an operator starts them."""

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from support.logs import Log
from xformd.net import run
from xformd.poems import app


@pytest.mark.parametrize(("limit", "lines"), [(100, 1), (1_000_000, 0)])
def test_a_low_limit_on_descriptors_is_logged(
    tmp_path: Path, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch, limit: int, lines: int
) -> None:
    monkeypatch.setattr(run, "raise_limit", lambda wanted: limit)
    (tmp_path / "owl.txt").write_text("The Owl")
    app.make_poem_server(tmp_path / "owl.txt", ("tcp:0",), clock)
    assert [line.partition(" and has room")[0] for line in log.lines] == ["ulimit -n is 100"] * lines
