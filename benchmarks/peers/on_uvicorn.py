"""Runs an ASGI application as one would in production, as far as one process goes: uvloop, httptools, no access log."""

import socket
from typing import Any

import uvicorn


def serve(application: Any) -> None:
    """Serve an ASGI application on a free port until told to stop."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening on 127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=600,  # so that connections stay that are idle on purpose
    )
    uvicorn.Server(config).run(sockets=[listening])
