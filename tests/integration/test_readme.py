"""The README's commands, pasted in their order into a fresh shell on what is as good as a fresh machine.

It has a network of its own, so that the default ports are free, and no packages but those that pip is given.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import packages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEP = re.compile(
    r"`(?P<file>[\w.]+)`[^`]*?:\n\n```(?:python|toml)\n(?P<text>.*?)^```$|^```(?P<kind>sh|console)\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
OWN_NETWORK = ["unshare", "--net", "--map-root-user", "--kill-child=SIGKILL", "--pid", "--fork"]
LONGEST_S = 600


def test_the_commands_work_in_their_order_at_the_first_try(tmp_path: Path) -> None:
    if not shutil.which("ip") or subprocess.run([*OWN_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a network namespace of its own: run as root, with iproute2 installed")
    clone, home, wheels = tmp_path / "clone", tmp_path / "home", tmp_path / "wheels"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv*", ".*cache", ".cov*", "__pycache__"))
    home.mkdir()
    packages.download(wheels, str(clone), "hatchling", "pip")
    script = "\n".join(["set -m", "ip link set lo up", *_pasted(home / "xformd-whisper"), "kill %1; wait"])
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).resolve().parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(
        [*OWN_NETWORK, "bash", "-c", script],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LONGEST_S,
        check=False,
    )
    printed = done.stdout.decode()
    for expected in _expected():
        assert expected in printed
        printed = printed.partition(expected)[2]


def _steps() -> list[re.Match[str]]:
    return [*STEP.finditer((ROOT / "README.md").read_text())]


def _pasted(new_folder: Path) -> list[str]:
    """Return the script of somebody who pastes every command, and writes the files that the page shows."""
    lines: list[str] = []
    for step in _steps():
        if step["file"]:
            lines += [f"mkdir -p {new_folder}; cd {new_folder}", f"cat > {step['file']} <<'END'", step["text"] + "END"]
        elif step["kind"] == "sh":
            lines.append(step["block"])
        else:
            lines += [line[2:] for line in step["block"].splitlines() if line.startswith("$ ")]
    return lines


def _expected() -> list[str]:
    """Return what the console blocks show, in their order."""
    blocks = [step["block"] for step in _steps() if step["kind"] == "console"]
    return [line for block in blocks for line in block.splitlines() if not line.startswith("$ ")]
