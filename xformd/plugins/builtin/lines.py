"""Built-in transforms that search, cut, split and count the lines of a text.

Invariant: a line that is kept keeps its ending. A caller's regular expression runs in a worker, where it can be killed.
"""

import json
import re
import warnings
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

import xformd
from xformd.plugins.builtin import built_in, provide_all
from xformd.plugins.builtin.poetry import check_growth, line_transform, split

Lines = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Text = Annotated[str, MinLen(1)]


@built_in(
    ("The Owl and the Cat", "The Owl & the Cat", {"pattern": "and", "replacement": "&"}),
    ("2024-05-31", "31.05.2024", {"pattern": r"(\d+)-(\d+)-(\d+)", "replacement": r"\3.\2.\1", "regex": True}),
)
def replace(poem: str, *, pattern: Text, replacement: str = "", regex: bool = False, ignore_case: bool = False) -> str:
    r"""Replace a text, or what a regular expression matches.

    Args:
        pattern: what to replace.
        replacement: what to put in its place; for a regular expression, \1 or \g<name> stands for a group.
        regex: the pattern is a regular expression, in Python's syntax.
        ignore_case: match upper and lower case alike.
    """
    compiled = _compile("replace", pattern, regex, ignore_case)
    try:
        compiled.sub(replacement if regex else "", "")  # finds what is wrong with it, also if nothing matches
    except (re.error, IndexError) as error:
        raise xformd.BadOptions(f"replace: option 'replacement' does not fit the pattern: {error}") from None
    has_groups, added = regex and "\\" in replacement, 0

    def put(match: re.Match[str]) -> str:
        nonlocal added
        text = match.expand(replacement) if has_groups else replacement
        added += len(text) - len(match[0])
        check_growth("replace", added)
        return text

    return compiled.sub(put, poem)


@line_transform(
    ("The Owl\nand\nthe Cat\n", "The Owl\nthe Cat\n", {"pattern": "Owl|Cat$"}),
    ("a.b\r\naxb\r\n", "a.b\r\n", {"pattern": "A.B", "regex": False, "ignore_case": True}),
    ("a\nb\nc", "b\nc", {"pattern": "a", "invert": True}),
)
def grep(poem: str, *, pattern: Text, regex: bool = True, ignore_case: bool = False, invert: bool = False) -> str:
    """Keep the lines in which a pattern is found.

    Args:
        pattern: a regular expression in Python's syntax.
        regex: false to find the pattern as it is written.
        ignore_case: match upper and lower case alike.
        invert: keep the other lines.
    """
    compiled = _compile("grep", pattern, regex, ignore_case)
    lines = zip(*split(poem), strict=True)
    return "".join([text + ending for text, ending in lines if (compiled.search(text) is None) == invert])


def _compile(name: str, pattern: str, regex: bool, ignore_case: bool) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about what may mean something else to a later Python
            return re.compile(pattern if regex else re.escape(pattern), re.IGNORECASE if ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise xformd.BadOptions(f"{name}: option 'pattern' is no regular expression: {error}") from None


@line_transform(("a\nb\nc\n", "a\nb\n", {"lines": 2}), ("a\r\nb", "a\r\n", {"lines": 1}), ("", ""), inline=True)
def head(poem: str, *, lines: Lines = 10) -> str:
    """Keep the first lines.

    Args:
        lines: how many.
    """
    *kept, rest = poem.split("\n", lines)
    return poem[: len(poem) - len(rest)] if len(kept) == lines else poem


@line_transform(("a\nb\nc\n", "b\nc\n", {"lines": 2}), ("a\r\nb", "b", {"lines": 1}), ("", ""), inline=True)
def tail(poem: str, *, lines: Lines = 10) -> str:
    """Keep the last lines.

    Args:
        lines: how many.
    """
    before, *kept = poem.removesuffix("\n").rsplit("\n", lines)
    return poem[len(before) + 1 :] if len(kept) == lines else poem


@built_in(("owl, cat,pig\n", "owl\ncat\npig\n"), ("a - b", "a \n b", {"separator": "-", "strip": False}))
def split_lines(poem: str, *, separator: Text = ",", strip: bool = True) -> str:
    """Put each item of a list on a line of its own.

    Args:
        separator: what stands between two items.
        strip: remove spaces and tabs around each item.
    """
    items = poem.split(separator)
    return "\n".join([item.strip(" \t") for item in items] if strip else items)


@built_in(("a\r\nb\rc\n", "a\nb\nc\n"), ("a\nb\r\n", "a\r\nb\r\n", {"to": "crlf"}), inline=True)
def line_endings(poem: str, *, to: Literal["lf", "crlf", "cr"] = "lf") -> str:
    """Convert all line endings to LF, CRLF or CR.

    Args:
        to: lf for Unix, crlf for Windows and e-mail, cr for old Macs.
    """
    return poem.replace("\r\n", "\n").replace("\r", "\n").replace("\n", {"lf": "\n", "crlf": "\r\n", "cr": "\r"}[to])


@built_in(
    ("The Owl\nand the Cat", '{"lines": 2, "words": 5, "characters": 19, "bytes": 19}'),
    ("naïve", "6", {"what": "bytes"}),
    produces="application/json",
    inline=True,
)
def count(poem: str, *, what: Literal["all", "lines", "words", "characters", "bytes"] = "all") -> str:
    """Count lines, words, characters and bytes.

    Args:
        what: all of them as an object, or one number.
    """
    lines = poem.count("\n") + (poem[-1:] not in ("", "\n"))
    counts = {"lines": lines, "words": len(poem.split()), "characters": len(poem), "bytes": len(poem.encode())}
    return json.dumps(counts.get(what, counts))


xformd_transforms = provide_all(globals())
