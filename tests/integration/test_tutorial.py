"""What the tutorial's own programs do, in Python 3, against these servers; and its transform server with ours."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.poems import peer, poem_server, sends
from support.processes import DEADLINE_S, netstring, serving

POETRY = Path(__file__).parents[2] / "docs" / "poetry.md"

# Its clients 6 to 8: a poem from one server, transformed by another, over Twisted's own netstrings.
CLIENT = """
import sys
from twisted.internet import defer, error, protocol, reactor
from twisted.protocols.basic import NetstringReceiver

class Poetry(protocol.Protocol):
    poem = b""

    def dataReceived(self, data):
        self.poem += data

    def connectionLost(self, reason):
        self.factory.done.callback(self.poem)

class Transform(NetstringReceiver):
    def connectionMade(self):
        self.sendString(self.factory.request)

    def stringReceived(self, string):
        self.transport.loseConnection()
        done, self.factory.done = self.factory.done, None
        done.callback(string)

class Factory(protocol.ClientFactory):
    def __init__(self, kind, request=b""):
        self.protocol, self.request, self.done = kind, request, defer.Deferred()

    def clientConnectionFailed(self, connector, reason):
        done, self.done = self.done, None
        done.errback(reason)

    def clientConnectionLost(self, connector, reason):
        if self.protocol is Transform and self.done is not None:
            self.clientConnectionFailed(connector, reason)

def ask(port, factory):
    reactor.connectTCP("127.0.0.1", int(port), factory)
    return factory.done

async def main():
    name, transforms, *servers = sys.argv[1:]
    for server in servers:
        poem = await ask(server, Factory(Poetry))
        try:
            poem = await ask(transforms, Factory(Transform, name.encode() + b"." + poem))
        except error.ConnectionDone:
            print("failed: ", end="")
        print(poem.decode())

defer.Deferred.fromCoroutine(main()).addErrback(print).addBoth(lambda _: reactor.stop())
reactor.run()
"""

SERVER = """
from twisted.internet import reactor
from xformd.protocol import TransformFactory
from xformd.service import TransformService

class Poet:
    def cummingsify(self, poem: str) -> str:
        return poem.lower()

    def gibber(self, poem: str) -> str:
        raise ValueError(poem)

poet = Poet()
service = TransformService.from_functions(poet.cummingsify, poet.gibber)
port = reactor.listenTCP(0, TransformFactory(service), interface="127.0.0.1")
print("listening on 127.0.0.1:%d" % port.getHost().port, flush=True)
reactor.run()
"""


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


@pytest.mark.parametrize(
    ("name", "printed"), [("cummingsify", "the owl\n"), ("gibber", "failed: The OWL\n"), ("x", "failed: The OWL\n")]
)
def test_its_clients_use_a_transform_server_of_ones_own(tmp_path: Path, name: str, printed: str) -> None:
    command = (sys.executable, "-c", SERVER)
    with (
        serving(tmp_path, command=command, verb=(), ready="listening", where=()) as server,
        peer(sends(b"The OWL")) as poems,
    ):
        ports = [port_of(server.address), port_of(poems.address)]
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, name, *ports],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.stdout, done.stderr) == (printed, "")
        assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_a_transform_server_of_ones_own_answers_what_it_has_accepted(tmp_path: Path) -> None:
    slow = """
        from twisted.internet.task import deferLater
        self.seen = print("asked", flush=True)
        return deferLater(reactor, 0.3, poem.lower)
"""
    program = SERVER.replace("        return poem.lower()\n", slow)
    with serving(tmp_path, command=(sys.executable, "-c", program), verb=(), ready="listening", where=()) as server:
        with server.connect() as client:
            client.sendall(netstring(b"cummingsify.The OWL"))
            assert server.read_line() == "asked"
            server.process.terminate()
            assert client.recv(100) == b"7:the owl,"


def test_the_page_shows_a_transform_server_in_at_most_10_lines() -> None:
    (block,) = [
        text for text in re.findall(r"```python\n(.*?)```", POETRY.read_text(), re.DOTALL) if "from_functions" in text
    ]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_its_clients_that_decode_each_piece_can_read_a_slow_poem(tmp_path: Path) -> None:
    poem = "Die Eule \u00fcbt f\u00fcr \U0001f989 \u6797. " * 5
    (tmp_path / "owl.txt").write_text(poem)
    with poem_server(tmp_path, "serve", str(tmp_path / "owl.txt"), "--slow", "300") as server:
        with server.connect() as client:
            pieces = [piece.decode() for piece in iter(lambda: client.recv(1024), b"")]
    assert "".join(pieces) == poem
    assert len(pieces) > 3
