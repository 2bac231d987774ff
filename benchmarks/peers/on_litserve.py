"""LitServe with magika's model: batches as xformd's plugin asks for them, and a process for each CPU.

It takes JSON, so bytes come in Base64. It runs in processes that a queue of ZeroMQ leads to, the fastest that it has.
"""

import base64
import contextlib
import os
import socket
import threading
import time

import litserve

from benchmarks.peers import content_type


class Api(litserve.LitAPI):
    """Tells what kind of files these are."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model."""
        content_type.model()

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Return what was sent."""
        return base64.b64decode(request["content"])

    def predict(self, contents: list[bytes]) -> list[str]:
        """Tell it of a whole batch."""
        return content_type.identify(contents)

    def encode_response(self, output: str) -> dict[str, str]:
        """Make JSON of it."""
        return {"label": output}


def tell(port: int) -> None:
    """Print the address once there are connections."""
    while True:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
            print(f"listening on 127.0.0.1:{port}", flush=True)
            return
        time.sleep(0.1)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threading.Thread(target=tell, args=(port,), daemon=True).start()
    api = Api(max_batch_size=content_type.MOST, batch_timeout=content_type.WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=os.cpu_count() or 1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")
