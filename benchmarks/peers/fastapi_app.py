"""FastAPI: a POST with the poem as its body, and a GET that a client can revalidate.

Both take the plain ``Request``: declared parameters would be validated, and cost more.
"""

import hashlib

from fastapi import FastAPI, Request
from fastapi.responses import Response

from benchmarks.peers.on_uvicorn import serve

MEDIA_TYPE = "text/plain; charset=utf-8"

app = FastAPI()


@app.post("/cummingsify")
async def cummingsify(request: Request) -> Response:
    """Lower-case the poem."""
    poem = await request.body()
    return Response(poem.decode().lower().encode(), media_type=MEDIA_TYPE)


@app.get("/cummingsify")
async def cummingsify_in_url(request: Request) -> Response:
    """Lower-case the poem in the query, unless the client has the result already."""
    poem = request.query_params["poem"]
    headers = {"etag": f'"{hashlib.sha256(poem.encode()).hexdigest()}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(poem.lower().encode(), headers=headers, media_type=MEDIA_TYPE)


if __name__ == "__main__":
    serve(app)
