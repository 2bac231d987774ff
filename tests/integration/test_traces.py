"""Spans of real servers, proxies and workers, as a receiver of OTLP over HTTP gets them."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import Server, netstring, serving, wait_until
from support.session_client import Session, step
from support.traces import SAMPLED, SPAN_ID, TRACE_ID, Receiver, attributes_of, receiving

pytestmark = pytest.mark.slow

POEM = b"TheOwlAndThePussycat"
NAP_S = 0.05

SOURCE = """
import asyncio, time
import xformd


@xformd.transform(deterministic=True)
def nap(poem: str, *, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return poem


@xformd.transform(timeout=0.3)
def hang(poem: str) -> str:
    time.sleep(1000)
    return poem


@xformd.transform(batch=8, batch_wait_s=0.05)
def together(poems: list[str]) -> list[str]:
    time.sleep(0.05)
    return poems


@xformd.transform
async def softly(poem: str) -> str:
    await asyncio.sleep(0.05)
    return poem


@xformd.hookimpl
def xformd_transforms():
    return [nap, hang, together, softly]
"""

SERVER, CLIENT = 2, 3
"""Kinds of spans in OTLP."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def variables(receiver: Receiver, **more: str) -> dict[str, Any]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, "OTEL_BSP_SCHEDULE_DELAY": "20", **more}


@pytest.fixture
def start(receiver: Receiver, tmp_path: Path) -> Iterator[Any]:
    """Starts a server that sends its spans."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "naps.py").write_text(SOURCE)
    flags = ("--traces=otlp", "--plugins=none", f"--plugins-dir={plugins}", "--workers=2", *HTTP)
    with ExitStack() as stack:

        def start(**more: str) -> Server:
            return stack.enter_context(serving(tmp_path, *flags, **variables(receiver, **more)))

        yield start


def lasted_s(span: Any) -> float:
    return (int(span.end_time_unix_nano) - int(span.start_time_unix_nano)) / 1e9


def test_a_pipeline_in_a_worker_is_one_trace(start: Any, receiver: Receiver) -> None:
    server = start(OTEL_SERVICE_NAME="poems")
    before_s = time.time()
    with Session(server) as session:
        spec = "+".join([step("nap", seconds=NAP_S), "nap"])
        assert session.ask(f"{spec} traceparent={SAMPLED}", POEM).poem == POEM
    wait_until(lambda: len(receiver.spans) == 4)
    assert [span.name for span in receiver.spans] == ["queue", "run nap", "run nap", "nap+nap"]
    queue, first, second, whole = receiver.spans
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE_ID}
    assert (whole.parent_span_id.hex(), whole.kind) == (SPAN_ID, SERVER)
    assert {span.parent_span_id for span in (queue, first, second)} == {whole.span_id}
    assert [attributes_of(span)["xformd.runs_in"] for span in (first, second)] == ["worker"] * 2
    assert NAP_S <= lasted_s(first) < lasted_s(whole)
    assert before_s < whole.start_time_unix_nano / 1e9 <= first.start_time_unix_nano / 1e9 < time.time()
    assert {resource["service.name"] for resource in receiver.resources} == {"poems"}
    assert POEM not in receiver.raw


@pytest.mark.parametrize("name", ["together", "softly"])
def test_jobs_that_share_a_worker_have_times_of_their_own(start: Any, receiver: Receiver, name: str) -> None:
    with Session(start()) as session:
        ids = session.send(*[(f"{name} traceparent={SAMPLED}", POEM)] * 3)
        assert {answer.code for answer in session.collect(ids)} == {"ok"}
    wait_until(lambda: len([span for span in receiver.spans if span.name == name]) == 3)
    runs = [span for span in receiver.spans if span.name == f"run {name}"]
    assert len({span.parent_span_id for span in runs}) == 3
    assert {attributes_of(span)["xformd.runs_in"] for span in runs} == {"worker"}
    assert all(NAP_S <= lasted_s(span) < 10 for span in runs)


def test_a_step_that_is_killed_has_its_error(start: Any, receiver: Receiver) -> None:
    server = start()
    with Session(server) as session:
        assert session.ask("nap+hang", POEM).code == "timeout"
    wait_until(lambda: len(receiver.spans) == 4)
    assert attributes_of(receiver.named("run nap")).get("error.type") is None
    assert attributes_of(receiver.named("run hang"))["error.type"] == "timeout"
    assert lasted_s(receiver.named("run hang")) >= 0.25
    assert receiver.named("nap+hang").status.code == 2


def test_http_and_classic_requests_are_traced_too(start: Any, receiver: Receiver) -> None:
    server = start()
    assert server.ask(netstring(b"upper." + POEM)) == netstring(POEM.upper())
    with exchange(server) as client:
        client.ask(request("/transform/nap", POEM, traceparent=SAMPLED))
        client.ask(request("/readyz"))
    wait_until(lambda: len(receiver.spans) == 5)
    whole = receiver.named("POST /transform/{spec}")
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert receiver.named("upper").trace_id.hex() != TRACE_ID


def test_a_proxy_goes_on_with_a_trace(start: Any, receiver: Receiver, tmp_path: Path) -> None:
    upstream = start()
    folder = tmp_path / "proxy"
    folder.mkdir()
    more = variables(receiver, OTEL_SERVICE_NAME="proxy")
    flags = ("--traces=otlp", upstream.address)
    with (
        serving(folder, *flags, verb=("proxy",), ready="the transforms of", **more) as proxy,
        Session(proxy) as session,
    ):
        for _ in range(2):
            assert session.ask(f"upper traceparent={SAMPLED}", POEM).poem == POEM.upper()
        wait_until(lambda: len(receiver.spans) == 6)
    by_id = {span.span_id: span for span in receiver.spans}
    call = receiver.named("upstream")
    miss, hit = [span for span in receiver.spans if "xformd.cache" in attributes_of(span)]
    (there,) = [span for span in receiver.spans if span.parent_span_id == call.span_id]
    assert [attributes_of(span)["xformd.cache"] for span in (miss, hit)] == ["miss", "hit"]
    assert (miss.kind, call.kind, there.kind, there.name) == (SERVER, CLIENT, SERVER, "upper")
    assert by_id[call.parent_span_id] is miss
    assert {span.trace_id.hex() for span in (miss, hit, call, there)} == {TRACE_ID}
    assert POEM not in receiver.raw


def test_a_proxy_without_traces_passes_the_caller_s_on(start: Any, receiver: Receiver, tmp_path: Path) -> None:
    upstream = start(OTEL_TRACES_SAMPLER="parentbased_always_off")
    folder = tmp_path / "proxy"
    folder.mkdir()
    with serving(folder, upstream.address, verb=("proxy",), ready="the transforms of") as proxy:
        with Session(proxy) as session:
            assert session.ask(f"nap traceparent={SAMPLED}", POEM).poem == POEM
    wait_until(lambda: len(receiver.spans) == 3)
    assert receiver.named("nap").parent_span_id.hex() == SPAN_ID


def test_a_stopping_server_sends_its_last_spans(start: Any, receiver: Receiver) -> None:
    server = start(OTEL_BSP_SCHEDULE_DELAY="600000")
    server.ask(netstring(b"upper.a"))
    assert receiver.spans == []
    assert server.stop() == 0
    assert receiver.named("upper").kind == SERVER


def test_a_receiver_that_does_not_answer_holds_up_neither_requests_nor_the_end(start: Any, receiver: Receiver) -> None:
    receiver.is_mute = True
    server = start()
    with Session(server) as session:
        session.ask("upper", POEM)
        began_s = time.monotonic()
        for _ in range(20):
            assert session.ask("upper", POEM).code == "ok"
        assert time.monotonic() - began_s < 30  # it would wait 3 s for each
    assert server.stop() == 0
    assert "the last spans were not sent within 3 s: they are lost" in server.log
    assert POEM.decode() not in server.log


def test_the_processes_of_plugins_have_no_thread_of_the_exporter(start: Any, receiver: Receiver) -> None:
    server = start()
    with Session(server) as session:
        assert session.ask("nap", POEM).code == "ok"
    wait_until(lambda: len(receiver.spans) == 3)
    threads = {}
    waiting = [server.process.pid]
    while waiting:
        pid = waiting.pop()
        threads[pid] = len([*Path(f"/proc/{pid}/task").iterdir()])
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    assert threads.pop(server.process.pid) >= 2
    assert len(threads) >= 4  # the fork server, its reaper, and workers
    assert set(threads.values()) == {1}
