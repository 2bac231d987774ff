"""``/transforms``: what there is, told as ``xformd list-transforms --json`` tells it."""

import json
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xformd.errors import XformError
from xformd.http import problems, requests
from xformd.plugins.registry import Registry


class Described(Protocol):
    """What says which transforms there are; ``TransformService`` does."""

    @property
    def registry(self) -> Registry:
        """Which there are."""
        ...

    def listing(self) -> bytes:
        """Give what ``xformd list-transforms --json`` prints."""
        ...


class Describing:
    """Says what there is.

    Args:
        service: what knows it.
    """

    def __init__(self, service: Described) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Give what is answered here."""
        return [Route("/transforms", self._all), Route("/transforms/{name}", self._one)]

    async def _all(self, request: Request) -> Response:
        del request
        return _json(self._service.listing())

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            self._service.registry.resolve(name)
        except XformError as error:
            request_id = requests.request_id(dict(request.scope["headers"]))
            problem = problems.details(error, request_id)
            return Response(json.dumps(problem), problem["status"], {"x-request-id": request_id}, problems.MEDIA_TYPE)
        listed: dict[str, Any] = json.loads(self._service.listing())
        (described,) = (each for each in listed["transforms"] if each["name"] == name)
        return _json(json.dumps(described).encode())


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})
