"""Runs an ASGI application as one would in production: uvloop, httptools, no access log."""

import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess


def serve(application: Any, processes: int = 1) -> None:
    """Serve an ASGI application on a free port until told to stop; several processes have to import it by its name."""
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
        workers=processes,
    )
    if processes == 1:
        uvicorn.Server(config).run(sockets=[listening])
    else:
        Multiprocess(config, sockets=[listening]).run()
