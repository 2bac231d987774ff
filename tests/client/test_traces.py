"""A TransformProxy goes on with the trace of its caller: one that it is given, or that of the current span."""

import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from twisted.internet.defer import Deferred

from support.deferreds import result_of
from support.memory import MemoryServer
from support.network import Network
from support.traces import SAMPLED, SPAN_ID, TRACE_ID, Recorder
from xformd import TransformProxy

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()


class World:
    """A server, a client of it, and the network between them."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.network = Network()
        self.host = self.network.host(self.server.factory)
        self.proxy = TransformProxy(self.host, reactor=self.server.clock)

    def sent(self, traceparent: str | None = None) -> list[str]:
        """Send a poem; return the traces that have been sent since the beginning."""
        answer = self.proxy.xform("upper", "owl", traceparent=traceparent)
        self.network.pump()
        assert result_of(answer) == "OWL"
        return re.findall(r"traceparent=([^ .]*)", self.host.sent.decode())


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def current() -> NonRecordingSpan:
    return NonRecordingSpan(
        SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), is_remote=False, trace_flags=TraceFlags(1))
    )


def test_a_trace_that_is_given_is_sent(world: World, current: NonRecordingSpan) -> None:
    with use_span(current):
        assert world.sent(given := f"00-{'a' * 32}-{'b' * 16}-00") == [given]


def test_otherwise_the_current_span_s_is(world: World, current: NonRecordingSpan) -> None:
    with use_span(current):
        assert world.sent() == [SAMPLED]


@pytest.mark.parametrize("given", [None, "", "owl", f"{SAMPLED} timeout=1", f"{SAMPLED}.owl", f"é{SAMPLED}"])
def test_what_is_no_trace_is_not_sent(world: World, given: str | None) -> None:
    assert world.sent(given) == []


def test_the_page_s_example_sends_the_trace_of_its_span(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(trace, "get_tracer", recorder.tracer._provider.get_tracer)
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"proxy": world.proxy}
    exec(example, names)
    world.network.pump()
    for each in names.values():
        if isinstance(each, Deferred):
            each.addErrback(lambda _: None)  # the server has no such transform
    span = recorder.span("publish").context
    assert span is not None
    assert f"traceparent=00-{span.trace_id:032x}-{span.span_id:016x}-" in world.host.sent.decode()
