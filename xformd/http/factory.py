"""Makes the HTTP connections of a server. When they are too many, one that has nothing to do gives way."""

from typing import Any

from twisted.internet.interfaces import IReactorTime

from xformd.http.connection import HttpHandler
from xformd.http.uvicorn_adapter import uvicorn_settings
from xformd.limits import Limits
from xformd.net.connections import ConnectionLimitReached, IdleConnections
from xformd.protocol import TransformFactory
from xformd.service import Service
from xformd.telemetry.metrics import Metrics


class HttpFactory(TransformFactory):
    """Makes connections that an ASGI application answers.

    Args:
        application: what answers.
        metrics: where to count what no application has seen.
        service: whose requests are given up when the grace period is over.
        limits: what a connection may cost.
        clock: a reactor, or a clock in its place.
    """

    def __init__(
        self, application: Any, metrics: Metrics, service: Service, limits: Limits, clock: IReactorTime
    ) -> None:
        shared, self._idle_connections = uvicorn_settings(application, metrics), IdleConnections()
        super().__init__(
            service,
            limits,
            clock,
            make_handler=lambda connection: HttpHandler(connection, shared, self._idle_connections),
        )

    def make_room(self, refusal: ConnectionLimitReached) -> bool:
        """End a connection that has nothing to do, where there are too many."""
        return refusal.kind == "total" and self._idle_connections.evict()
