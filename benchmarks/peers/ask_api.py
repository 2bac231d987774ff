"""A plugin that asks an API over HTTP, on asyncio, and the functions alone, which the peer calls too."""

import functools
import os
from collections.abc import Iterable

import httpx
import uvloop

import xformd


@functools.cache
def client() -> httpx.AsyncClient:
    """Return this process's client. By default it has 100 connections, and closes all but 20 again and again."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=os.environ["BENCH_API"], limits=limits)


async def ask(poem: str) -> str:
    """Send a poem to the API, and return its answer."""
    answer = await client().post("/", content=poem)
    return answer.raise_for_status().text


def warm_up() -> None:
    """Have asyncio use the loop that uvicorn uses, and make the client."""
    uvloop.install()
    client()


@xformd.transform(
    warm_up=warm_up, warm_up_in="worker", concurrency=200
)  # a hang ends by httpx's own 5 s, as in the peers
async def ask_api(poem: str) -> str:
    """Ask the API."""
    return await ask(poem)


@xformd.hookimpl
def xformd_transforms() -> Iterable[xformd.Transform]:
    """Return the one that there is."""
    return [ask_api]
