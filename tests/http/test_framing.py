"""What frames a request and its answer: versions, connection headers, lengths, white space, in every combination."""

import itertools

import pytest

from support.http_front import Front, ask, connected, request
from support.logs import Log
from xformd.wire.http1 import METHODS

OWL = request("/transform/upper", b"owl")
BATCH = b'{"spec": "upper", "poem": "owl"}\n{"spec": "later", "poem": "owl"}\n'
LINE = b"POST /transform/upper HTTP/1.1\r\n"
HEAD = LINE + b"Host: a\r\n"
CHUNKS = b"2;a=b\r\now\r\n1\r\nl\r\n0\r\nX: y\r\n\r\n"

CONNECTIONS = {
    "": True,
    "upgrade": True,
    "Upgrade, HTTP2-Settings": True,
    "Upgrade, close": False,
    "close": False,
    "keep-alive": True,
    "keep-alive, Upgrade": True,
}
"""Values of ``Connection``, and whether they leave the connection open in HTTP/1.1."""

BODIES = {
    "none": (b"", b""),
    "length": (b"Content-Length: 3\r\n", b"owl"),
    "no bytes": (b"Content-Length: 0\r\n", b""),
    "chunked": (b"Transfer-Encoding: chunked\r\n", CHUNKS),
}


@pytest.mark.parametrize(
    ("version", "framing"), [*(("1.1", framing) for framing in BODIES), ("1.0", "none"), ("1.0", "length")]
)
def test_an_upgrade_that_is_offered_changes_nothing(version: str, framing: str) -> None:
    fields, body = BODIES[framing]
    for connection, upgrade in itertools.product(CONNECTIONS, ("", "h2c", "websocket", "TLS/1.0, h2c", "h2")):
        offers = f"Upgrade: {upgrade}\r\n" if upgrade else ""
        offers += f"Connection: {connection}\r\n" if connection else ""
        sent = f"POST /transform/upper HTTP/{version}\r\nHost: a\r\n{offers}".encode() + fields + b"\r\n" + body
        client = Front().client(sent + OWL)
        stays_open = CONNECTIONS[connection] if version == "1.1" else connection.startswith("keep-alive")
        result = b"OWL" if len(body) > 2 else b""
        assert [answer.body for answer in client.received()] == [result, *[b"OWL"] * stays_open], offers
        assert client.is_closed is not stays_open, offers


@pytest.mark.parametrize(
    "trailer",
    [
        *("Connection: close", "Connection: upgrade", "Upgrade: h2c", "Host: b", "Expect: 100-continue", "TE: x"),
        *("X-Timeout-Ms: 0", "Origin: https://evil.example", "X-Request-Id: third", "Content-Type: multipart/x"),
        "Content-Encoding: br",
    ],
)
def test_a_trailer_changes_nothing_whatever_field_it_holds(trailer: str) -> None:
    sent = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nowl\r\n0\r\n%b\r\n\r\n" % trailer.encode()
    client = Front().client(sent + OWL)
    assert [(answer.status, answer.body) for answer in client.received()] == [(200, b"OWL")] * 2
    assert not client.is_closed


# White space.


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Host", "a", 200),
        ("Transfer-Encoding", "chunked", 200),
        ("Content-Length", "", 200),
        ("Connection", "close", 200),
        ("Expect", "100-continue", 100),
        ("X-Timeout-Ms", "100", 200),
        ("Content-Encoding", "identity", 200),
        ("Content-Encoding", "br", 415),
        ("Content-Type", "text/plain; charset=utf-8", 200),
        ("X-Request-Id", "7e57", 200),
        ("Sec-Fetch-Site", "cross-site", 403),
    ],
)
def test_white_space_around_a_value_is_no_part_of_it(name: str, value: str, status: int) -> None:
    body = b"3\r\nowl\r\n0\r\nX: y\r\n\r\n"
    headers = {"host": "a", "transfer-encoding": "chunked"}
    if name == "Content-Length":
        headers, value = {"host": "a"}, str(len(body))
    for before, after in itertools.product(("", " ", "\t", " \t "), ("", " ", "\t", "\t  ")):
        padded = before + value + after
        lines = [f"{each}:{own}\r\n" for each, own in {**headers, name.lower(): padded}.items()]
        client = Front().client(LINE + "".join(lines).encode() + b"\r\n" + body)
        first, *_ = client.received()
        assert first.status == status, padded
        assert name != "X-Request-Id" or first.headers["x-request-id"] == "7e57", padded
        assert client.is_closed is (name == "Connection"), padded


@pytest.mark.parametrize("extension", ["; a=b", ";\ta", ";a =b", ";a= b", '; a = "b c"', "; a ; b", ";a=b ", ";"])
def test_white_space_in_a_chunk_s_extension_is_ignored(extension: str) -> None:
    sent = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3%b\r\nowl\r\n0%b\r\n\r\n" % (
        extension.encode(),
        extension.encode(),
    )
    assert ask(sent).body == b"OWL"


@pytest.mark.parametrize("space", ["  ", "\t", "\r", "\v", "\f", " \t", "\0"])
@pytest.mark.parametrize("line", ["{}POST / HTTP/1.1", "POST{}/ HTTP/1.1", "POST /{}HTTP/1.1", "POST / HTTP/1.1{}"])
def test_white_space_in_the_request_line_is_one_space_between_its_parts(space: str, line: str) -> None:
    client = Front().client(line.format(space).encode() + b"\r\nHost: a\r\nContent-Length: 3\r\n\r\nowl" + OWL)
    (answer,) = client.received()
    assert (answer.status, client.is_closed) == (400, True)


# Versions, methods and targets.


@pytest.mark.parametrize(
    "protocol", ["RTSP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/01.1", "http/1.1", "SIP/2.0", "X"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_protocol_runs_anything(protocol: str, method: str) -> None:
    front = Front()
    line = f"{method} /transform/upper?poem=owl {protocol}\r\nHost: a\r\nContent-Length: 3\r\n\r\nowl"
    client = front.client(line.encode() + OWL)
    (answer,) = client.received()
    assert answer.status in (400, 505)
    assert client.is_closed
    assert {code for _, _, code in front.requests} == {"bad-request"}


@pytest.mark.parametrize("target", ["*", "/transform/upper", "a:80", "http://a/transform/upper"])
@pytest.mark.parametrize("method", [*METHODS, "CONNECT", "FOO", "post"])
def test_what_follows_is_executed_only_where_the_request_could_be_read(method: str, target: str) -> None:
    is_fine = method in METHODS and target != "a:80" and (target != "*" or method == "OPTIONS")
    client = Front().client(f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    client.received(to_head=method == "HEAD")
    after = client.ask(OWL)
    assert [answer.body for answer in after] == [b"OWL"] * is_fine
    assert client.is_closed is not is_fine


@pytest.mark.parametrize("host", ["evil.example", "a", "a:80", ""])
@pytest.mark.parametrize(
    ("target", "status", "post_status"),
    [
        *((target, 404, 404) for target in ("/livez/", "/readyz/", "/metrics/", "/batch/", "//", "/index.html")),
        *((target, 404, 404) for target in ("/openapi.json/", "/transform", "//evil.example/")),
        *((target, 404, 405) for target in ("/transforms/", "/transforms/upper/")),
        ("/transform/", 400, 400),
        ("/transform/upper/?poem=owl", 400, 400),
    ],
)
def test_there_are_no_redirects(target: str, status: int, post_status: int, host: str) -> None:
    for method, expected in (("GET", status), ("POST", post_status)):
        answer = ask(request(target, method=method, host=host))
        assert answer.status == expected
        assert "location" not in answer.headers
        assert b"evil.example/" not in answer.body.replace(b"//evil.example/ here", b"")


@pytest.mark.parametrize("target", ["/transform/upper", "/batch"])
@pytest.mark.parametrize(
    "coding", ["br", "gzip", "GZIP", "deflate", "zstd", "x", "identity, gzip", "gzip, identity", "b\xe9"]
)
def test_a_compressed_body_gets_415_that_names_the_header(target: str, coding: str) -> None:
    answer = ask(request(target, b"owl", content_encoding=coding))
    assert answer.status == 415
    assert "Content-Encoding" in answer.problem["detail"]


@pytest.mark.parametrize("target", ["/transform/upper", "/batch"])
@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "Multipart/Form-Data", "multipart/mixed; boundary=x"]
)
def test_a_form_with_parts_gets_415(target: str, kind: str) -> None:
    answer = ask(request(target, b"--x--\r\n", content_type=kind))
    assert (answer.status, "form" in answer.problem["detail"]) == (415, True)


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_as_it_is_may_say_so(coding: str) -> None:
    assert ask(request("/transform/upper", b"owl", content_encoding=coding)).body == b"OWL"


# HTTP/1.0.


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n", "Connection: close\r\n"])
def test_a_batch_to_http_1_0_is_not_chunked_and_ends_with_the_close(connection: str) -> None:
    sent = f"POST /batch HTTP/1.0\r\n{connection}Content-Length: {len(BATCH)}\r\n\r\n".encode() + BATCH
    front, client = connected(sent + OWL)
    assert not client.is_closed
    front.finish(0, client)
    assert client.is_closed
    head, _, body = client.wire.value().partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"content-length" not in head.lower()
    assert b"connection: close" in head
    assert body == b'{"index": 0, "result": "OWL"}\n{"index": 1, "result": "late"}\n'


def test_http_1_0_is_told_that_the_connection_stays_open() -> None:
    sent = OWL.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n")
    client = Front().client(sent * 2)
    assert [answer.headers.get("connection") for answer in client.received()] == ["keep-alive"] * 2
    assert not client.is_closed
    for data, expected in ((OWL.replace(b"HTTP/1.1", b"HTTP/1.0"), "close"), (OWL, None)):
        (answer,) = Front().client(data).received()
        assert answer.headers.get("connection") == expected


# Expect: 100-continue.

EXPECTS = HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_expects_100_gets_it_before_its_body_is_here(chunked: bool) -> None:
    fields, body = BODIES["chunked" if chunked else "length"]
    client = Front().open()
    assert client.ask(HEAD + b"Expect: 100-continue\r\n") == []
    assert [answer.status for answer in client.ask(fields + b"\r\n")] == [100]
    assert client.ask(body[:1]) == []
    assert [answer.body for answer in client.ask(body[1:])] == [b"OWL"]
    assert not client.is_closed


def test_a_client_that_expects_100_behind_another_request_gets_it_in_its_turn() -> None:
    front, client = connected(request("/transform/later", b"owl") + EXPECTS)
    assert client.received() == []
    front.finish(0, client)
    assert [answer.status for answer in client.received()] == [200, 100]
    assert [answer.body for answer in client.ask(b"owl")] == [b"OWL"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (EXPECTS.replace(b"upper", b"uppr"), 404),
        (EXPECTS.replace(b"POST", b"PUT"), 405),
        (EXPECTS.replace(b"Length: 3", b"Length: 99999999"), 413),
        (EXPECTS.replace(b"Expect", b"Content-Encoding: br\r\nExpect"), 415),
        (EXPECTS.replace(b"Expect", b"Sec-Fetch-Site: cross-site\r\nExpect"), 403),
        (EXPECTS.replace(b"Expect", b"X-Timeout-Ms: x\r\nExpect"), 400),
    ],
)
def test_a_body_that_is_not_wanted_is_not_asked_for_and_not_read(sent: bytes, status: int, log: Log) -> None:
    for rest in (b"", b"owl", OWL):
        client = Front().client(sent + rest)
        (answer,) = client.received()
        assert (answer.status, answer.headers["connection"], client.is_closed) == (status, "close", True)
        assert client.ask(OWL) == []
    assert not log.tracebacks
