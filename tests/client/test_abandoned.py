"""A TransformProxy that is forgotten, not closed, as at the end of a program: nothing is heard of it any more."""

import gc
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from support.logs import Log
from xformd import TransformProxy


@implementer(IStreamClientEndpoint)
class Never:
    """An endpoint that never connects."""

    def connect(self, _: Any) -> Deferred[Any]:
        return Deferred()


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_requests_that_are_forgotten_while_they_wait_are_no_errors(servers: int, log: Log) -> None:
    for _ in range(20):
        proxy: Any = TransformProxy([Never() for _ in range(servers)], reactor=Clock())
        proxy.answers = [proxy.xform("upper", "owl") for _ in range(3)]  # a cycle, which is collected all at once
        for answer in proxy.answers:
            answer.proxy = proxy
        del proxy, answer
    gc.collect()
    assert log.tracebacks == []
