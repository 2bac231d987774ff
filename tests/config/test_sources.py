"""Settings from a file, the environment and flags: their precedence, and how mistakes are reported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from xformd.config import TABLE, Configuration, Settings, configure
from xformd.config.types import BOOLEAN
from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.plugins.selection import Selection
from xformd.telemetry.access_log import STDERR

WRONG = ("", "many", "٣")
LIMITS = [field.name for field in attrs.fields(Limits)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "xformd.toml"


def configured(file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: Any) -> Configuration:
    return configure(file, environment, {name: (TABLE[name].flag, value) for name, value in flags.items()})


def rejection(file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(file, environment, **flags)
    return caught.value.message


def test_without_any_source_every_setting_has_its_default() -> None:
    configuration = configure()
    assert configuration.settings == Settings()
    assert {value.place for value in configuration.values} == {"default"}


def test_every_limit_is_a_setting() -> None:
    texts = {f"XFORMD_{name.upper()}": "7" for name in LIMITS}
    assert configure(environment=texts).settings.limits == Limits(**dict.fromkeys(LIMITS, 7))


def test_flags_override_variables_override_the_file(file: Path) -> None:
    file.write_text("workers = 1\nmax_queue = 1\nmax_in_flight = 1\n")
    configuration = configured(file, {"XFORMD_WORKERS": "2", "XFORMD_MAX_QUEUE": "2"}, workers="3")
    values = {value.setting.name: (value.value, value.place) for value in configuration.values}
    assert values["workers"] == (3, "--workers")
    assert values["max_queue"] == (2, "XFORMD_MAX_QUEUE")
    assert values["max_in_flight"] == (1, f"{file}, line 3")
    assert values["max_connections"] == (10_000, "default")


EXPECTED = Settings(
    listen=("unix:/run/xformd.sock", "tcp:11000"),
    selection=Selection(
        distributions=frozenset({"one", "two"}),
        blocked=frozenset({"three", "four"}),
        directories=(Path("loose").absolute(), Path("/opt/loose")),
        preferred={"upper": "two", "shout": "one"},
        strict=True,
        required=frozenset({"one==1.*", "two>=2,<3"}),
    ),
    workers=None,
    inline=frozenset({"upper", "lower"}),
    isolate=frozenset(),
    limits=Limits(max_request_bytes=65_536, max_connections_per_peer=9, request_timeout_s=0.5, idle_timeout_s=2.5),
)


def test_a_file_can_set_every_type_of_setting(file: Path) -> None:
    file.write_text("""
        listen = ["unix:/run/xformd.sock", "tcp:11000"]
        plugins = ["one", "two"]
        block = ["three", "four"]
        plugins_dir = ["loose", "/opt/loose"]
        strict = true
        require = ["one==1.*", "two>=2,<3"]
        workers = "auto"
        inline = ["upper", "lower"]
        isolate = []
        max_request_bytes = "64 KiB"
        max_connections_per_peer = 9
        request_timeout_s = "500ms"
        idle_timeout_s = 2.5
        prefer.shout = "one"
        prefer.upper = "two"
    """)
    beside = attrs.evolve(EXPECTED.selection, directories=(file.parent / "loose", Path("/opt/loose")))
    assert configure(file).settings == attrs.evolve(EXPECTED, selection=beside)
    file.write_text("[prefer]\nupper = 'two'\nshout = 'one'")
    assert configure(file).settings.selection.preferred == EXPECTED.selection.preferred


@pytest.mark.parametrize(
    ("text", "file"),
    [("none", None), ("stderr", STDERR), ("/var/log/a", Path("/var/log/a")), ("a/b", Path("a/b"))],
)
def test_the_access_log_is_a_file_or_a_word(text: str, file: Path | None, tmp_path: Path) -> None:
    assert configure(environment={"XFORMD_ACCESS_LOG": text}).settings.access_log == file
    toml = tmp_path / "xformd.toml"
    toml.write_text(f"access_log = '{text}'")
    assert configure(toml).settings.access_log == (None if file is None else tmp_path / file)


@pytest.mark.parametrize("wrong", ["''", "true", r'"a\u0000"'])
def test_any_other_access_log_is_rejected(wrong: str, tmp_path: Path) -> None:
    toml = tmp_path / "xformd.toml"
    toml.write_text(f"access_log = {wrong}")
    with pytest.raises(ConfigError, match="access_log: expected 'none', 'stderr' or a file, got "):
        configure(toml)


def test_the_environment_can_set_every_type_of_setting() -> None:
    environment = {
        "XFORMD_LISTEN": "unix:/run/xformd.sock tcp:11000",
        "XFORMD_PLUGINS": "one,two",
        "XFORMD_BLOCK": "three, four",
        "XFORMD_PLUGINS_DIR": "loose:/opt/loose",
        "XFORMD_PREFER": "upper=two,shout=one",
        "XFORMD_STRICT": "yes",
        "XFORMD_REQUIRE": "one==1.* two>=2,<3",
        "XFORMD_WORKERS": "auto",
        "XFORMD_INLINE": "upper lower",
        "XFORMD_ISOLATE": "",
        "XFORMD_MAX_REQUEST_BYTES": "64KiB",
        "XFORMD_MAX_CONNECTIONS_PER_PEER": "9",
        "XFORMD_REQUEST_TIMEOUT_S": "500ms",
        "XFORMD_IDLE_TIMEOUT_S": "2.5",
        "PATH": "/bin",
    }
    assert configure(environment=environment).settings == EXPECTED
    unlimited = configure(environment=environment | {"XFORMD_MAX_CONNECTIONS_PER_PEER": "none"})
    assert unlimited.settings.limits.max_connections_per_peer is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max_que = 1", "unknown setting 'max_que'; did you mean 'max_queue'?"),
        *((f"{name} = 1", "unknown setting 'zzz'; 'xformd config' lists them") for name in ("zzz", "zzz.a")),
        ("limits.max_queue = 1", "max_queue is inside the table 'limits'; move it to the top level"),
        *(
            (f"max_queue = {wrong}", f"max_queue: expected a whole number of at least 1, got {wrong}")
            for wrong in ("0", "true", "1.0", "'1'", "99999999999999999999", "'none'")
        ),
        ("workers = -1", "workers: expected 'auto' or a whole number of at least 0, got -1"),
        ("max_connections_per_peer = 0", "per_peer: expected 'none' or a whole number of at least 1, got 0"),
        ("max_request_bytes = '10MB'", "max_request_bytes: invalid size '10MB': try 100000 or 10MiB"),
        ("idle_timeout_s = nan", "idle_timeout_s: invalid duration nan: try 0.5, 30 or 5min"),
        ("idle_timeout_s = 0", "idle_timeout_s: invalid duration 0: it must be above 0; try 0.5, 30 or 5min"),
        *((f"log_format = {wrong}", f"log_format: expected 'text' or 'json', got {wrong}") for wrong in ("'xml'", "1")),
        *((f"strict = {wrong}", f"strict: expected true or false, got {wrong}") for wrong in ("1", "'yes'")),
        ("listen = []", "listen: expected at least 1 Twisted server endpoint"),
        ("listen = 11000", "listen: expected a list of Twisted server endpoints, got 11000"),
        ("block = [1]", "block: invalid plugin 1: use a plugin's name"),
        ("inline = ['Up Per']", "inline: invalid transform name 'Up Per': use a-z, then up to 63 of a-z 0-9 - _"),
        ("plugins = 1", "plugins: expected a list of distributions, got 1"),
        ("plugins = ''", "plugins: expected at least 1 distribution, or 'none'"),
        ("plugins = 'none,one'", "plugins: 'none' stands alone: leave it out, or the others"),
        ("plugins = ['all', 'one']", "plugins: invalid distribution 'all': it stands alone, or not at all"),
        ("prefer = 'a=b'", "prefer: expected a table such as { shout = 'xformd-shout' }, got 'a=b'"),
        ("prefer.a = 1", "prefer: expected a distribution for a, got 1"),
        ("max_queue = ", "not valid TOML: Invalid value"),
    ],
)
def test_a_mistake_in_a_file_names_its_line(file: Path, line: str, says: str) -> None:
    file.write_text(f"# one\nisolate = [\n  'three',\n]\nmax_in_flight = 1\n\n{line}\n")
    message = rejection(file)
    assert message.startswith(f"{file}, line 7: ")
    assert message.endswith(says)


def test_a_mistake_in_a_table_names_the_line_of_the_table(file: Path) -> None:
    file.write_text("\n[prefer]\na = 'one'\nb = 2\n")
    assert rejection(file) == f"{file}, line 2: prefer: expected a distribution for b, got 2"
    file.write_text("[[limits]]\nmax_queue = 1\n")
    assert rejection(file).startswith(f"{file}, line 1: unknown setting 'limits'")


def test_what_is_too_long_is_no_file_of_settings() -> None:
    assert rejection(Path("/dev/zero")) == "/dev/zero has more than 1000000 bytes, too many for a file of settings"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert rejection(missing) == f"cannot read settings from {missing}: No such file or directory"
    assert rejection(tmp_path) == f"cannot read settings from {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("XFORMD_MAX_QUE", "1", "unknown setting; did you mean 'XFORMD_MAX_QUEUE'?"),
        *((f"XFORMD_{name}", "11000", "unknown setting; 'xformd config' lists them") for name in ("FOO", "PORT")),
        *(("XFORMD_MAX_QUEUE", wrong, f"expected a whole number of at least 1, got {wrong!r}") for wrong in WRONG),
        ("XFORMD_STRICT", "perhaps", "expected true or false, got 'perhaps'"),
        ("XFORMD_PREFER", "upper", "expected NAME=DISTRIBUTION, got 'upper'"),
    ],
)
def test_a_mistake_in_a_variable_names_it(variable: str, text: str, says: str) -> None:
    assert rejection(environment={variable: text}) == f"{variable}: {says}"


def test_a_mistake_in_a_flag_names_it() -> None:
    assert rejection(max_queue="many") == "--max-queue: expected a whole number of at least 1, got 'many'"
    assert rejection(inline=("a b",)).startswith("--inline: invalid transform name 'a b': use a-z")
    assert rejection(trusted_proxies="10.0.0.1/8") == (
        "--trusted-proxies: invalid proxy '10.0.0.1/8': write it as 192.0.2.1, 10.0.0.0/8, 2001:db8::/32, or unix"
    )
    assert rejection(http=("none", "tcp:1")) == "--http: 'none' stands alone: leave it out, or the others"
    assert rejection(prefer=("echo=a", "echo=b")) == "--prefer: echo is given twice"
    assert rejection(cors=("x",)) == "--cors: invalid origin 'x': write it as https://example.org, or *"


def links_of(service: str) -> dict[str, str]:
    """Return the variables that Kubernetes sets for a service with a named port and two protocols."""
    name = service.upper().replace("-", "_")
    links = {f"{name}_SERVICE_{what}": "11000" for what in ("HOST", "PORT", "PORT_NETSTRING", "PORT_HTTP_2")}
    for protocol in ("TCP", "UDP", "SCTP"):
        at = f"{name}_PORT_11000_{protocol}"
        place = f"{protocol.lower()}://10.0.0.1:11000"
        links |= {f"{name}_PORT": place, at: place, f"{at}_PROTO": "tcp", f"{at}_PORT": "1", f"{at}_ADDR": "10.0.0.1"}
    return links


@pytest.mark.parametrize(
    "service", ["xformd", "xformd-proxy", "xformd-server", "xformd-service", "xformd-http", "xformd-max-queue-2"]
)
def test_variables_of_a_kubernetes_service_are_no_settings(service: str) -> None:
    assert configure(environment=links_of(service)).settings == Settings()


def test_no_setting_looks_like_a_variable_of_a_kubernetes_service() -> None:
    for setting in TABLE.values():
        assert "SERVICE" not in setting.variable
        assert "PORT" not in setting.variable or setting.type is BOOLEAN  # which never begins with tcp://


@pytest.mark.parametrize("name", ["PROXY_PORT", "SERVICE", "SERVICE_HOSTS", "PORT_11000", "PORT_A_TCP", "HOST"])
def test_what_only_resembles_such_a_variable_is_an_unknown_setting(name: str) -> None:
    assert rejection(environment={f"XFORMD_{name}": "11000"}).startswith(f"XFORMD_{name}: unknown setting")


def test_other_variables_are_ignored() -> None:
    ours = {"XFORMD_SERVER": "127.0.0.1:11000", "XFORMD_CONFIG": "xformd.toml", "_XFORMD_COMPLETE": "bash_source"}
    assert configure(environment=ours).settings == Settings()


def test_a_transform_cannot_be_both_inline_and_isolated(file: Path) -> None:
    file.write_text("inline = ['upper', 'lower']\n")
    message = rejection(file, isolate=("lower",))
    assert message == f"'lower' is in both inline ({file}, line 1) and isolate (--isolate); remove one"


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("block", "{file}, line 2: block"),
        ("prefer", "{file}, line 3: prefer"),
        ("isolate", "XFORMD_ISOLATE"),
        ("inline", "--inline"),
        ("listen", "listen"),
    ],
)
def test_an_error_about_a_setting_names_where_it_was_set(file: Path, setting: str, place: str) -> None:
    file.write_text("\nblock = ['a']\nprefer.b = 'c'\nprefer.d = 'e'\n")
    configuration = configured(file, {"XFORMD_ISOLATE": "f"}, inline=("g",))
    error = ConfigError("is wrong", setting=setting, details=["one", "two"])
    located = configuration.locate(error)
    assert located.message == f"{place.format(file=file)}: is wrong"
    assert located.details == ("one", "two")


def test_an_error_about_no_setting_is_not_changed() -> None:
    error = ConfigError("the server is stopping")
    assert configure().locate(error) is error


def test_a_path_with_a_null_character_is_an_invalid_setting(file: Path) -> None:
    file.write_text('plugins_dir = ["owls\\u0000"]\n')
    with pytest.raises(ConfigError, match="line 1: plugins_dir: a path cannot contain a null character"):
        configured(file)


def test_a_rate_in_bytes_is_a_size_and_no_duration() -> None:
    variables = {"XFORMD_MIN_READ_RATE_BYTES_PER_S": "2KiB"}
    assert configure(environment=variables).settings.limits.min_read_rate_bytes_per_s == 2048
    with pytest.raises(ConfigError, match="invalid size '1min'"):
        configure(environment=dict.fromkeys(variables, "1min"))
