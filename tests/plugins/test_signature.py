"""Options take what Python people write in a signature, and what is wrong there says what to write instead."""

import re
import typing
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Optional

import annotated_types
import attrs
import pytest
import typing_extensions
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen

from xformd import BadOptions, DefinitionError, Example, Option, transform


class Mood(Enum):
    LOW = "low"
    HIGH = "high"


class Half(Enum):
    HALF = 0.5


@attrs.frozen
class Doc:
    """What typing_extensions and annotated_doc have, and others."""

    documentation: str


Width = Annotated[int, Interval(ge=1, le=10), Doc("how wide")]


@transform(
    examples=[("a", "b", {"mood": Mood.HIGH, "since": date(2026, 1, 31), "words": ["x,y"], "sizes": [1]})],
)
def typed(
    poem: str,
    *,
    width: Width = 5,
    ratio: Annotated[float, Gt(0), Lt(1), "a word of another library"] = 0.5,
    name: Annotated[str | None, Len(1, 3)] = None,
    mood: Mood = Mood.LOW,
    since: Annotated[date, Le(date(2026, 12, 31))] | None = None,
    at: Optional[datetime] = None,  # noqa: UP045 - people write it
    words: list[str] = [],  # noqa: B006 - each call gets its own
    sizes: Annotated[list[Annotated[int, Ge(1)]], MaxLen(3)] | None = None,
    moods: list[Mood] | None = None,
    left: list[int],
) -> str:
    """Change much.

    :param width: what Doc says better.
    :param name: any name.
    """
    words.append(name or "none")
    left.append(0)
    return repr((width, mood, since, words, sizes, moods, left))


def test_options_take_what_python_people_write() -> None:
    assert typed.options == (
        Option("width", "int", 5, description="how wide", bounds={"minimum": 1, "maximum": 10}),
        Option("ratio", "float", 0.5, bounds={"exclusive_minimum": 0, "exclusive_maximum": 1}),
        Option("name", "str", is_optional=True, description="any name.", bounds={"min_length": 1, "max_length": 3}),
        Option("mood", "choice", Mood.LOW, (Mood.LOW, Mood.HIGH)),
        Option("since", "date", is_optional=True, bounds={"maximum": date(2026, 12, 31)}),
        Option("at", "datetime", is_optional=True),
        Option("words", "str", (), is_list=True),
        Option("sizes", "int", is_optional=True, is_list=True, bounds={"minimum": 1, "max_items": 3}),
        Option("moods", "choice", None, (Mood.LOW, Mood.HIGH), is_optional=True, is_list=True),
        Option("left", "int", is_list=True),
    )
    assert [option.name for option in typed.options if option.required] == ["left"]


def test_an_alias_of_a_type_is_that_type() -> None:
    alias = typing_extensions.TypeAliasType("alias", Annotated[int, Ge(1)])
    function = function_of("marks: int = 1")
    function.__annotations__["marks"] = alias
    assert transform(function).options == (Option("marks", "int", 1, bounds={"minimum": 1}),)


def test_each_call_gets_lists_of_its_own() -> None:
    """A default, and what is converted once for a spec that many requests have, are theirs all."""
    options = typed.convert({"left": "1,2", "mood": "high"})
    shown = f"(5, {Mood.HIGH!r}, None, ['none'], None, None, [1, 2, 0])"
    assert [typed("a", **options) for _ in range(2)] == [shown] * 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"width": "11"}, "typed: option 'width' takes a whole number from 1 to 10, not '11'"),
        ({"mood": "LOW"}, "typed: option 'mood' takes one of low, high, not 'LOW'"),
        ({"since": "2027-01-01"}, "typed: option 'since' takes a date (YYYY-MM-DD) up to 2026-12-31, not '2027-01-01'"),
        ({"name": "long"}, "typed: option 'name' takes a string of length from 1 to 3, not 'long'"),
        ({}, "typed needs the option 'left': a comma-separated list of length up to 1000, each item a whole number"),
    ],
)
def test_a_message_says_which_values_an_option_takes(given: dict[str, str], says: str) -> None:
    with pytest.raises(BadOptions) as caught:
        typed.convert(given)
    assert caught.value.message == says


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mood": "low"}, "one of low, high, of type Mood, not 'low'"),
        ({"width": 0}, "from 1 to 10, of type int, not 0"),
    ],
)
def test_the_options_of_an_example_are_what_the_function_takes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        attrs.evolve(typed, examples=(Example("a", "b", options),))


def function_of(options: str) -> Callable[..., Any]:
    """Define ``odd`` with these options."""
    names: dict[str, Any] = {**vars(typing), **vars(annotated_types), **globals()}
    exec(f"def odd(poem: str, *, {options}) -> str: ...", names)
    function: Callable[..., Any] = names["odd"]
    return function


@pytest.mark.parametrize(
    "wrong",
    ["list[list[int]]", "dict[str, int]", "list", "int | str", "list[int | None]", "tuple[int, ...]", "None", "Half"],
)
def test_an_annotation_that_no_request_can_fill_is_rejected(wrong: str) -> None:
    says = (
        r"annotate option 'marks' as int, .*an Enum or Literal of str or int, list\[...\] of one, or ... \| None, not "
    )
    with pytest.raises(DefinitionError, match=says + ".*" + re.escape(wrong)):
        transform(function_of(f"marks: {wrong}"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("mood: Mood = 'low'", "'low', is not one of low, high, of type Mood"),
        ("on: date = '2026-01-31'", "is not a date .YYYY-MM-DD., of type date"),
        ("marks: list[int] = 3", r"each item a whole number, of type list\[int\]"),
        ("marks: Annotated[int, Ge(1)] = 0", "'marks', 0, is not a whole number from 1"),
        ("loud: Annotated[bool, Ge(0)]", "minimum is for int, .* not for bool: leave it out"),
        ("marks: Annotated[int, MinLen(1)]", "min_length is for str, not for int: leave it"),
        ("marks: Annotated[int, Ge('a')]", "minimum must be a whole number, not 'a'"),
        ("marks: Annotated[int, MultipleOf(0)]", "multiple_of must be above 0, not 0"),
        ("marks: Annotated[list[int], MaxLen(1001)]", "max_items must be up to 1000, not 1001"),
        ("marks: Annotated[list[int], Ge(1)]", r"write list\[Annotated\[..., Ge\(ge=1\)\]\]"),
        ("marks: Annotated[int, Ge(1), Interval(ge=2)]", "minimum is there twice: leave one out"),
        ("end: LowerCase[str]", "Predicate is not supported: check that in the function"),
        ("at: Annotated[datetime, Timezone(None)]", "Timezone is not supported"),
        ("form: Literal['a', None] = None", "Literal of str or int"),
        ("marks: int = None", r"cannot default to None: write marks: int \| None = None"),
        ("marks: list[int] = None", r"write marks: list\[int\] \| None = None"),
    ],
)
def test_a_wrong_option_says_what_to_write(options: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=f"transform 'odd': .*{says}"):
        transform(function_of(options))


def test_what_other_libraries_put_into_annotated_is_theirs() -> None:
    made = transform(function_of("end: Annotated[str, 'latin', Unit('m'), {'json': 1}, MaxLen] = ''"))
    assert made.options == (Option("end", "str", ""),)
