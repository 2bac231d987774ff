"""What the log says of HTTP requests that fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import Server, serving, wait_until

pytestmark = pytest.mark.slow

LEAKY = Path(__file__).parents[1] / "support" / "leaky"
POEM = "TheOwlOfHttp"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers HTTP, and logs JSON."""
    options = ("--plugins=none", "--plugins-dir", str(LEAKY), "--workers=1", "--log-format=json")
    with serving(tmp_path_factory.mktemp("server"), *options, *HTTP) as running:
        yield running


@pytest.mark.parametrize("name", ["raises", "raises-here", "waits"])
def test_a_failing_transform_is_one_line_with_the_request_id(server: Server, name: str) -> None:
    with exchange(server) as client:
        answer = client.ask(request(f"/transform/{name}", b"owl", x_request_id=f"owl-{name}"))
    assert (answer.status, answer.headers["x-request-id"]) == (500, f"owl-{name}")
    wait_until(lambda: f"owl-{name}" in server.log)
    (line,) = [line for line in server.log.splitlines() if f"owl-{name}" in line]
    event = json.loads(line)
    assert (event["request_id"], event["transform"], event["level"]) == (f"owl-{name}", name, "error")
    assert (event["error"], event["plugin"]) == ("ValueError", "leaky.py (leaky)")
    assert "leaky.py" in event["traceback"]


def test_a_failing_line_of_a_batch_is_logged_with_the_request_id(server: Server) -> None:
    line = json.dumps({"spec": "raises", "poem": "owl"}).encode()
    with exchange(server) as client:
        assert b"transform-failed" in client.ask(request("/batch", line, x_request_id="owl-batch")).body
    wait_until(lambda: '"request_id": "owl-batch"' in server.log)


def test_no_poem_is_logged(server: Server) -> None:
    with exchange(server) as client:
        for name in ("raises", "raises-here", "refuses", "gives-up", "leaves-a-deferred", "leaves-a-call", "dies"):
            answer = client.ask(request(f"/transform/{name}", POEM.encode()))
            assert answer.status in (200, 422, 500, 502)
            client.ask(request(f"/transform/{name}?poem={POEM}"))
        client.ask(request(f"/transform/{POEM}", POEM.encode()))
        client.ask(request(f"/{POEM}?poem={POEM}"))
        lines = "".join(json.dumps({"spec": "raises", "poem": POEM}) + "\n" for _ in range(3)) + POEM
        assert client.ask(request("/batch", lines.encode())).body.count(b'"code": "transform-failed"') == 3
    with exchange(server) as client:
        client.send(request(f"/transform/upper?poem={POEM}", method=POEM))
        assert [answer.status for answer in client.rest()] == [400]
    wait_until(lambda: "the worker of dies" in server.log)
    assert POEM.lower() not in server.log.lower()
