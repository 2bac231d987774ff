"""A reverse proxy that serves another server below a path prefix."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs

from support.processes import DEADLINE_S

_OF_THE_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


@attrs.define
class ReverseProxy:
    """A running proxy.

    Attributes:
        url: where it serves the other server, without a final slash.
        strays: paths that were requested outside of the prefix.
    """

    url: str
    strays: list[str] = attrs.field(factory=list)


@contextmanager
def proxying(server: str, prefix: str) -> Iterator[ReverseProxy]:
    """Serve ``server``, a URL, below a prefix on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            below = self.path.removeprefix(prefix)
            if below == self.path or below[:1] not in ("", "/"):
                running.strays.append(self.path)
                self.send_error(404)
                return
            length = self.headers.get("Content-Length")
            body = None if length is None else self.rfile.read(int(length))
            kept = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
            request = urllib.request.Request(server + (below or "/"), body, kept, method=self.command)
            try:
                answer = urllib.request.urlopen(request, timeout=DEADLINE_S)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in _OF_THE_CONNECTION:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.read())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Write no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        running = ReverseProxy(f"http://127.0.0.1:{proxy.server_port}{prefix}")
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield running
        finally:
            proxy.shutdown()
            thread.join()
