"""Configuration and folders of plugins that others may change are rejected, with the place where they were named."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import xformd
from xformd.config import configure
from xformd.errors import ConfigError

NOBODY = 65_534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away: run the tests as root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a plugin, and a package."""
    folder = tmp_path / "above" / "plugins"
    (folder / "package" / "inner").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    for name in ("plugin.py", "__pycache__/plugin.pyc", "package/__init__.py", "package/inner/data.txt", "other.txt"):
        (folder / name).touch()
    for path in (folder.parent, folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def take(folder: Path, setting: str = "plugins_dir") -> None:
    configure(flags={setting: (f"--{setting.replace('_', '-')}", (str(folder),))})


def reason(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        take(folder)
    return refused.value.message


def test_a_folder_that_nobody_else_may_write_is_taken(folder: Path) -> None:
    take(folder)
    (folder / "other.txt").chmod(0o666)  # which nobody imports
    take(folder)
    take(folder / "missing")  # loading says so
    assert reason(folder / ("x" * 300)).endswith(": File name too long")


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o1777, 0o747])
@pytest.mark.parametrize(
    "name", [".", "plugin.py", "package", "package/__init__.py", "package/inner", "__pycache__/plugin.pyc"]
)
def test_a_folder_with_anything_that_others_may_write_is_rejected_unless_it_is_named(
    folder: Path, name: str, mode: int
) -> None:
    path = folder / name
    path.chmod(mode)
    advice = "or accept its folder with --insecure-plugins-dir"
    assert reason(folder) == f"--plugins-dir: other users may write to {path}: run chmod go-w {path}, {advice}"
    take(folder, "insecure_plugins_dir")


def test_a_folder_above_may_be_everybodys_only_if_it_is_sticky(folder: Path) -> None:
    folder.parent.chmod(0o1777)
    take(folder)
    folder.parent.chmod(0o777)
    assert f"other users may write to {folder.parent}: run chmod go-w {folder.parent}" in reason(folder)


def test_a_link_is_followed_and_its_own_place_counts(folder: Path, tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    link = open_folder / "link"
    link.symlink_to(folder)
    take(link)
    open_folder.chmod(0o777)
    assert f"other users may write to {open_folder}" in reason(link)
    open_folder.chmod(0o755)
    folder.parent.chmod(0o777)
    assert f"other users may write to {folder.parent}" in reason(link)


def test_each_link_of_several_counts(folder: Path, tmp_path: Path) -> None:
    open_folder, linked = tmp_path / "open", tmp_path / "linked"
    open_folder.mkdir()
    (open_folder / "link").symlink_to(folder)
    linked.mkdir()
    (linked / "plugins").symlink_to("../open/link")
    (linked / "plugin.py").symlink_to(open_folder / "link" / "plugin.py")
    for path in (linked, linked / "plugins"):
        take(path)
        open_folder.chmod(0o777)
        assert f"other users may write to {linked / '../open' if path.is_symlink() else open_folder}" in reason(path)
        open_folder.chmod(0o755)


def test_where_python_looks_for_what_is_compiled_counts(folder: Path) -> None:
    (folder / "__pycache__" / "plugin.pyc").unlink()
    (folder / "__pycache__").chmod(0o777)
    assert f"other users may write to {folder / '__pycache__'}" in reason(folder)
    (folder / "__pycache__").chmod(0o755)
    (folder / "helper.so").touch()
    (folder / "helper.so").chmod(0o666)
    assert f"other users may write to {folder / 'helper.so'}" in reason(folder)


@needs_root
def test_a_link_of_another_user_is_rejected(folder: Path, tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(folder)
    take(sticky / "link")
    os.chown(sticky / "link", NOBODY, -1, follow_symlinks=False)
    # Where the system protects such links (proc(5), fs.protected_symlinks), it refuses to follow it.
    words = f"{sticky / 'link'} belongs to another user", f"cannot read {sticky / 'link'}: Permission denied"
    assert any(each in reason(sticky / "link") for each in words)


@needs_root
@pytest.mark.parametrize("change", [lambda path: os.chown(path, NOBODY, -1)], ids=["owner"])
@pytest.mark.parametrize("name", [".", "..", "plugin.py", "package/inner"])
def test_what_is_another_users_is_rejected(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    change(folder / name)
    where = folder.parent if name == ".." else folder / name
    assert f"{where} belongs to another user: chown it to root or yourself" in reason(folder)
    take(folder, "insecure_plugins_dir")


@needs_root
@pytest.mark.parametrize("above", [0o755, 0o1777])
def test_a_user_takes_what_is_its_own_or_roots(folder: Path, monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    folder.parent.chmod(above)
    os.chown(folder, NOBODY, NOBODY)
    assert "belongs to another user" in reason(folder)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    take(folder)
    os.chown(folder.parent, NOBODY - 1, -1)
    assert f"{folder.parent} belongs to another user" in reason(folder)


@needs_root
def test_a_users_own_group_may_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the umask is 002, because each user has a group."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    for path in (folder, folder / "plugin.py"):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(path.stat().st_mode | stat.S_IWGRP)
    take(folder)
    os.chown(folder / "plugin.py", NOBODY, 100)
    assert f"other users may write to {folder / 'plugin.py'}" in reason(folder)


def test_the_mode_of_what_is_read_only_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes makes the folder of a ConfigMap with mode 777, and mounts it read-only."""
    folder.chmod(0o777)

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: ReadOnly)
    take(folder)


def test_a_configuration_that_others_may_write_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("workers = 1")
    file.chmod(0o644)
    assert configure(file).settings.workers == 1
    file.chmod(0o646)
    with pytest.raises(ConfigError) as refused:
        configure(file)
    assert refused.value.message == f"{file}: other users may write to {file}: run chmod go-w {file}"
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"other users may write to {tmp_path}: "):
        configure(file)


def test_a_configuration_may_come_from_a_device_or_a_pipe() -> None:
    assert configure(Path("/dev/null")).settings == configure().settings
    reader, writer = os.pipe()
    os.write(writer, b"workers = 2")
    os.close(writer)
    try:
        assert configure(Path(f"/dev/fd/{reader}")).settings.workers == 2
    finally:
        os.close(reader)


@pytest.mark.parametrize("command", [("check",), ("list-transforms",), ("run", "upper"), ("serve",), ("config",)])
def test_every_command_rejects_a_folder_in_one_line(folder: Path, command: tuple[str, ...]) -> None:
    folder.chmod(0o777)
    done = xformd(*command, "--plugins-dir", str(folder))
    assert (done.returncode, done.stderr.count(b"\n")) == (78, 1)
    assert done.stderr.startswith(f"xformd: bad-config: --plugins-dir: other users may write to {folder}: ".encode())


def test_the_file_and_the_line_or_the_variable_that_names_a_folder_is_told(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o777)
    file = tmp_path / "xformd.toml"
    file.write_text(f"workers = 1\nplugins_dir = ['{folder}']")
    with pytest.raises(ConfigError, match=f"{file}, line 2: plugins_dir: other users may write"):
        configure(file)
    with pytest.raises(ConfigError, match="XFORMD_PLUGINS_DIR: other users may write"):
        configure(environment={"XFORMD_PLUGINS_DIR": str(folder)})
    file.write_text("insecure_plugins_dir = ['above/plugins']")
    assert configure(file).settings.selection.directories == (folder,)


@pytest.mark.parametrize("flag", ["--plugins-dir", "--insecure-plugins-dir"])
def test_a_missing_folder_is_an_error(tmp_path: Path, flag: str) -> None:
    missing = tmp_path / "missing"
    done = xformd("check", "--plugins=none", "--plugins-dir", str(tmp_path), flag, str(missing))
    assert done.stderr.decode() == f"xformd: bad-config: --plugins-dir: no such folder: {missing}\n"
