"""tls_certificate and what belongs to it, with real clients: curl, openssl, Chromium, our own, a proxy."""

import base64
import hashlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.certificates import Authority
from support.processes import (
    DEADLINE_S,
    VERSES,
    Server,
    environment,
    netstring,
    read_to_end,
    serving,
    wait_until,
    xformd,
)
from support.visits import Visit, browsing, run_in_shell

pytestmark = pytest.mark.slow

LOOPBACK = "tcp:0:interface=127.0.0.1"
SERVE = ("--plugins=none", "--plugins-dir", str(VERSES), "--listen", LOOPBACK, "--http", LOOPBACK, "--tls", "all")


class Team:
    """An authority, and the certificates that it has issued."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, Authority()
        self.ca = self.authority.write(folder / "ca.pem")
        self.stranger = Authority()
        self.certificate = self.issue("server", "localhost", "127.0.0.1")
        self.client = self.issue("client", "ci.internal")

    def issue(self, name: str, *names: str) -> Path:
        return self.authority.issue(self.folder / f"{name}.pem", *names)

    def context(self, client: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(client)
        return context

    def connect(self, server: Server, client: Path | None = None) -> ssl.SSLSocket:
        """Connect to the netstring port."""
        return self.context(client).wrap_socket(server.connect(), server_hostname="localhost")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    return Team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def secured(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose ports all speak TLS, and that asks for certificates."""
    flags = ("--tls-certificate", str(team.certificate), "--tls-client-ca", str(team.ca))
    with serving(tmp_path_factory.mktemp("secured"), *SERVE, *flags) as server:
        yield server
        assert "Traceback" not in server.log


def tool(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"install {command[0]}")
    return subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False)


def https_port(server: Server) -> int:
    port = urlsplit(server.http).port
    assert port is not None
    return port


def test_the_log_says_that_a_certificate_is_not_demanded(secured: Server) -> None:
    warning = "tls_client_ca keeps nobody out: an access file does, with tls_san (--access)"
    wait_until(lambda: warning in secured.log)  # a thread writes it
    assert secured.log.count(warning) == 1


def test_the_greeting_says_where_there_is_tls(secured: Server) -> None:
    assert " listening on tls:127.0.0.1:" in secured.greeting[0]
    assert secured.http.startswith("https://127.0.0.1:")


@pytest.mark.parametrize("flags", [(), ("--tls-max", "1.2"), ("--http2",)])
def test_curl(team: Team, secured: Server, flags: tuple[str, ...]) -> None:
    url = f"https://localhost:{https_port(secured)}/transform/upper"
    for certificate in ((), ("--cert", str(team.client))):
        known = ("curl", "-sS", "--cacert", str(team.ca), *certificate, *flags, "--data-binary", "a", url)
        done = tool(*known)
        assert (done.stdout, done.stderr) == (b"A", b"")


def test_curl_says_what_is_wrong(team: Team, secured: Server) -> None:
    port = https_port(secured)
    plain = tool("curl", "-sS", f"http://localhost:{port}/livez")
    assert plain.stdout == b"this port speaks TLS: use https:\n"
    assert b"certificate" in tool("curl", "-sS", f"https://localhost:{port}/livez").stderr
    strange = team.stranger.issue(team.folder / "strange.pem", "ci.internal")
    shown = tool("curl", "-sS", "--cacert", str(team.ca), "--cert", str(strange), f"https://localhost:{port}/livez")
    assert b"unknown ca" in shown.stderr
    wait_until(lambda: "that is not trusted here: let an authority of tls_client_ca issue one" in secured.log)


def s_client(server: Server, *flags: str) -> str:
    _, _, port = server.address.rpartition(":")
    connect = ("-connect", f"127.0.0.1:{port}", "-verify_return_error", "-servername", "localhost")
    done = tool("openssl", "s_client", *connect, *flags, stdin=b"")
    return (done.stdout + done.stderr).decode()


def test_openssl(team: Team, secured: Server) -> None:
    trusting = ("-CAfile", str(team.ca), "-verify_hostname", "localhost")
    for version, cipher in (("-tls1_3", "TLSv1.3"), ("-tls1_2", "ECDHE-ECDSA-AES256-GCM-SHA384")):
        said = s_client(secured, *trusting, version)
        assert "Verify return code: 0 (ok)" in said
        assert cipher in said
        assert "Acceptable client certificate CA names\nO = trustme" in said
    old = s_client(secured, *trusting, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "alert protocol version" in old
    for weak in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA256"):  # no forward secrecy; no authenticated encryption
        assert "alert handshake failure" in s_client(secured, *trusting, "-tls1_2", "-cipher", weak)
    assert "unable to get local issuer certificate" in s_client(secured) or "self-signed" in s_client(secured)


def test_our_clients(team: Team, secured: Server) -> None:
    _, _, port = secured.address.rpartition(":")
    trusting = ("--tls-ca", str(team.ca))
    assert xformd("send", "upper", *trusting, "--server", port, stdin=b"a").stdout == b"A"
    assert xformd("send", "upper", "--server", f"tls:localhost:{port}", *trusting, stdin=b"a").stdout == b"A"
    server, ca, own = f"localhost:{port}", str(team.ca), str(team.client)
    assert xformd("ping", XFORMD_SERVER=server, XFORMD_TLS_CA=ca).returncode == 0
    shown = xformd("ping", XFORMD_SERVER=server, XFORMD_TLS_CA=ca, XFORMD_TLS_CLIENT_CERTIFICATE=own)
    assert shown.returncode == 0
    listed = xformd("list-transforms", "--server", f"localhost:{port}", *trusting)
    assert b"cummingsify" in listed.stdout
    for refused, says in (
        (xformd("ping", "--tls", "--server", port), b"that is not trusted here"),
        (xformd("ping", "--server", port), b"it speaks TLS: use --tls"),
        (xformd("ping", "--no-tls", "--server", port, *trusting), b"it speaks TLS: use --tls"),
    ):
        assert refused.returncode in (69, 76)
        assert says in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    missing = xformd("ping", "--server", port, "--tls-ca", "missing.pem")
    assert (missing.returncode, missing.stderr.splitlines()[-1][-37:]) == (
        78,
        b"missing.pem: No such file or directory"[-37:],
    )


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_server_that_demands_a_certificate(team: Team, version: str) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("install openssl")
    command = ("openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", str(team.certificate), "-CAfile", str(team.ca))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*command, "-Verify", "1", "-verify_return_error", version], **pipes) as demanding:
        assert demanding.stdout is not None
        line = next(line for line in demanding.stdout if line.startswith(b"ACCEPT"))
        port = line.decode().strip().rpartition(":")[2]
        refused = xformd("ping", "--server", port, "--tls-ca", str(team.ca), "--timeout", "5")
        demanding.kill()
    assert b"it demands a certificate of its clients: give one with --tls-client-certificate" in refused.stderr


def test_a_session_and_a_half_close(team: Team, secured: Server) -> None:
    with team.connect(secured) as client:
        client.sendall(netstring(b"xformd/2") + netstring(b"1 upper.a") + netstring(b"2 !ping."))
        received = b""
        while b"2 ok." not in received:
            received += client.recv(1000)
        assert b"6:1 ok.A," in received
        client.sendall(netstring(b"3 upper.b"))
        assert client.recv(100) == b"6:3 ok.B,"
    with team.connect(secured) as client:
        client.sendall(netstring(b"upper." + b"a" * 3_000_000))
        assert len(read_to_end(client)) == len(netstring(b"a" * 3_000_000))


def test_what_is_in_flight_is_answered_before_the_end(team: Team, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom xformd import hookimpl, transform\n\n"
        "@transform\ndef slow(poem: str) -> str:\n    Path(poem).touch()\n    time.sleep(0.5)\n    return 'done'\n\n"
        "@hookimpl\ndef xformd_transforms():\n    return [slow]\n"
    )
    flags = (*SERVE, "--tls-certificate", str(team.certificate), "--insecure-plugins-dir", str(tmp_path / "plugins"))
    with serving(tmp_path, *flags, XFORMD_WORKERS="2") as server:
        with team.connect(server) as classic, team.connect(server) as session:
            classic.sendall(netstring(b"slow." + bytes(tmp_path / "a")))
            session.sendall(netstring(b"xformd/2") + netstring(b"1 slow." + bytes(tmp_path / "b")))
            wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
            server.process.terminate()
            assert read_to_end(classic) == b"4:done,"
            assert b"9:1 ok.done," in read_to_end(session)
        assert server.process.wait(DEADLINE_S) == 0
        assert "Traceback" not in server.log


def test_only_ports_that_other_machines_can_reach_have_tls_by_default(team: Team, tmp_path: Path) -> None:
    flags = ("--plugins=none", "--listen", "tcp:0", "--http", LOOPBACK, "--tls-certificate", str(team.certificate))
    with serving(tmp_path, *flags, "--listen", f"unix:{tmp_path}/socket") as server:
        assert server.greeting[0].rpartition(" ")[2].startswith("tls:0.0.0.0:")
        assert server.greeting[1].endswith(f"unix:{tmp_path}/socket")
        assert server.http.startswith("http://127.0.0.1:")
        _, _, port = server.address.rpartition(":")
        assert xformd("ping", "--server", f"localhost:{port}", "--tls-ca", str(team.ca)).returncode == 0
        assert xformd("ping", "--all", "--server", f"localhost:{port}", "--tls-ca", str(team.ca)).returncode == 0
        assert xformd("ping", "--server", f"unix:{tmp_path}/socket", "--tls").returncode == 0


def test_settings_that_make_no_sense_are_one_line(team: Team, tmp_path: Path) -> None:
    for flags, says in (
        (("--tls-key", str(team.certificate)), "--tls-key: TLS needs a certificate: set tls_certificate too"),
        (("--tls-certificate", "gone.pem"), "gone.pem: No such file or directory"),
        (("--tls-certificate", str(team.ca)), f"--tls-certificate: {team.ca} has no valid private key in PEM format"),
        (("--tls", "some"), "--tls: expected 'external' or 'all', got 'some'"),
    ):
        for verb in (("serve", "--plugins=none"), ("proxy", "127.0.0.1:1")):
            done = xformd(*verb, "--port", "0", *flags)
            assert done.returncode == 78
            assert done.stderr.decode().rstrip().endswith(says)


def is_trusted(ca: Path, server: Server) -> bool:
    context = ssl.create_default_context(cafile=ca)
    for port in (int(server.address.rpartition(":")[2]), https_port(server)):
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as plain:
            try:
                context.wrap_socket(plain, server_hostname="localhost").close()
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_certificates_that_are_replaced_while_it_runs(tmp_path: Path) -> None:
    old, new = Team(tmp_path), Authority()
    new_ca = new.write(tmp_path / "new-ca.pem")
    flags = ("--tls-certificate", str(old.certificate), "--tls-client-ca", str(old.ca))
    with serving(tmp_path, *SERVE, *flags) as server, old.connect(server) as before:
        new.issue(old.certificate, "localhost")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: is_trusted(new_ca, server))
        wait_until(lambda: server.log.count("read the TLS certificate again") == 1)  # once for all ports
        before.sendall(netstring(b"upper.a"))
        assert read_to_end(before) == b"1:A,"
        old.certificate.write_text("nonsense")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the TLS certificate stays as it was" in server.log)
        assert is_trusted(new_ca, server)
        assert server.log.count("the TLS certificate stays as it was") == 1
        old.authority.issue(old.certificate, "localhost")
        wait_until(lambda: is_trusted(old.ca, server))  # also without a signal


def test_a_proxy_with_tls_on_both_sides(team: Team, secured: Server, tmp_path: Path) -> None:
    _, _, upstream = secured.address.rpartition(":")
    flags = ["--upstream-tls-ca", str(team.ca), "--upstream-tls-client-certificate", str(team.client)]
    own = team.issue("proxy", "localhost")
    flags += ["--tls-certificate", str(own), "--tls", "all"]
    with serving(tmp_path, f"localhost:{upstream}", *flags, verb=("proxy",), ready="the transforms of") as proxy:
        _, _, port = proxy.address.rpartition(":")
        done = xformd("send", "upper", "--server", f"localhost:{port}", "--tls-ca", str(team.ca), stdin=b"a")
        assert (done.stdout, done.stderr) == (b"A", b"")
    with serving(tmp_path, f"tls:localhost:{upstream}", verb=("proxy",), ready="the transforms of") as proxy:
        wait_until(lambda: "that is not trusted here" in proxy.log)
        assert len([line for line in proxy.log.splitlines() if "trust" in line]) == 1
        done = xformd("send", "upper", "--server", proxy.address, stdin=b"a")
        assert b"unavailable: cannot connect to an upstream: the server's certificate was issued by" in done.stderr


ACCESS = """
[identity.ci]
tls_san = "ci.internal"
transforms = ["upper"]

[identity.web]
tls_san = "web.internal"
transforms = ["reverse"]
"""


def test_an_access_file_knows_callers_by_their_certificates(team: Team, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    flags = ("--tls-certificate", str(team.certificate), "--tls-client-ca", str(team.ca))
    with serving(tmp_path, *SERVE, *flags, "--access", str(tmp_path / "access.toml")) as server:
        address = "localhost:" + server.address.rpartition(":")[2]
        url = f"https://localhost:{https_port(server)}/transform/upper"
        for certificate, code, status in (
            (team.client, b"", b"200"),
            (team.issue("web", "web.internal"), b"no-such-transform", b"404"),
            (team.issue("other", "other.internal"), b"unauthorized", b"401"),
            (None, b"unauthorized", b"401"),
        ):
            shown = () if certificate is None else ("--tls-client-certificate", str(certificate))
            done = xformd("send", "upper", "--server", address, "--tls-ca", str(team.ca), *shown, stdin=b"a")
            assert (done.stdout, code in done.stderr) == (b"" if code else b"A", True)
            cert = () if certificate is None else ("--cert", str(certificate))
            trusting = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", str(team.ca))
            assert tool(*trusting, *cert, "--data-binary", "a", url).stdout == status
        health = tool("curl", "-sS", "--cacert", str(team.ca), url.replace("transform/upper", "livez"))
        assert health.returncode == 0
        assert "plain text" not in server.log
        assert "keeps nobody out" not in server.log


def test_tokens_in_plain_text_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    with serving(tmp_path, "--plugins=none", "--listen", "tcp:0", "--access", str(tmp_path / "access.toml")) as server:
        wait_until(lambda: f"tokens of the access file travel in plain text to {server.address}" in server.log)


def fingerprint(certificate: Path) -> str:
    """Return what Chromium knows a certificate by."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return base64.b64encode(digest).decode()


def test_the_page_in_a_browser_and_the_calls_on_it(team: Team, secured: Server, tmp_path: Path) -> None:
    with browsing(f"--ignore-certificate-errors-spki-list={fingerprint(team.certificate)}") as browser:
        context = browser.new_context()
        visit = Visit(context.new_page(), secured, f"https://localhost:{https_port(secured)}/")
        visit.open("#upper&poem=The%20Owl", "THE OWL")
        calls = {name: visit.call(name) for name in ("curl", "xformd send")}
        assert visit.complaints == []
        context.close()
    assert f"--server tls:127.0.0.1:{secured.address.rpartition(':')[2]}" in calls["xformd send"]
    trust = f"export XFORMD_TLS_CA={team.ca} CURL_CA_BUNDLE={team.ca}"
    for call in calls.values():
        assert run_in_shell(f"{trust}; {call}", tmp_path) == "THE OWL"


def test_the_page_as_an_operator_follows_it(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tls.md").read_text()
    use, issue = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    start, *calls = use.splitlines()
    if shutil.which("openssl") is None:
        pytest.skip("install openssl")
    run_in_shell(issue.replace("$name.internal", "localhost"), tmp_path)
    (tmp_path / "poem.txt").write_text("The Owl\n")
    flags = [str(tmp_path / word) if word.endswith(".pem") else word for word in start.split()[2:]]
    free = [re.sub(r"tcp:\d+", "tcp:0", word) for word in flags]
    with serving(tmp_path, "--plugins=none", *free) as server:
        ports = {"11000": server.address.rpartition(":")[2], "11080": str(https_port(server))}
        for call in calls:
            there = re.sub(
                "11000|11080", lambda found: ports[found[0]], call.replace("transforms.internal", "localhost")
            )
            assert run_in_shell(there, tmp_path) == "THE OWL\n"


WITHOUT_THE_EXTRA = """
import sys
sys.modules.update(dict.fromkeys(("OpenSSL", "service_identity", "idna", "cryptography")))
import xformd, xformd.client, xformd.protocol, xformd.server.app
from xformd.cli import main
main()
"""


@pytest.mark.parametrize(
    "words", ["ping --tls", "ping --server tls:localhost:1", "proxy tls:a:1 --port 0", "serve --tls-certificate a.pem"]
)
def test_without_the_extra_it_is_one_line(words: str) -> None:
    command = (sys.executable, "-c", WITHOUT_THE_EXTRA, *words.split())
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)
    assert done.returncode == 78
    assert done.stderr.endswith(b"TLS needs more packages: pip install 'xformd[tls]'\n")
