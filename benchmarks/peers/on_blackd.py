"""blackd as its command starts it, but on a free port and without an access log."""

import socket

import blackd
from aiohttp import web
from black.concurrency import maybe_use_uvloop

if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening on 127.0.0.1:{listening.getsockname()[1]}", flush=True)
    web.run_app(blackd.make_app(), sock=listening, print=None, loop=maybe_use_uvloop(), access_log=None)
