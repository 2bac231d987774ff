"""FastAPI: a POST with the poem as its body.

It takes the plain ``Request``: a declared ``Body`` parameter would be validated, and cost more.
"""

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from benchmarks.peers.on_uvicorn import serve

app = FastAPI()


@app.post("/cummingsify")
async def cummingsify(request: Request) -> PlainTextResponse:
    """Lower-case the poem."""
    poem = await request.body()
    return PlainTextResponse(poem.decode().lower())


if __name__ == "__main__":
    serve(app)
