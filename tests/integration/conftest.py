"""What many tests share: a server, which none of them stops or breaks, and an environment with hostile transforms."""

from collections.abc import Iterator

import pytest

from support import hostile
from support.packages import Environment
from support.processes import VERSES, Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the built-in transforms and those of ``verses``."""
    with serving(tmp_path_factory.mktemp("server"), "--plugins=none", "--plugins-dir", str(VERSES)) as running:
        yield running


@pytest.fixture(scope="session")
def hostile_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the hostile transforms installed, and nothing else besides what is here."""
    return hostile.install(tmp_path_factory.mktemp("hostile"))
