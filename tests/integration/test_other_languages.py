"""The clients for JavaScript and Go: the vectors, real servers, and the words of the clients in Python."""

import contextlib
import functools
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import tls_endpoint
from support.clients import HELLO, Conversation, FakeServer, Talk, answers, fake_servers, number, until, upper
from support.other_languages import GO, JAVASCRIPT, ROOT, Client, Driver, Failed, Request, build, command_for, need
from support.processes import DEADLINE_S, VERSES, Server, environment, serving, wait_until
from xformd.access.rules import new_token
from xformd.blocking import TransformClient
from xformd.errors import XformError

pytestmark = pytest.mark.slow

LANGUAGES = ("node", "deno", "go")
NEVER_SENT = 11  # vectors of what these clients cannot send
PLUGIN = """
import pathlib, time, xformd

@xformd.transform
def sleeps(poem: str) -> str:
    pathlib.Path(poem).touch()
    time.sleep(1000)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [sleeps]
"""


@pytest.fixture(scope="module", params=LANGUAGES)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return command_for(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def driver(command: list[str]) -> Iterator[Driver]:
    driver = Driver(command)
    yield driver
    driver.stop()


@pytest.fixture(scope="module")
def given_up(driver: Driver) -> Iterator[tuple[FakeServer, Request]]:
    """Ask a server that is silent; it takes four seconds until it is given up, which other tests use."""
    server = FakeServer(answers(lambda string: None))
    yield server, driver.client(server.address, name="there").start("upper", "poem")
    server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "loose").mkdir()
    shutil.copy(VERSES / "verses.py", folder / "loose")
    (folder / "loose" / "bed.py").write_text(PLUGIN)
    plugins = ("--plugins=none", "--plugins-dir", str(folder / "loose"))
    with serving(folder, *plugins, XFORMD_WORKERS="1") as running:
        yield running


@pytest.fixture
def client(driver: Driver, server: Server, given_up: object) -> Client:
    return driver.client(server.address)


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], FakeServer]]:
    """Start servers in threads."""
    with fake_servers() as start:
        yield start


def test_the_vectors(command: list[str]) -> None:
    data = ROOT / "tests" / "data"
    done = subprocess.run(
        [*command, "vectors", str(data)], capture_output=True, timeout=DEADLINE_S, env=environment(), check=True
    )
    report = json.loads(done.stdout)
    assert report["failed"] == []
    assert len(report["skipped"]) == NEVER_SENT, report["skipped"]
    sessions = json.loads((data / "session.json").read_text())
    twice = len(json.loads((data / "netstrings.json").read_text())) + len(sessions["sessions"])
    once = len(sessions["to_server"]) + len(sessions["to_client"])
    assert report["passed"] == 2 * twice + once - NEVER_SENT


# A real server


def test_texts_and_bytes(client: Client) -> None:
    assert client.xform("upper", "the ówl") == "THE ÓWL"
    assert client.xform("backwards", bytes(range(256))) == bytes(reversed(range(256)))
    assert client.xform("gzip+gunzip", b"\x00.\xff" * 100_000) == b"\x00.\xff" * 100_000
    assert client.xform("repeat", "long poem ", times=200_000) == "long poem " * 200_000


def test_a_dot_in_an_option_does_not_end_the_spec(client: Client) -> None:
    assert client.xform("replace", "1.5", pattern=".", replacement="+,= %é") == "1+,= %é5"
    assert client.xform("replace:replacement=a.b,pattern=x", "x") == "a.b"
    assert client.xform("indent", "x", prefix="1.5 ") == "1.5 x"


def said_by(client: Any, *order: Any, **options: Any) -> tuple[Any, ...]:
    try:
        return ("no error", client.xform(*order, **options))
    except (Failed, XformError) as error:
        return error.code, error.message, error.retryable, error.retry_after_ms


@pytest.mark.parametrize(
    ("spec", "poem", "options"),
    [
        ("uppper", "x", {}),
        ("wrap", "x", {"width": 1.5}),
        ("upper:volume=11", "x", {}),
        ("picky", "x", {}),
        ("raises", "x", {}),
        ("upper", b"\xff", {}),
        ("gzip", "x", {}),
        ("upper", "x" * 11_000_000, {}),
        ("Upper", "x", {}),
        ("upper+wrap", "x", {"width": 1}),
        ("wrap:width", "x", {}),
        ("wrap:width=%4", "x", {}),
        ("wrap:a=1,a=2", "x", {}),
        ("éa+wrap", "x", {}),
        ("upper+" * 32 + "upper", "x", {}),
        ("a" * 9_000, "x", {}),
        ("wrap", "x", {"Width": 1}),
    ],
    ids=lambda value: str(value)[:12],
)
def test_errors_are_those_of_the_clients_in_python(
    client: Client, server: Server, spec: str, poem: str | bytes, options: dict[str, Any]
) -> None:
    with TransformClient(server.address) as python:
        assert said_by(client, spec, poem, **options) == said_by(python, spec, poem, **options)


def test_what_is_cancelled_no_longer_occupies_a_worker(client: Client, tmp_path: Path) -> None:
    begun = client.start("sleeps", str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)
    begun.cancel()
    with pytest.raises(Failed, match="cancelled"):
        begun.result()
    assert client.xform("prints", "there is but one") == "there is but one"


def test_a_deadline_ends_the_request_on_both_sides(client: Client, server: Server, tmp_path: Path) -> None:
    with pytest.raises(Failed) as caught:
        client.xform("sleeps", str(tmp_path / "started"), timeout=0.5)
    assert (caught.value.code, caught.value.retryable) == ("timeout", True)
    assert client.xform("prints", "there is but one") == "there is but one"


def test_a_hundred_requests_on_one_connection(client: Client) -> None:
    begun = [client.start("upper", f"poem {each}") for each in range(100)]
    assert [each.result() for each in begun] == [f"POEM {each}" for each in range(100)]


def test_list_and_ping(client: Client) -> None:
    listed = client.do("list")
    assert isinstance(listed, str)
    assert {"upper", "wrap", "sleeps"} <= set(listed.split(","))
    assert str(client.do("ping")).startswith("xformd ")


def test_a_server_that_stops_answers_what_it_has_and_is_used_again_when_it_is_back(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All languages at once: a server takes its time to start."""
    commands = [command_for(each, tmp_path_factory.mktemp(each)) for each in LANGUAGES if shutil.which(each)]
    if not commands:
        pytest.skip("install nodejs, or golang-go")
    plugins = ("--plugins=none", "--plugins-dir", str(VERSES))
    with contextlib.ExitStack() as at_end:
        drivers = [Driver(each) for each in commands]
        for each in drivers:
            at_end.callback(each.stop)
        with serving(tmp_path, *plugins, GATE=str(tmp_path)) as first:
            clients = [each.client(first.address) for each in drivers]
            begun = []
            for client in clients:
                begun.append(client.start("gate", "the owl"))
                wait_until((tmp_path / "started").exists)
                (tmp_path / "started").unlink()
            first.process.send_signal(signal.SIGTERM)
            for client in clients:
                wait_until(functools.partial(_is_refused, client))
            (tmp_path / "open").touch()
            assert [each.result() for each in begun] == ["THE OWL"] * len(drivers)
            first.process.wait(DEADLINE_S)
        with serving(tmp_path, *plugins, where=("--port", first.address.rpartition(":")[2])):
            assert [client.xform("upper", "back") for client in clients] == ["BACK"] * len(drivers)


def _is_refused(client: Client) -> bool:
    return bool(said_by(client, "upper", "x")[0] == "connection-failed")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Serve over TLS to those with a token; return the address, the certificate to trust, and the token."""
    folder = tmp_path_factory.mktemp("guarded")
    endpoint, trusted = tls_endpoint(folder)
    token, digest = new_token()
    (folder / "access.toml").write_text(f'[identity.owl]\ntoken_sha256 = "{digest}"\ntransforms = ["upper"]\n')
    arguments = ("--plugins=none", "--access", str(folder / "access.toml"), "--listen", endpoint)
    with serving(folder, *arguments) as server:
        yield f"localhost:{server.address.rpartition(':')[2]}", str(trusted / "certificate.pem"), token


def test_tls_and_tokens(driver: Driver, guarded: tuple[str, str, str]) -> None:
    address, ca, token = guarded
    known = driver.client(f"tls:{address}", ca=ca, token=token)
    assert [known.xform("upper", "x") for _ in range(3)] == ["X"] * 3
    assert said_by(known, "lower", "x")[0] == "no-such-transform"
    assert said_by(driver.client(address, ca=ca, token="wrong"), "upper", "x")[0] == "unauthorized"
    assert said_by(driver.client(address, ca=ca), "upper", "x")[0] == "unauthorized"
    for other in (f"tls:{address}", f"tls:{address.replace('localhost', '127.0.0.1')}"):
        code, message, *_ = said_by(driver.client(other), "upper", "x")
        assert (code, "TLS failed" in message) == ("connection-failed", True), message


# A server that says whatever a test wants


def after_request(act: Callable[[Conversation], None]) -> Talk:
    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if string == b"xformd/2":
                conversation.say(HELLO)
            else:
                act(conversation)
                return

    return talk


def says(*strings: bytes) -> Talk:
    return after_request(lambda conversation: conversation.say(*strings))


def sends(data: bytes, *, at_once: bool = False) -> Talk:
    if not at_once:
        return after_request(lambda conversation: conversation.socket.sendall(data))

    def talk(conversation: Conversation) -> None:
        conversation.socket.sendall(data)
        list(conversation)

    return talk


def refuses(conversation: Conversation) -> None:
    for string in conversation:
        conversation.say(HELLO if string == b"xformd/2" else b"1 unauthorized.this server needs credentials")


def dies_at_once(conversation: Conversation) -> None:
    for _ in conversation:
        conversation.reset()


WORLDS: dict[str, Talk | None] = {
    "refuses connections": None,
    "resets at the opening": dies_at_once,
    "resets after the request": after_request(Conversation.reset),
    "closes after the request": after_request(lambda conversation: None),
    "says goodbye and closes": says(b"0 shutting-down.until tomorrow"),
    "is HTTP": sends(b"HTTP/1.1 400 Bad Request\r\n", at_once=True),
    "is another protocol": sends(b"1:x,", at_once=True),
    "has a huge hello": sends(b"99999999999:", at_once=True),
    "sends no netstring": sends(b"owl"),
    "sends a huge length": sends(b"999999999999:x"),
    "sends no id": says(b"owl ok.x"),
    "answers what nobody asked": says(*[b"%d ok.x" % each for each in range(7, 12)]),
    "sends a code of its own": says(b"1 tea-time.at five"),
    "is busy": says(b"1 busy retry-after=250.the queue is full"),
    "has a bad time": says(b"1 busy retry-after=soon.the queue is full"),
    "died": says(b"1 transform-died.its worker was killed"),
    "speaks in riddles": says(b"1 transform-failed.a\x1b[31m\n  b \xff" + b"x" * 2_000),
    "sends bytes": says(b"1 ok.\xff"),
    "sends too much": says(b"1 ok." + b"x" * 1_001),
    "needs credentials": refuses,
    "stops in the middle": says(b"1 shutting-down.stopped before this was done"),
}


def without_parser(said: Any) -> Any:
    """Leave out what each language's parser of JSON says."""
    return re.sub("(hello of a session: ).*", r"\1", said) if isinstance(said, str) else said


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_error_in_the_same_words(driver: Driver, serve: Any, world: str) -> None:
    talk = WORLDS[world]
    server = serve(talk or dies_at_once)
    if talk is None:
        server.stop()
    token = "wrong" if world == "needs credentials" else None
    mine = said_by(driver.client(server.address, name="there", token=token, maxResultBytes=1_000), "upper", "poem")
    sent = [string for string in server.received if string.endswith(b".poem")]
    with TransformClient(server.address, address="there", token=token, max_result_bytes=1_000) as python:
        assert [*map(without_parser, mine)] == [*map(without_parser, said_by(python, "upper", "poem"))]
    assert mine[0] != "no error"
    assert len(sent) <= 1  # it may have run


def test_a_server_that_is_silent_is_asked_and_given_up(given_up: tuple[FakeServer, Request]) -> None:
    server, begun = given_up
    with pytest.raises(Failed, match="connection-lost: there has stopped answering, even a ping: it may be gone; the"):
        begun.result()
    assert server.received == [b"xformd/2", b"1 upper.poem", b"2 !ping."]


def test_a_server_of_the_classic_dialect_is_named_so(driver: Driver, serve: Any) -> None:
    def tutorial(conversation: Conversation) -> None:
        next(iter(conversation))

    said = said_by(driver.client(serve(tutorial).address, name="there"), "upper", "x")
    assert said[:2] == ("refused", "there speaks only the classic dialect: this client needs sessions")


def test_what_a_stopping_server_has_not_begun_is_sent_again(driver: Driver, serve: Any) -> None:
    said = iter([b"1 shutting-down retry-after=5.bye", b"1 ok.done"])
    server = serve(answers(lambda string: next(said)))
    assert driver.client(server.address).xform("upper", "x") == "done"
    assert server.received.count(b"1 upper.x") == 2


def test_no_more_is_in_flight_than_the_server_allows(driver: Driver, serve: Any) -> None:
    server = serve(answers(lambda string: None))
    client = driver.client(server.address)
    begun = [client.start("upper", str(each)) for each in range(6)]
    until(lambda: len(server.received) == 5)
    server.stop()
    codes = []
    for each in begun:
        with pytest.raises(Failed) as caught:
            each.result()
        codes.append(caught.value.code)
    assert sorted(codes) == ["connection-failed"] * 2 + ["connection-lost"] * 4


def test_a_deadline_and_a_cancellation_reach_the_server_and_the_session_goes_on(driver: Driver, serve: Any) -> None:
    server = serve(answers(lambda string: upper(string) if string.endswith(b"quick") else None))
    client = driver.client(server.address, name="there")
    code, message, *_ = said_by(client, "upper", "slow", 0.1)
    assert (code, re.sub(r"0\.\d+", "0.1", message)) == ("timeout", "no answer from there within 0.1 s")
    until(lambda: b"1 !cancel." in server.received)
    (sent,) = (string for string in server.received if string.endswith(b".slow"))
    assert re.fullmatch(rb"1 upper timeout=\d+\.slow", sent)
    assert int(re.findall(rb"timeout=(\d+)", sent)[0]) <= 100
    begun = client.start("upper", "slow too")
    until(lambda: b"2 upper.slow too" in server.received)
    begun.cancel()
    until(lambda: b"2 !cancel." in server.received)
    assert client.xform("upper", "quick") == "QUICK"
    assert server.connections == 1


def test_a_client_that_is_closed_answers_what_it_has_and_takes_nothing_more(driver: Driver, serve: Any) -> None:
    is_open: list[bool] = []

    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if string != b"xformd/2":
                until(lambda: is_open)
            conversation.say(HELLO if string == b"xformd/2" else upper(string))
        is_open.clear()  # the client has closed the connection

    server = serve(talk)
    client = driver.client(server.address)
    begun = client.start("upper", "x")
    until(lambda: number(server.received[-1] if server.received else b"") == b"1")
    client.do("close")
    assert said_by(client, "upper", "y")[0] == "connection-failed"
    is_open.append(True)
    assert begun.result() == "X"
    until(lambda: not is_open)


# The page

PAGE = ROOT / "docs" / "languages.md"


def block_of(kind: str) -> str:
    found: str = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    return found


@pytest.mark.parametrize("tool", ["node", "deno"])
def test_the_javascript_of_the_page_prints_what_it_says(server: Server, tmp_path: Path, tool: str) -> None:
    need(tool)
    shutil.copy(JAVASCRIPT, tmp_path)
    (tmp_path / "program.mjs").write_text(block_of("js"))
    start = [tool] if tool == "node" else [tool, "run", "--no-config", "--allow-net", "--allow-env=XFORMD_SERVER"]
    assert run([*start, "program.mjs"], server, tmp_path) == block_of("text")


def test_the_go_of_the_page_prints_what_it_says(server: Server, tmp_path: Path) -> None:
    (tmp_path / "xformd").mkdir()
    shutil.copy(GO / "xformd.go", tmp_path / "xformd")
    (tmp_path / "go.mod").write_text("module poems\n\ngo 1.19\n")
    (tmp_path / "main.go").write_text(block_of("go"))
    assert run([str(build(tmp_path, tmp_path))], server, tmp_path) == block_of("text")


def run(command: list[str], server: Server, folder: Path) -> str:
    variables = environment({"XFORMD_SERVER": server.address})
    done = subprocess.run(command, capture_output=True, cwd=folder, env=variables, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_go_is_formatted() -> None:
    need("gofmt")
    done = subprocess.run(
        ["gofmt", "-l", str(GO), str(ROOT / "tests/support/languages")], capture_output=True, check=True
    )
    assert done.stdout == b""
