"""Settings as an operator meets them: what ``xformd config`` prints, and the place at which a wrong value is named."""

import json
import tomllib
from pathlib import Path

import pytest

from support.processes import VERSES, netstring, serving, wait_until, xformd

WRONG = {
    "listen": ("nonsense:1", "'nonsense:1': Unknown endpoint type: 'nonsense'; write a Twisted server endpoint, such"),
    "plugins": ("nope", "no installed distribution 'nope' has xformd plugins; those that do: "),
    "block": ("nope", "no plugin or distribution is named 'nope'; there are"),
    "plugins_dir": ("/no/such", "no such folder: /no/such"),
    "prefer": ("owl=nope", "no loaded plugin provides a transform 'owl'"),
    "inline": ("uper", "no transform 'uper' here; did you mean 'upper'?"),
    "isolate": ("uper", "no transform 'uper' here; did you mean 'upper'?"),
}
"""A setting to a value that reads well and is wrong all the same, and what is said of it."""

OF_PLUGINS = ("plugins", "block", "plugins_dir", "prefer")


def assert_refused(command: str, arguments: tuple[str, ...], variables: dict[str, str], begins: str) -> None:
    """See that a command says one thing and stops; one that would serve does so nowhere else."""
    done = xformd(*command.split(), *arguments, stdin=b"a", **variables)
    assert (done.returncode, done.stdout) == (78, b"")
    assert done.stderr.decode().startswith(f"xformd: bad-config: {begins}")
    assert done.stderr.count(b"\n") == 1


def file_with(folder: Path, setting: str, value: str) -> Path:
    """Write a file whose third line is wrong."""
    file = folder / "xformd.toml"
    name, _, distribution = value.partition("=")
    shown = json.dumps({name: distribution}).replace(":", " =") if distribution else json.dumps([value])
    file.write_text(f"# one\n\n{setting} = {shown}\n")
    return file


@pytest.mark.parametrize(
    "setting", [pytest.param(each, marks=pytest.mark.slow) if each == "isolate" else each for each in WRONG]
)
def test_a_server_s_wrong_setting_is_named_with_its_place(tmp_path: Path, setting: str) -> None:
    value, says = WRONG[setting]
    file = file_with(tmp_path, setting, value)
    assert_refused("serve", ("--config", str(file)), {}, f"{file}, line 3: {setting}: {says}")
    variable = f"XFORMD_{setting.upper()}"
    assert_refused("serve", (), {variable: value}, f"{variable}: {says}")
    flag = "--" + setting.replace("_", "-")
    assert_refused("serve", (flag, value), {}, f"{flag}: {says}")


@pytest.mark.parametrize("command", ["list-transforms", "check", "run upper"])
def test_a_command_s_wrong_plugins_are_named_with_their_place(tmp_path: Path, command: str) -> None:
    for setting in OF_PLUGINS:
        value, says = WRONG[setting]
        file = file_with(tmp_path, setting, value)
        assert_refused(command, (), {"XFORMD_CONFIG": str(file)}, f"{file}, line 3: {setting}: {says}")
    assert_refused(command, (), {"XFORMD_BLOCK": "nope"}, f"XFORMD_BLOCK: {WRONG['block'][1]}")
    assert_refused(command, ("--block", "nope"), {}, f"--block: {WRONG['block'][1]}")


def test_a_strict_server_says_who_wants_it_strict(tmp_path: Path) -> None:
    (tmp_path / "torn.py").write_text("1 / 0\n")
    done = xformd("serve", "--plugins=none", "--plugins-dir", str(tmp_path), "--port=0", XFORMD_STRICT="yes")
    first, last = done.stderr.decode().splitlines()
    assert first.startswith("xformd: plugin torn.py")
    assert last == "xformd: bad-config: XFORMD_STRICT: some plugins failed or provide the same transform"


def test_a_place_to_listen_beside_a_port_is_not_said_to_be_the_port_s() -> None:
    says = f"--port and --listen: {WRONG['listen'][1]}"
    assert_refused("serve", ("--port=0", "--listen", "nonsense:1"), {}, says)


def test_a_poem_server_has_flags_alone() -> None:
    for command in ("poem serve README.md", "poem proxy 127.0.0.1:1"):
        assert_refused(command, ("--listen", "nonsense:1"), {}, f"--listen: {WRONG['listen'][1]}")
        assert_refused(command, ("--listen", "stdio:"), {}, "--listen: 'stdio:': standard input is a single connection")


# What the other commands take from a server's settings.


def settings_with_verses(folder: Path, *lines: str) -> str:
    """Write a file that selects a folder of plugins."""
    file = folder / "xformd.toml"
    file.write_text("\n".join([f"plugins_dir = [{json.dumps(str(VERSES))}]", "plugins = 'none'", *lines]))
    return str(file)


@pytest.mark.parametrize("way", ["--config", "XFORMD_CONFIG", "XFORMD_PLUGINS_DIR"])
def test_commands_without_a_server_have_the_plugins_that_it_would_have(tmp_path: Path, way: str) -> None:
    # What concerns a server alone is no business of theirs, be it wrong for the plugins that are there.
    file = settings_with_verses(tmp_path, "workers = 7", "inline = ['uper']", "listen = 'nonsense:1'")
    arguments = ("--config", file) if way == "--config" else ()
    variables = {} if arguments else {way: file if way == "XFORMD_CONFIG" else str(VERSES)}
    for command, says in (
        ("list-transforms", b"backwards"),
        ("check verses.py", b"backwards"),
        ("run backwards", b"lwo"),
    ):
        if way == "--config" or command == "list-transforms":
            assert says in xformd(*command.split(), *arguments, stdin=b"owl", **variables).stdout


def test_flags_go_before_the_file_for_every_command(tmp_path: Path) -> None:
    file = settings_with_verses(tmp_path)
    there = xformd("run", "backwards", "--config", file, "--block", "verses", stdin=b"owl")
    assert (there.returncode, there.stdout) == (66, b"")
    assert xformd("run", "backwards", "--config", file, stdin=b"owl", XFORMD_BLOCK="verses").returncode == 66


@pytest.mark.parametrize("command", ["serve", "config", "list-transforms", "check", "run upper"])
def test_a_file_is_checked_from_end_to_end(tmp_path: Path, command: str) -> None:
    file = settings_with_verses(tmp_path, "max_que = 5")
    says = f"{file}, line 3: unknown setting 'max_que'; did you mean 'max_queue'?"
    assert_refused(command, ("--config", file), {}, says)
    settings_with_verses(tmp_path, "max_queue = 'many'")
    assert_refused(command, ("--config", file), {}, f"{file}, line 3: max_queue: expected a whole number")
    assert_refused(command, ("--config", "none.toml"), {}, "cannot read settings from none.toml: No such file")
    assert_refused(command, (), {"XFORMD_PLUGINS": ""}, "XFORMD_PLUGINS: expected at least 1 distribution, or 'none'")


@pytest.mark.parametrize("command", ["serve", "config"])
def test_a_server_s_variables_and_flags_are_checked_too(command: str) -> None:
    assert_refused(command, (), {"XFORMD_MAX_QUE": "5"}, "XFORMD_MAX_QUE: unknown setting; did you mean")
    assert_refused(command, ("--max-queue", "many"), {}, "--max-queue: expected a whole number of at least 1")


def test_a_list_from_a_server_needs_no_settings() -> None:
    done = xformd("list-transforms", "--server", "127.0.0.1:1", XFORMD_BLOCK="nope", XFORMD_CONFIG="none.toml")
    assert done.returncode == 69


# What config prints.


def values(*arguments: str, **extra: str) -> dict[str, tuple[object, str]]:
    """Return what ``xformd config`` says of each setting: its value, and where it comes from."""
    done = xformd("config", "--json", *arguments, **extra)  # type: ignore[arg-type]
    assert (done.returncode, done.stderr) == (0, b"")
    return {row["name"]: (row["value"], row["place"]) for row in json.loads(done.stdout)}


def test_every_setting_has_a_flag(tmp_path: Path) -> None:
    flags = {name: "--" + name.replace("_", "-") for name in values()}
    given = {
        "strict": "",
        "reuse_port": "",
        "log_format": "json",
        "cors": "*",
        "plugins": "none",
        "prefer": "a=b",
        "inline": "one",
    }
    given |= {"record_sample": "0.5", "reload_check": "off", "record_only": "upper", "log_level": "warn"}
    given |= {"isolate": "two", "trusted_proxies": "10.0.0.0/8,unix", "tls": "all", "traces": "otlp"}
    arguments = [f"{flag}={given.get(name, '7')}".removesuffix("=") for name, flag in flags.items()]
    assert {place for _, place in values(*arguments).values()} == set(flags.values())


@pytest.mark.parametrize(
    ("arguments", "listen", "place"),
    [
        (("--port", "7"), ["tcp:7:interface=127.0.0.1"], "--port"),
        (("--host", "::1"), [r"tcp:11000:interface=\:\:1"], "--host"),
        (("--listen", "tcp:8"), ["tcp:8"], "--listen"),
        (("--listen=a", "--port=7"), ["tcp:7:interface=127.0.0.1", "a"], "--port and --listen"),
    ],
)
def test_ports_and_hosts_are_places_to_listen(arguments: tuple[str, ...], listen: list[str], place: str) -> None:
    assert values(*arguments)["listen"] == (listen, place)


def test_a_server_starts_from_what_config_printed(tmp_path: Path) -> None:
    printed = xformd("config", "--max-request-bytes", "20", "--plugins", "none", "--workers", "0")
    file = tmp_path / "xformd.toml"
    file.write_bytes(printed.stdout)
    assert tomllib.loads(printed.stdout.decode()) == {"max_request_bytes": 20, "plugins": "none", "workers": 0}
    assert xformd("config", "--config", str(file)).stdout.count(b"\n") == printed.stdout.count(b"\n")
    with serving(tmp_path, "--config", str(file)) as server:
        assert server.ask(netstring(b"upper.a")) == b"1:A,"
        assert server.ask(netstring(b"upper." + b"a" * 20)) == b""
        wait_until(lambda: "too-large" in server.log)
    again = xformd("config", "--json", "--config", str(file))
    for row in json.loads(again.stdout):
        if row["name"] in ("max_request_bytes", "plugins", "workers"):
            assert row["place"].startswith(f"{file}, line ")


def test_no_more_connections_of_one_peer_than_its_share(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    arguments = ("--plugins=none", "--max-connections-per-peer", "1", "--listen", f"unix:{place}", "--port", "0")
    with serving(tmp_path, *arguments) as server, server.connect():
        with server.connect() as second:
            assert second.recv(1) == b""
        sent = xformd("send", "upper", "--server", f"unix:{place}", stdin=b"a")
        assert (sent.returncode, sent.stdout) == (0, b"A")
        wait_until(lambda: server.log.count("1 are open from 127.0.0.1, which is max_connections_per_peer") == 1)


def test_variables_of_settings_do_not_disturb_a_client() -> None:
    assert xformd("run", "upper", stdin=b"a", XFORMD_FOO="1", XFORMD_MAX_QUEUE="many").stdout == b"A"


@pytest.mark.parametrize("way", ["flag", "variable", "file"])
def test_a_home_folder_may_be_written_as_a_tilde(tmp_path: Path, way: str) -> None:
    (tmp_path / "loose").mkdir()
    (tmp_path / "xformd.toml").write_text("plugins_dir = ['~/loose']\naccess_log = '~/log'\n")
    arguments = {"flag": ["--plugins-dir=~/loose"], "file": ["--config", str(tmp_path / "xformd.toml")]}.get(way, [])
    variables = {"XFORMD_PLUGINS_DIR": "~/loose"} if way == "variable" else {}
    shown = xformd("config", *arguments, stdin=b"", HOME=str(tmp_path), **variables).stdout.decode()
    assert f'plugins_dir = ["{tmp_path}/loose"]' in shown
    assert (f'access_log = "{tmp_path}/log"' in shown) == (way == "file")
    assert xformd("run", "upper", *arguments, stdin=b"a", HOME=str(tmp_path), **variables).stdout == b"A"


def test_a_home_folder_of_nobody_is_one_line() -> None:
    assert_refused("config", ("--plugins-dir", "~no-such-user/loose"), {}, "--plugins-dir: ~no-such-user/loose: ")
