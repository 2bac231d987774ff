"""The tables of plugins and of commands: from the file and from the environment, and how they are written back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xformd.config import Configuration, Value, configure
from xformd.errors import ConfigError
from xformd.plugins.settings import Table

KEY = "sk-very-secret-1234"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "xformd.toml"


def read(file: Path, text: str, environment: Mapping[str, str] | None = None) -> Configuration:
    file.write_text(text)
    return configure(file, environment)


def tables(file: Path, text: str, environment: Mapping[str, str] | None = None) -> Mapping[str, Table]:
    return read(file, text, environment).settings.selection.settings


def test_each_key_of_a_table_has_its_line(file: Path) -> None:
    found = tables(
        file,
        "workers = 2\n\n[plugin.'Xformd_Summarise']\nmodel = 'm'\nlist = [\n 1,\n]\nday = 2024-01-02\n"
        "[plugin.'Xformd_Summarise'.more]\na = 1\n\n[plugin.other]\n",
    )
    values = {"model": "m", "list": [1], "day": "2024-01-02", "more": {"a": 1}}
    assert found["xformd-summarise"].values == values
    lines = {"": 3, "model": 4, "list": 5, "day": 8, "more": 9, "more.a": 10}
    assert found["xformd-summarise"].places == {key: f"{file}, line {line}" for key, line in lines.items()}
    assert found["xformd-summarise"].folder == str(file.parent)
    assert found["other"] == Table({}, {"": f"{file}, line 12"}, str(file.parent))


def test_tables_of_commands_keep_their_names_and_their_lists_of_tables(file: Path) -> None:
    text = """
        [transform.word_count]
        command = ["wc"]
        [[transform.word_count.examples]]
        poem = "a"
        [[transform.word_count.examples]]
        poem = "b"
    """
    (table,) = read(file, text).settings.selection.commands.values()
    assert table.values == {"command": ["wc"], "examples": [{"poem": "a"}, {"poem": "b"}]}
    assert table.locate("examples", "no") == f"{file}, line 4: no"
    assert table.locate("options.a", "no") == f"{file}, line 2: no"


def test_variables_stand_above_the_file(file: Path) -> None:
    text = "[plugin.xformd-x]\napi_key = 'a'\nother_file = 'b'\nmodel = 'c'\n"
    variables = {"XFORMD_PLUGIN_XFORMD_X__API_KEY_FILE": "key", "XFORMD_PLUGIN_XFORMD_X__OTHER": "o"}
    (table,) = tables(file, text, variables).values()
    assert table.values == {"model": "c", "api_key_file": "key", "other": "o"}
    assert table.places["other"] == "XFORMD_PLUGIN_XFORMD_X__OTHER"
    assert table.places[""] == f"{file}, line 1"


def test_variables_need_no_file_and_may_look_like_a_service_s() -> None:
    variables = {"XFORMD_PLUGIN_A_B__API_PORT": "tcp://10.0.0.1:1", "XFORMD_PLUGIN_A_B__C__D": "1"}
    found = configure(environment=variables).settings.selection.settings
    assert found["a-b"].values == {"api_port": "tcp://10.0.0.1:1", "c__d": "1"}
    assert found["a-b"].folder == str(Path.cwd())


def test_both_ways_to_set_it_in_the_environment_are_kept_for_the_plugin_to_reject() -> None:
    variables = {"XFORMD_PLUGIN_X__KEY": "a", "XFORMD_PLUGIN_X__KEY_FILE": "b"}
    assert configure(environment=variables).settings.selection.settings["x"].values == {"key": "a", "key_file": "b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"plugin = '{KEY}'", "line 1: plugin has a table for each: write [plugin.NAME]"),
        (f"\n[plugin]\nkey = '{KEY}'", "line 3: plugin has a table for each: write [plugin.NAME]"),
        (f"transform.x = '{KEY}'", "line 1: transform has a table for each: write [transform.NAME]"),
        (
            f"[plugins.xformd-x]\nkey = '{KEY}'",
            'line 1: plugins says which are loaded; the settings of one are in [plugin."NAME"]',
        ),
        (f"[transforms.x]\nkey = '{KEY}'", "line 1: unknown setting 'transforms'; did you mean 'transform'?"),
    ],
)
def test_a_misplaced_table_is_named_and_not_quoted(file: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(file, text)
    assert caught.value.message == f"{file}, {says}"


@pytest.mark.parametrize("variable", ["XFORMD_PLUGIN_X", "XFORMD_PLUGIN_X__", "XFORMD_PLUGIN__X", "XFORMD_PLUGIN_x__y"])
def test_other_variables_of_plugins_are_unknown_settings(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: unknown setting") as caught:
        configure(environment={variable: KEY})
    assert KEY not in caught.value.message


def test_settings_can_be_read_again_from_another_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file.write_text("[plugin.x]\na = 1\n")
    environment: dict[str, str] = {}
    before = configure(Path(file.name), environment)
    monkeypatch.chdir("/")
    file.write_text("[plugin.x]\na = 2\n[transform.y]\n")
    environment["XFORMD_PLUGIN_X__B"] = "3"
    after = before.read_again().settings.selection
    assert after.settings["x"].values == {"a": 2, "b": "3"}
    assert [*after.commands] == ["y"]
    file.write_text("[plugin.x\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        before.read_again()


# Written back.

TEXT = f"""
[plugin.xformd-x]
api_key = "{KEY}"
model = "m"
model_file = "m.txt"
cert = "c.pem"
odd = "{KEY}"
[transform.count]
command = ["wc", "-l"]
options = {{ a = {{ min = 1 }} }}
"""
TYPES = {"xformd-x": {"api_key": "secret", "model": "str", "cert": "path", "words": "list of str"}}


def rows(configuration: Configuration, types: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return {row["name"]: row for row in map(Value.to_json, configuration.table_values(types))}


def test_tables_are_written_with_their_places_and_secrets_are_not(file: Path) -> None:
    configuration = read(file, TEXT, {"XFORMD_PLUGIN_XFORMD_X__WORDS": "a,b"})
    written = configuration.to_toml(configuration.table_values(TYPES))
    assert KEY not in written
    assert f'# (from {file}, line 4)\nplugin."xformd-x".model = "m"\n' in written
    assert f'# (from {file}, line 3)\n#plugin."xformd-x".api_key = "***"\n' in written
    assert '# (from XFORMD_PLUGIN_XFORMD_X__WORDS)\nplugin."xformd-x".words = "a,b"\n' in written
    file.write_text(written)
    selection = configure(file).settings.selection
    folder = file.parent
    assert selection.settings["xformd-x"].values == {
        "model": "m",
        "model_file": f"{folder}/m.txt",
        "cert": f"{folder}/c.pem",
        "words": "a,b",
    }
    assert selection.commands["count"].values == {"command": ["wc", "-l"], "options": {"a": {"min": 1}}}


def test_json_has_null_for_what_must_not_show(file: Path) -> None:
    found = rows(read(file, TEXT), TYPES)
    assert found['plugin."xformd-x".model'] == {
        "name": 'plugin."xformd-x".model',
        "value": "m",
        "default": None,
        "unit": None,
        "place": f"{file}, line 4",
        "reason": "a setting of xformd-x",
    }
    assert [row["value"] for row in found.values()][:5] == [
        *(None, "m", str(file.parent / "m.txt"), str(file.parent / "c.pem"), None)
    ]


def test_what_no_plugin_is_known_to_take_may_be_secret(file: Path) -> None:
    values = [row["value"] for name, row in rows(read(file, TEXT), {}).items() if name.startswith("plugin")]
    assert values == [None] * 5
