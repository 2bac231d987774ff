"""``/transforms`` and ``/openapi.json``: what there is, as ``xformd list-transforms --json`` and OpenAPI tell it."""

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xformd.counting import CountingService
from xformd.http import openapi
from xformd.limits import Limits


class ListingEndpoints:
    """Says what there is.

    Args:
        service: what knows it.
        limits: what clients may do.
    """

    def __init__(self, service: CountingService, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    def routes(self) -> list[Route]:
        """Give what is answered here."""
        return [
            Route("/transforms", self._all),
            Route("/transforms/{name}", self._one),
            Route("/openapi.json", self._api),
        ]

    async def _all(self, request: Request) -> Response:
        del request
        return _json(self._service.listing())

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._service.registry.resolve(name)
        (described,) = (each for each in self._service.describe()["transforms"] if each["name"] == name)
        return _json(json.dumps(described).encode())

    async def _api(self, request: Request) -> Response:
        del request
        return _json(json.dumps(openapi.build(self._service.describe(), self._limits)).encode())


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})
