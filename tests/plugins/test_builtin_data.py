"""JSON, JSON lines and CSV: nothing changes but the layout, and the edges of the formats."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xformd import BadOptions, GibberishError, TooLarge, Transform
from xformd.plugins.builtin.data import MAX_DEPTH, csv_to_json, json_format, json_lines, json_to_csv
from xformd.plugins.builtin.poetry import MAX_ADDED_CHARACTERS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
TABLES = st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1))


@given(VALUES, st.integers(0, 16), st.booleans())
def test_json_is_laid_out_as_by_the_standard_library(value: Any, indent: int, sort: bool) -> None:
    for poem in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=3)):
        for layout, options in (
            ({"indent": indent}, {"indent": indent}),
            ({"separators": (",", ":")}, {"compact": True, "indent": indent}),
        ):
            expected = json.dumps(value, ensure_ascii=False, sort_keys=sort, **layout)
            assert json_format(poem, sort=sort, **options) == expected
            assert json_format(poem + "\n", sort=sort, **options) == expected + "\n"


@given(st.lists(VALUES, max_size=4), st.sampled_from(["\n", "\r\n", "\n \n"]))
def test_json_lines_are_an_array_and_back(values: list[Any], ending: str) -> None:
    lines = json_lines(json.dumps(values))
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == values
    assert json.loads(json_format(lines.replace("\n", ending), lines=True)) == values


@pytest.mark.parametrize("number", ["1.10", "1e400", "-0", "1E+2", "-0.0e-0", "9" * 5_000, "0.1000000000000000055"])
def test_numbers_stay_as_they_are_written(number: str) -> None:
    assert json_format(f'[{number}, {{"a": {number}}}]', compact=True) == f'[{number},{{"a":{number}}}]'
    assert json_lines(f"[{number}]") == f"{number}\n"
    assert json_to_csv(f'[{{"a": {number}, "b": [{number}]}}]') == f"a,b\r\n{number},[{number}]\r\n"


@pytest.mark.parametrize(
    ("poem", "result"),
    [
        (r'"\u00e9\ud83d\ude00\/\u0008\u007f\u2028"', '"é😀/\\b\x7f\u2028"'),
        (r'"\ud800 \udc00\ud800"', r'"\ud800 \udc00\ud800"'),
        (r'{"\udfff": 1}', r'{"\udfff":1}'),
        ("\ufeff [ ]", "[]"),
        ('{"b":1,"a":{"d":[],"c":{}}}', '{"b":1,"a":{"d":[],"c":{}}}'),
        ("\t-1\r\n", "-1\n"),
        ('"1"', '"1"'),
        ("true", "true"),
    ],
)
def test_a_value_stays_as_it_is(poem: str, result: str) -> None:
    assert json_format(poem, compact=True) == result
    assert (
        json_format(poem.removeprefix("\ufeff").replace("\r\n", ""), lines=True, compact=True) == f"[{result.strip()}]"
    )


@pytest.mark.parametrize(
    ("poem", "says"),
    [
        ("", "not JSON: line 1, column 1: Expecting value"),
        ("[1,\n 2", "not JSON: line 2, column 3: Expecting ',' delimiter"),
        ("[1] [2]", "line 1, column 5: Extra data"),
        ("[1,]", "line 1, column 4"),
        ("[01]", "line 1, column 3: Expecting ',' delimiter"),
        ("[.5]", "Expecting value"),
        ("[\u0661]", "Expecting value"),
        ("'a'", "Expecting value"),
        ('"a\nb"', "line 1, column 3: Invalid control character"),
        (r'"\x"', "Invalid .escape"),
        ("[NaN]", "not JSON: NaN is no number in it"),
        ("-Infinity", "not JSON: -Infinity is no number in it"),
        ("\ufeff\ufeff1", "line 1, column 1"),
        ('{"a": 1, "b": 2, "a": 1}', "an object has the key 'a' 2 times"),
    ],
)
def test_what_is_no_json_is_gibberish(poem: str, says: str) -> None:
    for transform in (json_format, json_lines, json_to_csv):
        with pytest.raises(GibberishError, match=says):
            transform(poem)


def nested(depth: int) -> str:
    return "[" * (depth - 1) + '{"a":1}' + "]" * (depth - 1)


def test_json_may_be_nested_500_deep() -> None:
    assert json_format(nested(MAX_DEPTH), compact=True) == nested(MAX_DEPTH)
    assert "".join(json_format(nested(MAX_DEPTH)).split()) == nested(MAX_DEPTH)


@pytest.mark.parametrize("number", range(4))
def test_json_that_is_nested_deeper_is_gibberish(number: int) -> None:
    poem = [nested(MAX_DEPTH + 1), nested(100_000), "[" * 1_000_000, '{"a":' * 100_000][number]
    with pytest.raises(GibberishError, match="values are nested more than 500 deep"):
        json_format(poem)
    with pytest.raises(GibberishError, match="values are nested more than 500 deep"):
        json_to_csv(f"[[{poem}]]")


def test_a_mistake_in_a_line_is_named_with_its_line() -> None:
    with pytest.raises(GibberishError, match="not JSON: line 4, column 8: Expecting ',' delimiter"):
        json_format('{"a": 1}\n\n \r\n{"a": 1\n', lines=True)


@pytest.mark.parametrize("poem", ["{}", "1", '"a"', "null"])
def test_json_lines_and_csv_are_made_of_arrays(poem: str) -> None:
    with pytest.raises(GibberishError, match="json-lines takes an array: put the value between"):
        json_lines(poem)
    with pytest.raises(
        GibberishError, match="json-to-csv takes an array of objects, or of arrays that are all as long"
    ):
        json_to_csv(poem)


@given(TABLES, st.sampled_from([",", ";", "\t", "|", " ", "é"]))
def test_csv_is_read_as_it_was_written(table: list[list[str]], delimiter: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(table)
    read = csv_to_json(out.getvalue(), delimiter=delimiter, header=False)
    assert json.loads(read) == table
    assert json_to_csv(read, delimiter=delimiter) == out.getvalue()


@given(st.lists(st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=4), min_size=1, max_size=5))
@example([{"\ufeff": ""}])
@example([{"\ufeffowl": "1", "cat": "2"}])
def test_objects_become_rows_and_back(rows: list[dict[str, str]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    made = json_to_csv(json.dumps(rows))
    assert json.loads(csv_to_json(made)) == [{name: row.get(name, "") for name in names} for row in rows]
    assert next(csv.reader(io.StringIO(made, newline=""))) == names


@pytest.mark.parametrize(
    ("poem", "options", "result"),
    [
        ("", {}, []),
        ("", {"header": False}, []),
        ("a,b", {}, []),
        ("a,b\n\n1,2", {}, [{"a": "1", "b": "2"}]),
        ("\ufeffa\n1", {}, [{"a": "1"}]),
        ("a\r1\r2", {}, [{"a": "1"}, {"a": "2"}]),
        ('a\n""\n', {}, [{"a": ""}]),
        ('"a\r\nb",c\r\n"x\ny",\r\n', {}, [{"a\r\nb": "x\ny", "c": ""}]),
        (' "a", b\n', {"header": False}, [[' "a"', " b"]]),
        ("a\tb\n1,2\t3", {"delimiter": "\t"}, [{"a": "1,2", "b": "3"}]),
        ("a\n=1+1\n007", {}, [{"a": "=1+1"}, {"a": "007"}]),
        ("a\0b\n\0", {}, [{"a\0b": "\0"}]),
        ("é😀\u2028\n\x85", {}, [{"é😀\u2028": "\x85"}]),
    ],
)
def test_csv_is_read(poem: str, options: dict[str, Any], result: list[Any]) -> None:
    assert json.loads(csv_to_json(poem, **options)) == result


@pytest.mark.parametrize(
    ("poem", "options", "result"),
    [
        ("[]", {}, ""),
        ('[{"a": ""}]', {}, 'a\r\n""\r\n'),
        ('[{"a": 1}, {"b": 2, "a": null}]', {}, "a,b\r\n1,\r\n,2\r\n"),
        ('[{"a": 1}]', {"header": False}, "1\r\n"),
        ('[{"a": true, "b": false, "c": "true"}]', {"header": False}, "true,false,true\r\n"),
        (r'[{"a": {"é": ["\ud800", 1.0]}}]', {"header": False}, '"{""é"":[""\\ud800"",1.0]}"\r\n'),
        (r'[["a\r\nb", "\r", ";", " x "]]', {"delimiter": ";"}, '"a\r\nb";"\r";";"; x \r\n'),
    ],
)
def test_csv_is_written(poem: str, options: dict[str, Any], result: str) -> None:
    assert json_to_csv(poem, **options) == result


@pytest.mark.parametrize(
    ("transform", "poem", "says"),
    [
        (csv_to_json, "a,b\n1,2\n\n1,2,3\n", "line 4 has 3 fields, but the first row has 2"),
        (csv_to_json, 'a,b\n"x\ny",2\n1\n', "line 4 has 1 fields, but the first row has 2"),
        (csv_to_json, 'a\n1\n"b"c\n', "not CSV: line 3: ',' expected after '\"'"),
        (csv_to_json, 'a\n"b\n\n\n', "not CSV: line 2: unexpected end of data"),
        (csv_to_json, "a,b,a\n", "the key 'a' 2 times"),
        (json_to_csv, "[[1], [1, 2]]", "arrays that are all as long"),
        (json_to_csv, "[{}, []]", "an array of objects, or of arrays"),
        (json_to_csv, "[1]", "an array of objects, or of arrays"),
        (json_to_csv, r'[{"a": "\ud800"}]', "a string has a lone surrogate, which CSV cannot escape"),
    ],
)
def test_a_mistake_is_named(transform: Transform, poem: str, says: str) -> None:
    with pytest.raises(GibberishError, match=says):
        transform(poem)


@pytest.mark.parametrize("delimiter", ["", ",,", "\n", "\r", '"'])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    for transform, poem in ((csv_to_json, "a"), (json_to_csv, "[]")):
        with pytest.raises(BadOptions, match="option 'delimiter' takes"):
            transform(poem, **transform.convert({"delimiter": delimiter}))


# Each would take gigabytes: indentation of many levels, a long key in each object, and a column for each row.
@pytest.mark.parametrize(
    ("transform", "make", "options"),
    [
        (json_format, lambda: "[" * 400 + "1" + ",1" * 10_000 + "]" * 400, {"indent": 16}),
        (json_format, lambda: "[" * 400 + "[1]" + ",[1]" * 10_000 + "]" * 400, {"indent": 16}),
        (csv_to_json, lambda: "x" * 100_000 + "\n1" * 1_000, {}),
        (json_to_csv, lambda: json.dumps([{f"{key}": 1} for key in range(10_000)]), {}),
    ],
)
def test_a_short_poem_cannot_grow_without_bound(
    transform: Transform, make: Callable[[], str], options: dict[str, Any]
) -> None:
    with pytest.raises(
        TooLarge, match=rf"{transform.name} would add \d+ characters; the limit is {MAX_ADDED_CHARACTERS}"
    ):
        transform(make(), **options)


def test_a_field_may_be_longer_than_the_standard_library_takes_by_default() -> None:
    field = "x" * (csv.field_size_limit() + 1)
    assert csv_to_json(field, header=False) == f'[["{field}"]]'
