"""TLS with real clients: curl, Python, a browser, and those that speak something else."""

import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.certificates import tls_endpoint, write_certificate
from support.processes import DEADLINE_S, Server, netstring, read_to_end, serving, wait_until

pytestmark = pytest.mark.slow


class Https:
    """A server that answers netstrings and HTTP over TLS."""

    def __init__(self, server: Server, trusted: Path) -> None:
        self.server = server
        self.certificate = trusted / "certificate.pem"
        self.key = trusted.parent / "key.pem"
        self.http_port = urlsplit(server.http).port or 0
        self.netstring_port = int(server.address.rpartition(":")[2])

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run curl with a URL on the HTTP port, which it trusts."""
        if shutil.which("curl") is None:
            pytest.skip("install curl")
        url = f"https://localhost:{self.http_port}/transform/upper"
        command = ("curl", "--silent", "--show-error", "--cacert", str(self.certificate), *arguments, url)
        return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)

    def connect(self, port: int, *alpn: str) -> ssl.SSLSocket:
        """Shake hands with a port, and offer protocols."""
        context = ssl.create_default_context(cafile=self.certificate)
        if alpn:
            context.set_alpn_protocols([*alpn])
        plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        return context.wrap_socket(plain, server_hostname="localhost")

    def is_trusted(self) -> bool:
        """Whether both ports use the certificate that lies there now."""
        try:
            for port in (self.http_port, self.netstring_port):
                self.connect(port).close()
        except ssl.SSLCertVerificationError:
            return False
        return True


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    folder = tmp_path_factory.mktemp("tls")
    endpoint, trusted = tls_endpoint(folder)
    with serving(folder, "--plugins=none", "--listen", endpoint, "--http", endpoint) as server:
        yield Https(server, trusted)
        assert "Traceback" not in server.log


def test_the_greeting_says_https(https: Https) -> None:
    assert https.server.http == f"https://127.0.0.1:{https.http_port}"


@pytest.mark.parametrize("flags", [(), ("--no-alpn",), ("--http1.1",), ("--http2",), ("--tls-max", "1.2")])
def test_curl(https: Https, flags: tuple[str, ...]) -> None:
    done = https.curl("--data-binary", "a", *flags)
    assert (done.stderr, done.stdout) == (b"", b"A")


@pytest.mark.parametrize(
    ("offer", "chosen"), [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), (("h2",), None), ((), None)]
)
def test_python_over_http_and_netstrings(https: Https, offer: tuple[str, ...], chosen: str | None) -> None:
    with https.connect(https.http_port, *offer) as client:
        assert client.selected_alpn_protocol() == chosen
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_to_end(client).startswith(b"HTTP/1.1 200 OK\r\n")
    with https.connect(https.netstring_port, *offer) as client:
        assert client.selected_alpn_protocol() is None
        client.sendall(netstring(b"upper.a"))
        assert read_to_end(client) == b"1:A,"


@pytest.mark.parametrize("says", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", netstring(b"upper.a")])
def test_plain_text_on_either_port(https: Https, says: bytes) -> None:
    for port, advice, refusal in (
        (https.http_port, "use https:", b"HTTP/1.1 400 Bad Request\r\n"),
        (https.netstring_port, "use tls:", b"\x15\x03\x03\x00\x02\x02\x46"),  # an alert of TLS
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
            client.sendall(says)
            assert read_to_end(client).startswith(refusal)
        line = f"a client spoke plain text to the TLS port 127.0.0.1:{port}; {advice}"
        wait_until(lambda line=line: line in https.server.log)  # type: ignore[misc]


def test_renewed_certificates(https: Https) -> None:
    write_certificate(https.key, https.certificate)
    https.server.process.send_signal(signal.SIGHUP)
    wait_until(https.is_trusted)
    write_certificate(https.key, https.certificate)
    wait_until(https.is_trusted)  # also without a signal
    wait_until(lambda: https.server.log.count("read the TLS certificate again") >= 4)


def test_a_browser(https: Https) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    from support.visits import browsing

    del sync_api
    with browsing() as browser:
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        answer = page.goto(f"https://localhost:{https.http_port}/livez")
        assert answer is not None
        assert (answer.status, answer.security_details() is not None) == (200, True)
        context.close()


KINDS = ["tcp", "unix", "ssl", "haproxy:tcp", "haproxy:ssl"]


def refused(address: str) -> bool:
    """Connect; return whether the server closes at once."""
    kind, _, path = address.partition(":")
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
        client.settimeout(DEADLINE_S)
        host, _, port = address.rpartition(":")
        client.connect(path if kind == "unix" else (host, int(port)))
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True


def occupy(stack: ExitStack, address: str) -> None:
    """Take the only place of a server."""
    kind, _, path = address.partition(":")
    client = stack.enter_context(socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET))
    host, _, port = address.rpartition(":")
    client.connect(path if kind == "unix" else (host, int(port)))


@pytest.mark.parametrize("kind", KINDS)
def test_200_refused_connections_are_a_line_a_second(tmp_path: Path, kind: str) -> None:
    *wrapper, last = kind.split(":")
    plain = {"tcp": "tcp:0:interface=127.0.0.1", "unix": f"unix:{tmp_path}/socket"}
    endpoint = ":".join([*wrapper, tls_endpoint(tmp_path)[0] if last == "ssl" else plain[last]])
    flags = ("--plugins=none", "--listen", endpoint, "--max-connections=1")
    with serving(tmp_path, *flags) as server, ExitStack() as stack:
        began = time.monotonic()
        occupy(stack, server.address)
        assert all(refused(server.address) for _ in range(200))
        assert server.stop() == 0
        lines = server.log.splitlines()
        assert len(lines) <= 3 + time.monotonic() - began
        assert "Traceback" not in server.log
        wait_until(lambda: "max_connections" in server.log)


def test_the_header_of_a_proxy_comes_before_the_handshake(tmp_path: Path) -> None:
    endpoint, trusted = tls_endpoint(tmp_path)
    context = ssl.create_default_context(cafile=str(trusted / "certificate.pem"))
    with serving(tmp_path, "--plugins=none", "--listen", f"haproxy:{endpoint}") as server, server.connect() as plain:
        plain.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.80 4000 443\r\n")
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(netstring(b"upper.a") + netstring(b"nonsense"))
            assert client.recv(100) == b"1:A,"
        with server.connect() as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain, server_hostname="localhost")
        wait_until(lambda: "127.0.0.1 sent no valid PROXY header" in server.log)
        assert "Traceback" not in server.log


def test_behind_a_proxy_the_log_has_the_real_peer(tmp_path: Path) -> None:
    flags = ("--plugins=none", "--listen", "haproxy:tcp:0:interface=127.0.0.1", "--max-connections-per-peer=1")
    with serving(tmp_path, *flags) as server:
        header = b"PROXY TCP4 192.0.2.7 192.0.2.80 4000 443\r\n"
        assert server.ask(header + netstring(b"upper.a")) == b"1:A,"
        assert server.ask(header + b"nonsense") == b""
        wait_until(lambda: "refused 192.0.2.7:4000: bad-frame" in server.log)
        assert server.ask(header + netstring(b"upper.a"), half_close=True) == b"1:A,"
        with server.connect() as client:
            client.sendall(netstring(b"upper.a"))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        wait_until(lambda: server.log.count("127.0.0.1 sent no valid PROXY header") == 1)
