"""``pebble.ProcessPool`` with the same transform, and nothing else in its process."""

from concurrent.futures import Future
from typing import cast

from pebble import ProcessPool

from benchmarks import traffic
from benchmarks.pool_jobs import WORKERS, carry_out_with_futures


def main() -> None:
    with ProcessPool(max_workers=WORKERS) as pool:

        def submit(poem: bytes) -> "Future[bytes]":
            return cast("Future[bytes]", pool.schedule(traffic.cummingsify, args=[poem]))

        for future in [submit(b"A") for _ in range(WORKERS)]:
            future.result()
        carry_out_with_futures(submit)


if __name__ == "__main__":
    main()
