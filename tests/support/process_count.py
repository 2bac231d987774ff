"""Count the processes that a test run starts, those that its servers and commands start included.

The run's environment carries a token that every descendant inherits, whoever its parent has become. A thread of the
process that leads the run looks at the process table every 10 ms; what ends sooner than that goes uncounted, and no
Python process does.
"""

import os
import secrets
import threading
from pathlib import Path

import pytest

TOKEN = "TEST_RUN_TOKEN"
"""The environment variable. Tests drop what begins with ``XFORMD_``."""

INTERVAL_S = 0.01


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--max-processes", type=int, metavar="N", help="count the processes started; fail above N")


def pytest_configure(config: pytest.Config) -> None:
    limit = config.getoption("--max-processes")
    if limit is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ProcessCount(limit))


class ProcessCount:
    """Counts until the end of the session.

    Args:
        limit: more processes than that fail the run.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        token = secrets.token_hex(8)
        self._mark = f"{TOKEN}={token}".encode()
        self._seen: set[str] = set()
        self._ours = {str(os.getpid())}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        os.environ[TOKEN] = token
        self._thread.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._is_over.set()
        self._thread.join()
        if self._count > self._limit and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verdict = "at most" if self._count <= self._limit else "too many: at most"
        terminalreporter.write_line(f"processes started: {self._count}, {verdict} {self._limit} are allowed")

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            pids = {entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()}
            new = pids - self._seen
            self._seen = pids
            self._ours = {pid for pid in self._ours if pid in pids}
            started = {pid for pid in new - self._ours if self._is_ours(pid)}
            self._ours |= started
            self._count += len(started)

    def _is_ours(self, pid: str) -> bool:
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            return parent in self._ours or self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or is another user's
            return False
