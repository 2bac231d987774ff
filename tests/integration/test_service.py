"""A server as a service manager runs it: what it is told, a drain that loses nothing, reloads, a log that is moved."""

import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from support.http_client import HTTP, Http, connect
from support.http_front import request
from support.poems import ANYWHERE
from support.processes import DEADLINE_S, XFORMD, Server, netstring, read_to_end, serving, wait_until, xformd_process
from support.session_client import Load, Session

pytestmark = pytest.mark.slow

POEM = ("poem", "serve")
NAP = """
import time
import xformd


@xformd.transform
def nap(poem: str) -> str:
    time.sleep(1000)
    return poem


@xformd.hookimpl
def xformd_transforms():
    return [nap]
"""


class Manager:
    """A service manager: what it has been told, a message at a time."""

    def __init__(self, path: Path) -> None:
        self.environment: Any = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(DEADLINE_S)

    def close(self) -> None:
        self._socket.close()

    def wait_for(self, field: str) -> dict[str, str]:
        """Wait for a message with this field; return it."""
        while True:
            message = dict(line.split("=", 1) for line in self._socket.recv(10_000).decode().split("\n"))
            if field in message:
                return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    path = tmp_path / "owl.txt"
    path.write_text("The Owl\n")
    return path


def readiness(server: Server) -> int:
    with connect(server) as connection:
        return Http(connection).ask(request("/readyz")).status


def reload(server: Server, *more: str) -> tuple[int, str, str]:
    """Run the command; return its exit status, and what it has printed to both streams."""
    done = xformd_process("reload", "--pid", str(server.process.pid), *more)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_service_manager_is_told_of_a_servers_whole_life(tmp_path: Path, manager: Manager) -> None:
    with serving(tmp_path, "--plugins=none", "--drain-delay", "200ms", **manager.environment) as server:
        assert f"listening on {server.address}; " in manager.wait_for("READY")["STATUS"]
        assert manager.wait_for("WATCHDOG") == manager.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
        server.process.send_signal(signal.SIGHUP)
        assert int(manager.wait_for("RELOADING")["MONOTONIC_USEC"]) > 0
        assert "transforms from" in manager.wait_for("READY")["STATUS"]
        server.process.terminate()
        stopping = manager.wait_for("STOPPING")
        assert (stopping["STATUS"], int(stopping["EXTEND_TIMEOUT_USEC"]) > 30e6) == ("draining for 0.2 s", True)
        assert server.process.wait(DEADLINE_S) == 0


def test_a_server_that_cannot_tell_its_manager_serves(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", NOTIFY_SOCKET=str(tmp_path / "gone")) as server:
        assert server.ask(netstring(b"upper.a")) == b"1:A,"
        wait_until(lambda: server.log.count("the service manager cannot be told how the server is") == 1)
        assert server.log.count("the service manager cannot be told how the server is: No such file") == 0


def test_poem_servers_tell_their_manager_too_and_drain(tmp_path: Path, manager: Manager, owl: Path) -> None:
    more = (str(owl), "--drain-delay=60")
    with serving(tmp_path, *more, verb=POEM, ready="the poem of", **manager.environment) as server:
        assert server.address in manager.wait_for("READY")["STATUS"]
        server.process.terminate()
        assert manager.wait_for("STOPPING")["STATUS"] == "draining for 60 s"
        assert server.ask(b"") == b"The Owl\n"
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == 0


def test_a_drain_under_load_loses_no_request(tmp_path: Path) -> None:
    """Those that come while it lasts are answered, of each dialect; each client leaves once readiness says so."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, *HTTP, "--plugins=none", "--workers=1", "--drain-delay-s=600"))
        assert readiness(server) == 200
        sessions = [stack.enter_context(Load(server, spec)) for spec in ("strip-bom", "line-endings")]
        answers: Counter[bytes] = Counter()
        is_over = threading.Event()

        def ask_classic() -> None:
            while not is_over.is_set():
                answers[server.ask(netstring(b"upper.a"))] += 1

        classic = threading.Thread(target=ask_classic)
        classic.start()
        try:
            wait_until(lambda: answers.total() > 20 and all(load.total > 20 for load in sessions))
            server.process.terminate()
            wait_until(lambda: readiness(server) == 503)
            before = [answers.total(), *(load.total for load in sessions)]
            wait_until(lambda: answers.total() > before[0] + 20)
            wait_until(lambda: all(load.total > least + 20 for load, least in zip(sessions, before[1:], strict=True)))
            pinged = xformd_process("ping", "--server", server.address)
            assert b"it will stop soon: send new requests elsewhere" in pinged.stdout
            assert server.process.poll() is None
        finally:
            is_over.set()
            classic.join(DEADLINE_S)
        for load in sessions:
            load.stop()
            assert (load.trouble, set(load.codes)) == ("", {"ok"})
        assert set(answers) == {b"1:A,"}
        server.process.terminate()  # which ends the wait
        assert server.process.wait(DEADLINE_S) == 0


def test_the_signal_after_the_one_that_ends_the_wait_ends_the_server_at_once(tmp_path: Path) -> None:
    (tmp_path / "nap.py").write_text(NAP)
    more = ("--plugins=none", f"--plugins-dir={tmp_path}", "--workers=1", "--drain-delay-s=600")
    with serving(tmp_path, *more) as server, Session(server) as session:
        session.ask("upper", b"a")
        session.send(("nap", b""))
        server.process.terminate()
        assert session.ask("upper", b"a").poem == b"A"
        server.process.terminate()
        assert session.receive().code == "shutting-down"
        assert server.process.poll() is None
        server.process.terminate()
        assert server.process.wait(DEADLINE_S) == -signal.SIGTERM


def test_an_interrupt_does_not_wait(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--drain-delay-s=600") as server:
        assert server.stop(signal.SIGINT) == 0


# Reloads.


def test_a_reload_changes_limits_of_a_server_that_runs_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text("max_request_bytes = 1000\n")
    with serving(tmp_path, *HTTP, "--plugins=none", "--config", str(file)) as server, Session(server) as session:
        long = b"a" * 2_000
        assert session.ask("upper", b"a").poem == b"A"
        with connect(server) as connection:
            assert Http(connection).ask(request("/transform/upper", long)).status == 413
        file.write_text('max_request_bytes = 3000\nlog_format = "json"\nlog_file = "log"\nworkers = 2\n')
        status, printed, _ = reload(server)
        assert status == 0
        assert "\nchanged settings: max_request_bytes\n" in printed  # the environment of the test overrides workers
        assert "\nchanged settings that need a restart: log_file, log_format\n" in printed
        with Session(server) as newer:
            assert newer.ask("upper", long).poem == long.upper()
        with connect(server) as connection:
            assert Http(connection).ask(request("/transform/upper", long)).status == 200
        assert session.ask("upper", b"a").poem == b"A"


def test_a_reload_changes_workers_connections_and_the_level_of_the_log(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text(
        f'listen = "{ANYWHERE}"\nhttp = "none"\nplugins = "none"\nworkers = 0\nmax_connections = 9\n'
        'isolate = ["upper"]\nmax_jobs_per_worker = 1\n'
    )
    command = ("env", "--unset=XFORMD_WORKERS", *XFORMD)  # the environment would override the file
    with serving(tmp_path, "--config", str(file), where=(), command=command) as server, Session(server) as session:
        file.write_text(file.read_text().replace("= 9", "= 2").replace("= 0", "= 2") + 'log_level = "error"\n')
        status, printed, _ = reload(server)
        assert (status, "changed settings: workers, log_level, max_connections\n" in printed) == (0, True)
        with Session(server) as second:
            assert second.ask("upper", b"a").poem == session.ask("upper", b"a").poem == b"A"
            with suppress(ConnectionResetError):
                assert server.ask(netstring(b"upper.a")) == b""  # one too many
        file.write_text(file.read_text().replace('"error"', '"debug"'))
        assert "closed a new connection" not in server.log  # it is a warning
        assert reload(server)[0] == 0
        session.ask("upper", b"a")
        wait_until(lambda: "#debug] worker" in server.log)  # it has done its only job


def test_a_proxy_takes_what_may_change_of_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("max_request_bytes = 1000\n")
    verb = ("proxy", "127.0.0.1:1", "--config", str(file))
    with serving(tmp_path, verb=verb, ready="the transforms of") as proxy:
        file.write_text('max_request_bytes = 10\nmax_result_bytes = 9\nlog_level = "warn"\n')
        status, printed, _ = reload(proxy)
        assert (status, printed.splitlines()) == (
            0,
            [
                "changed settings: log_level, max_request_bytes",
                "changed settings that need a restart: max_result_bytes",
            ],
        )
        with Session(proxy) as session, pytest.raises(ConnectionError):
            session.ask("upper", b"a" * 500)
        file.write_text("max_que = 1\n")
        status, _, errors = reload(proxy)
        assert (status, "unknown setting 'max_que'" in errors) == (78, True)
        wait_until(lambda: "not reloaded: " in proxy.log)


def test_a_reload_of_a_part_says_what_stays(tmp_path: Path) -> None:
    file, access = tmp_path / "xformd.toml", tmp_path / "access.toml"
    access.write_text("[identity.anonymous]\n")
    file.write_text(f'access = "{access}"\n')
    with serving(tmp_path, "--plugins=none", "--config", str(file)) as server:
        access.write_text("[identity.anonymous]\nnonsense = 1\n")
        file.write_text(f'access = "{access}"\nmax_queue = 7\n')
        status, printed, errors = reload(server)
        assert status == 78
        assert "changed settings: max_queue\n" in printed
        assert "unknown setting 'nonsense'" in errors
        assert errors.endswith("bad-config: reloaded in part: what these lines name stays as it was\n")


def test_a_failed_start_is_told_to_who_starts_it_and_to_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    done = xformd_process("serve", "--port", "0", "--require", "xformd-nothing>=3", "--log-file", str(log))
    assert done.returncode == 78
    for text in (done.stderr.decode(), log.read_text()):
        assert "xformd-nothing" in text


def test_a_reload_that_is_refused_says_why_and_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text('host_names = ["a"]\n')
    with serving(tmp_path, *HTTP, "--plugins=none", "--config", str(file)) as server:
        file.write_text("max_que = 1\n")
        status, printed, errors = reload(server)
        assert (status, printed) == (78, "")
        assert errors.splitlines() == [
            f"xformd: {file}, line 1: unknown setting 'max_que'; did you mean 'max_queue'?",
            "xformd: bad-config: not reloaded: the server goes on with what it had",
        ]
        file.write_text("shutdown_grace_s = 5\n")
        assert reload(server)[0] == 0
        with connect(server) as connection:
            page = Http(connection).ask(request("/metrics")).body.decode()
        assert 'xformd_reloads_total{outcome="ok"} 1.0' in page
        assert 'xformd_reloads_total{outcome="failed"} 1.0' in page


def test_the_only_server_is_found_and_systemd_names_its_own(tmp_path: Path, owl: Path) -> None:
    with serving(tmp_path, str(owl), verb=POEM, ready="the poem of") as server:
        done = xformd_process("reload", MAINPID=str(server.process.pid))
        assert (done.returncode, done.stderr) == (0, b"")
    done = xformd_process("reload", "--pid", str(os.getpid()))
    assert done.returncode == 69
    assert b"is not a running xformd server" in done.stderr


def test_a_log_is_opened_again_when_it_was_moved(tmp_path: Path) -> None:
    path, old = tmp_path / "xformd.log", tmp_path / "xformd.log.1"
    with serving(tmp_path, "--plugins=none", "--log-file", str(path)) as server:

        def log_a_line() -> bool:
            server.ask(netstring(b"nope.a"))
            return path.exists() and "no-such-transform" in path.read_text()

        wait_until(log_a_line)
        path.rename(old)
        wait_until(log_a_line)
        path.rename(old)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: path.exists() and "reloaded: " in path.read_text())
        assert server.stop() == 0
        assert server.log == ""


def test_a_log_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    done = xformd_process("serve", "--port", "0", "--log-file", str(tmp_path / "no" / "log"))
    assert done.returncode == 78
    assert f"--log-file: cannot open {tmp_path}/no/log: No such file or directory".encode() in done.stderr


# Ports.


def test_several_servers_share_a_port(tmp_path: Path) -> None:
    with ExitStack() as stack:
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder in folders:
            folder.mkdir()
        first = stack.enter_context(serving(folders[0], *HTTP, "--plugins=none", "--reuse-port"))
        port = first.address.rpartition(":")[2]
        where = ("--port", port, "--plugins=none")
        second = stack.enter_context(serving(folders[1], *where, "--reuse-port", where=()))
        asked = [first.ask(netstring(b"nope.a")) for _ in range(64)]
        assert set(asked) == {b""}
        wait_until(lambda: all("no-such-transform" in server.log for server in (first, second)))
        assert first.stop() == 0
        assert {second.ask(netstring(b"upper.a")) for _ in range(20)} == {b"1:A,"}
        refused = xformd_process("serve", *where)
        assert refused.returncode == 69
        assert b"address already in use" in refused.stderr


def test_sockets_of_systemd_by_name(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        given = " ".join(f"{number}<&{each.fileno()}" for number, each in enumerate(sockets, 3))
        start = f'exec {given}; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=poems:http exec "$@"'
        place = ("--listen", "systemd:name=poems", "--http", "systemd:name=http", "--plugins=none")
        keep = [each.fileno() for each in sockets]
        command = ("bash", "-c", start, "bash", *XFORMD)
        server = stack.enter_context(serving(tmp_path, *place, command=command, keep=keep))
        ports = [each.getsockname()[1] for each in sockets]
        assert (server.address, server.http) == (f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
        assert readiness(server) == 200
        with server.connect() as connection:
            connection.sendall(netstring(b"upper.a"))
            assert read_to_end(connection) == b"1:A,"
