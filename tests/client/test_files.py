"""A file appears whole or not at all."""

from pathlib import Path

import pytest

from xformd.client.files import write_whole


def test_a_file_and_its_folder_are_made_with_the_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "owl.txt"
    write_whole(path, b"The Owl")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.read_bytes() == b"The Owl"
    assert path.stat().st_mode == plain.stat().st_mode


def test_what_cannot_be_written_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "owl.txt").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(tmp_path / "owl.txt", b"The Owl")
    assert [path.name for path in tmp_path.iterdir()] == ["owl.txt"]
