"""A rolling upgrade of three servers under load; ``python -m benchmarks.rolling`` is the large form of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REQUESTS = 2_000


def test_a_plugin_upgraded_on_one_server_after_the_other_fails_no_request_and_mixes_no_versions() -> None:
    """Two of them reload, one starts again; results from the client, and from the cache, are of versions that exist."""
    command = [sys.executable, "-m", "benchmarks.rolling", "--quick", "--requests", str(REQUESTS)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["requests"] >= REQUESTS
    assert found["failed"] == 0
