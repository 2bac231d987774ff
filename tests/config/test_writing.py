"""Settings as they are shown: a file that means the same, and JSON."""

import json
import tomllib
from pathlib import Path
from typing import Any

from xformd.config import TABLE, Configuration, Value, configure

EVERYTHING: dict[str, Any] = {
    "listen": ("unix:/run/a b.sock", r"tcp:11000:interface=\:\:1"),
    "plugins": "one,two",
    "block": ('quoted "name"\\\x7f\n', "é"),
    "plugins_dir": ("loose", "/opt/loose"),
    "prefer": {"upper": "one", "shout": "two"},
    "strict": True,
    "workers": "0",
    "inline": ("upper", "lower"),
    "isolate": ("wrap",),
    "log_format": "json",
    "max_connections_per_peer": "7",
    "max_queue": "77",
    "max_request_bytes": "1537",
    "max_result_bytes": "3TiB",
    "request_timeout_s": "0.1",
    "idle_timeout_s": "1ms",
    "shutdown_grace_s": "2h",
}


def given(flags: dict[str, Any]) -> Configuration:
    return configure(flags={name: (TABLE[name].flag, value) for name, value in flags.items()})


def saved(configuration: Configuration, folder: Path) -> Path:
    file = folder / "saved.toml"
    file.write_text(configuration.to_toml())
    return file


def test_the_defaults_that_were_saved_are_the_defaults(tmp_path: Path) -> None:
    configuration = configure()
    assert configure(saved(configuration, tmp_path)).settings == configuration.settings


def test_a_file_without_its_comment_signs_means_the_same(tmp_path: Path) -> None:
    shown = configure().to_toml()
    lines = [line.removeprefix("#") if not line.startswith("# ") else line for line in shown.splitlines()]
    assert set(tomllib.loads("\n".join(lines))) == set(TABLE)
    (tmp_path / "all.toml").write_text("\n".join(lines))
    assert configure(tmp_path / "all.toml").settings == configure().settings


def test_what_was_saved_means_the_same_and_names_its_line(tmp_path: Path) -> None:
    configuration = given(EVERYTHING)
    read = configure(saved(configuration, tmp_path))
    absolute = given(EVERYTHING | {"plugins_dir": (str(Path("loose").absolute()), "/opt/loose")})
    assert read.settings == absolute.settings
    lines = (tmp_path / "saved.toml").read_text().splitlines()
    (place,) = [value.place for value in read.values if value.setting.name == "max_queue"]
    assert lines[int(place.rpartition(" ")[2]) - 1] == "max_queue = 77"


def test_each_setting_says_what_it_is_for_and_where_it_comes_from() -> None:
    shown = given({"max_request_bytes": "64KiB"}).to_toml()
    assert (
        "\n# a request is held in memory as a whole\n"
        '# (in bytes, from --max-request-bytes; default "10MiB")\n'
        'max_request_bytes = "64KiB"\n'
    ) in shown
    assert "\n# (in seconds, default)\n#idle_timeout_s = 300\n" in shown


def test_json_has_every_setting_in_its_unit() -> None:
    rows = {row["name"]: json.loads(json.dumps(row)) for row in map(Value.to_json, given(EVERYTHING).values)}
    assert list(rows) == list(TABLE)
    assert rows["max_request_bytes"] == {
        "name": "max_request_bytes",
        "value": 1537,
        "default": 10_485_760,
        "unit": "bytes",
        "place": "--max-request-bytes",
        "reason": "a request is held in memory as a whole",
    }
    assert rows["idle_timeout_s"]["value"] == 0.001
    assert rows["inline"]["value"] == ["lower", "upper"]
    assert rows["prefer"]["value"] == {"shout": "two", "upper": "one"}
    assert rows["plugins"]["value"] == ["one", "two"]
    assert rows["plugins"]["default"] == "all"
    assert rows["worker_memory_bytes"]["place"] == "default"
    assert rows["max_connections_per_peer"]["default"] is None
