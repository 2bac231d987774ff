"""Put a transform server together from its settings.

Invariant: the server listens only once its plugins are loaded, slow ones apart, and its workers end last.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from xformd.access.guard import Access, GuardedService
from xformd.config import Settings
from xformd.config.settings import host_node
from xformd.counting import CountingService
from xformd.errors import ConfigError
from xformd.http.application import (
    GuardedApplication,
    HttpDependencies,
    Methods,
    make_application,
    make_monitoring_application,
)
from xformd.http.connection import HttpFactory
from xformd.http.endpoints import HealthEndpoints
from xformd.http.forwarded import TrustedProxies
from xformd.http.requests import TransformRequest
from xformd.http.sites import Sites
from xformd.jobs.manager import JobManager
from xformd.limits import Limits
from xformd.net.factory import DrainableProtocol, DrainingFactory
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.net.tls import ServerTls, server_tls
from xformd.plugins.registry import Registry
from xformd.protocol import TransformFactory
from xformd.server.recording import RecordingService
from xformd.server.reload import Reloader
from xformd.service import RegistryService, TransformService
from xformd.telemetry import logs
from xformd.telemetry.access_log import AccessLog
from xformd.telemetry.metrics import Front, Metrics
from xformd.telemetry.prometheus import PrometheusExporter, Sources
from xformd.telemetry.reloads import ReloadOutcome
from xformd.telemetry.status import NOT_READY, readiness
from xformd.telemetry.tracing import make_tracer


class Server(ListeningService):
    """A transform server. It answers what it has accepted before it stops."""

    def __init__(
        self,
        reloader: Reloader,
        listen: tuple[str, ...],
        factory: TransformFactory,
        reactor: Any,
        others: Sequence[ListeningService],
        access_log: AccessLog | None,
        access: Access | None,
        tls: ServerTls | None,
        *,
        reuse_port: bool,
        jobs: JobManager | None,
    ) -> None:
        more: Any = {"is_eager": True, "flags": "--port or --listen", "tls": tls, "reuse_port": reuse_port}
        super().__init__(listen, factory, reactor, **more)
        self._reloader = reloader
        self._others = others
        self._access_log = access_log
        self._access = access
        self._jobs = jobs
        if access is not None:
            self.on_reload.append(access.reload)
        reloader.on_change = self._change
        self._tracer = factory.tracer
        self.netstring_addresses: tuple[str, ...] = ()

    @property
    def service(self) -> TransformService:
        """What answers its requests."""
        return self._reloader.service

    @property
    def registry(self) -> Registry:
        """The transforms that it has now."""
        return self.service.registry

    async def _reload(self) -> ReloadOutcome:
        """Read certificates, settings and plugins again, and open the access log anew."""
        if self._access_log is not None:
            self._access_log.reopen()
        for other in self._others:
            self.certificates |= other.certificates
        outcome = await super()._reload()
        return outcome + await self._reloader.reload()

    def _change(self, settings: Settings) -> None:
        """Hold to settings that a reload has changed; raise ``ConfigError`` if one cannot be used."""
        logs.set_level(settings.log_level)
        fronts = [each for each in (self, *self._others) if each._listen]
        open_now = sum(len(each._factory.connections) for each in fronts)
        more = {"workers": settings.worker_count, "fronts": len(fronts), "open_now": open_now}
        limits = within_descriptors(settings.limits, **more)
        for each in fronts:
            each.set_limits(limits)

    async def _start(self) -> tuple[str, ...]:
        if self._jobs is not None:
            await self._jobs.open()
        await self._reloader.start()
        if self._reloader.is_stopping:
            return ()
        if self._jobs is not None:
            self._jobs.resume()
        if self._access_log is not None:
            self._access_log.start()
        self._tracer.start()
        if self._access is not None:
            self._access.start()
        shown = self.netstring_addresses = await super()._start()
        for other in self._others:
            other.startService()
            shown += await other.listening
            self.exposed += [each for each in other.exposed if not each.startswith("agent:")]  # which takes no token
        self._warn_of_tls(has_access_file=self._access is not None)
        return shown

    async def _stop(self) -> None:
        try:
            own = Deferred.fromCoroutine(super()._stop())
            jobs = [] if self._jobs is None else [Deferred.fromCoroutine(self._jobs.stop())]
            await gatherResults([own, *jobs, *(other.stopService() for other in self._others)])
        finally:
            if self._jobs is not None:
                await self._jobs.close()
            await self._reloader.stop()
            await self._tracer.stop(self._reactor)
            if self._access is not None:
                self._access.stop()
            if self._access_log is not None:
                self._access_log.stop()
                await deferLater(self._reactor, 0)  # for its last report


def make_server(
    settings: Settings,
    reactor: Any,
    read_again: Callable[[], Settings] | None = None,
    *,
    dev_paths: Mapping[bytes, Methods] | None = None,
) -> Server:
    """Put a server together, not started; raise ``ConfigError`` if a setting names something that does not exist.

    A reload has ``read_again`` read the settings. One with ``dev_paths``, endpoints for its page besides, is that of
    ``xformd dev``: it tells in full what transforms raise, and a reload switches to whatever there is.
    """
    if settings.jobs_dir is not None and not settings.http:
        raise ConfigError("jobs are asked for over HTTP, and http is none", setting="jobs_dir")
    fronts = 1 + bool(settings.http) + bool(settings.metrics)  # each has its own factory
    limits = within_descriptors(settings.limits, workers=settings.worker_count, fronts=fronts)
    tls = server_tls(settings, reactor)
    is_dev = dev_paths is not None
    reloader = Reloader(settings, reactor, read_again=read_again, is_local=is_dev, starts_ahead=is_dev)
    settings = attrs.evolve(settings, limits=limits)
    access = None if settings.access is None else Access(settings.access, reactor)
    service = reloader.service if settings.record is None else RecordingService(reloader.service, settings, reactor)
    return _assemble(settings, reloader, service, reactor, access, tls, dev_paths or {})


DRAIN = b"drain\n"
"""What a server says to HAProxy that should get no new requests; not ``down``, which may cut off what it runs."""


def format_report(*, workers: int, busy: int, waiting: int, max_connections: int) -> bytes:
    """Return the line of a server that can take requests, of whose ``workers`` some are busy while more jobs wait.

    Its weight is 100 % without work, about half of that with every worker busy, and less the longer the queue is.
    Servers with the same load have the same, so that what is a second old does not send everything to one of them.
    """
    weight = max(1, 100 * workers // (workers + busy + waiting)) if workers else 100
    return b"ready up %d%% maxconn:%d\n" % (weight, max_connections)


class _Report(DrainableProtocol):
    """One connection of HAProxy's agent check."""

    def connectionMade(self) -> None:
        """Send the report, and close."""
        super().connectionMade()
        self.transport.write(self.factory.report())
        self.transport.loseConnection()


class AgentFactory(DrainingFactory[_Report]):
    """Answers each connection with what ``report`` returns then."""

    protocol = _Report

    def __init__(self, report: Callable[[], bytes], limits: Limits, reactor: Any) -> None:
        super().__init__(limits, reactor)
        self.report = report


def _agent(
    settings: Settings, reloader: Reloader, netstrings: TransformFactory, reactor: Any
) -> list[ListeningService]:
    """Make what answers HAProxy's agent checks, if anything should."""

    def report() -> bytes:
        status, is_stopping = reloader.status(), netstrings.will_stop or netstrings.is_stopping
        if readiness(status, is_stopping=is_stopping)["status"] == NOT_READY or status.queue_length >= status.max_queue:
            return DRAIN
        return format_report(
            workers=status.proven_workers if status.needs_workers else 0,
            busy=status.workers["busy"],
            waiting=status.queue_length,
            max_connections=status.max_queue,  # HAProxy keeps what the queue might refuse
        )

    factory = AgentFactory(report, settings.limits, reactor)
    service = ListeningService(settings.agent, factory, reactor, setting="agent", scheme="agent://")
    return [service] if settings.agent else []


def _assemble(
    settings: Settings,
    reloader: Reloader,
    service: Any,
    reactor: Any,
    access: Access | None,
    tls: ServerTls | None,
    dev_paths: Mapping[bytes, Methods],
) -> Server:
    """Make a server of its parts. It counts its requests whether anybody asks for the metrics or not."""
    metrics, limits = Metrics(), settings.limits
    warn = partial(reactor.callFromThread, Server.log.warn, "{message}")
    file = settings.access_log
    tracer = make_tracer(settings.traces)
    access_log = None if file is None else AccessLog(file, settings.log_format, warn)
    counting: dict[Front, CountingService] = {
        "classic": CountingService(service, metrics, "classic", access_log),
        "session": CountingService(service, metrics, "session", access_log),
    }
    if access is not None:
        access.make_service = lambda front, grant: CountingService(
            GuardedService(service, grant), metrics, front, access_log
        )
    jobs = _make_jobs(settings, service, CountingService(service, metrics, "http"), access, reactor)
    proxies = TrustedProxies(settings.trusted_proxies)
    more: Any = {"metrics": metrics, "counting": counting, "access_log": access_log, "trusts": proxies.trusts}
    more |= {"access": access, "tracer": tracer}
    netstrings = TransformFactory(service, limits, reactor, **more)
    factories: dict[str, TransformFactory] = {"netstring": netstrings}
    sources = Sources(
        metrics,
        reloader.status,
        lambda: [(each.name, each.distribution, each.version, each.state) for each in service.registry.plugins],
        lambda: {front: factory.connection_stats for front, factory in factories.items()},
        lambda: access_log.dropped if access_log else 0,
        lambda: server.reloads,
        dict if jobs is None else lambda: jobs.states,
    )
    dependencies = HttpDependencies(
        service=service,
        metrics=metrics,
        health=HealthEndpoints(
            reloader.status,
            lambda: netstrings.will_stop or netstrings.is_stopping,
            names_plugins=access is None,
        ),
        render_metrics=PrometheusExporter(sources).render,
        sites=Sites(settings.host_names, settings.cors, is_behind_proxy=bool(settings.trusted_proxies)),
        netstring_address=lambda: " ".join(server.netstring_addresses),
        access_log=access_log,
        tracer=tracer,
        takes_tokens=access is not None,
        jobs=jobs,
        dev_paths=dev_paths,
    )
    more = {"is_eager": True, "scheme": "http://", "alpn": (b"http/1.1",), "tls": tls}
    others = []
    for front, listen, make, reuses in (
        ("http", settings.http, make_application, settings.reuse_port),
        ("metrics", settings.metrics, make_monitoring_application, False),  # each server has its own
    ):
        if listen:
            application = make(dependencies) if access is None else GuardedApplication(access, dependencies, make)
            factories[front] = HttpFactory(application, metrics, service, limits, reactor, proxies)
            other = ListeningService(listen, factories[front], reactor, setting=front, reuse_port=reuses, **more)
            other.listening.addCallback(_note_hosts, dependencies.sites)
            others.append(other)
    others += _agent(settings, reloader, netstrings, reactor)
    parts = netstrings, reactor, others, access_log, access, tls
    server = Server(reloader, settings.listen, *parts, reuse_port=settings.reuse_port, jobs=jobs)
    return server


def _make_jobs(
    settings: Settings, service: RegistryService, counting: CountingService, access: Access | None, reactor: Any
) -> JobManager | None:
    """Make what keeps jobs, if there may be any."""
    if settings.jobs_dir is None:
        return None

    def service_of(owner: str) -> Any:
        return counting if access is None else access.service("http", access.by_name(owner))

    node = settings.node or host_node()
    return JobManager(settings.jobs_dir, node, service, service_of, TransformRequest.headers_of, reactor)


def _note_hosts(addresses: tuple[str, ...], sites: Sites) -> tuple[str, ...]:
    for address in addresses:
        sites.listens_on(address)
    return addresses
