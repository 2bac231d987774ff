"""The load generator for gRPC: grpcio's own client, in a process of its own.

Run as a program it is that process. It connects, warms up, and then for each line on its standard input, a number of
seconds, applies the load for so long and prints what came of it as JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

from benchmarks import traffic
from benchmarks.answers import WrongAnswer
from benchmarks.samples import Load

_PATIENCE_S = 30.0
_STOP_S = 5.0


class GrpcGenerator:
    """The client's process, seen from here: the same face as ``load.Generator``.

    Args:
        address: of the server.
        size: of the poems, in bytes.
        connections: how many channels, each with a connection of its own.
        outstanding: calls in flight on each.
    """

    def __init__(self, address: tuple[str, int], size: int, connections: int, outstanding: int) -> None:
        options = [f"{address[0]}:{address[1]}", str(size), str(connections), str(outstanding)]
        command = [sys.executable, "-m", "benchmarks.grpc_load", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "GrpcGenerator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def run(self, seconds: float) -> Load:
        """Load the server for some time, and wait until all is answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("the gRPC client has ended; its reason stands above")
        return Load(**json.loads(line))


async def _load(calls: list[Any], size: int, outstanding: int, seconds: float) -> dict[str, Any]:
    poems = traffic.poems(size, outstanding)
    pairs = [(poem, traffic.cummingsify(poem)) for poem in poems]
    latencies_s: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    until = start + seconds

    async def one_after_another(call: Any, first: int) -> None:
        index = first
        sent = time.perf_counter()
        while sent < until:
            poem, expected = pairs[index % len(pairs)]
            if await call(poem, timeout=_PATIENCE_S) != expected:
                raise WrongAnswer("gRPC gave another answer than expected")
            index += 1
            now = time.perf_counter()
            latencies_s.append(now - sent)
            sent = now

    async with asyncio.TaskGroup() as group:
        for call in calls:
            for first in range(outstanding):
                group.create_task(one_after_another(call, first))
    return {
        "requests": len(latencies_s),
        "wall_s": time.perf_counter() - start,
        "generator_cpu_s": time.process_time() - cpu,
        "latencies_s": latencies_s,
    }


async def _main() -> None:
    import grpc

    from benchmarks.peers.grpc_server import METHOD, OPTIONS, SERVICE

    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    for name in ("size", "connections", "outstanding"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    # Without a pool of its own a channel shares the connection of the others to the same address.
    options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(arguments.address, options=options) for _ in range(arguments.connections)]
    calls: list[Any] = [channel.unary_unary(f"/{SERVICE}/{METHOD}") for channel in channels]
    async with asyncio.timeout(_PATIENCE_S):
        await asyncio.gather(*[channel.channel_ready() for channel in channels])
    while line := await asyncio.to_thread(sys.stdin.readline):
        report = await _load(calls, arguments.size, arguments.outstanding, float(line))
        print(json.dumps(report), flush=True)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    asyncio.run(_main())
