"""What docs/deploy/compose.yaml puts together, but for containers: HAProxy finds every server by DNS, and misses none.

The servers and HAProxy share a network namespace, where addresses of the loopback are the servers'.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
import yaml  # type: ignore[import-untyped]

from support.processes import DEADLINE_S, XFORMD, Server, environment, serving, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("image")]

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
NETWORK = ("unshare", "--net", "--kill-child", "--fork")
ADDRESSES = ("127.0.1.1", "127.0.1.2")
DNS = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import fail, succeed
from twisted.names import common, dns, error, server

class Resolver(common.ResolverBase):
    def query(self, query, timeout=None):
        if (query.name.name, query.type) != (b"xformd", dns.A):
            return fail(error.DomainError())
        return succeed(([dns.RRHeader(b"xformd", dns.A, payload=dns.Record_A(each)) for each in sys.argv[1:]], [], []))

factory = server.DNSServerFactory(clients=[Resolver()])
reactor.listenUDP(53, dns.DNSDatagramProtocol(factory), interface="127.0.0.11")
print("ready", flush=True)
reactor.run()
"""
ASK = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], sys.stdin.buffer.read() or None, timeout=60).read().decode(), end="")
"""


@attrs.frozen
class Site:
    """HAProxy and two servers behind it."""

    enter: Sequence[str]
    servers: list[Server]

    def send(self, poem: bytes) -> bytes:
        """Send a poem to HAProxy, as a session."""
        command = [*self.enter, *XFORMD, "send", "upper", "--server", "127.0.0.1:11000"]
        return subprocess.run(
            command, input=poem, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False
        ).stdout

    def ask(self, url: str, poem: bytes = b"") -> str:
        command = [*self.enter, sys.executable, "-c", ASK, url]
        return subprocess.run(command, input=poem, capture_output=True, timeout=DEADLINE_S, check=False).stdout.decode()

    def counted(self, address: str, front: str) -> bool:
        """Whether a server has had a request of this front."""
        return f'code="ok",front="{front}"' in self.ask(f"http://{address}:9100/metrics")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if not shutil.which("haproxy") or not shutil.which("ip"):
        pytest.skip("install haproxy and iproute2 to test the Compose file's HAProxy")
    if subprocess.run([*NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a network of its own: run as root")
    with ExitStack() as stack:

        def start(*command: str, ready: bytes = b"", file: str = "log") -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / file).open("wb"))
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log))
            stack.callback(process.kill)  # unshare heeds nothing else
            assert process.stdout is not None
            assert not ready or process.stdout.readline().strip() == ready
            return process

        network = start(*NETWORK, "sh", "-c", "ip link set lo up; echo ready; exec sleep 600", ready=b"ready")
        child = Path(f"/proc/{network.pid}/task/{network.pid}/children").read_text().strip()
        enter = ("nsenter", f"--net=/proc/{child}/ns/net")
        start(*enter, sys.executable, "-c", DNS, *ADDRESSES, ready=b"ready")
        composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["xformd"]["environment"]
        servers = []
        for address in ADDRESSES:
            (folder := tmp_path / address).mkdir()
            own = f"interface={address}"
            variables = {
                **composed,
                "XFORMD_LISTEN": " ".join(f"{each}:{own}" for each in composed["XFORMD_LISTEN"].split()),
                "XFORMD_HTTP": f"tcp:11080:{own}",
                "XFORMD_METRICS": f"tcp:9100:{own}",
                "XFORMD_TRUSTED_PROXIES": "127.0.0.0/8",
                "XFORMD_HOST_NAMES": "localhost",
            }
            command = (*enter, *XFORMD)
            servers.append(stack.enter_context(serving(folder, command=command, where=(), **variables)))
        # On all addresses it would take the place of a server that has ended, and call itself.
        configuration = (DEPLOY / "compose" / "haproxy.cfg").read_text().replace("bind :", "bind 127.0.0.1:")
        (tmp_path / "haproxy.cfg").write_text(configuration)
        start(*enter, "haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg"), file="haproxy.log")
        found = Site(enter, servers)
        wait_until(lambda: found.ask("http://localhost:11080/transform/upper", b"owl") == "OWL")
        wait_until(lambda: found.send(b"owl") == b"OWL")
        yield found


def test_haproxy_finds_every_server_and_loses_nothing_when_one_ends(site: Site) -> None:
    for front, send in (
        ("http", lambda: site.ask("http://localhost:11080/transform/upper", b"owl")),
        ("session", lambda: site.send(b"owl")),
    ):
        wait_until(lambda front=front, send=send: send() and all(site.counted(each, front) for each in ADDRESSES))  # type: ignore[misc]
    first, second = site.servers
    os.kill(first.process.pid, 15)
    for _ in range(3):
        assert site.send(b"owl") == b"OWL"
        assert site.ask("http://localhost:11080/transform/upper", b"owl") == "OWL"
    assert first.process.wait(DEADLINE_S) == 0
    assert second.process.poll() is None
