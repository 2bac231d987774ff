"""At the limit of file descriptors a server stays alive, says so in few words, and recovers."""

import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from integration.hostile import Hostile, codes, hostile_server
from integration.packages import Environment
from integration.session_client import Session

DESCRIPTORS = 64
CONNECTIONS = 200

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
runpy.run_module("xformd", run_name="__main__", alter_sys=True)
"""


def flood(hostile: Hostile, stack: ExitStack) -> None:
    """Open connections, more than the server has descriptors for, and wait for none of them."""
    host, _, port = hostile.server.address.rpartition(":")
    for _ in range(CONNECTIONS):
        connection = stack.enter_context(socket.socket())
        connection.setblocking(False)
        connection.connect_ex((host, int(port)))


def test_at_the_limit_of_descriptors_a_server_answers_and_afterwards_recovers(
    hostile_environment: Environment, tmp_path: Path
) -> None:
    code = LIMITED.format(DESCRIPTORS)
    command = (str(hostile_environment.python), "-c", code)
    with hostile_server(hostile_environment, tmp_path, command=command) as hostile:
        hostile.worker_pids()
        began_at = time.monotonic()
        with ExitStack() as stack:
            session = stack.enter_context(Session(hostile.server))
            assert session.ask("pid").code == "ok"
            flood(hostile, stack)
            # Workers die too, and at the limit none can be started in their place.
            died = session.collect(session.send(("crash-1", b""), ("crash-2", b"")))
            assert codes(died) == ["transform-died"] * 2
            assert session.ask("cummingsify", b"THE OWL").poem == b"the owl"
        hostile.worker_pids()
        with Session(hostile.server) as session:
            assert session.ask("pid").code == "ok"
        complaints = re.findall("(?im)^.*(?:too many open files|descriptor|EMFILE).*$", hostile.server.log)
        assert len(complaints) <= 2 * (time.monotonic() - began_at) + 2, complaints
        assert hostile.server.process.poll() is None
