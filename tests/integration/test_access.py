"""Who has no right to a transform can neither use it nor learn that it exists, on any front; who has one, can."""

import base64
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.http_client import HTTP, Http, connect
from support.processes import Server, netstring, read_to_end, serving, wait_until, xformd
from support.session_client import Session
from support.timing import assert_within
from xformd.access.rules import new_token

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("access")]

# Of equal length, and equally far from every other name: only the first is there.
HIDDEN, ABSENT = "gemstone", "gumstone"

QUARRY = """
import xformd

@xformd.transform(deterministic=True, examples=[("a", "MINERAL a")])
def gemstone(poem: str, *, carat: int = 1) -> str:
    "Polish a MINERAL."
    return f"MINERAL {poem}"

@xformd.hookimpl
def xformd_transforms():
    return [gemstone]
"""

BED = """
import time, xformd

@xformd.transform(timeout=1000)
def sleeps(poem: str) -> str:
    time.sleep(1000)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [sleeps]
"""

CI, OPS = new_token(), new_token()

ACCESS = f"""
[identity.ci]
token_sha256 = "{CI[1]}"
transforms = ["wrap", "upper", "sleeps"]

[identity.ops]
token_sha256 = "{OPS[1]}"
transforms = ["*"]
monitor = true

[identity.local]
unix_uid = {os.getuid()}
transforms = ["trim"]

[identity.anonymous]
transforms = ["cummingsify"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("access")
    (made / "loose").mkdir()
    (made / "loose" / "quarry.py").write_text(QUARRY)
    (made / "loose" / "bed.py").write_text(BED)
    (made / "access.toml").write_text(ACCESS)
    for name, (token, _) in (("ci", CI), ("ops", OPS)):
        (made / name).write_text(token + "\n")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    arguments = ("--plugins=none", "--plugins-dir", str(folder / "loose"), "--access", str(folder / "access.toml"))
    listen = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{folder / 'socket'}")
    more: Any = {"XFORMD_HTTP": "tcp:0:interface=127.0.0.1", "XFORMD_WORKERS": "1"}
    with serving(folder, *arguments, *listen, **more) as running:
        yield running


def authenticate(session: Session, token: str) -> tuple[str, bytes]:
    session.socket.sendall(netstring(f"900 !auth.{token}".encode()))
    answer = session.receive()
    while answer.id != 900:
        answer = session.receive()
    return answer.code, answer.poem


def request(server: Server, method: str, path: str, token: str = "", body: bytes = b"", **headers: str) -> bytes:
    """Return the whole answer without what differs each time."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", "connection: close"]
    lines += [f"authorization: Bearer {token}"] if token else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with connect(server) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = read_to_end(connection)
    return re.sub(
        rb"(?m)^(date|x-request-id|server-timing): .*\r\n|\"request_id\": \"\w+\"|content-length: \d+", b"", answer
    )


def in_session(*texts: str) -> Callable[[Server, str, str], bytes]:
    def attempt(server: Server, token: str, name: str) -> bytes:
        strings = [b"xformd/2", *([f"900 !auth.{token}".encode()] if token else [])]
        strings += [text.replace("NAME", name).encode() for text in texts]
        return server.ask(b"".join(map(netstring, strings)), half_close=True)

    return attempt


def over_http(method: str, path: str, body: str = "", **headers: str) -> Callable[[Server, str, str], bytes]:
    def attempt(server: Server, token: str, name: str) -> bytes:
        encoded = "".join(f"%{ord(each):02x}" for each in name)
        where = path.replace("NAME", name).replace("ENCODED", encoded)
        return request(server, method, where, token, body.replace("NAME", name).encode(), **headers)

    return attempt


def classic(text: str) -> Callable[[Server, str, str], bytes]:
    return lambda server, _, name: server.ask(netstring(text.replace("NAME", name).encode()))


def etag(server: Server, name: str) -> str:
    found = re.search(rb"etag: (\S+)", request(server, "GET", f"/transform/{name}?poem=owl", OPS[0]))
    return "" if found is None else found[1].decode()


LINES = "\n".join(
    '{"spec": "SPEC", "poem": "owl"}'.replace("SPEC", spec) for spec in ("NAME", "wrap+NAME", "NAME:carat=2")
)

ATTEMPTS = {
    "classic": classic("NAME.owl"),
    "classic, options": classic("NAME:carat=2.owl"),
    "classic, pipeline": classic("cummingsify+NAME.owl"),
    "session": in_session("1 NAME.owl"),
    "session, twice": in_session("1 NAME.owl", "2 NAME.owl"),
    "session, options": in_session("1 NAME:carat=2.owl"),
    "session, wrong option": in_session("1 NAME:carat=x.owl"),
    "session, unknown option": in_session("1 NAME:karat=2.owl"),
    "session, no time": in_session("1 NAME timeout=0.owl"),
    "session, first of a pipeline": in_session("1 NAME+wrap.owl"),
    "session, last of a pipeline": in_session("1 wrap+NAME.owl"),
    "session, in the middle": in_session("1 upper+NAME+wrap.owl"),
    "session, not UTF-8": in_session("1 NAME.\udcff".encode("utf-8", "surrogateescape").decode("latin-1")),
    "session, empty": in_session("1 NAME."),
    "session, 100 times": in_session(*(f"{number} NAME.owl" for number in range(1, 101))),
    "session, between others": in_session("1 wrap.a", "2 NAME.owl", "3 wrap.b"),
    "session, for a client": in_session("1 NAME client=10.0.0.1.owl"),
    "session, cancelled": in_session("1 NAME.owl", "1 !cancel."),
    "session, wrong token before": in_session("5 !auth.NAME", "1 NAME.owl"),
    "session, almost its name": in_session("1 NAMES.owl"),
    "POST": over_http("POST", "/transform/NAME", "owl"),
    "POST, options": over_http("POST", "/transform/NAME:carat=2", "owl"),
    "POST, query": over_http("POST", "/transform/NAME?carat=2", "owl"),
    "POST, wrong option": over_http("POST", "/transform/NAME?carat=x", "owl"),
    "POST, pipeline": over_http("POST", "/transform/wrap+NAME", "owl"),
    "POST, encoded": over_http("POST", "/transform/ENCODED", "owl"),
    "POST, charset": over_http("POST", "/transform/NAME", "owl", content_type="text/plain; charset=latin-1"),
    "POST, unsupported body": over_http("POST", "/transform/NAME", "owl", content_encoding="gzip"),
    "POST, another's token too": over_http("POST", "/transform/NAME?token=x", "owl"),
    "GET": over_http("GET", "/transform/NAME?poem=owl"),
    "GET, no poem": over_http("GET", "/transform/NAME"),
    "GET, pipeline": over_http("GET", "/transform/NAME+wrap?poem=owl"),
    "GET, any match": over_http("GET", "/transform/NAME?poem=owl", if_none_match="*"),
    "GET, if match": over_http("GET", "/transform/NAME?poem=owl", if_match='"x"'),
    "HEAD": over_http("HEAD", "/transform/NAME?poem=owl"),
    "PUT": over_http("PUT", "/transform/NAME", "owl"),
    "OPTIONS": over_http("OPTIONS", "/transform/NAME"),
    "DELETE": over_http("DELETE", "/transform/NAME"),
    "described": over_http("GET", "/transforms/NAME"),
    "described, encoded": over_http("GET", "/transforms/ENCODED"),
    "batch": over_http("POST", "/batch", LINES),
    "batch, twice": over_http("POST", "/batch", f"{LINES}\n{LINES}"),
    "batch, base64": over_http("POST", "/batch", '{"spec": "NAME", "poem_base64": "b3ds"}'),
}

READS = {
    "session, !list": in_session("1 !list."),
    "session, !ping": in_session("1 !ping."),
    "session, !auth": in_session("1 !auth.x"),
    "transforms": over_http("GET", "/transforms"),
    "OpenAPI": over_http("GET", "/openapi.json"),
    "page": over_http("GET", "/"),
    "metrics": over_http("GET", "/metrics"),
    "readiness": over_http("GET", "/readyz"),
    "liveness": over_http("GET", "/livez"),
    "nowhere": over_http("GET", "/nowhere"),
}

WHO = {"anonymous": "", "ci": CI[0], "a wrong token": "xformd_" + "A" * 43}


def test_there_are_as_many_attempts_as_were_promised() -> None:
    assert len(ATTEMPTS) + len(READS) >= 40


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_transform_without_a_right_to_it_is_as_one_that_is_not_there(server: Server, who: str, attempt: str) -> None:
    hidden = ATTEMPTS[attempt](server, WHO[who], HIDDEN)
    absent = ATTEMPTS[attempt](server, WHO[who], ABSENT)
    assert hidden.replace(HIDDEN.encode(), ABSENT.encode()) == absent
    assert b"MINERAL" not in hidden
    assert b"carat" not in hidden.replace(b"carat=", b"")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("read", READS)
def test_nothing_that_can_be_read_names_it(server: Server, who: str, read: str) -> None:
    answer = READS[read](server, WHO[who], "")
    assert answer
    for word in (HIDDEN, "MINERAL", "quarry", "carat"):
        assert word.encode() not in answer


def test_a_tag_of_a_result_tells_nothing(server: Server) -> None:
    tag = etag(server, "wrap")
    assert tag
    for token in ("", WHO["a wrong token"]):
        answer = request(server, "GET", "/transform/wrap?poem=owl", token, if_none_match=tag)
        assert answer.startswith(b"HTTP/1.1 40")
    assert request(server, "GET", "/transform/wrap?poem=owl", CI[0], if_none_match=tag).startswith(b"HTTP/1.1 304")


def test_who_has_a_right_may(server: Server, folder: Path) -> None:
    with Session(server) as session:
        assert session.ask("cummingsify", b"A").poem == b"a"
        assert session.ask("upper", b"a").code == "no-such-transform"
        code, told = authenticate(session, CI[0])
        assert (code, json.loads(told)) == ("ok", {"identity": "ci", "transforms": ["sleeps", "upper", "wrap"]})
        assert session.ask("upper", b"a").poem == b"A"
        assert session.ask("cummingsify", b"A").code == "no-such-transform"
        assert authenticate(session, OPS[0])[0] == "ok"
        assert session.ask(HIDDEN, b"a").poem == b"MINERAL a"
    answer = request(server, "POST", f"/transform/{HIDDEN}", OPS[0], b"owl")
    assert answer.endswith(b"MINERAL owl")
    line = json.dumps({"spec": f"upper+{HIDDEN}", "poem": "owl"}).encode()
    assert b"MINERAL OWL" in request(server, "POST", "/batch", OPS[0], line)
    assert HIDDEN.encode() in request(server, "GET", "/metrics", OPS[0])
    got = request(server, "GET", "/transform/wrap?poem=owl", CI[0])
    assert b"cache-control: private, max-age=" in got
    sent = xformd("send", "upper", "--server", server.address, "--token-file", str(folder / "ci"), stdin=b"owl")
    assert sent.stdout == b"OWL"
    listed = xformd("list-transforms", "--json", "--server", server.address, XFORMD_TOKEN=OPS[0])
    assert HIDDEN in [each["name"] for each in json.loads(listed.stdout)["transforms"]]


def test_a_unix_socket_shows_whose_process_it_is(folder: Path, server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "socket"))
        connection.sendall(netstring(b"trim.owl "))
        assert read_to_end(connection) == netstring(b"owl")
    assert server.ask(netstring(b"trim.owl ")) == b""


def test_the_third_wrong_token_ends_the_session(server: Server) -> None:
    with Session(server) as session:
        for _ in range(2):
            assert authenticate(session, "no")[0] == "unauthorized"
        assert session.ask("cummingsify", b"A").poem == b"a"
        assert authenticate(session, "no")[0] == "unauthorized"
        assert (answer := session.receive()).id == 0
        assert answer.code == "unauthorized"
        with pytest.raises(ConnectionError):
            session.receive()


def test_http_says_what_it_wants(server: Server) -> None:
    for header in ("Bearer x", "Basic eDp5", "bearer", ""):
        answer = request(server, "POST", "/transform/upper", body=b"a", authorization=header)
        assert answer.startswith(b"HTTP/1.1 401"), header
        assert b"\r\nwww-authenticate: Bearer realm" in answer
    assert request(server, "GET", "/metrics", CI[0]).startswith(b"HTTP/1.1 403")
    assert request(server, "POST", "/transform/upper", f" {CI[0]} ", b"a").endswith(b"A")


def test_no_token_is_ever_logged_or_in_a_process_list(server: Server, folder: Path) -> None:
    for name in ("ci", "ops"):
        xformd("send", "upper", "--server", server.address, "--token-file", str(folder / name), stdin=b"owl")
    in_session("1 !auth.not-a-token-of-anybody")(server, "", "")
    request(server, "GET", "/transforms", "not-a-token-of-anybody")
    command = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    for text in (server.log, command):
        assert not [each for each in (*CI, *OPS, "not-a-token") if each in text]
        assert base64.b64encode(CI[0].encode()).decode() not in text


@pytest.mark.timing
def test_a_revoked_token_ends_what_it_has_in_flight_within_a_second(folder: Path, server: Server) -> None:
    file = folder / "access.toml"

    def measure() -> float:
        with Session(server) as session, Session(server) as other, connect(server) as connection:
            return revoke(file, server, session, other, Http(connection))

    assert_within(1.0, measure)


def revoke(file: Path, server: Server, session: Session, other: Session, web: Http) -> float:
    """Revoke a token that has requests in flight, and grant it again; return how long they took to end, in seconds."""
    assert authenticate(session, CI[0])[0] == authenticate(other, OPS[0])[0] == "ok"
    readings = server.log.count("read the access rules again")
    (running,) = session.send(("sleeps", b"a"))
    web.send(f"POST /transform/sleeps HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {CI[0]}\r\n".encode())
    web.send(b"content-length: 1\r\n\r\na")
    wait_until(lambda: b'"in_flight": 2' in request(server, "GET", "/readyz"))
    try:
        file.write_text(ACCESS.replace(CI[1], "0" * 64))
        began = time.monotonic()
        answer = session.receive()
        took_s = time.monotonic() - began
        assert (answer.id, answer.code) == (running, "unauthorized")
        (told,) = web.receive()
        assert told.status == 401
        assert session.ask("upper", b"a").code == "unauthorized"
        assert other.ask(HIDDEN, b"a").poem == b"MINERAL a"  # its worker was killed, not the service
    finally:
        file.write_text(ACCESS)
    wait_until(lambda: server.log.count("read the access rules again") >= readings + 2)
    assert authenticate(session, CI[0])[0] == "ok"
    assert session.ask("upper", b"a").poem == b"A"
    return took_s


def test_a_proxy_has_a_file_of_its_own_and_shows_a_token_to_its_upstream(folder: Path, server: Server) -> None:
    own = folder / "proxy.toml"
    own.write_text('[identity.anonymous]\ntransforms = ["upper", "gem*"]\n')
    token = str(folder / "ci")
    verb = ("proxy", server.address, "--access", str(own), "--token-file", token)
    with serving(folder, verb=verb, ready="the transforms of") as proxy, Session(proxy) as session:
        assert session.ask("upper", b"a").poem == b"A"
        assert session.ask("upper", b"a").poem == b"A"  # from its cache
        for name in ("wrap", "trim", HIDDEN, ABSENT):
            assert session.ask(name, b"a").code == "no-such-transform"
        code, told = authenticate(session, CI[0])
        assert code == "unauthorized"
        assert b"token" in told
        listed = in_session("1 !list.")(proxy, "", "")
        assert b'"upper"' in listed
        assert b'"wrap"' not in listed


def test_without_a_file_everybody_may_do_everything(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, "--plugins=none") as server:
        sent = xformd("send", "upper", "--server", server.address, "--token-file", str(folder / "ci"), stdin=b"owl")
        assert sent.stdout == b"OWL"
        with Session(server) as session:
            code, told = authenticate(session, "anything")
            assert code == "ok"
            assert json.loads(told)["identity"] == "anonymous"


@pytest.mark.parametrize(("text", "says"), [("[identity.a]", "line 1: give it a token_sha256"), (None, "No such file")])
def test_a_server_does_not_start_with_a_bad_file(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "access.toml"
    if text is not None:
        file.write_text(text)
    done = xformd("serve", "--port", "0", "--plugins=none", "--access", str(file))
    assert done.returncode == 78
    told = done.stderr.decode()
    assert says in told
    assert "bad-config: --access: " in told


def test_token_new_prints_the_token_and_what_the_file_needs(tmp_path: Path) -> None:
    made = xformd("token", "new", "ci")
    token, lines = made.stdout.decode().strip(), made.stderr.decode().splitlines()
    file = tmp_path / "access.toml"
    file.write_text("\n".join(lines))
    from xformd.access.rules import read_rules

    found = read_rules(file).by_token(token.encode())
    assert found is not None
    assert found.name == "ci"
    refused = xformd("token", "new", "a b")
    assert (refused.returncode, refused.stdout) == (78, b"")


def test_a_name_in_a_client_s_certificate_shows_who_it_is(tmp_path: Path) -> None:
    authority = Authority()
    ca, own = str(authority.write(tmp_path / "ca.pem")), str(authority.issue(tmp_path / "server.pem", "localhost"))
    stranger = Authority()
    file = tmp_path / "access.toml"
    file.write_text('[identity.web]\ntls_san = "web.internal"\ntransforms = ["upper"]\n')
    tls = ("--tls", "all", "--tls-certificate", own, "--tls-client-ca", ca)
    with serving(tmp_path, "--plugins=none", "--access", str(file), *tls, *HTTP) as server:
        address = server.address.replace("127.0.0.1", "localhost").removeprefix("tls:")
        for name, names, status in (
            ("web", ["web.internal", "b.internal"], 0),
            ("other", ["other.internal"], 77),
            ("none", [], 77),
        ):
            shown = ["--tls-client-certificate", str(authority.issue(tmp_path / name, *names))] if names else []
            done = xformd("send", "upper", "--server", address, "--tls", "--tls-ca", ca, *shown, stdin=b"owl")
            assert (done.returncode, done.stdout) == (status, b"" if status else b"OWL")
        untrusted = stranger.issue(tmp_path / "stranger", "web.internal")
        done = xformd("send", "upper", "--server", address, "--tls-ca", ca, "--tls-client-certificate", str(untrusted))
        assert done.returncode != 0
        assert done.stdout == b""
        web = (
            "curl",
            "-s",
            "--cacert",
            ca,
            f"{server.http.replace('127.0.0.1', 'localhost')}/transform/upper",
            "-d",
            "owl",
        )
        with_certificate = subprocess.run([*web, "--cert", str(tmp_path / "web")], capture_output=True, check=True)
        assert with_certificate.stdout == b"OWL"
        assert b"urn:xformd:error:unauthorized" in subprocess.run(web, capture_output=True, check=True).stdout


def test_tokens_that_would_travel_in_plain_text_are_warned_of(tmp_path: Path, folder: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--access", str(folder / "access.toml"), "--listen", "tcp:0") as server:
        wait_until(lambda: "tokens of the access file travel in plain text to" in server.log)
