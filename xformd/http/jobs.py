"""Jobs over HTTP: ``Prefer: respond-async`` (RFC 7240) and ``Idempotency-Key`` start them, ``/jobs/`` has them.

Invariant: a job is its identity's alone; whoever may not use its transforms, or is somebody else, gets the answer that
they would get if it did not exist.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from xformd.access.guard import Grant
from xformd.counting import CountingService
from xformd.errors import BadRequest, ShuttingDown, XformError
from xformd.http.messages import HttpProblem, Request, Response, TakeBody, header_lines
from xformd.http.requests import TransformRequest
from xformd.jobs.manager import JobManager
from xformd.jobs.store import Job
from xformd.spec import parse
from xformd.telemetry.timing import utc_time

PREFIX = b"/jobs/"
MAX_WAIT_S = 60  # how long a client may wait for a job on one connection
MAX_PREFER_BYTES = 1_000  # of ``Prefer``; what follows is ignored: 64 KiB of commas would hold up everybody
RETRY_S = 1  # how long it is advised to wait before it asks again, if it does not wait here

_match_path = re.compile(rb"/jobs/([A-Za-z0-9][A-Za-z0-9._-]{0,62})/([0-9a-f]{32})").fullmatch
_match_wait = re.compile(rb'wait[ \t]*=[ \t]*"?([0-9]{1,9})"?').fullmatch
_match_key = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"|([!#-+\--~]{1,255})').fullmatch
_NO_STORE = b"cache-control: no-store\r\n"


def read_preferences(headers: Mapping[bytes, bytes]) -> tuple[bool, int]:
    """Return whether a client prefers an answer before the result is there, and for how many seconds it waits."""
    value = headers.get(b"prefer", b"")[:MAX_PREFER_BYTES].lower()
    preferences = [each.partition(b";")[0].strip(b" \t") for each in value.split(b",")]
    waits = [int(match[1]) for each in preferences if (match := _match_wait(each))]
    return b"respond-async" in preferences, min(waits[0], MAX_WAIT_S) if waits else 0


def read_key(headers: Mapping[bytes, bytes]) -> str:
    """Return the ``Idempotency-Key`` of a request, empty if it has none; raise ``BadRequest`` if it is malformed.

    It is a string in quotes, as the draft of its standard has it, or a plain word, as most clients send it.
    """
    if (value := headers.get(b"idempotency-key")) is None:
        return ""
    if (match := _match_key(value)) is None:
        raise BadRequest("invalid Idempotency-Key: send up to 255 characters of ASCII in quotes, such as a new UUID")
    return (match[1] or match[2]).decode()


def is_job(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a transform request is to be a job; raises what ``read_key`` does."""
    return bool(read_key(headers)) or read_preferences(headers)[0]


class JobsEndpoint:
    """Starts the jobs of whoever a grant is for, or of everybody, and has their results."""

    def __init__(self, jobs: JobManager, service: CountingService, grant: Grant | None) -> None:
        self._jobs, self._service, self._grant = jobs, service, grant
        self._owner = "" if grant is None else grant.identity.name

    async def start(self, request: Request, wanted: TransformRequest, poem: bytes, timeout_s: float | None) -> Response:
        """Respond to a transform request that is a job: with its result, or with where that will be."""
        (is_async, wait_s), key = read_preferences(request.headers), read_key(request.headers)
        digest = await self._jobs.digest(wanted.spec, poem) if key else b""
        job = self._jobs.by_key.get((self._owner, key)) if key else None
        if job is None:
            fields: Any = {"owner": self._owner, "share": request.caller.share, "spec": str(wanted.spec)}
            fields |= {"is_repeatable": wanted.is_deterministic, "key": key, "digest": digest}
            try:
                job = self._jobs.start(self._service, poem, request.timing, timeout_s, **fields)
            except XformError as error:
                raise self._service.refused(error) from None
        elif job.digest != digest:
            raise self._service.refused(HttpProblem(422, "this Idempotency-Key came with another request before"))
        await self._wait(job, wait_s if is_async else None)
        if is_async and (job.ended_at is None or not wait_s):
            applied = b"respond-async, wait=%d" % wait_s if wait_s else b"respond-async"
            return self._show_state(job, request, header_lines((b"preference-applied", applied)))
        if job.ended_at is None and job.id in self._jobs.by_id:
            raise ShuttingDown.interrupted()  # with its key, the client finds it again
        response = await self._show(job, request)
        if not key:
            self._jobs.forget(job)
        return response

    async def _wait(self, job: Job, wait_s: float | None) -> None:
        """Wait until a job is accepted, and for so long until it has ended; None waits as long as it takes."""
        try:
            await self._jobs.accepted(job)
            if wait_s != 0:
                await self._jobs.ended(job, wait_s)
        except CancelledError:  # the client has left
            if not job.key:  # and does not know where its job is
                self._jobs.forget(job)
            raise

    def get(self, request: Request) -> Response | TakeBody:
        """Respond with the result of a job, or its error; while there is none, with its state."""
        job = self._find(request)
        _, wait_s = read_preferences(request.headers)

        async def respond() -> Response:
            if wait_s:
                await self._jobs.ended(job, wait_s)
            return await self._show(job, request)

        return lambda _: Deferred.fromCoroutine(respond())

    def delete(self, request: Request) -> Response | TakeBody:
        """Kill a job, or forget one that has ended."""
        self._jobs.forget(self._find(request))
        return Response(204)

    def _find(self, request: Request) -> Job:
        match = _match_path(request.path)
        if match is not None and (node := match[1].decode()) != self._jobs.node:
            detail = f"this is node {self._jobs.node}, and the job is at node {node}: ask that one"
            raise HttpProblem(421, detail, node=node)
        job = None if match is None else self._jobs.by_id.get(match[2].decode())
        if job is None or not self._may_see(job):
            raise _not_found()
        return job

    def _may_see(self, job: Job) -> bool:
        if job.owner != self._owner or job.id not in self._jobs.by_id:
            return False
        grant = self._grant
        if grant is None:
            return True
        return not grant.is_revoked and all(grant.identity.may_use(step.name) for step in parse(job.spec).steps)

    async def _show(self, job: Job, request: Request) -> Response:
        if not self._may_see(job):  # since it was found, it may have been deleted, or the right to it
            raise _not_found()
        if job.ended_at is None:
            return self._show_state(job, request)
        if job.error is not None:
            raise job.error
        try:
            result = await self._jobs.read(job)
        except LookupError:  # it was deleted meanwhile
            raise _not_found() from None
        return Response(200, job.headers + _NO_STORE, result)

    def _show_state(self, job: Job, request: Request, more: bytes = b"") -> Response:
        location = f"{request.source.prefix}/jobs/{self._jobs.node}/{job.id}"
        names = "+".join(step.name for step in parse(job.spec).steps)
        state = {"state": self._jobs.state(job), "transform": names, "created_at": utc_time(job.created_at)}
        lines = header_lines((b"content-type", b"application/json"), (b"location", location.encode()))
        body = json.dumps({**state, "location": location}).encode()
        return Response(202, lines + b"retry-after: %d\r\n" % RETRY_S + _NO_STORE + more, body)


def _not_found() -> HttpProblem:
    return HttpProblem(404, "no such job: it was deleted, or kept no longer (job_keep_s), or it never was here")
