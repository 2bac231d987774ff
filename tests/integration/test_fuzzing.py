"""schemathesis sends a running server everything that its description allows, and much that it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import serving, wait_until

pytestmark = pytest.mark.slow

CONFIGURATION = Path(__file__).parents[1] / "support" / "fuzzing"
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
"""For `make fuzz`: how many examples of every operation, with another seed each time."""

LONGEST_S = 3_600 if EXAMPLES else 1_200
"""Ends a run that hangs. It takes about 10 s on an idle machine, and several times that beside other tests."""


def test_a_running_server_keeps_to_its_description(tmp_path: Path) -> None:
    jobs = ("--jobs-dir", str(tmp_path / "jobs"), "--node=n1")
    with serving(tmp_path, "--plugins=none", "--workers=1", *jobs, *HTTP) as server:
        with exchange(server) as client:
            wait_until(lambda: client.ask(request("/readyz")).status == 200)
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION / "schemathesis.toml")),
                *("run", f"{server.http}/openapi.json", "--phases=examples,coverage,fuzzing", "--continue-on-failure"),
                *(f"--max-examples={EXAMPLES or 5}", *([] if EXAMPLES else ["--seed=1"])),
                *("--suppress-health-check=too_slow", "--request-timeout=60"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CONFIGURATION)},
            capture_output=True,
            timeout=LONGEST_S,
            check=False,
        )
        output = run.stdout.decode()
        assert run.returncode == 0, output
        assert "generated" in output
        assert "Traceback" not in server.log
        assert server.process.poll() is None
