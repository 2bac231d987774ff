"""``twistd xformd`` and a ``.tac`` file, workers included."""

import re
import secrets
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.test_poem_twistd import TWISTD, address_of, refused
from support import process_table
from support.packages import build_wheel
from support.poems import ANYWHERE
from support.processes import Server, serving, wait_until
from support.session_client import Session

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
LOOSE = """
import os
import xformd

@xformd.transform
def pid(poem: str) -> str:
    return "{version} %d" % os.getpid()

@xformd.hookimpl
def xformd_transforms():
    return [pid]
"""


@contextmanager
def twistd(folder: Path, *arguments: str, verb: tuple[str, ...] = ("xformd",)) -> Iterator[tuple[Server, str]]:
    """Run a server under twistd, and see to it that no process of it is left."""
    token = secrets.token_hex(8)
    variables = {process_table.TOKEN: token}
    try:
        with serving(folder, *arguments, command=TWISTD, verb=verb, ready="listening on", **variables) as server:
            yield address_of(server), token
        wait_until(lambda: not process_table.bearing(token))
    finally:
        process_table.kill(process_table.bearing(token))


def test_workers_run_are_reloaded_and_end(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "own.py").write_text(LOOSE.replace("{version}", "first"))
    flags = ("--plugins", "none", "--plugins-dir", str(loose), "--workers", "2", "--max-in-flight", "7")
    with twistd(tmp_path, *flags) as (server, token):
        with Session(server) as session:
            version, first = session.ask("pid").poem.split()
            assert version == b"first"
            assert int(first) in process_table.bearing(token) - {server.process.pid}
            (loose / "own.py").write_text(LOOSE.replace("{version}", "second"))
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: session.ask("pid").poem.startswith(b"second"))
            wait_until(lambda: int(first) not in process_table.bearing(token))
        assert server.stop() == -signal.SIGTERM  # twistd's way to say that it did as it was told
        assert server.log == ""


def test_a_request_in_flight_is_answered_before_twistd_ends(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "own.py").write_text(
        LOOSE.replace('return "', 'open(poem, "w").close()\n    __import__("time").sleep(0.5)\n    return "')
    )
    started = tmp_path / "started"
    with twistd(tmp_path, "--plugins=none", "--plugins-dir", str(loose), "--workers=1") as (server, _):
        with Session(server) as session:
            (number,) = session.send(("pid", str(started).encode()))
            wait_until(started.exists)
            server.process.terminate()
            (answer,) = session.collect([number])
            assert answer.code == "ok"


def test_the_tac_of_the_page_is_a_server(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", OPERATING.read_text(), re.MULTILINE | re.DOTALL)
    tac = tmp_path / "xformd.tac"
    tac.write_text(program.replace("tcp:11000:", "tcp:0:"))
    with (
        serving(tmp_path, "--python", str(tac), command=TWISTD, verb=(), ready="listening on", where=()) as server,
        Session(address_of(server)) as session,
    ):
        assert session.ask("wrap:width=3", b"owl cat").poem == b"owl\ncat"
        assert server.stop() == -signal.SIGTERM


def test_a_caching_proxy_answers_from_what_it_has_kept(tmp_path: Path) -> None:
    own = tmp_path / "proxy"
    own.mkdir()
    with serving(tmp_path, "--plugins=none", "--workers", "0") as upstream:
        flags = ("--listen", ANYWHERE, "--cache-bytes", "1MiB", "--max-in-flight", "7", upstream.address)
        with twistd(own, *flags, verb=("xformd-proxy",)) as (proxy, _), Session(proxy) as session:
            assert session.ask("upper", b"owl").poem == b"OWL"
            assert upstream.stop() == 0
            assert session.ask("upper", b"owl").poem == b"OWL"
            assert proxy.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "many"), "xformd: bad-config: --workers takes a whole number from 0, or 'auto', not 'many'"),
        (("--plugins", "xformd-nowhere"), "xformd-nowhere"),
        (("--config", "/no/such/file"), "xformd: bad-config: cannot read settings from /no/such/file: No such file"),
        (("--listen", "unix:/no/such/socket"), "cannot listen on unix:/no/such/socket: No such"),
        (("--port", "x"), "Parameter type enforcement failed"),
        (
            ("--http", "tcp:0"),
            "xformd: bad-config: http: HTTP needs a reactor on which asyncio runs: twistd --reactor=asyncio xformd",
        ),
    ],
)
def test_what_cannot_be_ends_twistd_and_is_said(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("xformd", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name an UPSTREAM"),
        (("--max-queue", "many", "127.0.0.1:1"), "xformd: bad-config: --max-queue takes a whole number from 1"),
        (("no:such:endpoint",), "xformd: bad-config: server address 'no:such:endpoint'"),
    ],
)
def test_what_cannot_be_of_a_proxy_ends_twistd_too(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("xformd-proxy", *arguments)


def test_a_proxy_that_cannot_listen_ends_once_it_has_asked_its_upstreams() -> None:
    said = refused("xformd-proxy", "--listen", "unix:/no/such/socket", "127.0.0.1:1", status=0)  # twistd had started
    assert "cannot listen on unix:/no/such/socket: No such" in said


def test_the_plugins_are_where_twistd_looks_once_xformd_is_installed(tmp_path: Path) -> None:
    wheel = build_wheel(Path(__file__).parents[2], tmp_path)
    plugins = {f"twisted/plugins/xformd_{name}.py" for name in ("server", "poem", "proxy")}
    assert plugins <= {*zipfile.ZipFile(wheel).namelist()}
