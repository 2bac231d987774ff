"""What many tests share: a server, which none of them stops or breaks, and an environment with hostile transforms."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from support.hostile import Hostile, Hosting, hostile_server, install
from support.packages import Environment
from support.processes import VERSES, Server, serving
from support.session_client import Session


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the built-in transforms and those of ``verses``."""
    with serving(tmp_path_factory.mktemp("server"), "--plugins=none", "--plugins-dir", str(VERSES)) as running:
        yield running


@pytest.fixture(scope="session")
def hostile_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the hostile transforms installed, and nothing else besides what is here."""
    return install(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def hosting(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Hosting:
    """A function that runs a server with the hostile transforms in a folder of its own."""

    def run(*arguments: str, **extra: str) -> AbstractContextManager[Hostile]:
        return hostile_server(hostile_environment, tmp_path_factory.mktemp("hostile"), *arguments, **extra)

    return run


@pytest.fixture(scope="module")
def hostile(hosting: Hosting) -> Iterator[Hostile]:
    """A server that no transform may bring down, for each file of tests."""
    with hosting() as running:
        # Otherwise a test that finds no process left would show nothing.
        assert running.worker_pids() <= running.processes()
        yield running


@pytest.fixture
def session(hostile: Hostile) -> Iterator[Session]:
    """A session with that server."""
    with Session(hostile.server) as opened:
        yield opened
