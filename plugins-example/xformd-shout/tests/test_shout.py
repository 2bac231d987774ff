"""A Transform is callable: its tests call it like the function that it was made from."""

from collections.abc import Callable

import pytest
from xformd_shout import shout

import xformd


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_marks_go_before_the_final_newline_only(newline: str) -> None:
    assert shout(f"The Owl{newline}went{newline}", marks=2) == f"THE OWL{newline}WENT!!{newline}"


@pytest.mark.parametrize("poem", ["", "\n", "\r\n"])
def test_a_poem_without_text_stays_as_it_is(poem: str) -> None:
    assert shout(poem, marks=3) == poem


def test_a_hundred_marks_are_allowed() -> None:
    assert shout("Owl", marks=100) == "OWL" + "!" * 100


@pytest.mark.parametrize("marks", [-1, 101])
def test_other_numbers_of_marks_are_rejected(marks: int) -> None:
    with pytest.raises(xformd.BadOptions, match=f"0 to 100, not {marks}"):
        shout("The Owl", marks=marks)


def test_a_server_rejects_them_too(xform: Callable[..., str]) -> None:
    assert xform("shout", "The Owl", marks=2) == "THE OWL!!"
    with pytest.raises(xformd.BadOptions, match="0 to 100, not 101"):
        xform("shout", "The Owl", marks=101)
