"""Jobs on real servers: through their death and their end in good order, on three nodes, and killed at once."""

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from support.http_client import HTTP, Http, connect
from support.http_front import Answer, request
from support.live import is_running
from support.processes import Server, serving, wait_until, xformd_process
from support.timing import assert_within

pytestmark = pytest.mark.slow

NAPS = """
import os, time, xformd

def mark(poem):
    with open(os.path.join(FOLDER, poem), "a") as file:
        file.write(f"{os.getpid()}\\n")

@xformd.transform(deterministic=True)
def nap(poem: str, *, s: float = 0.0, gate: bool = False) -> str:
    mark(poem)
    time.sleep(s)
    while gate and not os.path.exists(os.path.join(FOLDER, "open")):
        time.sleep(0.01)
    return poem.upper()

@xformd.transform
def once(poem: str, *, s: float = 0.0, gate: bool = False) -> str:
    return nap(poem, s=s, gate=gate)

@xformd.hookimpl
def xformd_transforms():
    return [nap, once]
"""


class Bed:
    """A folder with a plugin whose transforms sleep and note when they begin, and servers that have it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marks = folder, folder / "marks"
        self.marks.mkdir()
        (folder / "naps.py").write_text(NAPS.replace("FOLDER", repr(str(self.marks))))

    def serve(self, node: str = "n1", workers: int = 1, **extra: Any) -> AbstractContextManager[Server]:
        (self.folder / node).mkdir(exist_ok=True)
        jobs = ("--jobs-dir", str(self.folder / node / "jobs"), "--node", node)
        arguments = ("--plugins=none", "--plugins-dir", str(self.folder), *HTTP, *jobs)
        return serving(self.folder / node, *arguments, XFORMD_WORKERS=str(workers), **extra)

    def began(self, poem: str) -> list[int]:
        """Return the processes in which a poem's transform has begun."""
        file = self.marks / poem
        return [*map(int, file.read_text().split())] if file.exists() else []


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def ask(server: Server, target: str, body: bytes | None = None, **headers: str) -> Answer:
    with connect(server) as connection:
        return Http(connection).ask(request(target, body, **headers))


def start(server: Server, spec: str, poem: str) -> str:
    answer = ask(server, f"/transform/{spec}", poem.encode(), prefer="respond-async")
    assert answer.status == 202
    return answer.headers["location"]


def outcome(server: Server, address: str) -> Answer:
    """Wait for the end of a job."""
    while True:
        with connect(server) as connection:
            client = Http(connection)
            client.send(request(address, prefer="wait=10", connection="close"))
            (answer,) = client.rest()
        if answer.status != 202:
            return answer


def test_each_job_of_a_server_that_is_killed_is_done_lost_or_run_again(bed: Bed) -> None:
    """The first ones are done then, two run, the others wait."""
    specs = ["nap", "once"] * 4 + ["nap:gate=true", "once:gate=true"] * 21
    poems = [f"{spec.partition(':')[0]}{number}" for number, spec in enumerate(specs)]
    done = {*poems[:8]}
    with bed.serve(workers=2) as server:
        jobs = {poem: start(server, spec, poem) for poem, spec in zip(poems, specs, strict=True)}
        assert {outcome(server, jobs[poem]).status for poem in done} == {200}
        wait_until(lambda: all(map(bed.began, poems[8:10])))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    (bed.marks / "open").touch()
    with bed.serve(workers=2) as server:
        answers = {poem: outcome(server, address) for poem, address in jobs.items()}
    found = Counter()  # type: Counter[str]
    for poem, answer in answers.items():
        if answer.status == 200:
            assert answer.body == poem.upper().encode()
            found["done" if poem in done else "run again" if poem.startswith("nap") else "done meanwhile"] += 1
        else:
            assert (answer.status, answer.problem["code"], poem[:4]) == (502, "transform-died", "once")
            found["lost"] += 1
        assert len(bed.began(poem)) <= (2 if poem.startswith("nap") else 1)
    assert found.total() == 50
    assert {poem for poem, answer in answers.items() if answer.status == 200} >= done
    assert min(found[each] for each in ("done", "lost", "run again")) > 0, found


def test_a_server_that_stops_ends_what_runs_and_leaves_what_waits(bed: Bed) -> None:
    with bed.serve() as server:
        running = start(server, "once:s=1", "first")
        wait_until(lambda: bed.began("first") != [])
        waiting = [start(server, spec, f"{spec}-later") for spec in ("once", "nap")]
        assert server.stop() == 0
        assert (bed.began("once-later"), bed.began("nap-later")) == ([], [])
        assert "Traceback" not in server.log
    with bed.serve() as server:
        assert [outcome(server, each).body for each in (running, *waiting)] == [b"FIRST", b"ONCE-LATER", b"NAP-LATER"]
        assert len(bed.began("first")) == 1
        assert "Traceback" not in server.log


@pytest.fixture
def nodes(bed: Bed) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        yield {node: stack.enter_context(bed.serve(node)) for node in ("n1", "n2", "n3")}


def test_no_poll_of_any_of_three_nodes_is_answered_wrong(nodes: dict[str, Server]) -> None:
    """A router asks the node that the path names; 1,000 polls that it sends elsewhere are told where to go."""
    connections = {node: Http(connect(server)) for node, server in nodes.items()}
    jobs: dict[str, str] = {}
    statuses: Counter[int] = Counter()
    for number in range(100_000):
        if number >= 1_000 and statuses[200]:
            break
        if number % 50 == 0 and number < 1_000:
            node = random.choice([*nodes])
            jobs[start(nodes[node], "nap:s=0.2", f"poem-{number}")] = f"POEM-{number}"
        address, result = random.choice([*jobs.items()])
        asked, named = random.choice([*nodes]), address.split("/")[2]
        answer = connections[asked].ask(request(address))
        if asked != named:
            assert (answer.status, answer.problem["node"]) == (421, named)
            answer = connections[named].ask(request(address))
        assert answer.status in (200, 202)
        assert (answer.body == result.encode()) is (answer.status == 200)
        statuses[answer.status] += 1
    assert statuses[200] > 0
    for connection in connections.values():
        connection.socket.close()


# On one server.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bed, Server]]:
    bed = Bed(tmp_path_factory.mktemp("bed"))
    with bed.serve() as server:
        yield bed, server


def delete(server: Server, address: str) -> None:
    with connect(server) as connection:
        assert Http(connection).ask(request(address, method="DELETE")).status == 204


def test_two_servers_need_two_folders(shared: tuple[Bed, Server]) -> None:
    bed, server = shared
    again = xformd_process("serve", "--port", "0", *HTTP, "--jobs-dir", str(bed.folder / "n1" / "jobs"))
    assert again.returncode == 78
    assert b"jobs: another server uses this folder: each needs its own\n" in again.stderr
    assert ask(server, "/livez").status == 200


def test_the_metrics_count_jobs_by_their_state(shared: tuple[Bed, Server]) -> None:
    bed, server = shared
    jobs = [start(server, "once:s=60", "counted"), start(server, "once", "waiting")]
    wait_until(lambda: bed.began("counted") != [])
    lines = ask(server, "/metrics").body.decode().splitlines()
    assert {'xformd_jobs{state="queued"} 1.0', 'xformd_jobs{state="running"} 1.0'} <= {*lines}
    for address in reversed(jobs):
        delete(server, address)


@pytest.mark.timing
def test_to_delete_a_job_kills_its_worker_at_once(shared: tuple[Bed, Server]) -> None:
    bed, server = shared
    poems = (f"killed-{number}" for number in itertools.count())

    def measure() -> float:
        poem = next(poems)
        address = start(server, "once:s=60", poem)
        wait_until(lambda: bed.began(poem) != [])
        (pid,) = bed.began(poem)
        began_s = time.monotonic()
        delete(server, address)
        wait_until(lambda: not is_running(pid))
        took_s = time.monotonic() - began_s
        assert ask(server, address).status == 404
        return took_s

    assert_within(0.2, measure)


@pytest.mark.timing
def test_long_results_hold_nobody_up(shared: tuple[Bed, Server]) -> None:
    """Results of 9 MB are written and read while others are answered."""
    _, server = shared
    assert_within(0.1, lambda: beside_long_results(server))


def beside_long_results(server: Server) -> float:
    """Read three of them; return how long others wait meanwhile, 9 of 10, in seconds."""
    poem, times_s = b"owl" * 3_000_000, list[float]()
    jobs = [ask(server, "/transform/upper", poem, prefer="respond-async").headers["location"] for _ in range(3)]
    with connect(server) as connection, ThreadPoolExecutor() as readers:
        reads = [readers.submit(urlopen, server.http + address) for address in jobs]
        while len(times_s) < 20 or not all(each.done() for each in reads):
            began_s = time.monotonic()
            assert Http(connection).ask(request("/livez")).status == 200
            times_s.append(time.monotonic() - began_s)
        for each in reads:
            with each.result() as answer:
                assert answer.status in (200, 202)
    for address in jobs:
        outcome(server, address)
        delete(server, address)
    return sorted(times_s)[len(times_s) * 9 // 10]
