"""Starlette: what FastAPI is built on, with the same handler of a POST."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.on_uvicorn import serve


async def cummingsify(request: Request) -> Response:
    """Lower-case the poem."""
    poem = await request.body()
    return Response(poem.decode().lower().encode(), media_type="text/plain; charset=utf-8")


app = Starlette(routes=[Route("/cummingsify", cummingsify, methods=["POST"])])


if __name__ == "__main__":
    serve(app)
