"""Settings from a file, the environment and flags: which goes before which, and what a mistake is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from xformd.config import TABLE, Configuration, Settings, configure
from xformd.errors import ConfigError
from xformd.limits import Limits

MIB = 1024 * 1024
LIMITS = [field.name for field in attrs.fields(Limits)]


def from_toml(folder: Path, text: str, environment: Mapping[str, str] | None = None, **flags: Any) -> Configuration:
    """Read a file, with variables and flags beside it."""
    file = folder / "xformd.toml"
    file.write_text(text)
    return configure(file, environment, {name: (TABLE[name].flag, value) for name, value in flags.items()})


def refusal(file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        configure(file, environment, {name: (TABLE[name].flag, value) for name, value in flags.items()})
    assert caught.value.exit_status == 78
    return caught.value.message


def test_nothing_said_is_what_a_server_has_by_itself() -> None:
    configuration = configure()
    assert configuration.settings == Settings()
    assert {value.place for value in configuration.values} == {"default"}


def test_every_limit_is_a_setting() -> None:
    limits = Limits(**dict.fromkeys(LIMITS, 7))
    texts = {f"XFORMD_{name.upper()}": "7" for name in LIMITS}
    assert configure(environment=texts).settings.limits == limits


def test_flags_go_before_variables_before_the_file_before_defaults(tmp_path: Path) -> None:
    text = "workers = 1\nmax_queue = 1\nmax_in_flight = 1\n"
    variables = {"XFORMD_WORKERS": "2", "XFORMD_MAX_QUEUE": "2"}
    configuration = from_toml(tmp_path, text, variables, workers="3")
    values = {value.setting.name: (value.value, value.place) for value in configuration.values}
    assert values["workers"] == (3, "--workers")
    assert values["max_queue"] == (2, "XFORMD_MAX_QUEUE")
    assert values["max_in_flight"] == (1, f"{tmp_path}/xformd.toml, line 3")
    assert values["max_connections"] == (10_000, "default")


def test_a_file_holds_everything(tmp_path: Path) -> None:
    text = """
        listen = ["unix:/run/xformd.sock", "tcp:11000"]
        plugins = ["one", "two"]
        block = ["three"]
        plugins_dir = ["loose", "/opt/loose"]
        strict = true
        workers = "auto"
        inline = ["upper"]
        isolate = ["wrap"]
        max_request_bytes = "64 KiB"
        max_connections_per_peer = 9
        request_timeout_s = "500ms"
        idle_timeout_s = 2.5
        shutdown_grace_s = "5min"
        [prefer]
        upper = "two"
    """
    settings = from_toml(tmp_path, text).settings
    assert settings.listen == ("unix:/run/xformd.sock", "tcp:11000")
    assert settings.selection.distributions == {"one", "two"}
    assert settings.selection.blocked == {"three"}
    assert settings.selection.directories == (tmp_path / "loose", Path("/opt/loose"))
    assert settings.selection.preferred == {"upper": "two"}
    assert settings.selection.strict
    assert (settings.workers, settings.inline, settings.isolate) == (None, {"upper"}, {"wrap"})
    limits = settings.limits
    assert (limits.max_request_bytes, limits.max_connections_per_peer) == (65_536, 9)
    assert (limits.request_timeout_s, limits.idle_timeout_s, limits.shutdown_grace_s) == (0.5, 2.5, 300.0)


def test_preferences_in_several_lines_belong_together(tmp_path: Path) -> None:
    settings = from_toml(tmp_path, 'prefer.a = "one"\nmax_queue = 1\nprefer.b = "two"').settings
    assert settings.selection.preferred == {"a": "one", "b": "two"}


def test_the_environment_holds_everything() -> None:
    settings = configure(
        environment={
            "XFORMD_LISTEN": "unix:/run/xformd.sock tcp:11000",
            "XFORMD_PLUGINS": "one,two",
            "XFORMD_BLOCK": "three, four",
            "XFORMD_PLUGINS_DIR": "loose:/opt/loose",
            "XFORMD_PREFER": "upper=one,shout=two",
            "XFORMD_STRICT": "yes",
            "XFORMD_WORKERS": "0",
            "XFORMD_INLINE": "upper lower",
            "XFORMD_ISOLATE": "",
            "XFORMD_MAX_RESULT_BYTES": "1GiB",
            "XFORMD_MAX_CONNECTIONS_PER_PEER": "none",
            "PATH": "/bin",
        }
    ).settings
    assert settings.listen == ("unix:/run/xformd.sock", "tcp:11000")
    assert settings.selection.distributions == {"one", "two"}
    assert settings.selection.blocked == {"three", "four"}
    assert settings.selection.directories == (Path("loose"), Path("/opt/loose"))
    assert settings.selection.preferred == {"upper": "one", "shout": "two"}
    assert settings.selection.strict
    assert (settings.workers, settings.inline, settings.isolate) == (0, {"upper", "lower"}, frozenset())
    assert settings.limits == Limits(max_result_bytes=1024 * MIB)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max_que = 1", "unknown setting 'max_que'; did you mean 'max_queue'?"),
        ("zzz = 1", "unknown setting 'zzz'; 'xformd config' lists them"),
        ("zzz.a = 1", "unknown setting 'zzz'; 'xformd config' lists them"),
        ("limits.max_queue = 1", "max_queue is inside the table 'limits'; move it to the top level"),
        ("max_queue = 0", "max_queue: expected a whole number of at least 1, got 0"),
        ("max_queue = true", "max_queue: expected a whole number of at least 1, got true"),
        ("max_queue = 1.0", "max_queue: expected a whole number of at least 1, got 1.0"),
        ("max_queue = '1'", "max_queue: expected a whole number of at least 1, got '1'"),
        ("max_queue = 99999999999999999999", "expected a whole number of at least 1, got 99999999999999999999"),
        ("max_queue = 'none'", "max_queue: expected a whole number of at least 1, got 'none'"),
        ("workers = -1", "workers: expected 'auto' or a whole number of at least 0, got -1"),
        ("max_connections_per_peer = 0", "per_peer: expected 'none' or a whole number of at least 1, got 0"),
        ("max_request_bytes = '10MB'", "max_request_bytes: invalid size '10MB': try 100000 or 10MiB"),
        ("idle_timeout_s = nan", "idle_timeout_s: invalid duration nan: try 0.5, 30 or 5min"),
        ("idle_timeout_s = 0", "idle_timeout_s: invalid duration 0: it must be above 0; try 0.5, 30 or 5min"),
        ("log_format = 'xml'", "log_format: expected 'text' or 'json', got 'xml'"),
        ("log_format = 1", "log_format: expected 'text' or 'json', got 1"),
        ("strict = 1", "strict: expected true or false, got 1"),
        ("strict = 'yes'", "strict: expected true or false, got 'yes'"),
        ("listen = []", "listen: expected at least 1 Twisted server endpoint"),
        ("listen = 11000", "listen: expected a list of Twisted server endpoints, got 11000"),
        ("block = [1]", "block: expected plugins, got 1"),
        ("inline = ['Up Per']", "inline: expected transform names, got 'Up Per'"),
        ("plugins = 1", "plugins: expected 'all', 'none' or a list of distributions, got 1"),
        ("plugins = ''", "plugins: no distribution is named; write 'none' to select none"),
        ("plugins = ['all', 'one']", "plugins: 'all' and 'none' cannot be combined with other names: 'all,one'"),
        ("prefer = 'a=b'", "prefer: expected a table such as { shout = 'xformd-shout' }, got 'a=b'"),
        ("prefer.a = 1", "prefer: expected a distribution for a, got 1"),
        ("max_queue = ", "not valid TOML: Invalid value"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text(f"# one\nisolate = [\n  'three',\n]\nmax_in_flight = 1\n\n{line}\n")
    message = refusal(file)
    assert message.startswith(f"{file}, line 7: ")
    assert message.endswith(says)


def test_a_table_s_mistake_is_named_with_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("[prefer]\na = 'one'\nb = 2\n")
    assert refusal(file) == f"{file}, line 3: prefer: expected a distribution for b, got 2"
    file.write_text("[[limits]]\nmax_queue = 1\n")
    assert refusal(file).startswith(f"{file}, line 1: unknown setting 'limits'")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "none.toml") == f"cannot read settings from {tmp_path}/none.toml: No such file or directory"
    )
    assert refusal(tmp_path) == f"cannot read settings from {tmp_path}: Is a directory"
    (tmp_path / "bytes.toml").write_bytes(b"max_queue = 1\n\xff")
    assert refusal(tmp_path / "bytes.toml") == f"{tmp_path}/bytes.toml, line 2: not valid TOML: it is not UTF-8"


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("XFORMD_MAX_QUE", "1", "XFORMD_MAX_QUE: unknown setting; did you mean 'XFORMD_MAX_QUEUE'?"),
        ("XFORMD_FOO", "1", "XFORMD_FOO: unknown setting; 'xformd config' lists them"),
        ("XFORMD_MAX_QUEUE", "", "XFORMD_MAX_QUEUE: expected a whole number of at least 1, got ''"),
        ("XFORMD_MAX_QUEUE", "many", "XFORMD_MAX_QUEUE: expected a whole number of at least 1, got 'many'"),
        ("XFORMD_MAX_QUEUE", "٣", "XFORMD_MAX_QUEUE: expected a whole number of at least 1, got '٣'"),
        ("XFORMD_STRICT", "perhaps", "XFORMD_STRICT: expected true or false, got 'perhaps'"),
        ("XFORMD_PREFER", "upper", "XFORMD_PREFER: expected NAME=DISTRIBUTION, got 'upper'"),
        ("XFORMD_PORT", "11000", "XFORMD_PORT: unknown setting; 'xformd config' lists them"),
    ],
)
def test_a_mistake_in_a_variable_names_it(variable: str, text: str, says: str) -> None:
    assert refusal(environment={variable: text}) == says


def test_a_mistake_in_a_flag_names_it() -> None:
    assert refusal(max_queue="many") == "--max-queue: expected a whole number of at least 1, got 'many'"
    assert refusal(inline=("a b",)) == "--inline: expected transform names, got 'a b'"


def test_variables_that_are_no_settings_are_left_alone() -> None:
    links = {
        "XFORMD_SERVICE_HOST": "10.0.0.1",
        "XFORMD_SERVICE_PORT": "11000",
        "XFORMD_SERVICE_PORT_NETSTRING": "11000",
        "XFORMD_PORT": "tcp://10.0.0.1:11000",
        "XFORMD_PORT_11000_TCP": "tcp://10.0.0.1:11000",
        "XFORMD_PORT_11000_TCP_ADDR": "10.0.0.1",
    }
    ours = {"XFORMD_SERVER": "127.0.0.1:11000", "XFORMD_CONFIG": "xformd.toml", "_XFORMD_COMPLETE": "bash_source"}
    assert configure(environment={**links, **ours}).settings == Settings()


def test_a_transform_cannot_be_in_two_places(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("inline = ['upper', 'lower']\n")
    message = refusal(file, isolate=("lower",))
    assert message == f"'lower' is in both inline ({file}, line 1) and isolate (--isolate); remove one"


def located(configuration: Configuration, error: ConfigError) -> str:
    return configuration.locate(error).message


def test_an_error_about_a_setting_is_told_where_that_was_set(tmp_path: Path) -> None:
    text = "\nblock = ['a']\nprefer.b = 'c'\nprefer.d = 'e'\n"
    configuration = from_toml(tmp_path, text, {"XFORMD_ISOLATE": "f"}, inline=("g",))
    file = tmp_path / "xformd.toml"
    assert located(configuration, ConfigError("is wrong", setting="block")) == f"{file}, line 2: block: is wrong"
    assert located(configuration, ConfigError("is wrong", setting="isolate")) == "XFORMD_ISOLATE: is wrong"
    assert located(configuration, ConfigError("is wrong", setting="inline")) == "--inline: is wrong"
    assert located(configuration, ConfigError("is wrong", setting="listen")) == "listen: is wrong"
    for entry, line in (("b", 3), ("d", 4)):
        error = ConfigError("is wrong", setting="prefer", entry=entry)
        assert located(configuration, error) == f"{file}, line {line}: prefer: is wrong"


def test_an_error_keeps_its_details_and_one_about_no_setting_stays_as_it_is() -> None:
    configuration = configure(environment={"XFORMD_STRICT": "yes"})
    detailed = configuration.locate(ConfigError("is wrong", setting="strict", details=["one", "two"]))
    assert (detailed.message, detailed.details) == ("XFORMD_STRICT: is wrong", ("one", "two"))
    other = ConfigError("the server is stopping")
    assert configuration.locate(other) is other
