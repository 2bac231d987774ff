"""Built-in transforms on the lines of a poem, the first of them the tutorial's own.

A line ends with CRLF or LF. Invariant: a transform that moves lines moves their text only. The line endings stay where
they are, as does whether the poem ends with one.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from annotated_types import Interval, MaxLen

import xformd
from xformd.plugins.builtin import built_in, provide_all

MAX_ADDED_CHARACTERS = 16 * 1024 * 1024  # checked before a result is built, as a short request could ask for a huge one

BYTE_ORDER_MARK = "\ufeff"

_ENDINGS = {0x0A: "\n", 0xFF: "\r\n"}  # 0xff, which UTF-8 never has, stands for CRLF
_NO_ENDINGS = bytes({*range(256)} - {*_ENDINGS})

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")


def line_transform(*examples: Any, **settings: Any) -> Callable[[Callable[..., str]], xformd.Transform]:
    """Make a built-in transform that leaves a byte order mark at the front: it belongs to no line."""

    def make(function: Callable[..., str]) -> xformd.Transform:
        @functools.wraps(function)
        def keep_mark(poem: str, **options: Any) -> str:
            if poem.startswith(BYTE_ORDER_MARK):
                return BYTE_ORDER_MARK + function(poem[1:], **options)
            return function(poem, **options)

        return built_in(*examples, **settings)(keep_mark)

    return make


def _check_one_line(option: str, value: str) -> None:
    if "\n" in value:
        raise xformd.BadOptions(f"{option} takes characters of one line, not {value!r}")


def split(poem: str) -> tuple[list[str], list[str]]:
    """Return the text and the ending of each line; nothing after a final line ending is not a line."""
    # In calls that take all lines at once: the worst 64 KiB take reverse-lines 4 ms instead of 15.
    texts = poem.replace("\r\n", "\n").split("\n")
    ends = poem.encode().replace(b"\r\n", b"\xff").translate(None, _NO_ENDINGS)
    endings = [*map(_ENDINGS.__getitem__, ends), ""]
    if not texts[-1]:
        del texts[-1], endings[-1]
    return texts, endings


def join(texts: Iterable[str], endings: list[str]) -> str:
    """Join texts with the endings of the original lines. With fewer texts, the poem still ends as it did."""
    texts = [*texts]
    pieces = [""] * (2 * len(texts))
    pieces[::2], pieces[1::2] = texts, endings[: len(texts)]
    if texts:
        pieces[-1] = endings[-1]
    return "".join(pieces)


def each_line(poem: str, change: Callable[[str], str]) -> str:
    """Change the text of each line."""
    texts, endings = split(poem)
    return join(map(change, texts), endings)


def check_growth(name: str, added: int) -> None:
    """Raise ``TooLarge`` if a transform would add too many characters to a poem."""
    if added > MAX_ADDED_CHARACTERS:
        raise xformd.TooLarge(f"{name} would add {added} characters; the limit is {MAX_ADDED_CHARACTERS}")


@built_in(("HERE IS MY POEM", "here is my poem"), ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"), inline=True)
def cummingsify(poem: str) -> str:
    """Lower-case the poem, as e. e. cummings would."""
    return poem.lower()


@line_transform(("one\ntwo\nthree", "three\ntwo\none"), ("a\r\nb\r\n", "b\r\na\r\n"), ("", ""), inline=True, at_least=1)
def reverse_lines(poem: str) -> str:
    """Put the last line first."""
    if "\r" not in poem:  # which takes a third of the time, and no list of endings
        lines = poem.removesuffix("\n").split("\n")
        lines.reverse()
        return "\n".join(lines) + "\n" * poem.endswith("\n")
    texts, endings = split(poem)
    return join(reversed(texts), endings)


@line_transform(
    ("pear\napple\nfig\n", "apple\nfig\npear\n"),
    ("b\nC\na", "a\nb\nC", {"ignore_case": True}),
    ("a\nc\nb", "c\nb\na", {"reverse": True}),
    at_least=1,
)
def sort_lines(poem: str, *, reverse: bool = False, ignore_case: bool = False) -> str:
    """Sort the lines by their characters' code points.

    Args:
        reverse: put the last in order first.
        ignore_case: sort upper and lower case alike.
    """
    texts, endings = split(poem)
    return join(sorted(texts, key=str.casefold if ignore_case else None, reverse=reverse), endings)


@line_transform(("a\nb\na\n", "a\nb\n"), ("b\na\nb", "b\na"), ("Owl\nowl", "Owl", {"ignore_case": True}))
def unique_lines(poem: str, *, ignore_case: bool = False) -> str:
    """Remove every line that is equal to an earlier one.

    Args:
        ignore_case: treat lines as equal that differ in upper and lower case only.
    """
    texts, endings = split(poem)
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.casefold() if ignore_case else text, text)
    return join(first.values(), endings)


@line_transform(
    ("The Owl\nand the Cat\n", "1. The Owl\n2. and the Cat\n"),
    ("a\nb", " 9) a\n10) b", {"start": 9, "separator": ") "}),
    ("", ""),
    at_least=1,
)
def number_lines(
    poem: str,
    *,
    start: Annotated[int, Interval(ge=-1_000_000_000, le=1_000_000_000)] = 1,
    separator: Annotated[str, MaxLen(10)] = ". ",
) -> str:
    """Number the lines, with the numbers aligned to the right.

    Args:
        start: the first number.
        separator: what stands between number and line.
    """
    _check_one_line("number-lines: option 'separator'", separator)
    texts, endings = split(poem)
    last = start + len(texts) - 1
    width = max(len(str(start)), len(str(last)))
    check_growth("number-lines", (width + len(separator)) * len(texts))
    return join((f"{number:>{width}}{separator}{text}" for number, text in enumerate(texts, start)), endings)


@line_transform(
    ("The quick brown fox jumps", "The quick\nbrown fox\njumps", {"width": 10}),
    ("The quick brown fox\r\n", "The quick\r\n  brown\r\n  fox\r\n", {"width": 9, "indent": 2}),
    ("日本 日本 日本", "日本 日本\n日本", {"width": 9}),
)
def wrap(
    poem: str,
    *,
    width: Annotated[int, Interval(ge=1, le=10_000)] = 72,
    indent: Annotated[int, Interval(ge=0, le=20)] = 0,
) -> str:
    """Wrap lines that are wider than width between words, and indent the continuation lines.

    Args:
        width: the widest line, in columns.
        indent: spaces before a continuation line, fewer than width.
    """
    if indent >= width:
        raise xformd.BadOptions(f"wrap: option 'indent' with width {width} takes 0 to {width - 1}, not {indent}")
    texts, endings = split(poem)
    spaces = sum(text.count(" ") + text.count("\t") for text in texts if len(text) * 2 > width)
    check_growth("wrap", (indent + 2) * spaces)  # each break replaces a space
    default = next(filter(None, endings), "\n")
    margin = " " * indent
    return join(
        (
            text if len(text) * 2 <= width else ((ending or default) + margin).join(_wrap_line(text, width, indent))
            for text, ending in zip(texts, endings, strict=True)
        ),
        endings,
    )


def _wrap_line(text: str, width: int, indent: int) -> Iterator[str]:
    if _columns(text) <= width:
        yield text
        return
    row, used = "", 0
    # Spaces inside a row are kept; those at a break are removed.
    for space, word in re.findall(r"([ \t]*)([^ \t]+)", text.rstrip(" \t")):
        columns = _columns(word)
        if row and used + len(space) + columns > width:
            yield row
            row, used = word, indent + columns
        else:
            row += space + word
            used += len(space) + columns
    yield row


def _columns(text: str) -> int:
    """Return the text's width on a terminal; a control character counts one."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth  # takes 45 ms

    text = _FLAG.sub("\U0001f9d1", text)  # which is as wide; of many flags in a row wcswidth takes quadratic time
    columns = wcswidth(text)
    return columns if columns >= 0 else wcswidth(_CONTROLS.sub(" ", text))


@line_transform(
    ("The Owl\n\nand the Cat\n", "    The Owl\n\n    and the Cat\n"),
    ("a\r\nb", "> a\r\n> b", {"prefix": "> "}),
    ("", ""),
    at_least=1,
)
def indent(poem: str, *, prefix: Annotated[str, MaxLen(20)] = "    ") -> str:
    """Prefix every line that is not blank.

    Args:
        prefix: what to put before a line.
    """
    _check_one_line("indent: option 'prefix'", prefix)
    check_growth("indent", len(prefix) * (1 + poem.count("\n")))
    return each_line(poem, lambda text: prefix + text if text.strip() else text)


@line_transform(("    The Owl\n      and the Cat\n", "The Owl\n  and the Cat\n"), ("  a\r\n \r\n  b", "a\r\n\r\nb"))
def dedent(poem: str) -> str:
    """Remove the white space that all lines have in common. Blank lines are ignored, and become empty."""
    texts = [text for text in split(poem)[0] if text.strip()]
    if not texts:
        return each_line(poem, lambda _: "")
    # A prefix that the first and the last in sorted order share is shared by all.
    first, last = min(texts), max(texts)
    margin = 0
    while margin < len(first) and first[margin] in " \t" and first[margin] == last[margin]:
        margin += 1
    return each_line(poem, lambda text: text[margin:] if text.strip() else "")


@line_transform(("\n\n  The Owl  \nand the Cat\t\n\n", "  The Owl\nand the Cat\n"), (" \r\n", ""), ("a ", "a"))
def trim(poem: str) -> str:
    """Remove white space from the ends of lines, and blank lines from the ends of the poem."""
    texts, endings = split(poem)
    texts = [text.rstrip() for text in texts]
    filled = [index for index, text in enumerate(texts) if text]
    if not filled:
        return ""
    kept = slice(filled[0], filled[-1] + 1)
    return join(texts[kept], endings[kept])


xformd_transforms = provide_all(globals())
