"""Settings that were written as TOML are read as the same, and JSON has every setting."""

import json
import tomllib
from pathlib import Path
from typing import Any

from xformd.config import TABLE, Configuration, Value, configure

FLAGS: dict[str, Any] = {
    "listen": ("unix:/run/a b.sock", r"tcp:11000:interface=\:\:1"),
    "plugins": "one,two",
    "block": ('quoted "name"\\\x7f\n', "é", "\x9b\u202e\U0001f989"),
    "plugins_dir": ("loose", "/opt/loose"),
    "prefer": {"upper": "one", "shout": "two"},
    "strict": True,
    "workers": "0",
    "inline": ("upper", "lower"),
    "isolate": ("wrap",),
    "log_format": "json",
    "access_log": "logs/access.log",
    "max_connections_per_peer": "7",
    "max_queue": "77",
    "max_request_bytes": "1537",
    "max_result_bytes": "3TiB",
    "request_timeout_s": "0.1",
    "idle_timeout_s": "1ms",
    "shutdown_grace_s": "2h",
}


def configured(**flags: Any) -> Configuration:
    return configure(flags={name: (TABLE[name].flag, value) for name, value in flags.items()})


def test_written_settings_are_read_as_the_same(tmp_path: Path) -> None:
    file = tmp_path / "written.toml"
    file.write_text(configured(**FLAGS).to_toml())
    read = configure(file)
    absolute: dict[str, Any] = {"plugins_dir": (str(Path("loose").absolute()), "/opt/loose")}
    absolute["access_log"] = str(Path("logs/access.log").absolute())
    assert read.settings == configured(**FLAGS | absolute).settings
    (place,) = [value.place for value in read.values if value.setting.name == "max_queue"]
    assert file.read_text().splitlines()[int(place.rpartition(" ")[2]) - 1] == "max_queue = 77"


def test_defaults_are_written_as_comments(tmp_path: Path) -> None:
    file = tmp_path / "written.toml"
    file.write_text(written := configure().to_toml())
    assert tomllib.loads(written) == {}
    lines = [line.removeprefix("#") if not line.startswith("# ") else line for line in written.splitlines()]
    assert set(tomllib.loads("\n".join(lines))) == set(TABLE)
    file.write_text("\n".join(lines))
    assert configure(file).settings == configure().settings


def test_each_setting_is_written_with_its_reason_and_its_place() -> None:
    written = configured(max_request_bytes="64KiB").to_toml()
    assert (
        "\n# a request is held in memory as a whole\n"
        '# (in bytes, from --max-request-bytes; default "10MiB")\n'
        'max_request_bytes = "64KiB"\n'
    ) in written
    assert "\n# (in seconds, default)\n#idle_timeout_s = 300\n" in written


def test_json_has_every_setting_in_its_unit() -> None:
    rows = {row["name"]: json.loads(json.dumps(row)) for row in map(Value.to_json, configured(**FLAGS).values)}
    assert list(rows) == list(TABLE)
    assert rows["max_request_bytes"] == {
        "name": "max_request_bytes",
        "value": 1537,
        "default": 10_485_760,
        "unit": "bytes",
        "place": "--max-request-bytes",
        "reason": "a request is held in memory as a whole",
    }
    names = ("idle_timeout_s", "inline", "prefer", "plugins")
    assert [rows[name]["value"] for name in names] == [
        *(0.001, ["lower", "upper"], {"shout": "two", "upper": "one"}, ["one", "two"])
    ]
    assert (rows["plugins"]["default"], rows["max_connections_per_peer"]["default"]) == ("all", None)
    assert rows["worker_memory_bytes"]["place"] == "default"
