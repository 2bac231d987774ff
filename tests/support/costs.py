"""What a piece of code costs in memory."""

import tracemalloc


class Traced:
    """The memory that is allocated inside the block."""

    def __enter__(self) -> "Traced":
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held_bytes, self.peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
