"""Settings as an operator meets them: ``xformd config``, and servers that were started with what it printed."""

import json
import tomllib
from pathlib import Path

import pytest

from support.processes import netstring, serving, xformd


def values(*arguments: str, **extra: str) -> dict[str, tuple[object, str]]:
    """Return what ``xformd config`` says of each setting: its value, and where it comes from."""
    done = xformd("config", "--json", *arguments, **extra)  # type: ignore[arg-type]
    assert (done.returncode, done.stderr) == (0, b"")
    return {row["name"]: (row["value"], row["place"]) for row in json.loads(done.stdout)}


def test_every_setting_has_a_flag(tmp_path: Path) -> None:
    flags = {name: "--" + name.replace("_", "-") for name in values()}
    given = {"strict": "", "log_format": "json", "cors": "*", "plugins": "none", "prefer": "a=b", "inline": "one"}
    given["isolate"] = "two"
    arguments = [f"{flag}={given.get(name, '7')}".removesuffix("=") for name, flag in flags.items()]
    assert {place for _, place in values(*arguments).values()} == set(flags.values())


@pytest.mark.parametrize(
    ("arguments", "listen", "place"),
    [
        (("--port", "7"), ["tcp:7:interface=127.0.0.1:backlog=1024"], "--port"),
        (("--host", "::1"), [r"tcp:11000:interface=\:\:1:backlog=1024"], "--host"),
        (("--listen", "tcp:8"), ["tcp:8"], "--listen"),
        (("--listen=a", "--port=7"), ["tcp:7:interface=127.0.0.1:backlog=1024", "a"], "--port and --listen"),
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
        assert "too-large" in server.log
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
        assert server.log.count("1 are open from 127.0.0.1, which is max_connections_per_peer") == 1


def test_variables_of_settings_do_not_disturb_a_client() -> None:
    assert xformd("run", "upper", stdin=b"a", XFORMD_FOO="1", XFORMD_MAX_QUEUE="many").stdout == b"A"
