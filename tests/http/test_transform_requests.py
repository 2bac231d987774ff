"""``/transform/{spec}``: every way to ask for a transform over HTTP, and what the answer says besides the poem."""

import json

import pytest

from support.http_front import Answer, Front, request, run
from xformd.http.requests import MAX_QUERY_POEM_BYTES

ASK = "/transform/upper?poem=owl"


def ask(data: bytes, front: Front | None = None, *, to_head: bool = False) -> Answer:
    """Send one request on a connection of its own, and give its answer."""
    found: list[Answer] = []

    async def test() -> None:
        client = (front or Front()).connect()
        await client.send(data)
        found.extend(client.received(to_head=to_head))

    run(test())
    (answer,) = found
    return answer


# How a spec is written.


@pytest.mark.parametrize(
    "target",
    [
        "wrap:width=6,fill=%2A",
        "wrap:width=6,fill=*",
        "wrap%3Awidth%3D6%2Cfill%3D%252A",
        "wrap%3Awidth%3D6%2Cfill%3D*",
        "wrap?width=6&fill=*",
        "wrap?width=6&fill=%2A",
        "wrap:width=6?fill=*",
        "wrap%3Afill%3D%252A?width=6",
    ],
)
def test_options_are_read_in_every_notation(target: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert (answer.status, answer.body) == (200, b"owl***")


@pytest.mark.parametrize("target", ["upper+wrap:width=5", "upper%2Bwrap%3Awidth%3D5", "upper%2bwrap:width=5"])
def test_several_run_in_turn(target: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert answer.body == b"OWL.."
    assert answer.headers["x-transform"] == "upper/1.0+wrap/1.0"


@pytest.mark.parametrize("value", ["%2B", "%2b", "%25", "%3D", "%2C", "%3A", "%2E", "%20", "+", "%26", "%C3%A9"])
def test_a_value_in_a_query_may_be_any_character(value: str) -> None:
    from urllib.parse import unquote_plus

    answer = ask(request(f"/transform/wrap?width=5&fill={value}", b"owl"))
    assert answer.body.decode() == "owl" + 2 * unquote_plus(value)


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("wrap:width=6?width=7", "bad-request", "twice"),
        ("wrap?width=6&width=6", "bad-request", "twice"),
        ("wrap?width", "bad-request", "malformed"),
        ("wrap?width=%ff", "bad-request", "malformed"),
        ("wrap?width=wide", "bad-options", "width"),
        ("wrap?depth=3", "bad-options", "depth"),
        ("repeat", "bad-options", "times"),
        ("upper+wrap?width=6", "bad-request", ""),
        ("wrap:width", "bad-request", ""),
        ("Upper", "bad-request", ""),
        ("upper+", "bad-request", ""),
        ("upper/wrap", "bad-request", ""),
    ],
)
def test_what_does_not_fit_is_said(target: str, code: str, word: str) -> None:
    answer = ask(request(f"/transform/{target}", b"owl"))
    assert (answer.status, answer.problem["code"]) == (400, code)
    assert word in answer.problem["detail"]


# What a poem is.


@pytest.mark.parametrize(
    ("content_type", "poem"),
    [
        (None, "é".encode()),
        ("text/plain", "é".encode()),
        ("text/plain; charset=utf-8", "é".encode()),
        ('text/plain; charset="UTF-8"', "é".encode()),
        ("text/plain; charset=latin-1", b"\xe9"),
        ("text/plain;charset=ISO-8859-1; format=flowed", b"\xe9"),
        ("text/plain; charset=utf-16", "é".encode("utf-16")),
        ("application/x-www-form-urlencoded", "é".encode()),
        ("image/png", "é".encode()),
    ],
)
def test_the_content_type_decides_the_charset_and_nothing_else(content_type: str | None, poem: bytes) -> None:
    answer = ask(request("/transform/upper", poem, content_type=content_type))
    assert (answer.status, answer.body.decode()) == (200, "É")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("charset", ["klingon", "punycode", "idna", "zlib", "rot13", "x" * 200, "\xe9"])
def test_a_charset_that_nobody_knows_is_refused(charset: str) -> None:
    answer = ask(request("/transform/upper", b"owl", content_type=f"text/plain; charset={charset}"))
    assert (answer.status, answer.problem["code"]) == (400, "bad-request")
    assert "UTF-8" in answer.problem["detail"]


def test_what_is_not_in_its_charset_is_gibberish() -> None:
    for poem, content_type in ((b"\xe9", "text/plain; charset=utf-8"), (b"\xe9", "text/plain; charset=ascii")):
        answer = ask(request("/transform/upper", poem, content_type=content_type))
        assert (answer.status, answer.problem["code"]) == (422, "gibberish")


def test_bytes_are_left_alone() -> None:
    answer = ask(request("/transform/backwards", b"\xe9\x00", content_type="text/plain; charset=latin-1"))
    assert answer.body == b"\x00\xe9"
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_transform_says_what_its_result_is() -> None:
    answer = ask(request("/transform/markup", b"owl"))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


# What the answer says besides.


@pytest.mark.parametrize("own", ["a", "0f-4.2:x_Y", "a" * 64])
def test_a_request_keeps_its_own_id(own: str) -> None:
    for target, status in (("upper", 200), ("uppr", 404)):
        answer = ask(request(f"/transform/{target}", b"owl", x_request_id=own))
        assert (answer.status, answer.headers["x-request-id"]) == (status, own)
        if status == 404:
            assert answer.problem["request_id"] == own


@pytest.mark.parametrize("own", [None, "", "a" * 65, "a b", "\x1b[31m".replace("\x1b", "~"), "\xe9"])
def test_an_id_that_is_not_fit_for_a_log_is_replaced(own: str | None) -> None:
    given = {ask(request("/transform/upper", b"owl", x_request_id=own)).headers["x-request-id"] for _ in range(2)}
    assert len(given) == 2
    assert own not in given


def test_the_answer_says_how_long_it_waited_and_ran() -> None:
    timing = ask(request("/transform/upper", b"owl")).headers["server-timing"]
    queue, run_ = timing.split(", ")
    assert queue.startswith("queue;dur=")
    assert float(run_.removeprefix("run;dur=")) >= 0


async def test_a_client_may_wait_for_less_than_the_server_would() -> None:
    front = Front(transform_timeout_s=30)
    client = front.connect()
    await client.send(request("/transform/later", b"owl", x_timeout_ms="2000"))
    front.clock.advance(1.9)
    await client.settle()
    assert not client.received()
    front.clock.advance(0.2)
    await client.settle()
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (504, "timeout")
    assert front.cancelled == 1


async def test_but_not_for_longer() -> None:
    front = Front(transform_timeout_s=3)
    client = front.connect()
    await client.send(request("/transform/later", b"owl", x_timeout_ms="20000"))
    front.clock.advance(3.1)
    await client.settle()
    assert [answer.status for answer in client.received()] == [504]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [("picky", 422, "gibberish"), ("raises", 500, "transform-failed"), ("uppr", 404, "no-such-transform")],
)
def test_an_error_of_the_table_has_its_status(name: str, status: int, code: str) -> None:
    answer = ask(request(f"/transform/{name}", b"owl"))
    assert (answer.status, answer.problem["code"]) == (status, code)
    assert answer.problem["type"] == f"urn:xformd:error:{code}"
    assert answer.headers["cache-control"] == "no-store"
    if name == "uppr":
        assert answer.problem["nearest"] == "upper"


def test_a_result_that_is_too_long_is_an_error() -> None:
    answer = ask(request("/transform/repeat?times=100", b"owl"), Front(max_result_bytes=100))
    assert (answer.status, answer.problem["code"]) == (413, "too-large")


# GET.


def test_a_short_poem_may_stand_in_the_address() -> None:
    answer = ask(request("/transform/upper+wrap:width=6?poem=%C3%A9+%26"))
    assert answer.body.decode() == "É &..."


@pytest.mark.parametrize(("size", "status"), [(MAX_QUERY_POEM_BYTES, 200), (MAX_QUERY_POEM_BYTES + 1, 413)])
def test_a_long_one_may_not(size: int, status: int) -> None:
    assert ask(request(f"/transform/upper?poem={'a' * size}")).status == status


def test_no_poem_is_no_request() -> None:
    assert ask(request("/transform/upper")).status == 400
    assert ask(request("/transform/upper?poem=")).status == 200


def test_a_result_can_be_kept_and_asked_for_again() -> None:
    first = ask(request(ASK))
    etag = first.headers["etag"]
    assert etag[0] == etag[-1] == '"'
    assert "max-age=" in first.headers["cache-control"]
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = ask(request(ASK, if_none_match=known))
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == etag
        assert "content-length" not in again.headers
    assert ask(request(ASK, if_none_match='"other"')).status == 200


def test_the_tag_is_that_of_transform_options_and_poem() -> None:
    targets = (ASK, "/transform/upper?poem=cat", "/transform/markup?poem=owl", "/transform/wrap?poem=owl")
    more = ("/transform/wrap?poem=owl&width=7", "/transform/upper+wrap?poem=owl")
    tags = [ask(request(target)).headers["etag"] for target in (*targets, *more)]
    assert len({*tags}) == len(tags)
    assert ask(request("/transform/wrap:width=7?poem=owl")).headers["etag"] == tags[4]


def test_head_is_get_without_the_poem() -> None:
    get, head = ask(request(ASK)), ask(request(ASK, method="HEAD"), to_head=True)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == "3"
    assert head.headers["etag"] == get.headers["etag"]


def test_what_is_another_one_every_time_is_not_got() -> None:
    for method in ("GET", "HEAD"):
        answer = ask(request("/transform/dice?poem=owl", method=method), to_head=method == "HEAD")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert ask(request("/transform/dice", b"owl")).status == 200


def test_a_wrong_method_is_told_the_right_ones() -> None:
    assert ask(request("/transform/upper", b"owl", method="PUT")).headers["allow"] == "GET, HEAD, POST"
    assert ask(request("/transform/dice", b"owl", method="DELETE")).headers["allow"] == "POST"


# Other sites.


def test_no_other_site_may_call_unless_it_is_named() -> None:
    asked = request("/transform/upper", b"owl", origin="https://a.example")
    assert "access-control-allow-origin" not in ask(asked).headers
    named = Front(origins=frozenset({"https://a.example"}))
    answer = ask(asked, named)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-transform" in answer.headers["access-control-expose-headers"].lower()
    other = request("/transform/upper", b"owl", origin="https://b.example")
    assert "access-control-allow-origin" not in ask(other, named).headers
    assert ask(other, Front(origins=frozenset({"*"}))).headers["access-control-allow-origin"] == "*"


def test_a_page_of_a_named_site_may_ask_beforehand() -> None:
    asked = request(
        "/transform/upper",
        method="OPTIONS",
        origin="https://a.example",
        access_control_request_method="POST",
        access_control_request_headers="x-timeout-ms",
    )
    assert ask(asked).status == 405
    answer = ask(asked, Front(origins=frozenset({"https://a.example"})))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "POST" in answer.headers["access-control-allow-methods"]


# What there is.


def test_the_transforms_are_listed() -> None:
    listed = json.loads(ask(request("/transforms")).body)
    by_name = {each["name"]: each for each in listed["transforms"]}
    assert by_name["wrap"]["options_schema"]["properties"]["width"]["default"] == 10
    assert json.loads(ask(request("/transforms/wrap")).body) == by_name["wrap"]
    answer = ask(request("/transforms/wrp"))
    assert (answer.status, answer.problem["nearest"]) == (404, "wrap")
