"""``PoemFactory`` in programs of one's own: whoever stops the reactor, no client gets a part for the whole poem."""

import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.poems import poem_server
from support.processes import Server, read_to_end, serving

pytestmark = pytest.mark.slow

POEM = b"The Owl\n" * 100
PROGRAM = """
import sys
{first}
from twisted.application import service, strports
from twisted.internet import endpoints, reactor

from xformd.poems import PoemFactory, PoemService

factory = PoemFactory(PoemService({poem!r}), bytes_per_s={bytes_per_s}, shutdown_grace_s={grace_s})
inner = factory.buildProtocol

def build(address):
    {connected}
    return inner(address)

factory.buildProtocol = build
ANYWHERE = "tcp:0:interface=127.0.0.1"

def listening(port):
    print("listening on 127.0.0.1:%d" % port.getHost().port, flush=True)

{listen}
{last}
"""
LISTENING = {
    "listenTCP": "reactor.callWhenRunning(listening, reactor.listenTCP(0, factory, interface='127.0.0.1'))",
    "endpoint": "endpoints.serverFromString(reactor, ANYWHERE).listen(factory).addCallback(listening)",
    "strports": "s = strports.service(ANYWHERE, factory); s.startService(); s._waitingForPort.addCallback(listening)",
}
TWISTD = (str(Path(sysconfig.get_path("scripts")) / "twistd"), "--nodaemon", "--pidfile=", "-y")


@contextmanager
def program(
    folder: Path,
    listen: str = LISTENING["listenTCP"],
    *,
    first: str = "",
    connected: str = "",
    last: str = "reactor.run()",
    bytes_per_s: float = 2000,
    grace_s: float = 30,
    command: tuple[str, ...] = (sys.executable,),
) -> Iterator[Server]:
    """Run a program that serves a poem for 400 ms."""
    path = folder / "program.py"
    values = {"poem": POEM, "bytes_per_s": bytes_per_s, "grace_s": grace_s}
    path.write_text(PROGRAM.format(listen=listen, first=first, connected=connected, last=last, **values))
    with serving(folder, command=(*command, str(path)), verb=(), ready="listening on 127", where=()) as server:
        server.address = server.greeting[-1].rpartition(" ")[2]
        yield server


@pytest.mark.parametrize(
    ("kind", "number"), [("listenTCP", signal.SIGINT), ("endpoint", signal.SIGTERM), ("strports", signal.SIGTERM)]
)
def test_a_client_reads_on_when_a_signal_stops_the_reactor(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    with program(tmp_path, LISTENING[kind]) as server:
        with server.connect() as reader:
            begun = reader.recv(1)
            server.process.send_signal(number)
            assert begun + read_to_end(reader) == POEM
        server.process.wait(10)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("first", ["", "from twisted.internet import asyncioreactor; asyncioreactor.install()"])
def test_a_client_reads_on_when_the_program_stops_the_reactor(tmp_path: Path, first: str) -> None:
    with program(tmp_path, first=first, connected="reactor.callLater(0.1, reactor.stop)") as server:
        assert server.ask(b"") == POEM
        assert server.process.wait(10) == 0


def test_a_client_reads_on_under_twistd(tmp_path: Path) -> None:
    listen = """
    application = service.Application("owl")
    owl = strports.service(ANYWHERE, factory)
    owl.setServiceParent(application)
    reactor.callWhenRunning(lambda: owl._waitingForPort.addCallback(listening))
    """
    lines = "\n".join(line.strip() for line in listen.splitlines())
    with program(tmp_path, lines, last="", command=TWISTD) as server:
        with server.connect() as reader:
            begun = reader.recv(1)
            server.process.terminate()
            assert begun + read_to_end(reader) == POEM


def test_after_the_grace_period_the_client_is_reset(tmp_path: Path) -> None:
    with program(tmp_path, bytes_per_s=20, grace_s=0.1) as server, server.connect() as reader:
        reader.recv(1)
        server.process.terminate()
        with pytest.raises(ConnectionResetError):
            read_to_end(reader)
        assert server.process.wait(10) == 0


def test_who_connects_meanwhile_is_reset(tmp_path: Path) -> None:
    """A close in order would be an empty poem to the tutorial's clients."""
    with program(tmp_path, connected="reactor.running and not factory.connections and reactor.stop()") as server:
        with server.connect() as reader:
            begun = reader.recv(1)
            with pytest.raises(ConnectionResetError), server.connect() as late:
                read_to_end(late)
            assert begun + read_to_end(reader) == POEM


def test_a_caching_proxy_keeps_no_half_of_a_poem(tmp_path: Path) -> None:
    with program(tmp_path, connected="reactor.callLater(0.1, reactor.stop)", grace_s=0.1) as server:
        with poem_server(tmp_path, "proxy", server.address) as proxy:
            for _ in range(2):
                with pytest.raises(ConnectionResetError):
                    proxy.ask(b"")
