"""What HTTP tells of a request that is wrong, and what the log tells of one that fails."""

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.processes import DEADLINE_S, Server, serving, wait_until

LEAKY = Path(__file__).parents[1] / "support" / "leaky"
HTTP = ("--plugins=none", "--plugins-dir", str(LEAKY), "--workers=1", "--http", "tcp:0:interface=127.0.0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers HTTP, and logs JSON."""
    with serving(tmp_path_factory.mktemp("server"), *HTTP, "--log-format=json") as running:
        yield running


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(server.http).netloc, timeout=DEADLINE_S)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Connection": "close", **given})
    return connection.getresponse()


@pytest.mark.parametrize("value", ["0", "000", "-1", "1.5", "1000000000000", "soon", ""])
def test_a_deadline_is_a_number_of_milliseconds_from_1(server: Server, value: str) -> None:
    assert ask(server, "POST", "/transform/upper", b"owl", X_Timeout_Ms=value).status == 400
    assert ask(server, "GET", "/transform/upper?poem=owl", X_Timeout_Ms=value, If_None_Match="*").status == 400


def test_a_result_that_is_known_hides_no_mistake(server: Server) -> None:
    assert ask(server, "GET", "/transform/wrap?poem=owl&width=7", If_None_Match="*").status == 304
    assert ask(server, "GET", "/transform/wrap?poem=owl&width=wide", If_None_Match="*").status == 400
    assert ask(server, "GET", "/transform/wrap:width=wide+upper?poem=owl", If_None_Match="*").status == 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/transform/upper", "GET, HEAD, POST"),
        ("PUT", "/transform/wrap:width=7+upper", "GET, HEAD, POST"),
        ("PUT", "/transform/blocks", "POST"),
        ("GET", "/transform/blocks?poem=owl", "POST"),
        ("DELETE", "/transform/upper+blocks", "POST"),
        ("DELETE", "/transform/no-such", "POST"),
    ],
)
def test_a_method_that_is_not_there_is_answered_with_those_that_are(
    server: Server, method: str, path: str, allowed: str
) -> None:
    answer = ask(server, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("name", ["raises", "raises-here", "waits"])
def test_a_transform_that_fails_is_one_line_of_the_log_with_the_id_of_its_request(server: Server, name: str) -> None:
    answer = ask(server, "POST", f"/transform/{name}", b"owl", X_Request_Id=f"owl-{name}")
    assert (answer.status, answer.headers["x-request-id"]) == (500, f"owl-{name}")
    wait_until(lambda: f"owl-{name}" in server.log)
    (line,) = [line for line in server.log.splitlines() if f"owl-{name}" in line]
    event = json.loads(line)
    assert (event["request_id"], event["transform"], event["level"]) == (f"owl-{name}", name, "error")
    assert (event["error"], event["plugin"]) == ("ValueError", "leaky.py (leaky)")
    assert "leaky.py" in event["traceback"]


def test_no_poem_of_an_http_request_is_logged(server: Server) -> None:
    poem = "TheOwlOfHttp"
    for name in ("raises", "raises-here", "refuses", "gives-up", "leaves-a-deferred", "leaves-a-call", "dies"):
        assert ask(server, "POST", f"/transform/{name}", poem.encode()).status in (200, 422, 500, 502)
        ask(server, "GET", f"/transform/{name}?poem={poem}")
    ask(server, "POST", f"/transform/{poem}", poem.encode())
    ask(server, "GET", f"/{poem}?poem={poem}")
    ask(server, poem, f"/transform/upper?poem={poem}")
    lines = "".join(json.dumps({"spec": "raises", "poem": poem}) + "\n" for _ in range(3)) + poem
    assert ask(server, "POST", "/batch", lines.encode()).read().count(b"transform-failed") >= 3
    wait_until(lambda: "the worker of dies" in server.log)
    assert poem.lower() not in server.log.lower()


@pytest.mark.parametrize(
    "name", ["upper", "refuses"]
)  # in the server, and in a worker, which a poem too long would end
def test_a_poem_is_measured_in_utf_8_whatever_it_came_in(tmp_path: Path, name: str) -> None:
    with serving(tmp_path, *HTTP, "--max-request-bytes=1000") as server:
        type_ = "text/plain; charset=latin-1"
        answer = ask(server, "POST", f"/transform/{name}", b"\xe9" * 501, Content_Type=type_)
        assert (answer.status, json.loads(answer.read())["code"]) == (413, "too-large")
        assert ask(server, "POST", "/transform/upper", b"\xe9" * 500, Content_Type=type_).status == 200


def test_a_poem_in_an_address_is_no_longer_than_one_in_a_body(tmp_path: Path) -> None:
    with serving(tmp_path, *HTTP, "--max-request-bytes=1000") as server:
        answer = ask(server, "GET", f"/transform/upper?poem={'o' * 1001}")
        assert (answer.status, json.loads(answer.read())["code"]) == (413, "too-large")
        assert ask(server, "GET", f"/transform/upper?poem={'o' * 1000}").status == 200


def test_what_a_plugin_without_a_version_gives_is_not_kept(tmp_path: Path) -> None:
    plugin = "import xformd\n\n@xformd.transform(deterministic=True)\ndef owl(poem: str) -> str:\n    return '{}'\n"
    hook = "\n@xformd.hookimpl\ndef xformd_transforms():\n    return [owl]\n"
    (tmp_path / "p.py").write_text(plugin.format("hoo") + hook)
    with serving(tmp_path, *HTTP, "--plugins-dir", str(tmp_path)) as server:
        answer = ask(server, "GET", "/transform/owl?poem=", If_None_Match="*")
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        known = answer.headers["etag"] or "none"
        (tmp_path / "p.py").write_text(plugin.format("hooo") + hook)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: ask(server, "POST", "/transform/owl").read() == b"hooo")
        assert ask(server, "GET", "/transform/owl?poem=", If_None_Match=known).read() == b"hooo"
