"""The hot path of a session: answers the plain requests of a read in one loop, with no object for any of them.

The law: it answers exactly what the careful path would, byte for byte, or leaves a request where it is. It knows one
shape, a whole netstring ``<length>:<id> <words>.<poem>,`` whose words are those of an inline transform. Anything else
stays unread at its place: a part of a netstring, an error, a control message, words not known, an id in flight.
"""

import re
from collections.abc import Container

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.runners.generation import PreparedCall
from xformd.runners.inline import SLOW_CALL_S
from xformd.service import Service
from xformd.telemetry.metrics import BatchedCounts

_COMMA = ord(",")

_SOME = (None,) * 256
"""So many requests are answered before the caller looks at its clock: that costs nothing, and holds nobody long."""

# Ids of up to 15 digits are below 2^53. Possessive: what does not fit at once is for the careful path.
_match_head = re.compile(rb"([1-9][0-9]{0,7}+):([1-9][0-9]{0,14}+) ([^.]*+)\.").match


@attrs.frozen
class Outcome:
    """A request that has run, and is not answered yet: it must not run again.

    Args:
        request_id: its id.
        ready: what ran.
        result: what came of it.
    """

    request_id: int
    ready: PreparedCall
    result: bytes | Deferred[bytes] | Failure


def answer(  # noqa: C901 - a call for each request would cost more than the request
    service: Service,
    data: bytes,
    position: int,
    in_flight: Container[int] | None,
    room_bytes: int,
    replies: list[bytes],
) -> tuple[int, Outcome | None]:
    """Answer what can be answered at once, but not more than a share of it that takes no time.

    Args:
        service: what answers requests.
        data: what has arrived, of no more than ``max_request_bytes``, so that no string in it is too long.
        position: where in it a netstring begins.
        in_flight: the ids of the requests that run; None where there are none.
        room_bytes: stop once there is more than so much output.
        replies: where to put the replies, framed.

    Returns:
        Where the first byte is that has not been dealt with; and what is left to be said of the request before it.
    """
    size, max_result_bytes = len(data), service.max_result_bytes
    known: bytes | None = None
    ready: PreparedCall | None = None
    batched_counts: BatchedCounts | None = None
    outcome: Outcome | None = None
    result: bytes | Deferred[bytes] | Failure
    started_s = 0.0
    for _ in _SOME:
        if not (match := _match_head(data, position)):
            break
        length, number, words = match.groups()
        if words != known:  # only where they change are they looked up, and is the clock read
            ready, started_s = _turn_to(service, words, ready, started_s)
            known = words
            batched_counts = None if ready is None else ready.batched_counts
        start, end = match.end(), match.start(2) + int(length)
        if (
            ready is None
            or start > end
            or end >= size
            or data[end] != _COMMA
            or (in_flight and int(number) in in_flight)
        ):
            break
        position = end + 1
        if batched_counts is not None:
            batched_counts.poems_bytes.append(end - start)
        try:
            result = ready.run(data[start:end])
        except BaseException:  # the transform's: nothing else runs in there
            result = Failure()
        if type(result) is not bytes or len(result) > max_result_bytes:
            outcome = Outcome(int(number), ready, result)
            break
        if batched_counts is not None:
            batched_counts.results_bytes.append(len(result))
        reply = b"%d:%b ok.%b," % (len(number) + 4 + len(result), number, result)
        replies.append(reply)
        if (room_bytes := room_bytes - len(reply)) < 0:
            break
    if ready is not None:
        ran_s = service.stopwatch() - started_s
        if ran_s > SLOW_CALL_S:
            ready.on_slow_call(ran_s)
        if batched_counts is not None:
            batched_counts.ran(ran_s)
    return position, outcome


def _turn_to(
    service: Service, words: bytes, last: PreparedCall | None, last_started_s: float
) -> tuple[PreparedCall | None, float]:
    """Look words up and start the clock for them; it stops for what ran last."""
    now_s = service.stopwatch()
    if last is not None:
        if (ran_s := now_s - last_started_s) > SLOW_CALL_S:
            last.on_slow_call(ran_s)
        if last.batched_counts is not None:
            last.batched_counts.ran(ran_s)
    return service.prepare_call(words), now_s
