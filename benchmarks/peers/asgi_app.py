"""A bare ASGI function: what HTTP costs without a framework."""

from typing import Any

from benchmarks.peers.on_uvicorn import serve


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Lower-case the poem that is the body of ``POST /cummingsify``."""
    if scope["path"] != "/cummingsify" or scope["method"] != "POST":
        await _respond(send, 404, b"")
        return
    pieces = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    await _respond(send, 200, b"".join(pieces).decode().lower().encode())


async def _respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    serve(app)
