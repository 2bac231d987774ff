"""``twistd xformd``, ``xformd-proxy`` and ``xformd-poem``, and a ``.tac`` file, workers included."""

import re
import secrets
import signal
import subprocess
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import process_table
from support.packages import build_wheel
from support.poems import ANYWHERE
from support.processes import DEADLINE_S, Server, environment, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

TWISTD = (str(Path(sysconfig.get_path("scripts")) / "twistd"), "--nodaemon", "--pidfile=")
STOPPED = -signal.SIGTERM
"""The exit status of twistd when it was told to stop."""

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
LOOSE = """
import os
import xformd

@xformd.transform
def pid(poem: str) -> str:
    {first}
    return "{version} %d" % os.getpid()

@xformd.hookimpl
def xformd_transforms():
    return [pid]
"""


@contextmanager
def twistd(folder: Path, *arguments: str, verb: tuple[str, ...] = ("xformd",)) -> Iterator[tuple[Server, str]]:
    """Run a server under twistd, and check that no process of it is left."""
    folder.mkdir(exist_ok=True)
    token = secrets.token_hex(8)
    variables = {process_table.TOKEN: token}
    command = {"command": TWISTD, "verb": verb, "ready": "listening on", "where": ()}
    try:
        with serving(folder, *arguments, **command, **variables) as server:  # type: ignore[arg-type]
            server.address = server.greeting[-1].rpartition(" ")[2]
            yield server, token
        wait_until(lambda: not process_table.bearing(token))
    finally:
        process_table.kill(process_table.bearing(token))


def settings(folder: Path, first: str = "") -> tuple[Path, tuple[str, str]]:
    """Write a loose plugin and a settings file; return the plugin, and the options that name the settings."""
    loose = folder / "loose"
    loose.mkdir()
    (loose / "own.py").write_text(LOOSE.format(first=first, version="first"))
    file = folder / "xformd.toml"
    file.write_text(
        f"listen = '{ANYWHERE}'\nplugins = 'none'\nplugins_dir = ['loose']\nworkers = 1\nmax_in_flight = 7\n"
    )
    return loose / "own.py", ("--config", str(file))


def test_workers_run_are_reloaded_and_end(tmp_path: Path) -> None:
    plugin, config = settings(tmp_path)
    with twistd(tmp_path, *config) as (server, token):
        with Session(server) as session:
            version, first = session.ask("pid").poem.split()
            assert version == b"first"
            assert int(first) in process_table.bearing(token) - {server.process.pid}
            plugin.write_text(LOOSE.format(first="", version="second"))
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: session.ask("pid").poem.startswith(b"second"))
            wait_until(lambda: int(first) not in process_table.bearing(token))
        assert server.stop() == STOPPED
        assert server.log == ""


def test_an_access_log_is_written_and_opened_anew(tmp_path: Path) -> None:
    _, config = settings(tmp_path)
    with Path(config[1]).open("a") as file:
        file.write("access_log = 'access.log'\n")
    log = tmp_path / "access.log"
    with twistd(tmp_path, *config) as (server, _), Session(server) as session:
        session.ask("upper", b"owl")
        wait_until(lambda: " transform=upper code=ok " in log.read_text())
        log.unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(log.exists)
        session.ask("upper", b"owl")
        assert server.stop() == STOPPED
    assert log.read_text().count(" transform=upper code=ok ") == 1


def test_a_request_in_flight_is_answered_before_twistd_ends(tmp_path: Path) -> None:
    _, config = settings(tmp_path, 'open(poem, "w").close(); __import__("time").sleep(0.5)')
    started = tmp_path / "started"
    with twistd(tmp_path, *config) as (server, _), Session(server) as session:
        (number,) = session.send(("pid", str(started).encode()))
        wait_until(started.exists)
        server.process.terminate()
        (answer,) = session.collect([number])
        assert answer.code == "ok"


def test_the_second_signal_ends_the_drain(tmp_path: Path) -> None:
    _, config = settings(tmp_path)
    with Path(config[1]).open("a") as file:
        file.write("drain_delay_s = 60\nlog_file = 'own.log'\n")
    with twistd(tmp_path, *config) as (server, _), Session(server) as session:
        session.ask("upper", b"owl")
        server.process.terminate()
        wait_until(lambda: "draining: " in (tmp_path / "own.log").read_text())
        assert session.ask("upper", b"owl").poem == b"OWL"
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == STOPPED


def test_the_tac_of_the_page_is_a_server(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", OPERATING.read_text(), re.MULTILINE | re.DOTALL)
    tac = tmp_path / "xformd.tac"
    tac.write_text(program.replace("tcp:11000:", "tcp:0:").replace("Settings(", "Settings(http=(), "))
    with twistd(tmp_path, "--python", str(tac), verb=()) as (server, _), Session(server) as session:
        assert session.ask("wrap:width=3", b"owl cat").poem == b"owl\ncat"
        assert server.stop() == STOPPED


def test_a_caching_proxy_answers_from_its_cache(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--workers", "0") as upstream:
        flags = ("--listen", ANYWHERE, "--cache-bytes", "1MiB", upstream.address)
        with twistd(tmp_path / "proxy", *flags, verb=("xformd-proxy",)) as (proxy, _), Session(proxy) as session:
            assert session.ask("upper", b"owl").poem == b"OWL"
            assert upstream.stop() == 0
            assert session.ask("upper", b"owl").poem == b"OWL"
            assert proxy.stop() == STOPPED


def test_a_poem_server_and_a_proxy_in_front_of_it(tmp_path: Path) -> None:
    poem = tmp_path / "owl.txt"
    poem.write_bytes(b"The Owl\n")
    serve, proxy_of = (("xformd-poem", verb, "--listen", ANYWHERE) for verb in ("serve", "proxy"))
    with twistd(tmp_path, "--slow", "1KiB", str(poem), verb=serve) as (server, _):
        assert server.ask(b"") == b"The Owl\n"
        with twistd(tmp_path / "proxy", "--ttl", "60", server.address, verb=proxy_of) as (proxy, _):
            assert proxy.ask(b"") == b"The Owl\n"
            assert server.stop() == STOPPED
            assert proxy.ask(b"") == b"The Owl\n"
            assert proxy.stop() == STOPPED
            wait_until(lambda: proxy.log == "")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("XFORMD_WORKERS=many xformd", 1, "bad-config: XFORMD_WORKERS: expected 'auto' or"),
        ("XFORMD_PLUGINS=xformd-nowhere xformd", 1, "xformd-nowhere"),
        ("XFORMD_LISTEN=unix:/no/such/socket xformd", 1, "cannot listen on unix:/no/such/socket: No such"),
        ("XFORMD_HTTP=no:such xformd", 1, "XFORMD_HTTP: 'no:such': Unknown endpoint type"),
        ("xformd --config /no/such/file", 1, "xformd: bad-config: cannot read settings from /no/such/file: No such"),
        ("xformd --worker 1", 1, "No such option"),
        ("xformd-proxy no:such:endpoint", 1, "xformd: bad-config: server address 'no:such:endpoint'"),
        # It asks its upstreams before it listens, so twistd has started by then.
        ("xformd-proxy --listen unix:/no/such/socket 127.0.0.1:1", 1, "cannot listen on unix:/no/such/socket: No such"),
        ("xformd-poem serve /no/such/file", 1, "bad-config: cannot serve /no/such/file: No such file or directory"),
        ("xformd-poem proxy --listen unix:/no/such/socket a:1", 1, "cannot listen on unix:/no/such/socket: No such"),
    ],
)
def test_twistd_ends_and_names_a_mistake(arguments: str, status: int, says: str) -> None:
    words = arguments.split()
    given = dict(word.split("=") for word in words if word.startswith("XFORMD_"))
    variables = {"XFORMD_LISTEN": ANYWHERE, "XFORMD_HTTP": "none"} | given
    command = [*TWISTD, *words[len(given) :]]
    done = subprocess.run(command, capture_output=True, env=environment(variables), timeout=DEADLINE_S, check=False)
    assert done.returncode == status
    assert says in (done.stdout + done.stderr).decode()


def test_the_file_is_where_twistd_looks_once_xformd_is_installed(tmp_path: Path) -> None:
    wheel = build_wheel(Path(__file__).parents[2], tmp_path)
    assert "twisted/plugins/xformd_services.py" in zipfile.ZipFile(wheel).namelist()
