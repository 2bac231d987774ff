"""Where and with what the figures were measured."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.kernel import cpu_pair
from benchmarks.servers import ROOT

_PACKAGES = (
    "xformd",
    "twisted",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "granian",
    "grpcio",
    "pebble",
    "black",
    "pillow",
    "magika",
    "onnxruntime",
    "litserve",
    "httpx",
)


def describe() -> dict[str, Any]:
    """Return what a reader of the figures has to know."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "has_changes": bool(_git("status", "--porcelain", "--", "xformd", "benchmarks/*.py", "benchmarks/peers")),
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "cpus_of_server_and_generator": cpu_pair(),
            "kernel": platform.release(),
            "load_average": os.getloadavg(),
        },
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a copy without its history
    return done.stdout.strip()
