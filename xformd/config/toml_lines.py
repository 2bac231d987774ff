"""From the text of a TOML file to its statements, each with the line where it begins.

``tomllib`` tells no lines. But TOML reads from top to bottom and a statement ends with a line, so the shortest run of
lines that parses is a statement: multi-line strings and arrays, quoted and dotted keys are left to the parser.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import attrs

_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)\Z")


@attrs.frozen
class Statement:
    """One key with its value, or one table's header.

    Args:
        line: where it begins, from 1.
        content: what the file would be if this were all: the value in the tables around it.
    """

    line: int
    content: dict[str, Any]


class NotTomlError(Exception):
    """The text is no TOML.

    Args:
        line: where, from 1.
        reason: what is wrong, for a person.
    """

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(reason)


def statements(data: bytes) -> Iterator[Statement]:
    """Read a file.

    Args:
        data: its content.

    Yields:
        Its statements, in order; none before the whole file has proved right.

    Raises:
        NotTomlError: it is not TOML, or not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise NotTomlError(1 + data.count(b"\n", 0, error.start), "it is not UTF-8") from error
    lines = text.split("\n")
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or 5,000 brackets, is none of its own
        raise NotTomlError(_line_of(error, lines), _PLACE.sub("", str(error))) from error
    header, start = "", 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[start:end])
        is_header = statement.lstrip().startswith("[")
        content = _parse(statement if is_header else f"{header}\n{statement}")
        if content is None:
            continue  # it goes on in the next line
        if is_header:
            header = statement
        if statement.strip() and not statement.lstrip().startswith("#"):
            yield Statement(start + 1, content)
        start = end


def _line_of(error: Exception, lines: list[str]) -> int:
    if match := _PLACE.search(str(error)):
        return int(match["line"] or len(lines))
    for end in range(1, len(lines)):
        try:
            tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # it ends inside a statement
        except (ValueError, RecursionError):
            return end
    return len(lines)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
