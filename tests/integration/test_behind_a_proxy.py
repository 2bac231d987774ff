"""A server behind nginx and HAProxy, which run with the configurations that the documentation shows."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from support.http_client import Http
from support.http_front import Answer, request
from support.processes import DEADLINE_S, VERSES, Server, netstring, read_to_end, serving, stop, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("behind a proxy")]

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
HOST = "poems.example.org"
PREFIX = "/xformd"
OWL, CAT = "127.0.0.2", "127.0.0.3"
"""Two clients: a socket on loopback may have any of its addresses."""

MAX_REQUEST_BYTES = 100_000

CHECKS = "inter 1s fastinter 100ms downinter 100ms"
"""A change is found soon; a check may take longer than that without failing, on a busy machine."""


@attrs.frozen
class Site:
    """A server behind a proxy.

    Attributes:
        server: the server.
        folder: where transforms called ``gate`` wait.
        http: port of the proxy.
        netstrings: port on which the proxy passes on netstrings; None where it does not.
        proxy: its process.
        admin: path of the proxy's socket for its operator.
    """

    server: Server
    folder: Path
    http: int
    netstrings: int | None
    proxy: subprocess.Popen[bytes]
    admin: Path

    @contextmanager
    def client(self, address: str = OWL, port: int | None = None) -> Iterator[Http]:
        """Open a connection to the proxy from an address until the block ends."""
        there = ("127.0.0.1", port or self.http)
        with socket.create_connection(there, timeout=DEADLINE_S, source_address=(address, 0)) as connection:
            yield Http(connection)

    def ask(self, target: str, body: bytes | None = None, *, address: str = OWL, **headers: str) -> Answer:
        """Send a request from an address, below the prefix, and return its answer."""
        with self.client(address) as client:
            return client.ask(below(target, body, **headers))

    @contextmanager
    def waiting(self, address: str = OWL) -> Iterator[Http]:
        """Let a request of an address wait at the gate; what is at the gate goes on when the block ends."""
        for name in ("started", "open"):
            (self.folder / name).unlink(missing_ok=True)
        started = self.folder / "started"
        with self.client(address) as client:
            try:
                client.send(below("/transform/gate", b"owl"))
                wait_until(lambda: started.exists() or is_readable(client))
                assert started.exists(), f"it does not wait: {client.receive()}"
                yield client
            finally:
                self.open_gate()

    def open_gate(self) -> None:
        (self.folder / "open").touch()

    def metric(self, line: str) -> float:
        """Return the value of a metric; 0 where there is none."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(line))


def is_readable(client: Http) -> bool:
    return bool(select.select([client.socket], [], [], 0)[0])


def below(target: str, body: bytes | None = None, **headers: str) -> bytes:
    return request(PREFIX + target, body, **{"host": HOST, **headers})


def adapt(name: str, *changes: tuple[str, str]) -> str:
    """Return a configuration of the documentation, with the addresses and paths of a test."""
    text = (DEPLOY / name).read_text()
    text = re.sub("^ *#.*\n", "", text, flags=re.MULTILINE)
    for shown, ours in changes:
        assert text.count(shown) == 1, f"{name} has {shown!r} {text.count(shown)} times"
        text = text.replace(shown, ours)
    return text


def listening(stack: ExitStack) -> socket.socket:
    """Listen on a free port, for a proxy to inherit: nobody can take the port before it."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
    listener.set_inheritable(True)
    return listener


@contextmanager
def running(command: list[str], log: Path, pass_fds: list[int], **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy until the block ends."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, pass_fds=pass_fds, env={**os.environ, **extra}
        ) as process,
    ):
        try:
            yield process
        finally:
            stop(process)


def program(name: str, package: str) -> str:
    """Return the path of a proxy, or skip the test."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def run_server(stack: ExitStack, folder: Path, *arguments: str) -> Server:
    options = ("--plugins=none", "--plugins-dir", str(VERSES), f"--host-names={HOST}")
    limits = (f"--max-request-bytes={MAX_REQUEST_BYTES}", "--max-connections-per-peer=3")
    server = serving(folder, *options, *limits, *arguments, GATE=str(folder))
    return stack.enter_context(server)


@contextmanager
def behind_nginx() -> Iterator[Site]:
    """Run a server on a Unix socket, and nginx in front of it."""
    nginx = program("nginx", "nginx-light")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xformd-")))
        path = folder / "http.sock"
        server = run_server(stack, folder, f"--http=unix:{path}:mode=660", "--trusted-proxies=unix")
        listener = listening(stack)
        port = listener.getsockname()[1]
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        configuration = adapt(
            "nginx.conf",
            ("/run/nginx.pid", f"{folder}/nginx.pid"),
            ("error_log /var/log/nginx/error.log;", "error_log stderr;"),
            ("access_log /var/log/nginx/access.log;", "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)),
            ("unix:/run/xformd/http.sock", f"unix:{path}"),
            ("listen 80;", f"access_log off; listen 127.0.0.1:{port};"),
        )
        (folder / "nginx.conf").write_text(configuration)
        # It inherits the socket as a new nginx does from the one that it replaces.
        user = "user root root;" if os.geteuid() == 0 else ""  # who may use the server's socket
        command = [nginx, "-p", str(folder), "-c", f"{folder}/nginx.conf", "-g", f"daemon off; {user}"]
        descriptor = listener.fileno()
        proxy = stack.enter_context(running(command, folder / "proxy.log", [descriptor], NGINX=f"{descriptor};"))
        yield Site(server, folder, port, None, proxy, folder)


@contextmanager
def behind_haproxy(check: str = "option httpchk GET /readyz") -> Iterator[Site]:
    """Run a server on two TCP ports, and HAProxy in front of them."""
    haproxy = program("haproxy", "haproxy")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xformd-")))
        ports = ("--http=tcp:0:interface=127.0.0.1", "--listen", "haproxy:tcp:0:interface=127.0.0.1")
        server = run_server(stack, folder, *ports, "--trusted-proxies=127.0.0.1")
        http, netstrings = listening(stack), listening(stack)
        admin = folder / "admin.sock"
        configuration = adapt(
            "haproxy-simple.cfg",
            ("bind :80\n", f"bind fd@{http.fileno()}\n"),
            ("bind :11000\n", f"bind fd@{netstrings.fileno()}\n"),
            ("127.0.0.1:8000 check", f"{server.http.removeprefix('http://')} check {CHECKS}"),
            ("127.0.0.1:11001", server.address),
            ("check port 8000", f"check {CHECKS} port {server.http.rpartition(':')[2]}"),
            ("option httpchk GET /readyz", check),
            (
                "defaults\n",
                f"global\n    stats socket {admin} level admin\ndefaults\n    timeout check 90s\n",
            ),
        )
        (folder / "haproxy.cfg").write_text(configuration)
        command = [haproxy, "-db", "-f", f"{folder}/haproxy.cfg"]
        descriptors = [http.fileno(), netstrings.fileno()]
        proxy = stack.enter_context(running(command, folder / "proxy.log", descriptors))
        yield Site(server, folder, http.getsockname()[1], netstrings.getsockname()[1], proxy, admin)


@pytest.fixture(scope="module", params=[behind_nginx, behind_haproxy], ids=["nginx", "haproxy"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site that no test breaks."""
    with request.param() as running_site:
        wait_until(lambda: running_site.ask("/readyz").status == 200)
        yield running_site


def receive(client: Http) -> bytes:
    """Read what has arrived of an answer that is not complete."""
    piece = client.socket.recv(65_536)
    assert piece
    return piece


def test_a_poem_comes_back(site: Site) -> None:
    answer = site.ask("/transform/wrap:width=7+number-lines", b"one two three", x_request_id="owl-1")
    assert (answer.status, answer.body) == (200, b"1. one two\n2. three")
    assert answer.headers["x-request-id"] == "owl-1"
    assert site.ask("/transform/repeat:times=2", b"%/").body == b"%/%/"


def test_a_get_is_revalidated(site: Site) -> None:
    first = site.ask("/transform/upper?poem=The+Owl%20%2F%2525")
    assert (first.status, first.body) == (200, b"THE OWL /%25")
    second = site.ask("/transform/upper?poem=The+Owl%20%2F%2525", if_none_match=first.headers["etag"])
    assert (second.status, second.headers["etag"]) == (304, first.headers["etag"])


def test_a_connection_stays_open_for_more_requests(site: Site) -> None:
    with site.client() as client:
        for number in range(20):
            assert client.ask(below("/transform/upper", b"owl %d" % number)).body == b"OWL %d" % number


def test_the_page_and_the_description_are_below_the_prefix(site: Site) -> None:
    page = site.ask("/")
    assert (page.status, page.body[:15].lower()) == (200, b"<!doctype html>")
    with site.client() as client:
        assert client.ask(request(PREFIX, host=HOST)).headers["location"].endswith(f"{PREFIX}/")
    document = json.loads(site.ask("/openapi.json").body)
    assert document["servers"] == [{"url": PREFIX}]
    problem = site.ask("/poems").problem
    assert problem["detail"] == f"no GET {PREFIX}/poems here: see GET {PREFIX}/openapi.json"


def test_each_line_of_a_batch_arrives_as_soon_as_it_is_there(site: Site) -> None:
    for name in ("started", "open"):
        (site.folder / name).unlink(missing_ok=True)
    lines = b'{"spec": "upper", "poem": "owl"}\n{"spec": "gate", "poem": "cat"}\n'
    with site.client() as client:
        client.send(below("/batch", lines))
        data = b""
        while b'"OWL"' not in data:
            data += receive(client)
        wait_until((site.folder / "started").exists)
        assert b'"CAT"' not in data
        site.open_gate()
        while not data.endswith(b"0\r\n\r\n"):
            data += receive(client)
        assert b'"CAT"' in data


def test_the_log_names_the_client(site: Site) -> None:
    answer = site.ask("/transform/upper", b"x" * (MAX_REQUEST_BYTES + 1), x_forwarded_for="192.0.2.1")
    assert answer.status == 413
    wait_until(lambda: f"refused {OWL}: too-large" in site.server.log)
    assert "192.0.2.1" not in site.server.log


def test_what_the_client_says_of_itself_is_not_believed(site: Site) -> None:
    host = "evil.example"
    forwarded = f"for=192.0.2.1;host={host}"
    answer = site.ask("/openapi.json", forwarded=forwarded, x_forwarded_host=host, x_forwarded_prefix="/evil")
    assert (answer.status, json.loads(answer.body)["servers"]) == (200, [{"url": PREFIX}])
    assert site.ask("/livez", host="evil.example").status == 421


def test_a_browser_of_the_site_may_ask(site: Site) -> None:
    assert site.ask("/transform/upper", b"owl", origin=f"http://{HOST}").status == 200
    assert site.ask("/transform/upper", b"owl", origin="http://evil.example").status == 403


def test_a_client_has_a_limit_of_its_own(site: Site) -> None:
    wait_until(lambda: site.metric("xformd_in_flight ") == 0)  # another test's client may just have left
    with ExitStack() as stack:
        clients = [stack.enter_context(site.waiting()) for _ in range(3)]
        answer = site.ask("/transform/upper", b"owl")
        assert (answer.status, answer.problem["code"]) == (429, "busy")
        assert int(answer.headers["retry-after"]) >= 1
        assert site.ask("/transform/upper", b"cat", address=CAT).body == b"CAT"
        site.open_gate()
        assert [client.receive()[0].body for client in clients] == [b"OWL"] * 3
    assert site.ask("/transform/upper", b"owl").body == b"OWL"


@pytest.mark.parametrize(
    ("spec", "result"),
    [
        ("indent:prefix=%2Bupper", b"+upperab"),
        ("indent%3Aprefix%3D%252B%2Bupper", b"+AB"),
        ("indent:prefix=%2C", b",ab"),
        ("indent:prefix=%2F%2F", b"//ab"),
        ("indent:prefix=%2E%2E%2F%2E%2E", b"../..ab"),
    ],
)
def test_a_spec_arrives_as_it_was_sent(site: Site, spec: str, result: bytes) -> None:
    assert site.ask(f"/transform/{spec}", b"ab").body == result


def test_a_client_that_leaves_cancels_its_request(site: Site) -> None:
    line = 'xformd_requests_total{code="cancelled",front="http",transform="gate"}'
    before = site.metric(line)
    with site.waiting() as client:
        client.socket.close()
        wait_until(lambda: site.metric(line) == before + 1)


@pytest.mark.parametrize("behind", [behind_nginx, behind_haproxy])
def test_a_server_that_stops_answers_what_came_through_the_proxy(
    behind: Callable[[], AbstractContextManager[Site]],
) -> None:
    with behind() as site, ExitStack() as stack:
        wait_until(lambda: site.ask("/readyz").status == 200)
        clients = [stack.enter_context(site.waiting()) for _ in range(3)]
        site.server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: site.ask("/readyz").status in (502, 503))
        site.open_gate()
        assert [client.receive()[0].body for client in clients] == [b"OWL"] * 3
        assert site.server.process.wait(DEADLINE_S) == 0


# HAProxy alone.


def state_of(site: Site, proxy: str = "xformd") -> str:
    """Return what HAProxy says of the server behind a backend."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(DEADLINE_S)
        admin.connect(str(site.admin))
        admin.sendall(f"show stat {proxy} 4 -1\n".encode())
        heading, row, *_ = read_to_end(admin).decode().splitlines()
    columns = dict(zip(heading.split(","), row.split(","), strict=True))
    return f"{columns['status']} {columns['check_status']} {columns['check_code']}"


@pytest.mark.parametrize(
    ("check", "state"),
    [("option httpchk GET /readyz", "UP L7OK 200"), ("option httpchk", "UP L7OK 204"), ("", "UP L4OK ")],
)
def test_haproxys_checks_find_the_server(check: str, state: str) -> None:
    with behind_haproxy(check) as site:
        fronts = ("xformd", "netstrings")
        wait_until(lambda: site.admin.exists() and {state_of(site, each) for each in fronts} == {state})
        site.server.stop()
        wait_until(lambda: all(state_of(site, each).startswith("DOWN") for each in fronts))


def test_netstrings_come_from_their_real_peer() -> None:
    with behind_haproxy() as site, ExitStack() as stack:

        def ask(address: str, string: bytes) -> bytes:
            with site.client(address, site.netstrings) as client:
                client.send(string)
                return read_to_end(client.socket)

        assert ask(OWL, netstring(b"upper.owl")) == netstring(b"OWL")
        assert ask(OWL, b"x") == b""
        wait_until(lambda: f"refused {OWL}:" in site.server.log)
        for _ in range(3):
            session = stack.enter_context(site.client(OWL, site.netstrings))
            session.send(netstring(b"xformd/2"))
            assert session.socket.recv(1)  # the server has counted it
        assert ask(OWL, netstring(b"upper.owl")) == b""
        assert ask(CAT, netstring(b"upper.cat")) == netstring(b"CAT")
