"""``concurrent.futures.ProcessPoolExecutor`` with the same transform, and nothing else in its process."""

from concurrent.futures import ProcessPoolExecutor

from benchmarks import traffic
from benchmarks.pool_jobs import WORKERS, carry_out_with_futures


def main() -> None:
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(traffic.cummingsify, [b"A"] * WORKERS))
        carry_out_with_futures(lambda poem: pool.submit(traffic.cummingsify, poem))


if __name__ == "__main__":
    main()
