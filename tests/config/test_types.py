"""Sizes and durations, read and written; the other types are tested where settings are read."""

import tomllib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.config.types import DURATION, SIZE, is_network, is_requirement
from xformd.limits import parse_duration, parse_size, parse_timeout

MIB = 2**20


@given(st.integers(1, 2**63 - 1))
def test_a_written_size_is_read_as_itself(size_bytes: int) -> None:
    assert parse_size(tomllib.loads(f"size = {SIZE.to_toml(size_bytes)}")["size"]) == size_bytes


def test_values_are_written_in_the_largest_unit_without_a_fraction() -> None:
    written = ["1", "1023", "1536", '"64KiB"', '"1MiB"', '"3GiB"']
    assert list(map(SIZE.to_toml, (1, 1023, 1536, 65536, MIB, 3 * 2**30))) == written
    assert list(map(DURATION.to_toml, (30.0, 0.5, 0.1))) == ["30", "0.5", "0.1"]


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1", 1), ("1B", 1), ("2kib", 2048), ("1.5 MiB", 3 * MIB // 2), ("1TiB", MIB * MIB)]
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("1.5", 1.5), ("500ms", 0.5), ("30s", 30), ("2 MIN", 120), ("2h", 7200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == parse_timeout(text) == seconds


@pytest.mark.parametrize(
    ("parse", "value", "says"),
    [
        *(
            (parse_size, value, f"invalid size {value!r}: try 100000 or 10MiB")
            for value in ("", "x", "0", "-1", "1 2", "10MB", "1.MiB", ".5MiB", "0.1B", "1e3", "9" * 50, "1\n", 1.5)
        ),
        *(
            (parse_duration, value, f"invalid duration {value!r}: try 0.5, 30 or 5min")
            for value in ("", "soon", "5m", "inf", "nan", "-1s", "5 minutes", float("inf"), float("nan"), 10**10)
        ),
        (parse_duration, True, "invalid duration true: try 0.5, 30 or 5min"),
        (parse_timeout, "0s", "invalid duration '0s': it must be above 0; try 0.5, 30 or 5min"),
    ],
)
def test_an_invalid_value_is_rejected_with_examples(parse: Callable[[object], float], value: object, says: str) -> None:
    with pytest.raises(ValueError, match="invalid") as caught:
        parse(value)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        *((text, True) for text in ("192.0.2.1", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::1", "unix")),
        *((text, False) for text in ("", "7", "10.0.0.1/8", "10.0.0.0/33", "fe80::1%eth0", "a.example", "*")),
    ],
)
def test_proxies_are_addresses_and_networks(text: str, is_valid: bool) -> None:
    assert is_network(text) == is_valid


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        *((text, True) for text in ("owl", "Owl_2==1.2.*", "owl >= 1, < 2", "owl~=1.4", "polite.py")),
        *((text, False) for text in ("", "==1", "owl==", "owl 1", "owl[tls]==1", "owl @ file:///owl", "owl; a == 'b'")),
    ],
)
def test_requirements_are_names_of_distributions_with_versions(text: str, is_valid: bool) -> None:
    assert is_requirement(text) == is_valid
