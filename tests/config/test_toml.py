"""The statements of a TOML file, and the lines on which they begin."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd import ConfigError
from xformd.config.sources import toml_statements


def found(text: str) -> list[tuple[int, dict[str, Any]]]:
    return list(toml_statements(text.encode(), "x.toml"))


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("a = 1\n\n# b = 2\nc = 3", [(1, {"a": 1}), (4, {"c": 3})]),
        (
            "a = \"\"\"\nb = 1\n[c]\n# d\n\"\"\"\ne = '''\nf = 2'''\ng = 3\n",
            [(1, {"a": "b = 1\n[c]\n# d\n"}), (6, {"e": "f = 2"}), (8, {"g": 3})],
        ),
        ("a = [\n  1, # one\n\n  [2],\n]\nb = 2", [(1, {"a": [1, [2]]}), (6, {"b": 2})]),
        ('a.b = 1\n"a".c = 2\n"d.e" = 3', [(1, {"a": {"b": 1}}), (2, {"a": {"c": 2}}), (3, {"d.e": 3})]),
        ("'f = 1' = 4\n\"g\\u0041\" = 5", [(1, {"f = 1": 4}), (2, {"gA": 5})]),
        ("[a] # first\n\nb = 1", [(1, {"a": {}}), (3, {"a": {"b": 1}})]),
        ("[[c.d]]\ne = 2\n[[c.d]]", [(1, {"c": {"d": [{}]}}), (2, {"c": {"d": [{"e": 2}]}}), (3, {"c": {"d": [{}]}})]),
        ('a = """\r\nx"""\r\nb = 2\r\n', [(1, {"a": "x"}), (3, {"b": 2})]),
        ("\ufeffa = 1", [(1, {"a": 1})]),
    ],
    ids=["lines", "strings", "arrays", "dotted keys", "quoted keys", "table", "tables", "CRLF", "BOM"],
)
def test_each_statement_has_the_line_on_which_it_begins(text: str, statements: list[tuple[int, Any]]) -> None:
    assert found(text) == statements


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"a = 1\nb = = 2\n", 2),
        (b"a = 1\n\na = 2\n", 3),
        (b"a = [\n1,\n", 3),
        (b'a = """\n\n', 3),
        (b"a = 1\nb = '\xff'\n", 2),
        (b"a = 1\rb = 2\n", 1),
    ],
)
def test_invalid_toml_is_named_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        list(toml_statements(data, "x.toml"))
    assert caught.value.message.startswith(f"x.toml, line {line}: not valid TOML: ")
    assert "(at " not in caught.value.message


@pytest.mark.parametrize("value", [b"9" * 5_000, b"[" * 100_000])
def test_what_only_python_finds_too_long_or_too_deep_is_invalid_too(value: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^x\.toml: not valid TOML: "):
        list(toml_statements(b"a = " + value, "x.toml"))


PIECES = st.sampled_from(
    [
        "",
        "# [x]",
        "k = 1",
        "k = [\n[1],\n\n2]",
        "k = '''\n[a]\nb = 1\n'''",
        'k = """\\\n  "" """ # k = 2',
        "k.'a b' = {c = 1}",
    ]
)


@given(st.lists(PIECES))
def test_the_lines_are_right_in_any_combination(pieces: list[str]) -> None:
    lines, text = [], ""
    for number, piece in enumerate(pieces):
        if "k" in piece:
            lines.append(text.count("\n") + 1)
        text += piece.replace("k", f"k{number}", 1) + "\n"
    read = found(text)
    assert [line for line, _ in read] == lines
    merged: dict[str, Any] = {}
    for _, content in read:
        merged |= content
    assert merged == tomllib.loads(text)
