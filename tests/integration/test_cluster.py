"""Three servers behind HAProxy, with the documented configuration, while servers die, drain and are full."""

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks import cluster as clusters
from benchmarks.cluster import Cluster, HttpLoad, Request

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("behind a proxy")]

KB, BUFFER_BYTES = 1_000, 131_072
LIMITS = ("--workers=1", "--max-queue=20", "--drain-delay=1500ms", "--max-request-bytes=2000000")
OWL = "127.0.0.7"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for program, package in (("haproxy", "haproxy"), ("openssl", "openssl")):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin"):
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    folder = tmp_path_factory.mktemp("cluster")
    with clusters.running(folder, *LIMITS) as cluster:
        # HAProxy has to learn once that this may run twice.
        with HttpLoad(cluster, poems("work", 1)) as load:
            pass
        assert load.outcome.lost == []
        yield cluster


@pytest.fixture
def cluster(whole: Cluster) -> Cluster:
    """The cluster, with every server up."""
    whole.bring_back()
    return whole


def poems(name: str, count: int, *, with_long: bool = False) -> Iterator[Request]:
    """Yield requests of 1 KB and 64 KB, and a few of 1 MB; each poem begins with a number of its own."""
    for number in range(count):
        size = 1_000 * KB if with_long and number % 50 == 7 else 64 * KB if number % 5 == 3 else KB
        yield f"/transform/{name}", (b"%d " % number).ljust(16) + b"owl " * (size // 4 - 4)


def is_too_long_for_haproxy(poem: bytes, status: int) -> bool:
    return len(poem) > BUFFER_BYTES and status in (0, 502)


def test_a_node_that_dies_loses_nothing_that_may_run_twice_and_runs_nothing_else_twice(cluster: Cluster) -> None:
    """Of what may not, what it had is lost, with an error that says so. It gets nothing while it has no worker."""
    before = Counter(cluster.begun())
    requests = poems("work", 400, with_long=True)
    with (
        HttpLoad(cluster, requests, repeats=is_too_long_for_haproxy) as deterministic,
        HttpLoad(cluster, poems("once", 150), clients=6) as once,
    ):
        once.wait_for(40)
        cluster.nodes["two"].kill()
    assert deterministic.outcome.lost == []
    assert deterministic.outcome.repeats <= 8  # all that there are of 1 MB
    assert set(once.outcome.lost) <= {"connection-lost"}
    assert len(once.outcome.lost) <= 6  # no more than were in flight
    assert max((Counter(cluster.begun()) - before).values()) == 1
    assert (deterministic.outcome.count, once.outcome.count) == (400, 150)
    cluster.wait_for(two="DOWN")
    node = cluster.nodes["two"]
    node.start("--worker-memory-bytes=1KiB")
    node.ready()
    cluster.wait_for(two="DRAIN", one="UP", three="UP")
    with HttpLoad(cluster, poems("work", 50)) as load:
        pass
    assert load.outcome.lost == []
    node.kill()


def test_a_rolling_restart_fails_nothing_on_either_port(cluster: Cluster) -> None:
    answers: list[bytes] = []
    is_done = threading.Event()

    def send_classic() -> None:
        while not is_done.wait(0.1):
            answers.append(clusters.classic(cluster, "work", b"owl"))

    thread = threading.Thread(target=send_classic)
    thread.start()
    try:
        requests = poems("work", 100_000, with_long=True)
        with HttpLoad(cluster, requests, clients=3) as load, clusters.session_load(cluster, clients=2) as sent:
            clusters.rolling_restart(cluster, print)
            load.is_ending = True
    finally:
        is_done.set()
        thread.join()
    assert (load.outcome.lost, sent.lost) == ([], [])
    assert set(answers) == {b"3:OWL,"}
    assert min(load.outcome.count, len(sent.waits_s), len(answers)) >= 50


def test_what_no_queue_has_room_for_waits_in_haproxy(cluster: Cluster) -> None:
    """Each server has room for 20 requests besides what it runs; 90 at once are answered all the same."""
    requests = [("/transform/slow:seconds=0.02", b"owl %d" % number) for number in range(90)]
    with HttpLoad(cluster, requests, clients=90) as load:
        pass
    assert load.outcome.lost == []
    rows = cluster.statistics().values()
    assert {row["slim"] for row in rows} == {"20"}
    assert all(int(row["smax"]) <= 20 for row in rows)


def refusals(cluster: Cluster) -> list[tuple[str, str]]:
    """Return what the servers have refused, and to whom."""
    logs = "".join((cluster.folder / f"{name}.log").read_text() for name in cluster.nodes)
    return sorted(re.findall(r"refused ([\d.]+)\S* ([a-z-]+)", logs))


def test_both_ways_through_haproxy_name_the_client(cluster: Cluster) -> None:
    """A request goes through it once, or twice if it may not run twice; netstrings bring their peer."""
    requests = [(f"/transform/{name}", b"x" * 2_000_001) for name in ("work", "once")]
    with HttpLoad(cluster, requests, address=OWL) as load:
        pass
    assert load.outcome.lost == ["too-large"] * 2
    assert clusters.classic(cluster, "nope", b"owl", address=OWL) == b""
    expected = [(OWL, "no-such-transform"), (OWL, "too-large"), (OWL, "too-large")]
    clusters.wait_until(lambda: refusals(cluster) == expected, f"{expected}, but {refusals(cluster)},")


def test_an_operator_takes_a_node_out_and_brings_it_back(cluster: Cluster) -> None:
    """The agent says ``ready`` each second, which would bring it back: the file says what to do first."""
    for command in ("disable agent xformd/one", "set server xformd/one state drain"):
        assert command in clusters.CONFIGURATION.read_text()
        cluster.command(command)
    cluster.wait_for(one="DRAIN")
    until = time.monotonic() + 1.5  # longer than agent-inter
    while time.monotonic() < until:
        assert cluster.states()["one"] == "DRAIN"
    cluster.command("enable agent xformd/one")
    cluster.wait_for(one="UP")


def test_a_job_is_asked_of_the_node_that_has_it(cluster: Cluster) -> None:
    places = []
    for number in range(6):
        status, headers, _ = clusters.ask(
            cluster, "POST", "/transform/work", b"owl %d" % number, prefer="respond-async"
        )
        assert status == 202
        places.append(headers["location"])
    by_node = {place.split("/")[2]: place for place in places}
    assert len(by_node) > 1
    for number, place in enumerate(places):
        status, _, result = clusters.ask(cluster, "GET", place, prefer="wait=20")
        assert (status, result) == (200, b"OWL %d" % number)
    name, place = next(iter(by_node.items()))
    cluster.nodes[name].kill()
    for _ in range(4):
        status, headers, body = clusters.ask(cluster, "GET", place)
        assert (status, headers["retry-after"], json.loads(body)["code"]) == (503, "1", "unavailable")
    cluster.bring_back()
    assert clusters.ask(cluster, "GET", place)[0] == 200


def test_requests_with_the_same_key_run_once(cluster: Cluster) -> None:
    key = f'"{time.monotonic_ns()}"'
    answers = [
        clusters.ask(cluster, "POST", "/transform/once", b"a job of its own", idempotency_key=key) for _ in range(6)
    ]
    assert [(status, body) for status, _, body in answers] == [(200, b"A JOB OF ITS OWN")] * 6
    assert cluster.begun().count(b"a job of its own") == 1
