"""A server with this plugin, as its users start one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

XFORMD = Path(sys.executable).with_name("xformd")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The HTTP address of a server, which runs until the tests end."""
    options = ["--plugins=xformd-magika", "--port=0", "--http=tcp:0:interface=127.0.0.1", "--workers=1"]
    with subprocess.Popen([XFORMD, "serve", *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield next(line.split()[-1] for line in process.stdout if " listening on http" in line)
        finally:
            process.terminate()
