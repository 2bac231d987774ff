"""schemathesis asks a running server everything that its description allows, and much that it does not."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import DEADLINE_S, Server, serving, wait_until

HERE = Path(__file__).parents[1] / "support" / "fuzzing"
ANY_HTTP = ("--plugins=none", "--workers=1", "--http", "tcp:0:interface=127.0.0.1")
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
"""For `make fuzz`: ask that much of every operation, and something else each time."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers HTTP, and is ready."""
    with serving(tmp_path_factory.mktemp("server"), *ANY_HTTP) as running:
        wait_until(lambda: is_ready(running))
        yield running


def is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.http}/readyz", timeout=DEADLINE_S) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False


def test_a_running_server_keeps_to_its_description(server: Server, tmp_path: Path) -> None:
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"{server.http}/openapi.json", "--phases=examples,coverage,fuzzing", "--continue-on-failure"),
            *(f"--max-examples={EXAMPLES or 5}", *([] if EXAMPLES else ["--seed=1"])),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        timeout=3_600 if EXAMPLES else 60,
        check=False,
    )
    said = asked.stdout.decode()
    assert asked.returncode == 0, said
    assert "generated" in said
    assert "Traceback" not in server.log
    assert server.process.poll() is None
