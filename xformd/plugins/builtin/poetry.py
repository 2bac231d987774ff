"""Built-in transforms on the lines of a poem, the first of them the tutorial's own.

A line ends with CRLF or LF. Invariant: a transform that moves lines moves their text only. The line endings stay where
they are, as does whether the poem ends with one.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import xformd

MAX_ADDED_CHARACTERS = 16 * 1024 * 1024
"""Checked before a result is built, as a short request could ask for a huge one."""

BYTE_ORDER_MARK = "\ufeff"

_ENDINGS = {0x0A: "\n", 0xFF: "\r\n"}  # 0xff, which UTF-8 never has, stands for CRLF
_NO_ENDINGS = bytes({*range(256)} - {*_ENDINGS})

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")


def _line_transform(**settings: Any) -> Callable[[Callable[..., str]], xformd.Transform]:
    """Make a deterministic transform that leaves a byte order mark at the front: it belongs to no line."""

    def make(function: Callable[..., str]) -> xformd.Transform:
        @functools.wraps(function)
        def keep_mark(poem: str, **options: Any) -> str:
            if poem.startswith(BYTE_ORDER_MARK):
                return BYTE_ORDER_MARK + function(poem[1:], **options)
            return function(poem, **options)

        return xformd.transform(deterministic=True, **settings)(keep_mark)

    return make


def _check_range(option: str, value: int | str, least: int, most: int) -> None:
    size, unit = (len(value), " characters of one line") if isinstance(value, str) else (value, "")
    if not least <= size <= most or "\n" in str(value):
        raise xformd.BadOptions(f"{option} takes {least} to {most}{unit}, not {value!r}")


def _split(poem: str) -> tuple[list[str], list[str]]:
    """Return the text and the ending of each line; nothing after a final line ending is not a line."""
    # In calls that take all lines at once: the worst 64 KiB take reverse-lines 4 ms instead of 15.
    texts = poem.replace("\r\n", "\n").split("\n")
    ends = poem.encode().replace(b"\r\n", b"\xff").translate(None, _NO_ENDINGS)
    endings = [*map(_ENDINGS.__getitem__, ends), ""]
    if not texts[-1]:
        del texts[-1], endings[-1]
    return texts, endings


def _join(texts: Iterable[str], endings: list[str]) -> str:
    """Join texts with the endings of the original lines. With fewer texts, the poem still ends as it did."""
    texts = [*texts]
    pieces = [""] * (2 * len(texts))
    pieces[::2], pieces[1::2] = texts, endings[: len(texts)]
    if texts:
        pieces[-1] = endings[-1]
    return "".join(pieces)


def _each_line(poem: str, change: Callable[[str], str]) -> str:
    texts, endings = _split(poem)
    return _join(map(change, texts), endings)


def _check_growth(name: str, added: int) -> None:
    if added > MAX_ADDED_CHARACTERS:
        raise xformd.TooLarge(f"{name} would add {added} characters; the limit is {MAX_ADDED_CHARACTERS}")


@xformd.transform(
    examples=[("HERE IS MY POEM", "here is my poem"), ("ΟΔΥΣΣΕΥΣ", "οδυσσευς")], inline=True, deterministic=True
)
def cummingsify(poem: str) -> str:
    """Lower-case the poem, as e. e. cummings would."""
    return poem.lower()


@_line_transform(
    examples=[("one\ntwo\nthree", "three\ntwo\none"), ("a\r\nb\r\n", "b\r\na\r\n"), ("", "")],
    inline=True,
    result_bytes=lambda poem_bytes, **_: poem_bytes,
)
def reverse_lines(poem: str) -> str:
    """Put the last line first."""
    if "\r" not in poem:  # which takes a third of the time, and no list of endings
        lines = poem.removesuffix("\n").split("\n")
        lines.reverse()
        return "\n".join(lines) + "\n" * poem.endswith("\n")
    texts, endings = _split(poem)
    return _join(reversed(texts), endings)


@_line_transform(
    examples=[
        ("pear\napple\nfig\n", "apple\nfig\npear\n"),
        ("b\nC\na", "a\nb\nC", {"ignore_case": True}),
        ("a\nc\nb", "c\nb\na", {"reverse": True}),
    ],
    result_bytes=lambda poem_bytes, **_: poem_bytes,
)
def sort_lines(poem: str, *, reverse: bool = False, ignore_case: bool = False) -> str:
    """Sort the lines by their characters' code points.

    Args:
        poem: any text.
        reverse: put the last in order first.
        ignore_case: sort upper and lower case alike.
    """
    texts, endings = _split(poem)
    return _join(sorted(texts, key=str.casefold if ignore_case else None, reverse=reverse), endings)


@_line_transform(
    examples=[
        ("a\nb\na\n", "a\nb\n"),
        ("b\na\nb", "b\na"),
        ("Owl\nowl", "Owl", {"ignore_case": True}),
    ],
)
def unique_lines(poem: str, *, ignore_case: bool = False) -> str:
    """Remove every line that is equal to an earlier one.

    Args:
        poem: any text.
        ignore_case: treat lines as equal that differ in upper and lower case only.
    """
    texts, endings = _split(poem)
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.casefold() if ignore_case else text, text)
    return _join(first.values(), endings)


@_line_transform(
    examples=[
        ("The Owl\nand the Cat\n", "1. The Owl\n2. and the Cat\n"),
        ("a\nb", " 9) a\n10) b", {"start": 9, "separator": ") "}),
        ("", ""),
    ],
    result_bytes=lambda poem_bytes, **_: poem_bytes,
)
def number_lines(poem: str, *, start: int = 1, separator: str = ". ") -> str:
    """Number the lines, with the numbers aligned to the right.

    Args:
        poem: any text.
        start: the first number, from -1000000000 to 1000000000.
        separator: what stands between number and line; up to 10 characters.
    """
    _check_range("number-lines: option 'start'", start, -1_000_000_000, 1_000_000_000)
    _check_range("number-lines: option 'separator'", separator, 0, 10)
    texts, endings = _split(poem)
    last = start + len(texts) - 1
    width = max(len(str(start)), len(str(last)))
    _check_growth("number-lines", (width + len(separator)) * len(texts))
    return _join((f"{number:>{width}}{separator}{text}" for number, text in enumerate(texts, start)), endings)


@_line_transform(
    examples=[
        ("The quick brown fox jumps", "The quick\nbrown fox\njumps", {"width": 10}),
        ("The quick brown fox\r\n", "The quick\r\n  brown\r\n  fox\r\n", {"width": 9, "indent": 2}),
        ("日本 日本 日本", "日本 日本\n日本", {"width": 9}),
    ],
)
def wrap(poem: str, *, width: int = 72, indent: int = 0) -> str:
    """Wrap lines that are wider than width between words, and indent the continuation lines.

    Args:
        poem: any text.
        width: the widest line, from 1 to 10000 columns.
        indent: spaces before a continuation line, up to 20 and fewer than width.
    """
    _check_range("wrap: option 'width'", width, 1, 10_000)
    _check_range(f"wrap: option 'indent' with width {width}", indent, 0, min(20, width - 1))
    texts, endings = _split(poem)
    spaces = sum(text.count(" ") + text.count("\t") for text in texts if len(text) * 2 > width)
    _check_growth("wrap", (indent + 2) * spaces)  # each break replaces a space
    default = next(filter(None, endings), "\n")
    margin = " " * indent
    return _join(
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


@_line_transform(
    examples=[
        ("The Owl\n\nand the Cat\n", "    The Owl\n\n    and the Cat\n"),
        ("a\r\nb", "> a\r\n> b", {"prefix": "> "}),
        ("", ""),
    ],
    result_bytes=lambda poem_bytes, **_: poem_bytes,
)
def indent(poem: str, *, prefix: str = "    ") -> str:
    """Prefix every line that is not blank.

    Args:
        poem: any text.
        prefix: what to put before a line; up to 20 characters.
    """
    _check_range("indent: option 'prefix'", prefix, 0, 20)
    _check_growth("indent", len(prefix) * (1 + poem.count("\n")))
    return _each_line(poem, lambda text: prefix + text if text.strip() else text)


@_line_transform(
    examples=[
        ("    The Owl\n      and the Cat\n", "The Owl\n  and the Cat\n"),
        ("  a\r\n \r\n  b", "a\r\n\r\nb"),
    ],
)
def dedent(poem: str) -> str:
    """Remove the white space that all lines have in common. Blank lines are ignored, and become empty."""
    texts = [text for text in _split(poem)[0] if text.strip()]
    if not texts:
        return _each_line(poem, lambda _: "")
    # A prefix that the first and the last in sorted order share is shared by all.
    first, last = min(texts), max(texts)
    margin = 0
    while margin < len(first) and first[margin] in " \t" and first[margin] == last[margin]:
        margin += 1
    return _each_line(poem, lambda text: text[margin:] if text.strip() else "")


@_line_transform(
    examples=[("\n\n  The Owl  \nand the Cat\t\n\n", "  The Owl\nand the Cat\n"), (" \r\n", ""), ("a ", "a")]
)
def trim(poem: str) -> str:
    """Remove white space from the ends of lines, and blank lines from the ends of the poem."""
    texts, endings = _split(poem)
    texts = [text.rstrip() for text in texts]
    filled = [index for index, text in enumerate(texts) if text]
    if not filled:
        return ""
    kept = slice(filled[0], filled[-1] + 1)
    return _join(texts[kept], endings[kept])


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this module."""
    return [cummingsify, reverse_lines, sort_lines, unique_lines, number_lines, wrap, indent, dedent, trim]
