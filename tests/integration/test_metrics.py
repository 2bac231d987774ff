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


@attrs.frozen
class Watched:
    """A server, and where it answers HTTP (``web``) and shows its metrics (``watch``)."""

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
        """Return what Prometheus reads."""
        status, text = self.get(self.watch, "GET", "/metrics")
        assert status == 200
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def requests(self) -> dict[tuple[str, str, str], float]:
        """Return the number of requests, by transform, front and code."""
        found = {}
        for (name, *labels), value in self.samples().items():
            if name == "xformd_requests_total":
                by_name = dict(labels)
                found[by_name["transform"], by_name["front"], by_name["code"]] = value
        return found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Watched]:
    """A server that has had no request."""
    ports = ("--http", "tcp:0:interface=127.0.0.1", "--metrics", "tcp:0:interface=127.0.0.1")
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(VERSES), "--workers=1", *ports) as server:
        web, watch = re.findall(r"http://(\S+)", "\n".join(server.greeting))
        yield Watched(server, web, watch)


def test_traffic_on_every_front_is_counted(fresh: Watched) -> None:
    assert fresh.server.ask(netstring(b"upper.abc")) == netstring(b"ABC")
    fresh.server.ask(netstring(b"nope.abc"))
    fresh.server.ask(b"x")
    with Session(fresh.server) as session:
        session.collect(session.send(*[("upper", b"defg")] * 300, ("backwards", b"hi"), ("picky", b"")))
        session.ask("upper+backwards", b"jkl")
        session.ask("no-such-thing")
    assert [fresh.post(spec, b"mno") for spec in ("upper", "nope", "Upper", "raises")] == [200, 404, 400, 500]
    assert fresh.requests() == {
        ("upper", "classic", "ok"): 1,
        ("(unknown)", "classic", "no-such-transform"): 1,
        ("(none)", "netstring", "bad-frame"): 1,
        ("upper", "session", "ok"): 300,
        ("backwards", "session", "ok"): 1,
        ("picky", "session", "gibberish"): 1,
        ("(several)", "session", "ok"): 1,
        ("(unknown)", "session", "no-such-transform"): 1,
        ("upper", "http", "ok"): 1,
        ("(unknown)", "http", "no-such-transform"): 1,
        ("(none)", "http", "bad-request"): 1,
        ("raises", "http", "transform-failed"): 1,
    }
    samples = fresh.samples()
    assert samples["xformd_run_seconds_count", ("transform", "upper")] == 302
    assert samples["xformd_queue_seconds_count",] == 4  # backwards, picky, raises and the pipeline
    assert samples["xformd_result_bytes_sum",] == 3 + 300 * 4 + 2 + 3 + 3
    assert fresh.get(fresh.watch, "POST", "/transform/upper", b"a")[0] == 404  # only the figures are there
    assert fresh.get(fresh.web, "GET", "/metrics")[0] == 200


@pytest.mark.slow
def test_deaths_and_quarantines_are_counted_and_outlive_a_reload(fresh: Watched) -> None:
    with Session(fresh.server) as session:
        codes = [session.ask("dies").code for _ in range(TO_QUARANTINE + 1)]
    assert codes == ["transform-died"] * TO_QUARANTINE + ["unavailable"]
    samples = fresh.samples()
    assert samples["xformd_worker_deaths_total",] == TO_QUARANTINE
    assert samples["xformd_quarantined", ("scope", "part"), ("transform", "dies")] == 1  # for whoever has caused it
    assert fresh.requests() == {
        ("dies", "session", "transform-died"): TO_QUARANTINE,
        ("dies", "session", "unavailable"): 1,
    }
    starts = samples["xformd_worker_starts_total",]
    assert starts >= TO_QUARANTINE + 2
    fresh.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in fresh.server.log)
    after = fresh.samples()
    assert after["xformd_worker_deaths_total",] == TO_QUARANTINE
    assert after["xformd_worker_starts_total",] >= starts + 2
    assert not [key for key in after if key[0] == "xformd_quarantined"]


@pytest.mark.slow
def test_the_current_state_is_exported(fresh: Watched) -> None:
    with Session(fresh.server) as session:
        session.ask("upper")
        session.send(("never", b""))  # which ends at its own limit
        wait_until(lambda: fresh.samples()["xformd_in_flight",] == 1)
        samples = fresh.samples()
        assert samples["xformd_connections", ("front", "netstring")] == 1
        assert samples["xformd_connections", ("front", "metrics")] == 1
        assert session.receive().code == "timeout"
    wait_until(lambda: fresh.samples()["xformd_connections", ("front", "netstring")] == 0)
    wait_until(lambda: fresh.samples()["xformd_workers", ("state", "idle")] == 2)
    assert fresh.requests()["never", "session", "timeout"] == 1
    plugins = [dict(labels)["plugin"] for name, *labels in fresh.samples() if name == "xformd_plugin_info"]
    assert {"verses", "poetry", "text"} <= set(plugins)
