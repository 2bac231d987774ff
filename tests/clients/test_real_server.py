"""All clients against the real server: it works, it is killed and comes back, and what is cancelled is killed."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import xformd
from support.clients import CLIENTS, until
from support.processes import DEADLINE_S, Server, serving
from xformd import blocking

pytestmark = pytest.mark.slow

SLEEPS = '''
import time

import xformd


@xformd.transform
def nap(poem: str, *, seconds: float = 1000.0) -> str:
    """Take its time."""
    time.sleep(seconds)
    return poem


@xformd.hookimpl
def xformd_transforms():
    return [nap]
'''


@pytest.fixture(params=CLIENTS)
def clients(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = CLIENTS[request.param]()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "naps.py").write_text(SLEEPS)
    with serving(folder, "--plugins-dir", str(plugins), "--workers", "1", XFORMD_WORKERS="1") as started:
        yield started


def test_results_and_errors(clients: Any, server: Server) -> None:
    client = clients.make(server.address)
    assert client.ping().startswith("xformd ")
    assert client.xform("wrap:width=7+upper", "one two three") == "ONE TWO\nTHREE"
    assert client.xform("gunzip", client.xform("gzip", "The Owl", result=bytes), result=str) == "The Owl"
    with pytest.raises(xformd.BadOptions, match="upper has no option 'volume'"):
        client.xform("upper", "x", volume=11)
    with pytest.raises(xformd.NoSuchTransform):
        client.xform("nope", "x")
    assert "upper" in {each["name"] for each in client.list_transforms()["transforms"]}
    poem = "long poem\n" * 200_000
    begun = [client.start("upper", poem) for _ in range(3)]
    assert [each.result(60) == poem.upper() for each in begun] == [True] * 3


def test_what_is_given_up_frees_its_worker(clients: Any, server: Server) -> None:
    client = clients.make(server.address)
    with pytest.raises(xformd.TransformTimeout):
        client.xform("nap", "x", timeout=0.5)
    assert client.xform("nap", "x", seconds=0.01, timeout=20) == "x"


def test_a_server_that_is_killed_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    kinds = [make() for make in CLIENTS.values()]
    with serving(tmp_path) as server:
        address = server.address
        made = [clients.make(address, longest_delay_s=0.2) for clients in kinds]
        assert [client.xform("upper", "x") for client in made] == ["X"] * 3
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for client in made:
            with pytest.raises((xformd.ConnectionFailed, xformd.ConnectionLost)):
                client.xform("upper", "x")
    with serving(tmp_path, "--listen", f"tcp:{address.rpartition(':')[2]}:interface=127.0.0.1"):
        assert [client.xform("upper", "x") for client in made] == ["X"] * 3
    for clients in kinds:
        clients.stop()


def test_map_of_many_poems_beside_threads(server: Server) -> None:
    with blocking.TransformClient(server.address) as client:
        wrong: list[str] = []

        def work() -> None:
            wrong.extend(each for each in client.map("upper", ["x"] * 500) if each != "X")
            wrong.extend("alone" for _ in range(100) if client.xform("upper", "y") != "Y")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert wrong == []
        started = time.monotonic()
        until(lambda: client.ping())
        assert time.monotonic() - started < DEADLINE_S
