"""Count the processes that a test run starts, with those that its servers and commands start, forked ones included.

The run's environment has a token that every descendant inherits. A thread of the process that leads the run looks at
the process table every 10 ms: no Python process ends sooner.
"""

import os
import secrets
import threading

import pytest

from support import process_table

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
    """Counts until the end of the session; more than ``limit`` processes fail the run."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        token = secrets.token_hex(8)
        self._mark = f"{TOKEN}={token}".encode()
        self._seen: set[int] = set()
        self._ours = {os.getpid()}
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
            pids = set(process_table.pids())
            new = pids - self._seen
            self._seen = pids
            self._ours &= pids
            started = {pid for pid in new - self._ours if self._is_ours(pid)}
            self._ours |= started
            self._count += len(started)

    def _is_ours(self, pid: int) -> bool:
        return process_table.parent(pid) in self._ours or process_table.has_variable(pid, self._mark)
