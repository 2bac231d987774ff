"""A slow server keeps its pace over the whole poem."""

import pytest

from xformd.poems.rate_limiter import CHUNK_BYTES, TICK_S, RateLimiter


def time_to_send(bytes_per_s: float, total_bytes: int) -> float:
    """Give the seconds until the last byte is sent, to a client that takes everything at once."""
    pace, sent_bytes, now_s = RateLimiter(bytes_per_s, 0.0), 0, 0.0
    while sent_bytes < total_bytes:
        step = pace.next(sent_bytes, total_bytes, now_s)
        assert 0 < step.size_bytes <= CHUNK_BYTES
        sent_bytes += step.size_bytes
        now_s += step.wait_s
    return now_s


@pytest.mark.parametrize(
    ("bytes_per_s", "total_bytes", "expected_s"),
    [(100, 200, 2.0), (1, 3, 3.0), (3, 10, 10 / 3), (1e6, 2_000_000, 2.0), (1e9, 1_000_000, 0.001)],
)
def test_a_poem_takes_its_size_divided_by_the_speed(bytes_per_s: float, total_bytes: int, expected_s: float) -> None:
    assert time_to_send(bytes_per_s, total_bytes) == pytest.approx(expected_s)


def test_a_piece_is_that_of_a_moment_so_that_a_poem_is_seen_to_come() -> None:
    assert RateLimiter(1000, 0.0).next(0, 10_000, 0.0).size_bytes == 1000 * TICK_S
    assert RateLimiter(5, 0.0).next(0, 10_000, 0.0).size_bytes == 1


def test_what_a_client_missed_while_it_stood_still_does_not_come_at_once() -> None:
    pace = RateLimiter(100, 0.0)
    assert pace.next(0, 1000, 0.0).wait_s == pytest.approx(0.05)
    late = pace.next(5, 1000, 60.0)
    assert late.wait_s == 0
    assert pace.next(10, 1000, 60.0).wait_s == pytest.approx(0.05)
