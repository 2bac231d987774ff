"""A real server counts what real clients ask, on every front, and Prometheus can read it."""

import contextlib
import http.client
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.processes import DEADLINE_S, VERSES, Server, netstring, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.xdist_group("metrics")

TO_QUARANTINE = 5

PLUGIN = """
import os
import xformd

@xformd.transform
def die(poem: str) -> str:
    os._exit(3)

@xformd.transform(inline=True)
def shout(poem: str) -> str:
    return poem.upper()

@xformd.hookimpl
def xformd_transforms():
    return [die, shout]
"""


@attrs.frozen
class Watched:
    """A server that is watched.

    Args:
        server: the server.
        web: where it answers HTTP.
        watch: where it answers those who watch it.
    """

    server: Server
    web: str
    watch: str

    def get(self, address: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def post(self, spec: str, poem: bytes) -> int:
        return self.get(self.web, "POST", f"/transform/{spec}", poem)[0]

    def samples(self) -> dict[Any, float]:
        """Give what Prometheus would read."""
        status, text = self.get(self.watch, "GET", "/metrics")
        assert status == 200
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def requests(self) -> dict[tuple[str, str, str], float]:
        """Give how many requests there were, by transform, front and code."""
        counts = {}
        for (name, *labels), value in self.samples().items():
            if name == "xformd_requests_total":
                by_name = dict(labels)
                counts[by_name["transform"], by_name["front"], by_name["code"]] = value
        return counts


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watched]:
    (folder / "mortal.py").write_text(PLUGIN)
    folders = ("--plugins-dir", str(VERSES), "--plugins-dir", str(folder))
    ports = ("--http", "tcp:0:interface=127.0.0.1", "--metrics", "tcp:0:interface=127.0.0.1")
    with serving(folder, "--plugins=none", "--workers=1", *folders, *ports) as server:
        web, watch = re.findall(r"http://(\S+)", "\n".join(server.greeting))
        yield Watched(server, web, watch)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Watched]:
    """A server of which nothing has been asked."""
    with watching(tmp_path) as watched:
        yield watched


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server that several tests use."""
    with watching(tmp_path_factory.mktemp("watched")) as watched:
        yield watched


def test_traffic_on_every_front_is_counted(fresh: Watched) -> None:
    assert fresh.server.ask(netstring(b"shout.abc")) == netstring(b"ABC")
    fresh.server.ask(netstring(b"nope.abc"))
    fresh.server.ask(b"x")
    with Session(fresh.server) as session:
        session.collect(session.send(*[("shout", b"defg")] * 300, ("backwards", b"hi"), ("picky", b"")))
        session.ask("shout+backwards", b"jkl")
        session.ask("no-such-thing")
    assert [fresh.post(spec, b"mno") for spec in ("shout", "nope", "Shout", "raises")] == [200, 404, 400, 500]
    assert fresh.requests() == {
        ("shout", "classic", "ok"): 1,
        ("(unknown)", "classic", "no-such-transform"): 1,
        ("(none)", "netstring", "bad-frame"): 1,
        ("shout", "session", "ok"): 300,
        ("backwards", "session", "ok"): 1,
        ("picky", "session", "gibberish"): 1,
        ("(several)", "session", "ok"): 1,
        ("(unknown)", "session", "no-such-transform"): 1,
        ("shout", "http", "ok"): 1,
        ("(unknown)", "http", "no-such-transform"): 1,
        ("(none)", "http", "bad-request"): 1,
        ("raises", "http", "transform-failed"): 1,
    }
    samples = fresh.samples()
    assert samples["xformd_run_seconds_count", ("transform", "shout")] == 302
    assert samples["xformd_queue_seconds_count",] == 4  # backwards, picky, raises and the pipeline
    assert samples["xformd_result_bytes_sum",] == 3 + 300 * 4 + 2 + 3 + 3


@pytest.mark.slow
def test_deaths_and_quarantines_are_counted_and_outlive_a_reload(fresh: Watched) -> None:
    with Session(fresh.server) as session:
        codes = [session.ask("die").code for _ in range(TO_QUARANTINE + 1)]
    assert codes == ["transform-died"] * TO_QUARANTINE + ["unavailable"]
    samples = fresh.samples()
    assert samples["xformd_worker_deaths_total",] == TO_QUARANTINE
    assert samples["xformd_quarantined", ("transform", "die")] == 1
    assert fresh.requests() == {
        ("die", "session", "transform-died"): TO_QUARANTINE,
        ("die", "session", "unavailable"): 1,
    }
    starts = samples["xformd_worker_starts_total",]
    assert starts >= TO_QUARANTINE + 2
    fresh.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in fresh.server.log)
    after = fresh.samples()
    assert after["xformd_worker_deaths_total",] == TO_QUARANTINE
    assert after["xformd_worker_starts_total",] >= starts + 2
    assert ("xformd_quarantined", ("transform", "die")) not in after


def test_what_is_there_now_is_told(watched: Watched) -> None:
    with Session(watched.server) as session:
        session.ask("shout")
        session.send(("never", b""))  # which ends at its own limit
        wait_until(lambda: watched.samples()["xformd_in_flight",] == 1)
        samples = watched.samples()
        assert samples["xformd_connections", ("front", "netstring")] == 1
        assert samples["xformd_connections", ("front", "metrics")] == 1
        assert session.receive().code == "timeout"
    wait_until(lambda: watched.samples()["xformd_connections", ("front", "netstring")] == 0)
    wait_until(lambda: watched.samples()["xformd_workers", ("state", "idle")] == 2)
    assert watched.requests()["never", "session", "timeout"] == 1
    plugins = [dict(labels)["plugin"] for name, *labels in watched.samples() if name == "xformd_plugin_info"]
    assert {"verses", "mortal", "poetry", "text"} <= set(plugins)


def test_who_watches_sees_the_figures_and_nothing_else(watched: Watched) -> None:
    assert watched.get(watched.watch, "POST", "/transform/shout", b"a")[0] == 404
    assert watched.get(watched.web, "GET", "/metrics")[0] == 200


def test_names_that_clients_choose_add_no_labels(watched: Watched) -> None:
    before = len(watched.samples())
    with Session(watched.server) as session:
        session.collect(session.send(*[(f"name-{number}", b"") for number in range(200)]))
    for number in range(20):
        watched.post(f"name-{number}", b"")
        watched.server.ask(netstring(b"name-%d." % number))
    assert len(watched.samples()) <= before + 3
