"""Built-in transforms on structured data: JSON (RFC 8259), JSON lines and CSV (RFC 4180).

Invariant: no value changes. Numbers stay as they are written, keys in their order, and text in its own characters;
only a lone surrogate stays escaped, as UTF-8 has none. An object with a key twice has no one value, and is rejected.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any

from annotated_types import Interval, Len

import xformd
from xformd.plugins.builtin import built_in, provide_all
from xformd.plugins.builtin.poetry import BYTE_ORDER_MARK, check_growth

MAX_DEPTH = 500  # Python allows 1,000 calls within each other, some of which are needed to get here

Indent = Annotated[int, Interval(ge=0, le=16)]
Delimiter = Annotated[str, Len(1, 1)]

JSON = "application/json"
JSON_LINES = "application/x-ndjson"

_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep"
_SURROGATE = re.compile("[\ud800-\udfff]")
_quote = json.JSONEncoder(ensure_ascii=False).encode


class _Number(str):
    """A number as it is written: a float would make 1.1 of 1.10, and infinity of 1e400."""

    __slots__ = ()


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        _check_keys([key for key, _ in pairs])
    return made


def _check_keys(keys: list[str]) -> None:
    for key, times in Counter(keys).most_common(1):
        if times > 1:
            raise xformd.GibberishError(f"an object has the key {key!r} {times} times")


def _reject_constant(name: str) -> None:
    raise xformd.GibberishError(f"not JSON: {name} is no number in it")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_make_object, parse_float=_Number, parse_int=_Number, parse_constant=_reject_constant
)


def _parse(text: str, first_line: int = 1) -> Any:
    """Parse JSON to a str, ``_Number``, bool, None, dict or list."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {first_line - 1 + error.lineno}, column {error.colno}"
        raise xformd.GibberishError(f"not JSON: {where}: {error.msg}") from None
    except RecursionError:
        raise xformd.GibberishError(_TOO_DEEP) from None


def _write(
    name: str, poem: str, values: Iterable[Any], between: str = "", *, indent: int | None = None, sort: bool = False
) -> str:
    """Return values as JSON: each on one line, or with an ``indent`` each item of theirs on a line of its own."""
    out = io.StringIO()
    step, colon, start = ("", ":", "") if indent is None else (" " * indent, ": ", "\n")

    def write(value: Any, margin: str, depth: int) -> None:
        if not value or not isinstance(value, dict | list):
            out.write(value if isinstance(value, _Number) else _quote(value))
            return
        if depth > MAX_DEPTH:
            raise xformd.GibberishError(_TOO_DEEP)
        inner = margin + step
        check_growth(name, out.tell() + (len(value) + 1) * len(inner + colon) - len(poem))
        is_object = isinstance(value, dict)
        before, end = "{}" if is_object else "[]"
        for item in sorted(value) if is_object and sort else value:
            out.write(before + inner + (_quote(item) + colon if is_object else ""))
            write(value[item] if is_object else item, inner, depth + 1)
            before = ","
        out.write(margin + end)

    for number, value in enumerate(values):
        out.write(between if number else "")
        write(value, start, 1)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", out.getvalue())


@built_in(
    ('{"b": [1.10, 1e400], "a": "é"}', '{\n  "b": [\n    1.10,\n    1e400\n  ],\n  "a": "é"\n}'),
    ('{"b": 1,\n "a": []}\n', '{"a":[],"b":1}\n', {"compact": True, "sort": True}),
    ('{"a": 1}\n{"a": 2}\n', '[{"a":1},{"a":2}]\n', {"compact": True, "lines": True}),
    accepts=(JSON, JSON_LINES),
    produces=JSON,
)
def json_format(
    poem: str, *, indent: Indent = 2, sort: bool = False, compact: bool = False, lines: bool = False
) -> str:
    """Format JSON: indented or compact, and sorted.

    Args:
        indent: spaces for each level.
        sort: sort the keys of objects by their characters' code points.
        compact: write all on one line without spaces, whatever the indent.
        lines: take JSON lines, and make an array of their values.
    """
    text = poem.removeprefix(BYTE_ORDER_MARK)
    if lines:
        value = [_parse(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r")]
    else:
        value = _parse(text)
    written = _write("json-format", poem, [value], indent=None if compact else indent, sort=sort)
    return written + "\n" * poem.endswith("\n")


@built_in(
    ('[{"a": 1.0}, [2, 3], "x\\ny"]', '{"a":1.0}\n[2,3]\n"x\\ny"\n'), ("[]", ""), accepts=JSON, produces=JSON_LINES
)
def json_lines(poem: str) -> str:
    """Write each item of a JSON array on a line of its own.

    ``json-format`` with its option ``lines`` makes an array of such lines.
    """
    items = _parse(poem.removeprefix(BYTE_ORDER_MARK))
    if not isinstance(items, list):
        raise xformd.GibberishError("json-lines takes an array: put the value between [ and ]")
    return _write("json-lines", poem, items, "\n") + "\n" * bool(items)


@built_in(
    ('name,says\r\nOwl,"Tu-whit, ""tu-whoo"""\r\n', '[{"name":"Owl","says":"Tu-whit, \\"tu-whoo\\""}]'),
    ('a;"b\n"\n;', '[["a","b\\n"],["",""]]', {"delimiter": ";", "header": False}),
    accepts="text/csv",
    produces=JSON,
)
def csv_to_json(poem: str, *, delimiter: Delimiter = ",", header: bool = True) -> str:
    """Convert CSV to a JSON array of objects, all strings.

    Args:
        delimiter: the character between two fields, such as ; or a tab.
        header: the first row has the keys; if false, each row becomes an array.
    """
    _check_delimiter("csv-to-json", delimiter)
    rows = _read_rows(poem.removeprefix(BYTE_ORDER_MARK), delimiter)
    names = next(rows, []) if header else []
    _check_keys(names)
    values = (dict(zip(names, row, strict=True)) if header else row for row in rows)
    return "[" + _write("csv-to-json", poem, values, ",") + "]"


def _check_delimiter(name: str, delimiter: str) -> None:
    if delimiter in '"\r\n':
        raise xformd.BadOptions(f"{name}: option 'delimiter' takes one character such as ; or a tab, not {delimiter!r}")


def _read_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank; raise ``GibberishError`` if one has more or fewer fields than the first."""
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # else 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line, width = 1, 0
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                raise xformd.GibberishError(f"line {line} has {len(row)} fields, but the first row has {width}")
            if row:
                yield row
            line = reader.line_num + 1
    except csv.Error as error:
        raise xformd.GibberishError(f"not CSV: line {line}: {error}") from None


@built_in(
    ('[{"a": 1.0, "b": null}, {"c": "x, \\"y\\""}]', 'a,b,c\r\n1.0,,\r\n,,"x, ""y"""\r\n'),
    ('[["a", [1, {}]], ["b", true]]', "a;[1,{}]\r\nb;true\r\n", {"delimiter": ";"}),
    accepts=JSON,
    produces="text/csv",
)
def json_to_csv(poem: str, *, delimiter: Delimiter = ",", header: bool = True) -> str:
    """Convert a JSON array of objects to CSV.

    Each key becomes a column, null an empty field, and an array or object within a row JSON. The array may have arrays
    instead, which become rows as they are.

    Args:
        delimiter: the character between two fields, such as ; or a tab.
        header: begin with a row of the keys.
    """
    _check_delimiter("json-to-csv", delimiter)
    rows = _parse(poem.removeprefix(BYTE_ORDER_MARK))
    kinds = {*map(type, rows)} if isinstance(rows, list) else {None}
    if kinds not in (set(), {dict}, {list}) or (kinds == {list} and len({*map(len, rows)}) > 1):
        raise xformd.GibberishError("json-to-csv takes an array of objects, or of arrays that are all as long")
    names = [*dict.fromkeys(chain.from_iterable(rows))] if kinds == {dict} else []
    check_growth("json-to-csv", len(rows) * len(names) - len(poem))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([names] if names and header else [])
    writer.writerows(map(_cell, map(row.get, names) if names else row) for row in rows)
    if _SURROGATE.search(text := out.getvalue()):
        raise xformd.GibberishError("a string has a lone surrogate, which CSV cannot escape")
    if text.startswith(BYTE_ORDER_MARK):  # the first field begins with it: quoted, it is not taken for the file's own
        end = min(text.index(each) for each in (delimiter, "\r\n") if each in text)
        return f'"{text[:end]}"{text[end:]}'
    return text


def _cell(value: Any) -> str:
    return value or "" if isinstance(value, str | None) else _write("json-to-csv", "", [value])


xformd_transforms = provide_all(globals())
