"""Send one request after the other until standard input ends; then print how many were answered, and the slowest."""

import os
import sys
import time
from collections import Counter

from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.internet.task import deferLater, react
from twisted.internet.threads import deferToThread

from xformd import TransformProxy, XformError

CLIENTS, PAUSE_S = 4, 0.02


async def main(reactor, transform, poem):
    answers, failures, slowest_s, is_done = Counter(), Counter(), 0.0, False

    async def client():
        nonlocal slowest_s
        async with TransformProxy(os.environ["XFORMD_SERVER"]) as proxy:
            while not is_done:
                began_s = time.monotonic()
                try:
                    answers[await proxy.xform(transform, poem)] += 1
                except XformError as error:
                    failures[error.code] += 1
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                await deferLater(reactor, PAUSE_S)

    clients = DeferredList([ensureDeferred(client()) for _ in range(CLIENTS)], fireOnOneErrback=True)
    await deferToThread(sys.stdin.read)
    is_done = True
    await clients
    for answer, times in sorted(answers.items()):
        print(f"{times:>6,} x {answer}")
    print(f"{sum(failures.values()):>6,} failed", *failures)
    print(f"{1000 * slowest_s:>6,.0f} ms was the longest wait")


react(main, sys.argv[1:])
