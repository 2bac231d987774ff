"""Where a server is answered over HTTP: the whole of it, and what those may see who watch it.

Imported where somebody asks for that alone: it needs what ``xformd[http]`` installs.
"""

from typing import Any

from xformd.config import Settings
from xformd.factory import TransformFactory
from xformd.http.application import Parts, make_application, make_watching_application
from xformd.http.factory import HttpFactory
from xformd.http.health import Health
from xformd.net.listener import Listening
from xformd.server.reload import Generations
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.prometheus import Exposition, Sources


def make_fronts(
    settings: Settings, generations: Generations, netstrings: TransformFactory, metrics: Metrics, reactor: Any
) -> list[Listening]:
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
    doors = {"netstring": netstrings}
    sources = Sources(
        metrics,
        generations.vitals,
        lambda: service.registry,
        lambda: {front: each.door for front, each in doors.items()},
    )
    parts = Parts(
        service=service,
        metrics=metrics,
        limits=limits,
        health=Health(generations.vitals, lambda: netstrings.is_stopping),
        render_metrics=Exposition(sources).render,
        origins=settings.cors,
    )
    doors["http"] = HttpFactory(make_application(parts), metrics, service, limits, reactor)
    doors["metrics"] = HttpFactory(make_watching_application(parts), metrics, service, limits, reactor)
    return [
        Listening(listen, doors[front], reactor, is_prompt=True, setting=front, scheme="http://")
        for front, listen in (("http", settings.http), ("metrics", settings.metrics))
    ]
