"""An API of the OpenAI kind on this machine, which answers what a test has told it to."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import attrs
import pytest

KEY = "sk-sesame-0123456789"


@attrs.define
class Answer:
    """What the API answers: by default, what a model has made of the text."""

    text: str = "They went to sea."
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes | None = None
    delay_s: float = 0.0
    """Before it answers."""

    def encode(self) -> bytes:
        """Return its body."""
        message = {"role": "assistant", "content": self.text}
        return json.dumps({"choices": [{"message": message}]}).encode() if self.body is None else self.body


class FakeApi(ThreadingHTTPServer):
    """The server: give it ``answers``; the last of them is given again and again. It keeps its ``requests``."""

    daemon_threads = True
    request_queue_size = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: deque[Answer] = deque([Answer()])
        self.requests: list[tuple[dict[str, str], dict[str, object]]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address, as the setting base_url has it."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    protocol_version = "HTTP/1.1"
    server: FakeApi

    def do_POST(self) -> None:
        """Answer, as the test has told the server to."""
        api, length = self.server, int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        with api.lock:
            api.requests.append((dict(self.headers), {"path": self.path, **body}))
            answer = api.answers.popleft() if len(api.answers) > 1 else api.answers[0]
            api.under_way += 1
            api.most_under_way = max(api.most_under_way, api.under_way)
        time.sleep(answer.delay_s)  # it is the API that is slow here
        with api.lock:
            api.under_way -= 1
        content = answer.encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep still."""


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """The API, until the test ends."""
    server = FakeApi()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
