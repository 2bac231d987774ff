"""A server that many tests share: none of them stops it or breaks it."""

from collections.abc import Iterator

import pytest

from integration.processes import VERSES, Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the built-in transforms and those of ``verses``."""
    with serving(tmp_path_factory.mktemp("server"), "--plugins=none", "--plugins-dir", str(VERSES)) as running:
        yield running
