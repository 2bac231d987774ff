"""Guards: the service of each identity, which does what that identity may have done, and tells of nothing else.

Invariant: rights are checked here, once, for every front; whoever may not use a transform gets the answer that they
would get if it did not exist.
"""

import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.access.rules import NOBODY, Identity, read_rules
from xformd.errors import (
    Busy,
    Cancelled,
    ConfigError,
    Forbidden,
    NoSuchTransform,
    Unauthorized,
    Unavailable,
    XformError,
)
from xformd.net.deadline import cancel
from xformd.net.plain import file_fingerprint
from xformd.plugins.listing import fingerprint
from xformd.plugins.registry import SEE_LIST, Registry, forbidden_transform, no_such_transform
from xformd.runners.generation import PreparedCall
from xformd.runners.inline import Outcome
from xformd.service import ForwardingService, Service
from xformd.spec import Spec, SpecCache
from xformd.telemetry.metrics import Front
from xformd.telemetry.reloads import ReloadOutcome
from xformd.wire import session

CHECK_S = 0.25
"""How often to look whether the file has changed: a token that is revoked must end what it has in flight within 1 s.
It is read once two looks have found the same, as one that is being written lacks identities, or limits."""

REVOKED = "these credentials are not valid any more"


class Grant:
    """What an identity may do now, and what it is doing; all of its connections share it."""

    def __init__(self, identity: Identity, clock: IReactorTime) -> None:
        self.identity = identity
        self.is_revoked = False
        self.in_flight: set[Deferred[bytes]] = set()
        self.on_change: list[Callable[[], None]] = []
        self.services: dict[Front, Service] = {}  # what each front calls for it
        self._clock = clock
        self._allowance = math.inf
        self._counted_at_s = 0.0

    def change(self, identity: Identity | None) -> None:
        """Take other rights from now on; None revokes it, which ends what is in flight."""
        self.is_revoked = identity is None
        self.identity = identity or self.identity
        for forget in self.on_change:
            forget()
        for running in [*self.in_flight] if self.is_revoked else ():
            running.cancel()

    @property
    def is_limited(self) -> bool:
        """Whether its requests are counted."""
        return self.identity.rate is not None or self.identity.max_in_flight is not None

    def check(self) -> None:
        """Raise ``Unauthorized`` if it may do nothing at all."""
        if self.is_revoked:
            raise Unauthorized(REVOKED)
        if self.identity is NOBODY:
            raise Unauthorized("this server needs credentials: send a token, as with --token-file or XFORMD_TOKEN")

    def check_monitor(self) -> None:
        """Raise ``Unauthorized`` or ``Forbidden`` unless it may see metrics."""
        self.check()
        if not self.identity.monitor:
            raise Forbidden(f"{self.identity.name} may not see metrics (monitor)")

    def admit(self) -> None:
        """Count a request; raise ``Busy`` if it is one too many."""
        most, rate = self.identity.max_in_flight, self.identity.rate
        if most is not None and len(self.in_flight) >= most:
            raise Busy(f"{self.identity.name} has {most} requests in flight (max_in_flight)", retry_after_ms=1_000)
        if rate is not None:
            now_s, burst = self._clock.seconds(), max(1.0, rate)  # what a second allows may come at once
            self._allowance = min(burst, self._allowance + (now_s - self._counted_at_s) * rate)
            self._counted_at_s = now_s
            if self._allowance < 1:
                wait_ms = math.ceil(1_000 * (1 - self._allowance) / rate)
                raise Busy(f"{self.identity.name} sends more than {rate:g} requests/s", retry_after_ms=wait_ms)
            self._allowance -= 1


class GuardedService(ForwardingService):
    """A ``Service`` for one identity, in front of another service."""

    def __init__(self, service: Any, grant: Grant) -> None:
        super().__init__(service)
        self.grant = grant
        self.on_swap: list[Callable[[], None]] = []
        self._calls: SpecCache[bytes, PreparedCall | None] = SpecCache(self._make_call)
        self._registry: Registry | None = None  # what is visible of the service's
        self._listing = lru_cache(maxsize=1)(self._visible_listing)
        grant.on_change.append(self._forget)
        self._swaps: list[Callable[[], None]] = getattr(service, "on_swap", [])
        self._swaps.append(self._forget)

    def _forget(self) -> None:
        self._calls.clear()
        self._registry = None
        self._listing.cache_clear()
        for forget in self.on_swap:
            forget()
        if self.grant.is_revoked == (self._forget in self._swaps):
            (self._swaps.remove if self.grant.is_revoked else self._swaps.append)(self._forget)

    @property
    def registry(self) -> Registry:
        """The transforms that its identity may know of."""
        self.grant.check()
        if self._registry is None:  # the service says when it has another
            identity, registry = self.grant.identity, self._service.registry
            visible = registry.visible(identity.may_use, knows_all=self._knows_all)
            self._registry = registry if identity.may_use_all else visible
        return self._registry

    def listing(self) -> bytes:
        """See ``Service.listing``: those of the transforms that its identity may use."""
        self.grant.check()
        listing = self._service.listing()
        return listing if self.grant.identity.may_use_all else self._listing(listing)

    def _visible_listing(self, listing: bytes) -> bytes:
        may_use, listed = self.grant.identity.may_use, json.loads(listing)
        visible = {key: [each for each in listed[key] if may_use(each["name"])] for key in ("transforms", "conflicts")}
        plugins = [{**each, "transforms": [*filter(may_use, each["transforms"])]} for each in listed["plugins"]]
        visible |= {"plugins": [each for each in plugins if each["transforms"]]}
        visible |= {key: listed[key] for key in ("workers",) if key in listed}
        return json.dumps({"fingerprint": fingerprint(visible["transforms"]), **visible}).encode()

    def missing(self) -> str:
        """See ``Service.missing``: names no plugin unless its identity may know of all."""
        missing = self._service.missing()
        return missing if not missing or self._knows_all else "still loading plugins"

    def xform(self, spec: Spec, poem: bytes, **more: Any) -> bytes | Deferred[bytes]:
        """See ``Service.xform``; raises ``Unauthorized``, ``Forbidden`` or ``NoSuchTransform`` for want of a right."""
        self._check(spec)
        if self.grant.is_limited:
            self.grant.admit()
        try:
            result = super().xform(spec, poem, **more)
        except XformError as error:
            raise self._told(error, spec) from None
        return self._track(result, spec)

    def prepare_call(self, words: bytes) -> PreparedCall | None:
        """See ``Service.prepare_call``."""
        return self._calls[words]

    def _make_call(self, words: bytes) -> PreparedCall | None:
        if self.grant.is_limited or (request := session.decode_words(words)) is None:
            return None
        try:
            self._check(request.spec)  # first: how long the service looks for a transform tells whether it is there
        except XformError:  # xform raises it again
            return None
        call = super().prepare_call(words)
        if call is None:
            return None

        def finish_call(outcome: Outcome, *args: Any, **more: Any) -> bytes | Deferred[bytes]:
            return self._track(call.finish_call(outcome, *args, **more), request.spec)

        return attrs.evolve(call, finish_call=finish_call)

    @property
    def _knows_all(self) -> bool:
        return self.grant.identity.may_use_all or self.grant.identity.monitor

    def _check(self, spec: Spec) -> None:
        self.grant.check()
        identity = self.grant.identity
        for step in spec.steps:
            if not identity.may_use(step.name):
                if identity.monitor and step.name in _names(self._service.listing()):
                    raise forbidden_transform(step.name)
                raise no_such_transform(step.name, _names(self.listing()))

    def _told(self, error: XformError, spec: Spec) -> XformError:
        """Return an error without what its identity may not know."""
        if self.grant.is_revoked and isinstance(error, Cancelled):
            return Unauthorized(REVOKED)
        if self._knows_all or not isinstance(error, NoSuchTransform | Unavailable):
            return error
        names = _names(self.listing())
        missing = next((step.name for step in spec.steps if step.name not in names), None)
        if missing is None:  # an upstream's advice may name what only the proxy may use
            is_advice = isinstance(error, NoSuchTransform)
            return NoSuchTransform(f"{error.message.partition(';')[0]}; {SEE_LIST}") if is_advice else error
        if isinstance(error, Unavailable):
            why = self.missing() or "try again later"
            return Unavailable(f"no transform {missing!r} here yet: {why}", retry_after_ms=error.retry_after_ms)
        return no_such_transform(missing, names)

    def _track(self, result: bytes | Deferred[bytes], spec: Spec) -> bytes | Deferred[bytes]:
        if isinstance(result, Deferred):
            self.grant.in_flight.add(result)
            result.addBoth(self._finish, result, spec)
        return result

    def _finish(self, outcome: bytes | Failure, result: Deferred[bytes], spec: Spec) -> bytes | Failure:
        self.grant.in_flight.discard(result)
        if not isinstance(outcome, Failure):
            return outcome
        error = outcome.value
        if isinstance(error, CancelledError) and not isinstance(error, XformError):
            error = Cancelled("the request was cancelled")
        return Failure(self._told(error, spec)) if isinstance(error, XformError) else outcome


class Access:
    """Who may do what, by a file that is read again when it changes.

    ``make_service`` makes what a front calls for an identity, of the identity's grant. A mistake in the file is a
    ``ConfigError``; later it is logged, and what was read before stays.
    """

    log = Logger()

    def __init__(
        self, file: Path, clock: IReactorTime, make_service: Callable[[Front, Grant], Service] | None = None
    ) -> None:
        self._file = file.absolute()
        self._clock = clock
        self.make_service = make_service
        self._seen = self._found = file_fingerprint(self._file)
        try:
            self._rules = read_rules(self._file)
        except ConfigError as error:
            raise ConfigError(error.reason, details=error.details, setting="access") from error
        self._grants: dict[str, Grant] = {}
        self._revoked: WeakValueDictionary[str, Grant] = WeakValueDictionary()  # that open connections have
        self._check: Any = None
        self.on_revoke: list[Callable[[Grant], object]] = []

    def start(self) -> None:
        """Look for changes of the file from now on."""
        self._check = self._clock.callLater(CHECK_S, self._look)

    def stop(self) -> None:
        """Look no more."""
        cancel(self._check)

    def _look(self) -> None:
        self.start()
        before, self._found = self._found, file_fingerprint(self._file)
        if self._seen != self._found == before:
            self.reload()

    def reload(self) -> ReloadOutcome:
        """Read the file again, and revoke what is not in it any more; keep what was read before if it is bad."""
        self._seen = file_fingerprint(self._file)
        try:
            rules = read_rules(self._file)
        except ConfigError as error:
            lines = [f"the access rules stay as they were: {line}" for line in error.details or (error.message,)]
            for line in lines:
                self.log.error("{line}", line=line)
            return ReloadOutcome(errors=tuple(lines))
        changes = "; ".join(rules.changes(self._rules)) or "nobody has other rights"
        self._rules = rules
        for name, grant in (*self._revoked.items(), *self._grants.items()):
            new = rules.identities.get(name, NOBODY if name == NOBODY.name else None)
            if new is not None and new.credentials == grant.identity.credentials:
                if self._grants.setdefault(name, grant) is grant:
                    grant.change(new)
            elif self._grants.get(name) is grant:
                self._revoked[name] = self._grants.pop(name)
                grant.change(None)
                grant.services.clear()
                for forget in self.on_revoke:
                    forget(grant)
        line = f"read the access rules again: {len(rules.identities)} identities; {changes}"
        return ReloadOutcome((line,)).logged(self.log)

    def by_token(self, token: bytes) -> Grant:
        """Return the grant of whoever has this token; raise ``Unauthorized`` if nobody has."""
        identity = self._rules.by_token(token)
        if identity is None:
            raise Unauthorized("this token is not known here, or not any more")
        return self._grant(identity)

    def by_peer(self, names: frozenset[str] = frozenset(), uid: int = -1) -> Grant:
        """Return the grant of whoever is at the other end of a connection, by certificate or user."""
        return self._grant(self._rules.by_peer(names, uid))

    def by_name(self, name: str) -> Grant:
        """Return the grant of an identity; raise ``Unauthorized`` if it is not in the file any more."""
        if (identity := self._rules.identities.get(name)) is None:
            raise Unauthorized("whoever has started this may do nothing here any more")
        return self._grant(identity)

    def service(self, front: Front, grant: Grant) -> Service:
        """Return what a front calls for an identity."""
        assert self.make_service is not None
        if front not in grant.services:
            grant.services[front] = self.make_service(front, grant)
        return grant.services[front]

    def _grant(self, identity: Identity) -> Grant:
        if identity.name not in self._grants:
            self._grants[identity.name] = Grant(identity, self._clock)
        return self._grants[identity.name]


def describe(name: str, service: Service) -> bytes:
    """Return what a caller is told who has shown a token: the identity's name and the transforms that it may use."""
    return json.dumps({"identity": name, "transforms": _names(service.listing())}).encode()


@lru_cache(maxsize=64)
def _names(listing: bytes) -> tuple[str, ...]:
    return tuple(each["name"] for each in json.loads(listing)["transforms"])
