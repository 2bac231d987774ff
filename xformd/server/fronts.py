"""Where a server is answered over HTTP: the whole of it, and what those may see who watch it.

Imported where somebody asks for that alone: it needs what ``xformd[http]`` installs.
"""

from typing import Any

from xformd.config import Settings
from xformd.http.application import HttpDependencies, make_application, make_monitoring_application
from xformd.http.connection import HttpFactory
from xformd.http.endpoints import HealthEndpoints
from xformd.net.listener import ListeningService
from xformd.protocol import TransformFactory
from xformd.server.reload import Reloader
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.prometheus import PrometheusExporter, Sources


def make_fronts(
    settings: Settings, generations: Reloader, netstrings: TransformFactory, metrics: Metrics, reactor: Any
) -> list[ListeningService]:
    """Put together what answers HTTP beside a server for netstrings.

    Args:
        settings: where to listen.
        generations: which transforms there are, and their workers.
        netstrings: makes the connections of that server.
        metrics: where requests are counted, on every front.
        reactor: what it runs on.

    Returns:
        What listens, in the order in which it is told.
    """
    service, limits = generations.service, settings.limits
    connection_stats = {"netstring": netstrings}
    sources = Sources(
        metrics,
        generations.status,
        lambda: [(each.name, each.distribution, each.version, each.state) for each in service.registry.plugins],
        lambda: {front: each.connection_stats for front, each in connection_stats.items()},
    )
    parts = HttpDependencies(
        service=service,
        metrics=metrics,
        limits=limits,
        health=HealthEndpoints(generations.status, lambda: netstrings.is_stopping),
        render_metrics=PrometheusExporter(sources).render,
        origins=settings.cors,
    )
    connection_stats["http"] = HttpFactory(make_application(parts), metrics, service, limits, reactor)
    connection_stats["metrics"] = HttpFactory(make_monitoring_application(parts), metrics, service, limits, reactor)
    return [
        ListeningService(listen, connection_stats[front], reactor, is_eager=True, setting=front, scheme="http://")
        for front, listen in (("http", settings.http), ("metrics", settings.metrics))
    ]
