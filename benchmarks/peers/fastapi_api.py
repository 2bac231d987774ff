"""FastAPI with an endpoint that asks an API over HTTP: in one process, or with ``--process-per-cpu`` in several."""

import os
import sys

from fastapi import FastAPI, Request
from fastapi.responses import Response

from benchmarks.peers.ask_api import ask
from benchmarks.peers.fastapi_app import MEDIA_TYPE
from benchmarks.peers.on_uvicorn import serve

app = FastAPI()


@app.post("/ask-api")
async def ask_api(request: Request) -> Response:
    """Ask the API."""
    poem = await request.body()
    return Response(await ask(poem.decode()), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    serve("benchmarks.peers.fastapi_api:app", processes=os.cpu_count() if "--process-per-cpu" in sys.argv else 1)
