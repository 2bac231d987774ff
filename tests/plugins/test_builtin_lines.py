"""Searching, replacing, cutting and counting lines; and what the built-in transforms of texts do to HTML and slugs."""

import html
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd import BadOptions, TooLarge, Transform
from xformd.plugins.builtin import lines
from xformd.plugins.builtin.lines import count, grep, head, line_endings, replace, split_lines, tail
from xformd.plugins.builtin.text import MAX_MARKS, html_escape, html_unescape, slugify, strip_bom, strip_tags
from xformd.spec import parse_readable

TEXTS = st.text(st.characters(codec="utf-8"))
POEMS = st.lists(st.sampled_from(["a", "B", " ", "\r", "\n", "\r\n", "é"])).map("".join)


@given(POEMS, st.integers(1, 6))
def test_head_and_tail_take_a_poem_apart(poem: str, lines: int) -> None:
    all_lines = re.findall(r"[^\n]*\n|[^\n]+\Z", poem)
    assert head(poem, lines=lines) == "".join(all_lines[:lines])
    assert tail(poem, lines=lines) == "".join(all_lines[-lines:])


@given(POEMS)
def test_all_lines_are_the_poem(poem: str) -> None:
    for transform in (head, tail):
        assert transform(poem, lines=1_000_000_000) == poem
    assert grep(poem, pattern=r"^") == poem == grep(poem, pattern="x", invert=True)


@given(POEMS, st.sampled_from(["lf", "crlf", "cr"]))
def test_line_endings_are_all_alike(poem: str, to: str) -> None:
    ending = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}[to]
    converted = line_endings(poem, to=to)
    assert re.findall("\r\n|\r|\n", converted) == [ending] * len(re.findall("\r\n|\r|\n", poem))
    assert line_endings(converted) == line_endings(poem)


@given(TEXTS, st.text(min_size=1), TEXTS)
def test_replacing_a_text_is_that_of_the_standard_library(poem: str, pattern: str, replacement: str) -> None:
    poem = pattern + poem + pattern
    assert replace(poem, pattern=pattern, replacement=replacement) == poem.replace(pattern, replacement)


@given(POEMS)
def test_counts_are_those_of_the_standard_library(poem: str) -> None:
    counts = json.loads(count(poem))
    assert counts["lines"] == len(poem.replace("\r", "x").splitlines())
    assert counts["words"] == len(poem.split())
    assert (counts["characters"], counts["bytes"]) == (len(poem), len(poem.encode()))
    assert {what: json.loads(count(poem, what=what)) for what in counts} == counts


@given(TEXTS)
def test_html_is_escaped_and_unescaped_as_by_the_standard_library(poem: str) -> None:
    assert html_escape(poem) == html.escape(poem)
    assert html_unescape(html_escape(poem)) == poem
    assert strip_tags(html_escape(poem)) == poem.replace("\0", "")


@pytest.mark.parametrize(
    ("transform", "poem", "options", "result"),
    [
        (head, "a\r\nb\nc\r\n", {"lines": 2}, "a\r\nb\n"),
        (head, "\na", {"lines": 1}, "\n"),
        (head, "\n\n\n", {"lines": 1}, "\n"),
        (head, "\ufeffa\nb\n", {"lines": 1}, "\ufeffa\n"),
        (tail, "a\r\nb\nc\r\n", {"lines": 2}, "b\nc\r\n"),
        (tail, "\n\n", {"lines": 1}, "\n"),
        (tail, "\ufeffa\nb\n", {"lines": 1}, "\ufeffb\n"),
        (grep, "a\nb", {"pattern": "x"}, ""),
        (grep, "A\r\nb\r\nC", {"pattern": "[ac]", "ignore_case": True}, "A\r\nC"),
        (grep, "a\r\n", {"pattern": "a$"}, "a\r\n"),
        (grep, "\ufeffa\nb", {"pattern": "^a"}, "\ufeffa\n"),
        (replace, "aaa", {"pattern": "a", "replacement": r"\1"}, r"\1\1\1"),
        (replace, "aBc", {"pattern": "b", "replacement": "$1", "ignore_case": True}, "a$1c"),
        (replace, "ab", {"pattern": "x*", "replacement": "-", "regex": True}, "-a-b-"),
        (replace, "a\nb", {"pattern": "(?m)^", "replacement": r"\t", "regex": True}, "\ta\n\tb"),
        (replace, "ab", {"pattern": "(?P<one>a)|(b)", "replacement": r"<\g<one>\2>", "regex": True}, "<a><b>"),
        (replace, "a[b", {"pattern": "[[]", "regex": True}, "ab"),  # what Python warns of, it still takes
        (split_lines, "a,,b", {}, "a\n\nb"),
        (split_lines, "a::b:c", {"separator": "::"}, "a\nb:c"),
        (split_lines, "a\t,\tb\r\n c", {}, "a\nb\r\n c"),
        (count, "a\n\nb", {"what": "lines"}, "3"),
        (line_endings, "a\n\r\r\nb", {}, "a\n\n\nb"),
        (line_endings, "a\u2028b\x85", {"to": "crlf"}, "a\u2028b\x85"),
        (strip_bom, "\ufeff\ufeffa", {}, "\ufeffa"),
        (slugify, "Ærøskøbing & Łódź, İstanbul", {}, "aeroskobing-lodz-istanbul"),
        (slugify, "  --a__b--  \n\n", {"separator": "."}, "a.b\n\n"),
        (slugify, "ﬁne ½—№", {}, "fine-1-2-no"),
        (slugify, "e" + "\u0301\u0316" * 100 * MAX_MARKS, {}, "e"),
        (html_unescape, "&#0000000065; &#" + "9" * 5_000 + "; &#00000000; &amp;#65;", {}, "A \ufffd \ufffd &#65;"),
        (html_unescape, "&#xD800; &#128;", {}, "\ufffd €"),
    ],
)
def test_case(transform: Transform, poem: str, options: dict[str, Any], result: str) -> None:
    assert transform(poem, **options) == result


# As browsers take it, by the tokenizer of the HTML standard.
@pytest.mark.parametrize(
    ("poem", "result"),
    [
        ("a < b > c <3 <> </>", "a < b > c <3 <> "),
        ("<p>it's<p title=it's>it's</p>", "it'sit's"),
        ("<a b='>\"'c=\">'\" d = x'>y</a >", "y"),
        ("a<br\n/>b<BR/>c", "abc"),
        ("a<!-- <b> - -- --!>b<!-->c<!--->d<!doctype html>e<?xml x?>f", "abcdef"),
        ("<SCRIPT src=x>a</scripty></ScRiPt >b<style>c</style\n>d", "bd"),
        ("<scripts>a</scripts><styled/>b", "ab"),
        ("a<b", "a"),
        ("a<b title='x>y", "a"),
        ("a<!-- b>c", "a"),
        ("a<script>b</script", "a"),
        ("&l<b></b>t;&lt;b&gt;", "&lt;<b>"),
        ("<p>a</p\t>&nbsp;b", "a\xa0b"),
        ("<\u017fcript>a", "<\u017fcript>a"),
    ],
)
def test_tags_are_stripped_as_html_says(poem: str, result: str) -> None:
    assert strip_tags(poem) == result


@pytest.mark.timing
@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<a",
        '<a="',
        "<a='",
        "<!--",
        "<script>",
        "<script></script",
        "<a=",
        "= ",
        "</",
        "</script",
        "&",
        "&#1",
        "<!-",
        "a>",
    ],
)
@pytest.mark.parametrize("first", ["", "<a ", "<script>", "<!--"])
def test_stripping_tags_takes_as_much_longer_as_there_are_more(first: str, unit: str) -> None:
    def run_s(count: int) -> float:
        started_s = time.thread_time()
        strip_tags(first + unit * count)
        return time.thread_time() - started_s

    few_s, many_s = (min(run_s(count) for _ in range(5)) for count in (4_000, 32_000))
    assert many_s < max(32 * few_s, 0.001)  # 64 times if it was quadratic


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("replace:pattern=", "replace: option 'pattern' takes a string of length from 1"),
        ("replace:pattern=(a,regex=true", "is no regular expression: missing ., unterminated .* at position 0"),
        ("replace:pattern=a{99999999999},regex=true", "no regular expression: the repetition number is too large"),
        (f"replace:pattern={'(' * 4_000},regex=true", "no regular expression"),
        (r"replace:pattern=b,replacement=\1,regex=true", "replacement. does not fit .*: invalid group reference 1"),
        (r"replace:pattern=b,replacement=\g<x>,regex=true", "replacement. does not fit .*: unknown group name 'x'"),
        ("replace:pattern=b,replacement=\\,regex=true", "replacement. does not fit .*: bad escape"),
        ("grep:pattern=", "grep: option 'pattern' takes a string of length from 1"),
        ("grep:pattern=*", "grep: option 'pattern' is no regular expression: nothing to repeat at position 0"),
        ("head:lines=0", "head: option 'lines' takes a whole number from 1"),
        ("tail:lines=-1", "tail: option 'lines' takes a whole number from 1"),
        ("split-lines:separator=", "split-lines: option 'separator' takes a string of length from 1"),
    ],
)
def test_options_are_checked_whatever_the_poem(spec: str, says: str) -> None:
    (step,) = parse_readable(spec).steps
    (transform,) = (each for each in lines.xformd_transforms() if each.name == step.name)
    with pytest.raises(BadOptions, match=says):
        transform("a", **transform.convert(dict(step.options)))


@pytest.mark.parametrize(
    ("poem", "options"),
    [
        ("a" * 100_000, {"pattern": "a", "replacement": "b" * 1_000}),
        ("a" * 10_000, {"pattern": "(?=(.*))", "replacement": r"\1", "regex": True}),
    ],
)
def test_a_short_poem_cannot_grow_without_bound(poem: str, options: dict[str, Any]) -> None:
    with pytest.raises(TooLarge, match="replace would add"):
        replace(poem, **options)


def test_regular_expressions_run_in_a_worker() -> None:
    assert not replace.inline
    assert not grep.inline
