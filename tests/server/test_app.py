"""A transform server, put together from its settings."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import attrs
import pytest

from xformd.config import Settings
from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.plugins.selection import Selection
from xformd.server import app
from xformd.server.recording import RecordingService
from xformd.service import TransformService


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
    chosen = Settings(workers=0, selection=Selection(distributions=frozenset()), **settings)
    server = app.make_server(chosen, Mock())
    assert reserved == [count]
    server._reloader.on_change(attrs.evolve(chosen, limits=Limits(max_connections=7)))
    assert reserved == [count, count]
    assert server.limits.max_connections == 3


def test_jobs_without_http_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs_dir: jobs are asked for over HTTP, and http is none"):
        app.make_server(Settings(http=(), jobs_dir=tmp_path / "jobs"), Mock())


def test_a_folder_for_records_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"record: .*/file/folder: Not a directory"):
        app.make_server(Settings(record=tmp_path / "file" / "folder"), Mock())


def whisper(poem: str) -> str:
    """Say it quietly."""
    return poem.lower()


def test_a_server_that_records_holds_to_the_limits_that_a_reload_has_changed(tmp_path: Path) -> None:
    service = TransformService.from_functions(whisper, reactor=Mock())
    recording = RecordingService(service, Settings(record=tmp_path / "record"), Mock())
    service.set_limits(attrs.evolve(Limits(), max_result_bytes=7))
    assert recording.max_result_bytes == 7
