"""The bare ASGI function on Granian, a server in Rust: one worker with one thread, uvloop, no access log."""

import http.client
import socket
import threading
import time

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops

START_S = 30.0
_PAUSE_S = 0.05


def free_port() -> int:
    """Return a port that is free now: Granian does not tell which one it got when asked for any."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def announce(port: int) -> None:
    """Print the address once the worker answers: the socket is open before the worker has started."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
        try:
            client.request("GET", "/")
            client.getresponse().read()
        except OSError:
            time.sleep(_PAUSE_S)
        else:
            print(f"listening on 127.0.0.1:{port}", flush=True)
            return
        finally:
            client.close()


def main() -> None:
    port = free_port()
    threading.Thread(target=announce, args=(port,), daemon=True).start()
    Granian(
        "benchmarks.peers.asgi_app:app",
        port=port,
        interface=Interfaces.ASGINL,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        backlog=2048,
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    main()
