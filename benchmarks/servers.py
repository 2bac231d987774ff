"""The servers, ours and its peers: how each is started and ended, and what it speaks."""

import contextlib
import functools
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs

from benchmarks import traffic
from benchmarks.kernel import cpu_seconds, pinned

ROOT = Path(__file__).resolve().parent.parent
ECHO_SOURCE = ROOT / "benchmarks" / "peers" / "echo.c"
ECHO_BINARY = "echo"  # in the folder that a run has for such things

OURS = "xformd"
OTHER_CHECKOUT = ", other checkout"
_HTTP = ("--http", "tcp:0:interface=127.0.0.1")
WITH_HTTP = "xformd --http"
WITH_ACCESS = "xformd --access"
OVER_HTTP = "xformd-http"
BESIEGED = "xformd-http, few slots"
SLOTS = 64
"""How many connections that one allows."""

_XFORMD = (sys.executable, "-m", "xformd")
_SERVE = (*_XFORMD, "serve", "--port", "0", "--plugins", "none")

# The CPU time of a worker that is replaced would be lost to whoever measures.
FOR_EVER = ("--max-jobs-per-worker", "1000000000")
_WORKERS = ("--workers", "2", *FOR_EVER)

_START_S = 60.0
_STOP_S = 5.0
_LOOK_S = 0.2
_IDLE_SHARE = 0.05


@attrs.frozen
class Server:
    """A server that can be started.

    Attributes:
        name: as it is called in tables.
        command: starts it; the first line of its output ends with its address.
        dialect: what it speaks; None stands for gRPC, which has a generator of its own.
        needs: what must be installed, as modules.
        pipelines: whether a client may send requests before it has the answers to earlier ones.
        line: which line of its output ends with its address.
        environ: variables that it needs besides those that there are.
        folder: where it is started: the checkout whose xformd runs.
        without_http: whether to turn off the HTTP port that xformd opens, and its metrics, unless told not to.
    """

    name: str
    command: tuple[str, ...]
    dialect: traffic.Dialect | None
    needs: tuple[str, ...] = ()
    pipelines: bool = True
    line: int = 1
    environ: Mapping[str, str] = attrs.field(factory=dict)
    folder: Path = ROOT
    without_http: bool = False


@attrs.frozen
class Running:
    """A server that runs."""

    server: Server
    process: subprocess.Popen[str]
    address: tuple[str, int]

    @property
    def pid(self) -> int:
        """Its process, which may have others."""
        return self.process.pid


def peer(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that starts a peer."""
    return (sys.executable, "-m", f"benchmarks.peers.{module}", *arguments)


def _on_uvicorn(name: str, module: str, *needs: str) -> Server:
    return _http(name, module, "uvicorn", "uvloop", "httptools", *needs)


def _http(name: str, module: str, *needs: str, dialect: traffic.Dialect = traffic.http) -> Server:
    return Server(name, peer(module), dialect, needs=needs, pipelines=False)


def _ours(name: str, dialect: traffic.Dialect, *arguments: str) -> Server:
    """Return a server that speaks netstrings and nothing else: what HTTP costs it, only (n) is to measure."""
    return Server(name, (*_SERVE, *arguments), dialect, without_http=True)


def ours_over_http(name: str, *arguments: str) -> Server:
    """Return a server of ours that is asked over HTTP."""
    return Server(name, (*_SERVE, *_HTTP, *arguments), traffic.xformd_http, pipelines=False, line=2)


def catalog(binaries: Path) -> dict[str, Server]:
    """Return all servers.

    Args:
        binaries: the folder with what has been compiled.
    """
    servers = (
        _ours(OURS, traffic.session),
        _ours("xformd-classic", traffic.classic),
        Server(WITH_HTTP, (*_SERVE, *_HTTP), traffic.session),
        _ours(WITH_ACCESS, traffic.session, "--access", str(Path(__file__).parent / "access.toml")),
        ours_over_http(OVER_HTTP),
        ours_over_http(BESIEGED, "--max-connections", str(SLOTS)),
        _ours("xformd --isolate", traffic.session, *_WORKERS, "--isolate", traffic.TRANSFORM),
        _ours("xformd --inline", traffic.session, *_WORKERS, "--inline", traffic.TRANSFORM),
        Server("tutorial", peer("tutorial", "--kept-open"), traffic.classic),
        Server("tutorial-classic", peer("tutorial"), traffic.classic),
        _on_uvicorn("fastapi", "fastapi_app", "fastapi"),
        _on_uvicorn("starlette", "starlette_app", "starlette"),
        _on_uvicorn("asgi", "asgi_app"),
        _http("granian", "on_granian", "granian", "uvloop"),
        _http("twisted-httptools", "twisted_httptools", "httptools", dialect=traffic.xformd_http),
        Server("grpc", peer("grpc_server"), None, needs=("grpc",)),
        Server("uvloop", peer("uvloop_session"), traffic.session, needs=("uvloop",)),
        Server("echo-c", (str(binaries / ECHO_BINARY),), traffic.echo),
    )
    return {server.name: server for server in servers}


def install(folder: Path, plugin: str) -> None:
    """Leave what pip does of an installed plugin, one of the peers' modules: loose files have no version."""
    metadata = folder / f"{plugin}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[xformd]\n{plugin} = benchmarks.peers.{plugin}\n")


def with_plugins_of(folder: str) -> dict[str, str]:
    """Return the variables of a server that finds what is installed in a folder."""
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def of_other_checkout(server: Server, folder: Path) -> Server:
    """Return the same server as another checkout has it, which is started there: ``python -m`` looks there first."""
    return attrs.evolve(server, name=server.name + OTHER_CHECKOUT, folder=folder)


@functools.cache
def no_http(folder: Path) -> tuple[str, ...]:
    """Return the flags that turn off HTTP in a checkout's xformd: none where it has to be turned on."""
    config = (*_XFORMD, "config", "--json")
    shown = subprocess.run(config, cwd=folder, capture_output=True, text=True, timeout=_START_S, check=False)
    settings = json.loads(shown.stdout) if shown.returncode == 0 else []
    is_default = any(setting["name"] == "http" and setting["default"] for setting in settings)
    return ("--http", "none") if is_default else ()


def compile_echo(binaries: Path) -> None:
    """Compile the C peer where there is a compiler; without one it is left out, and said to be."""
    compiler = shutil.which("cc")
    if compiler:
        command = [compiler, "-O2", "-o", str(binaries / ECHO_BINARY), str(ECHO_SOURCE)]
        subprocess.run(command, check=False, timeout=60)


def why_not(server: Server) -> str:
    """Return what keeps a server from being started; nothing, if nothing does."""
    missing = [module for module in server.needs if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not shutil.which(server.command[0]):
        return "not compiled: is there a C compiler?"
    return ""


@contextlib.contextmanager
def running(servers: Iterable[Server], cpu: int | None) -> Iterator[tuple[list[Running], dict[str, str]]]:
    """Start servers, all at once, and end them again, each by its process id.

    Args:
        servers: which.
        cpu: where they run.

    Yields:
        The servers that have started; and for each other one, by name, why it has not.
    """
    with contextlib.ExitStack() as stack:
        started = [(server, *_start(server, cpu, stack)) for server in servers]
        ready, failed = [], {}
        for server, process, log in started:
            try:
                ready.append(Running(server, process, _read_address(server, process, log)))
            except RuntimeError as error:
                failed[server.name] = str(error)
        _await_idle(ready)
        yield ready, failed


def _start(server: Server, cpu: int | None, stack: contextlib.ExitStack) -> tuple[subprocess.Popen[str], IO[str]]:
    log = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack closes it
    with pinned(cpu):
        process = subprocess.Popen(
            (*server.command, *(no_http(server.folder) if server.without_http else ())),
            cwd=server.folder,
            env=os.environ | server.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    stack.callback(_stop, process)
    return process, log


def _read_address(server: Server, process: subprocess.Popen[str], log: IO[str]) -> tuple[str, int]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    lines = [process.stdout.readline() for _ in range(server.line if ready else 0)]
    line = lines[-1] if ready else ""
    host, colon, port = line.strip().rpartition(" ")[2].removeprefix("http://").rpartition(":")
    if not colon:
        log.seek(0)
        complaint = (log.read() or line).strip().rpartition("\n")[2]
        raise RuntimeError(f"does not start: {complaint[:200]}")
    return host, int(port)


def _await_idle(started: Sequence[Running]) -> None:
    """Wait for what goes on after a server has told its address: its workers start, and would count as its requests."""
    until = time.monotonic() + _START_S
    before, is_busy = _cpu_seconds(started), True
    while is_busy and time.monotonic() < until:
        time.sleep(_LOOK_S)
        now = _cpu_seconds(started)
        before, is_busy = now, now - before > _IDLE_SHARE * _LOOK_S


def _cpu_seconds(started: Sequence[Running]) -> float:
    return sum(cpu_seconds(each.pid) for each in started)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@attrs.frozen
class Ended:
    """What a command that has ended took."""

    wall_s: float
    cpu_s: float
    output: bytes


def run_to_end(command: Sequence[str], cpu: int | None, compiled: Path) -> Ended:
    """Run a Python command from its start to its end.

    Args:
        command: what to run.
        cpu: where.
        compiled: a folder for compiled modules. Where nothing may be written beside the sources, every start would
            compile what is in a checkout anew, and nothing of what pip has installed.

    Returns:
        What it took of the clock and of the CPU.
    """
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(compiled), "PYTHONDONTWRITEBYTECODE": ""}
    with pinned(cpu):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, env=environment)
        assert process.stdout is not None
        try:
            with process.stdout:
                output = process.stdout.read()
            # Not Popen.wait(): the kernel gives what a process used only to whoever waits for it this way.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C, or the end of this process
            process.kill()
            raise
        wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Ended(wall_s, usage.ru_utime + usage.ru_stime, output)
