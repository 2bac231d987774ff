"""Sizes and durations, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.config.quantities import read_duration, read_size, show_duration, show_size


@given(st.integers(1, 2**63 - 1))
def test_a_size_that_was_shown_is_read_as_itself(size_bytes: int) -> None:
    assert read_size(show_size(size_bytes)) == size_bytes


def test_sizes_are_shown_in_the_largest_unit_that_fits() -> None:
    assert [show_size(size) for size in (1, 1023, 1536, 2**20, 3 * 2**30)] == ["1", "1023", "1536", "1MiB", "3GiB"]
    assert show_size(64 * 1024) == "64KiB"


@pytest.mark.parametrize("text", ["", "x", "-1", "1 2", "1MB", "1.MiB", ".5MiB", "0.3B", "1e3", "9" * 50, "1\n"])
def test_what_is_no_size(text: str) -> None:
    assert read_size(text) is None


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("1.5", 1.5), ("500ms", 0.5), ("2 MIN", 120), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


def test_durations_are_shown_without_a_fraction_that_is_nothing() -> None:
    assert [show_duration(seconds) for seconds in (30.0, 0.5, 0.1)] == ["30", "0.5", "0.1"]


@pytest.mark.parametrize("text", ["", "soon", "5m", "inf", "nan", "-1s"])
def test_what_is_no_duration(text: str) -> None:
    assert read_duration(text) is None
