"""The request language: ``wrap:width=40,indent=2+cummingsify`` to steps and back (``docs/wire.md``).

A spec has two forms. On the wire every byte of a value outside ``A-Z a-z 0-9 - _ ~`` is percent-encoded; people may
omit the encoding wherever the grammar stays unambiguous. Invariant: both parse to the same ``Spec``, whose ``str()`` is
its one canonical wire form. Nothing here knows which transforms exist.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from enum import Enum
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from xformd.errors import REDACTED, BadRequest

MAX_SPEC_BYTES = 8_192  # a spec names a few transforms; a longer one is an attack, or a poem without its dot
SHORT_CHARACTERS = 256  # up to this length a parsed spec is cached
TRACEPARENT = b" traceparent="  # stands before a trace in a request's words: it differs each time, so is not cached
MAX_REMEMBERED = 1_024  # how many specs a ``SpecCache`` remembers
MAX_STEPS = 32  # bounds how much work one request can ask for

NAME_RULE = "a-z, then up to 63 of a-z 0-9 - _"
NAME_PATTERN = "[a-z][a-z0-9_-]{0,63}"
_NAME = re.compile(rf"{NAME_PATTERN}\Z")
_WIRE_VALUE = re.compile(r"(?:[A-Za-z0-9_~-]|%[0-9A-Fa-f]{2})*")
_READABLE_VALUE = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_ENCODED = re.compile(rb"[^A-Za-z0-9_~-]")


OptionItem = int | float | bool | str | date | Enum
OptionValue = OptionItem | Sequence[OptionItem]
"""The value of an option, converted; a list's is a sequence."""


def is_valid_name(value: object) -> bool:
    """Whether this is a valid name of a transform or an option."""
    return isinstance(value, str) and _NAME.match(value) is not None


class Step(NamedTuple):
    """One transform of a spec. Its options are text, not converted, and sorted."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        options = ",".join(f"{key}={_encode(value)}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name


class Spec(NamedTuple):
    """The steps for a poem, in order. ``str()`` returns the canonical wire form."""

    steps: tuple[Step, ...]

    @property
    def last(self) -> str:
        """The name of the last transform."""
        return self.steps[-1].name

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))


Key = TypeVar("Key", bound=Spec | bytes)
Value = TypeVar("Value")


class SpecCache(dict[Key, Value]):
    """What has been worked out for specs, or for the words of requests: clients repeat the same few.

    Clients choose the keys, so there are at most ``MAX_REMEMBERED``, of up to ``SHORT_CHARACTERS`` each. A full cache
    starts over: that leaves a hit as cheap as a dict's. ``make`` works out what is missing when it is looked up.
    """

    def __init__(self, make: Callable[[Key], Value] | None = None) -> None:
        self._make = make

    def __missing__(self, key: Key) -> Value:
        if self._make is None:
            raise KeyError(key)
        return self.remember(key, self._make(key))

    def remember(self, key: Key, value: Value) -> Value:
        """Keep a value, unless its key is too long, or has a trace; return it."""
        words = key if isinstance(key, bytes) else str(key).encode()
        if len(words) <= SHORT_CHARACTERS and TRACEPARENT not in words:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[key] = value
        return value


def parse(text: str) -> Spec:
    """Parse the wire form, the text before the first ``.`` of a request; ``BadRequest`` names the character, from 1."""
    # Clients repeat a few short specs; a long one would only take up room in the cache.
    return _parse_short(text) if len(text) <= SHORT_CHARACTERS else _parse(text, _WIRE_VALUE)


def parse_readable(text: str) -> Spec:
    """Parse what a person wrote, such as ``indent:prefix=> +upper``; raise as ``parse`` does.

    A value may contain anything except ``+`` and ``,``. A ``%`` still starts an encoded byte: a comma is ``%2C``.
    """
    return _parse(text, _READABLE_VALUE)


def build(transform: str, options: Mapping[str, object]) -> Spec:
    """Return the spec of a transform, which may be a whole spec in its readable form, and of its options.

    An option that is None counts as left out. Raises ``BadRequest`` if something does not parse, or if there are
    options and several steps.
    """
    spec = parse_readable(transform)
    if not options:
        return spec
    if len(spec.steps) > 1:
        raise BadRequest(f"with several steps, write options into the spec: {spec.steps[0].name}:option=value+...")
    (step,) = spec.steps
    texts = {name: _option_text(name, value) for name, value in options.items() if value is not None}
    return Spec((Step(step.name, tuple(sorted({**dict(step.options), **texts}.items()))),))


def plain_value(value: Any) -> Any:
    """Return the value of an option as JSON has it: a member's value, a date as ISO 8601."""
    if isinstance(value, list | tuple):
        return [*map(plain_value, value)]
    return value.value if isinstance(value, Enum) else value.isoformat() if isinstance(value, date) else value


def _option_text(name: str, value: object) -> str:
    if not is_valid_name(name):
        raise BadRequest(f"{name!r} is not a valid option name: use {NAME_RULE}")
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple) for item in value):
        items = [_option_text(name, item) for item in value]
        text = ",".join(items)
        is_ambiguous = text.startswith("[") or items == [""] or any("," in item for item in items)
        return json.dumps(items, ensure_ascii=False) if is_ambiguous else text
    plain = plain_value(value)
    if not isinstance(plain, str | int | float):
        takes = "a str, int, float, bool, date, Enum, or a list of them"
        raise BadRequest(f"option {name!r} takes {takes}, not {type(value).__name__}")
    text = str(plain).lower() if isinstance(plain, bool) else str(plain)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the value of option {name!r} cannot be encoded as UTF-8: it has a lone surrogate") from None
    return text


def _encode(value: str) -> str:
    return _ENCODED.sub(lambda match: b"%%%02X" % match[0][0], value.encode()).decode("ascii")


@functools.lru_cache(maxsize=1_024)
def _parse_short(text: str) -> Spec:
    return _parse(text, _WIRE_VALUE)


def _bad(place: int, message: str) -> BadRequest:
    where = f"spec, character {place + 1}"
    return BadRequest(f"{where}: {message}", log_message=f"{where}: {REDACTED}")


def _parse(text: str, value_pattern: re.Pattern[str]) -> Spec:
    if len(text) > MAX_SPEC_BYTES:
        raise _bad(MAX_SPEC_BYTES, f"a spec may have at most {MAX_SPEC_BYTES} characters; this one has {len(text)}")
    steps: list[Step] = []
    for place, part in _split(text, "+", 0):
        if len(steps) == MAX_STEPS:
            raise _bad(place, f"a spec may have at most {MAX_STEPS} steps")
        steps.append(_parse_step(part, place, value_pattern))
    return Spec(tuple(steps))


def _parse_step(text: str, place: int, value_pattern: re.Pattern[str]) -> Step:
    name, colon, rest = text.partition(":")
    if not is_valid_name(name):
        raise _bad(place, f"{name[:80]!r} is not a valid transform name: use {NAME_RULE}")
    options: dict[str, str] = {}
    if colon:
        for option_place, part in _split(rest, ",", place + len(name) + 1):
            key, value = _parse_option(part, option_place, value_pattern)
            if key in options:
                raise _bad(option_place, f"option {key!r} is given twice")
            options[key] = value
    return Step(name, tuple(sorted(options.items())))


def _parse_option(text: str, place: int, value_pattern: re.Pattern[str]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not is_valid_name(key):
        raise _bad(place, f"{key[:80]!r} is not a valid option name: use {NAME_RULE}")
    if not equals:
        raise _bad(place + len(key), f"option {key!r} needs a value: {key}=...")
    return key, _decode(value, place + len(key) + 1, value_pattern)


def _decode(value: str, place: int, pattern: re.Pattern[str]) -> str:
    match = pattern.match(value)
    assert match is not None  # both patterns match the empty string
    if (end := match.end()) != len(value):
        raise _bad(place + end, _unencoded(value[end]))
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeError as error:
        raise _bad(place, "the value is not valid UTF-8") from error


def _unencoded(character: str) -> str:
    if character == "%":
        return "'%' must be followed by two hexadecimal digits (write '%25' for the character itself)"
    encoded = "".join(f"%{byte:02X}" for byte in character.encode(errors="replace"))
    return f"{character!r} in a value must be written as {encoded}"


def _split(text: str, separator: str, place: int) -> Iterator[tuple[int, str]]:
    for part in text.split(separator):
        yield place, part
        place += len(part) + 1
