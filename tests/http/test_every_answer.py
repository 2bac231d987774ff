"""What every answer has in common, whoever makes it: the parser, the connection, the application or a transform."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import attrs
import pytest

from support.http_front import Answer, Client, Front, connected
from xformd.http.endpoints import HealthEndpoints
from xformd.wire.http1 import MAX_FIELDS, MAX_HEAD_BYTES

SITE = "https://a.example"
POEM_IN_URL = "/transform/upper?poem=owl"
POST = "POST /transform/upper HTTP/1.1"


def nothing(front: Front, client: Client) -> None: ...


def time_passes(front: Front, client: Client) -> None:
    front.advance(31, client)


def server_stops(front: Front, client: Client) -> None:
    front.factory.drain()


def fail() -> Any:
    raise RuntimeError("our fault")


@attrs.frozen(kw_only=True)
class Sample:
    """A request, and the status of its answer.

    Args:
        status: of the answer.
        line: the request line.
        fields: lines of headers, besides those that every sample has.
        rest: what follows the headers.
        is_readable: whether the server could read the head, so that it knows who asks.
        then: what happens after that.
        front: settings of the server.
        host: the value of ``Host``; none if it is empty.
        origin: the value of ``Origin``; none if it is empty.
        sends_only_line: whether nothing follows the request line.
    """

    status: int
    line: str = POST
    fields: str = ""
    rest: bytes = b""
    is_readable: bool = True
    then: Callable[[Front, Client], None] = nothing
    front: dict[str, Any] = attrs.field(factory=dict)
    host: str = "a"
    origin: str = SITE
    sends_only_line: bool = False

    def send(self, *origins: str) -> tuple[Front, Client]:
        """Send it to a new server, which these origins may call."""
        fields = f"Host: {self.host}\r\nX-Request-Id: 7e57\r\n{self.fields}"
        fields += f"Origin: {self.origin}\r\n" if self.origin else ""
        given = f"{self.line}\r\n{fields}\r\n"
        data = self.line.encode() if self.sends_only_line else given.encode() + self.rest
        made, client = connected(data, origins=origins, **self.front)
        self.then(made, client)
        return made, client


LENGTH = "Content-Length: 3\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
LONG = {"max_request_bytes": 100}

SAMPLES = {
    "200": Sample(status=200, fields=LENGTH, rest=b"owl"),
    "200 of a GET": Sample(status=200, line=f"GET {POEM_IN_URL} HTTP/1.1"),
    "200 of the page": Sample(status=200, line="GET / HTTP/1.1"),
    "200 of a batch": Sample(status=200, line="POST /batch HTTP/1.1", fields=LENGTH, rest=b"{} "),
    "200 of a preflight": Sample(
        status=200, line="OPTIONS / HTTP/1.1", fields="Access-Control-Request-Method: GET\r\n"
    ),
    "204": Sample(status=204, line="OPTIONS / HTTP/1.1"),
    "304": Sample(status=304, line=f"GET {POEM_IN_URL} HTTP/1.1", fields="If-None-Match: *\r\n"),
    "400 of bytes": Sample(status=400, line="\x16\x03\x01", is_readable=False),
    "400 of a field": Sample(status=400, fields="no field\r\n", is_readable=False),
    "400 of a host": Sample(status=400, host="a b"),
    "400 of a target": Sample(status=400, line="POST x HTTP/1.1"),
    "400 of two lengths": Sample(status=400, fields=LENGTH * 2),
    "400 of a chunk, late": Sample(status=400, fields=CHUNKED, rest=b"3\r\nowls"),
    "400 of a trailer, late": Sample(status=400, fields=CHUNKED, rest=b"3\r\nowl\r\n0\r\nx\r\n\r\n"),
    "400 of a transform": Sample(status=400, line="POST /transform/wrap?depth=1 HTTP/1.1"),
    "403": Sample(status=403, origin="https://b.example"),
    "404 of a path": Sample(status=404, line="GET /livez/ HTTP/1.1"),
    "404 of a transform": Sample(status=404, line="POST /transform/uppr HTTP/1.1", fields=LENGTH),
    "405 of a path": Sample(status=405, line="PUT /batch HTTP/1.1"),
    "405 of a transform": Sample(status=405, line="PUT /transform/upper HTTP/1.1"),
    "408 of a head": Sample(status=408, line=POST, sends_only_line=True, then=time_passes, is_readable=False),
    "408 of a body": Sample(status=408, fields=LENGTH, then=time_passes),
    "412": Sample(status=412, line=f"GET {POEM_IN_URL} HTTP/1.1", fields='If-Match: "x"\r\n'),
    "413 of a length": Sample(status=413, fields="Content-Length: 101\r\n", front=LONG),
    "413 of a chunk, late": Sample(status=413, fields=CHUNKED, rest=b"64\r\n" + b"x" * 100 + b"\r\n1\r\n", front=LONG),
    "415": Sample(status=415, fields="Content-Encoding: br\r\n"),
    "421": Sample(status=421, host="evil.example", front={"host_names": ["a"]}),
    "422, late": Sample(status=422, fields=LENGTH, rest=b"\xff\xff\xff"),
    "431 of a head": Sample(status=431, fields=f"X: {'y' * MAX_HEAD_BYTES}\r\n", is_readable=False),
    "431 of many fields": Sample(status=431, fields="X: y\r\n" * MAX_FIELDS, is_readable=False),
    "431 of framing, late": Sample(status=431, fields=CHUNKED, rest=b"1;" + b"x" * MAX_HEAD_BYTES),
    "500": Sample(status=500, line="GET /readyz HTTP/1.1", front={"health": HealthEndpoints(fail, fail)}),
    "500 of a transform": Sample(status=500, line="POST /transform/raises HTTP/1.1"),
    "501": Sample(status=501, fields="Transfer-Encoding: gzip\r\n"),
    "503 of a body": Sample(status=503, fields=LENGTH, then=server_stops),
    "503 of a head": Sample(status=503, line=POST, sends_only_line=True, then=server_stops, is_readable=False),
    "504, late": Sample(status=504, line="POST /transform/later HTTP/1.1", then=time_passes),
    "505": Sample(status=505, line="GET / HTTP/2.0", is_readable=False),
}
"""Answers of every kind, early ones and late ones."""

samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def answer_of(sample: Sample, *origins: str) -> Answer:
    _, client = sample.send(*origins)
    (answer,) = client.received()
    assert answer.status == sample.status
    return answer


@samples
def test_every_answer_has_a_date_an_id_and_nosniff(sample: Sample) -> None:
    answer = answer_of(sample, SITE)
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 5
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (answer.headers["x-request-id"] == "7e57") is sample.is_readable
    assert answer.status < 400 or answer.headers["cache-control"] == "no-store"
    assert answer.status < 400 or answer.problem["request_id"] == answer.headers["x-request-id"]
    assert {"location", "server", "set-cookie"}.isdisjoint(answer.headers)


@samples
def test_every_answer_has_the_headers_of_cors_where_that_is_on(sample: Sample) -> None:
    answer = answer_of(sample, SITE)
    is_allowed = sample.is_readable and sample.origin == SITE
    assert answer.headers.get("access-control-allow-origin") == (SITE if is_allowed else None)
    assert answer.headers["vary"] == "origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"403", "200 of a preflight"}))
def test_every_answer_has_the_headers_of_cors_for_all_or_for_none(name: str) -> None:
    answer = answer_of(SAMPLES[name], "*")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "vary" not in answer.headers
    answer = answer_of(attrs.evolve(SAMPLES[name], origin=""))
    assert not [name for name in answer.headers if name.startswith("access-control-") or name == "vary"]


@samples
def test_an_answer_to_head_has_no_body(sample: Sample) -> None:
    _, _, rest = sample.line.partition(" ")
    _, client = attrs.evolve(sample, line=f"HEAD {rest}").send(SITE)
    head, _, body = client.wire.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert body == b""


@samples
def test_a_client_is_told_when_the_connection_closes(sample: Sample) -> None:
    _, client = sample.send(SITE)
    (answer,) = client.received()
    assert (answer.headers.get("connection") == "close") is client.is_closed
