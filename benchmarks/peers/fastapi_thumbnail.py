"""FastAPI with a pool of processes, one for each CPU, since a thumbnail would hold up its loop."""

import asyncio
from concurrent.futures import ProcessPoolExecutor

from fastapi import FastAPI, Request
from fastapi.responses import Response

from benchmarks.peers.on_uvicorn import serve
from benchmarks.peers.thumbnail import make_thumbnail

app = FastAPI()
pool = ProcessPoolExecutor()


@app.post("/thumbnail")
async def thumbnail(request: Request) -> Response:
    """Make a thumbnail of the picture that is the body."""
    picture = await request.body()
    made = await asyncio.get_running_loop().run_in_executor(pool, make_thumbnail, picture)
    return Response(made, media_type="image/webp")


if __name__ == "__main__":
    serve(app)
