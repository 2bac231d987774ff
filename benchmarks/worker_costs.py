"""The work with workers that are forked: what one costs to start, and what four with a large model hold in memory."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.answers import WrongAnswer
from benchmarks.kernel import process_tree
from benchmarks.plan import Plan, interleave
from benchmarks.samples import Column, Figures, Result, Row
from benchmarks.servers import ROOT

STARTS, MODEL = "a worker's start", "4 workers with a model of 300 MB"
MODEL_BYTES = 300_000_000
_WORKERS = 4
_JOBS = 100
_PATIENCE_S = 60
_PLUGIN = f"""
import os, time, xformd

MODEL = bytearray(os.urandom(1_000_000)) * {MODEL_BYTES // 1_000_000}


@xformd.transform
def weigh(poem: str) -> str:
    time.sleep(0.05)  # so that every worker gets some
    return str(len(MODEL))


@xformd.hookimpl
def xformd_transforms():
    return [weigh]
"""


@attrs.frozen
class WorkerCosts:
    """Starts servers. Of the first, every worker does one job and is replaced: what the jobs cost is in the figure."""

    key: str
    title: str
    columns: tuple[Column, ...] = (
        Column("start_cpu_ms", "CPU ms/start, all processes", has_range=True),
        Column("copies", "copies of the model", ".2f", has_range=True),
    )

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = {name: Row(name) for name in (STARTS, MODEL)}
        interleave(rows, {STARTS: _starts, MODEL: _model}, plan.rounds)
        return Result(self.key, self.title, self.columns, rows)


def _starts() -> Figures:
    few, many = _cpu_s(5), _cpu_s(5 + _JOBS)
    return {"start_cpu_ms": 1000 * (many - few) / _JOBS, "copies": float("nan")}


def _cpu_s(jobs: int) -> float:
    """Return the CPU time of a server, from its start to its end, and of all its processes."""
    with _server("--workers", "1", "--max-jobs-per-worker", "1") as (process, port):
        with _session(port) as ask:
            for number in range(jobs):
                ask.send(number + 1, b"wrap.Owl")
                ask.receive(b"Owl")
        process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _model() -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.py").write_text(_PLUGIN)
        with _server("--workers", str(_WORKERS), "--plugins-dir", folder) as (process, port):
            with _session(port) as ask:
                for number in range(4 * _WORKERS):
                    ask.send(number + 1, b"weigh.Owl")
                for _ in range(4 * _WORKERS):
                    ask.receive(str(MODEL_BYTES).encode())
            proportional = sum(map(_pss_bytes, process_tree(process.pid)[1:]))
    return {"copies": proportional / MODEL_BYTES, "start_cpu_ms": float("nan")}


def _pss_bytes(pid: int) -> int:
    """Return a process's memory, of which what it shares with others counts in part."""
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


@attrs.frozen
class _Asking:
    connection: socket.socket

    def send(self, number: int, request: bytes) -> None:
        """Send a request."""
        message = b"%d %b" % (number, request)
        self.connection.sendall(b"%d:%b," % (len(message), message))

    def receive(self, expected: bytes = b"") -> None:
        """Read one message, and check its end."""
        length = b""
        while not length.endswith(b":"):
            length += self.connection.recv(1)
        message = self.connection.recv(int(length[:-1]) + 1, socket.MSG_WAITALL)[:-1]
        if not message.endswith(expected):
            raise WrongAnswer(repr(message[:200]))


@contextlib.contextmanager
def _session(port: int) -> Iterator[_Asking]:
    with socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as connection:
        asking = _Asking(connection)
        connection.sendall(b"8:xformd/2,")
        asking.receive()
        yield asking


@contextlib.contextmanager
def _server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command: Sequence[str] = (sys.executable, "-m", "xformd", "serve", "--port", "0", "--http", "none", *arguments)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("does not start")
        yield process, int(line.rpartition(":")[2])
    finally:
        if process.returncode is None:
            process.terminate()
            process.wait(_PATIENCE_S)
        process.stdout.close()
