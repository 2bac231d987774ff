"""The request language: ``wrap:width=40,indent=2+cummingsify`` to steps and back (``docs/wire.md``).

A spec has two forms. On the wire every byte of a value outside ``A-Z a-z 0-9 - _ ~`` is percent-encoded;
people may leave out the encoding wherever the grammar stays clear. Both parse to the same ``Spec``, and printing a
``Spec`` gives its one canonical wire form. Nothing here knows which transforms exist.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import attrs

from xformd.errors import REDACTED, BadRequest

MAX_SPEC_BYTES = 8_192
"""A spec names a handful of transforms; what is longer is an attack, or a poem with its dot missing."""

SHORT_CHARACTERS = 256
"""Of a spec that is remembered once it has been parsed."""

MAX_REMEMBERED = 1_024
"""How many specs a ``SpecCache`` remembers."""

MAX_STEPS = 32
"""A request may not multiply its own cost without bound."""

NAME_RULE = "a-z, then up to 63 of a-z 0-9 - _"
NAME_PATTERN = "[a-z][a-z0-9_-]{0,63}"
_NAME = re.compile(rf"{NAME_PATTERN}\Z")
_WIRE_VALUE = re.compile(r"(?:[A-Za-z0-9_~-]|%[0-9A-Fa-f]{2})*")
_READABLE_VALUE = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_ENCODED = re.compile(rb"[^A-Za-z0-9_~-]")


OptionValue = int | float | bool | str
"""What an option's value is once it has been converted."""


def is_valid_name(value: object) -> bool:
    """Whether this can name a transform or an option."""
    return isinstance(value, str) and _NAME.match(value) is not None


def _sorted_items(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(options.items()))


@attrs.frozen(cache_hash=True)
class Step:
    """One transform of a spec.

    Args:
        name: the transform's name.
        options: option name to its value as text, not yet converted; kept as sorted pairs.
    """

    name: str
    options: tuple[tuple[str, str], ...] = attrs.field(factory=dict, converter=_sorted_items)

    def __str__(self) -> str:
        options = ",".join(f"{key}={_encode(value)}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name


@attrs.frozen(cache_hash=True)
class Spec:
    """What to do with a poem: one step, or several in turn. ``str()`` gives the canonical wire form."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))


Key = TypeVar("Key", bound=Spec | bytes)
Value = TypeVar("Value")


class SpecCache(dict[Key, Value]):
    """What has been worked out for specs, or for the words of requests: clients repeat the same few.

    Clients choose the keys, so there are at most ``MAX_REMEMBERED``, of up to ``SHORT_CHARACTERS`` each. A full cache
    starts over: that leaves a hit as cheap as a dict's.
    """

    def remember(self, key: Key, value: Value) -> Value:
        """Keep a value, unless its key is too long; return it."""
        if len(key if isinstance(key, bytes) else str(key)) <= SHORT_CHARACTERS:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[key] = value
        return value


def parse(text: str) -> Spec:
    """Read the wire form.

    Args:
        text: the spec as it stands before the first ``.`` of a request.

    Returns:
        The steps, with their option values decoded.

    Raises:
        BadRequest: saying what is wrong and at which character (the first is 1).
    """
    # A server is asked for the same few specs again and again; a long one is not worth its place.
    return _parse_short(text) if len(text) <= SHORT_CHARACTERS else _parse(text, _WIRE_VALUE)


def parse_readable(text: str) -> Spec:
    """Read what a person wrote: like ``parse``, but a value may hold anything except ``+`` and ``,``.

    A ``%`` still starts an encoded byte, so ``%2C`` is how a value holds a comma.

    Args:
        text: for example ``indent:prefix=> +upper``.

    Returns:
        The steps, with their option values decoded.

    Raises:
        BadRequest: saying what is wrong and at which character (the first is 1).
    """
    return _parse(text, _READABLE_VALUE)


def build(transform: str, options: Mapping[str, object]) -> Spec:
    """Put a spec together from what a caller wrote.

    Args:
        transform: a transform's name, or a whole spec in its readable form.
        options: more options for it, where it is a single step; ``str()`` gives the text of a value.

    Returns:
        The spec.

    Raises:
        BadRequest: the spec does not parse, or options are given beside several steps.
    """
    spec = parse_readable(transform)
    if not options:
        return spec
    if len(spec.steps) > 1:
        raise BadRequest(f"write the options of several steps into the spec: {spec.steps[0].name}:option=value+...")
    (step,) = spec.steps
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    for name, value in options.items():
        if not is_valid_name(name):
            raise BadRequest(f"{name!r} is no option name ({NAME_RULE})")
        if not isinstance(value, str | int | float):
            raise BadRequest(f"the option {name!r} takes a str, an int, a float or a bool, not {type(value).__name__}")
    _check_text(texts)
    return Spec((Step(step.name, {**dict(step.options), **texts}),))


def _check_text(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"the value of the option {name!r} is no text: it has no UTF-8 form") from None


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
        raise _bad(MAX_SPEC_BYTES, f"a spec has at most {MAX_SPEC_BYTES} characters; this one has {len(text)}")
    steps: list[Step] = []
    for place, part in _split(text, "+", 0):
        if len(steps) == MAX_STEPS:
            raise _bad(place, f"a spec has at most {MAX_STEPS} steps")
        steps.append(_parse_step(part, place, value_pattern))
    return Spec(tuple(steps))


def _parse_step(text: str, place: int, value_pattern: re.Pattern[str]) -> Step:
    name, colon, rest = text.partition(":")
    if not is_valid_name(name):
        raise _bad(place, f"{name[:80]!r} is no transform name ({NAME_RULE})")
    options: dict[str, str] = {}
    if colon:
        for option_place, part in _split(rest, ",", place + len(name) + 1):
            key, value = _parse_option(part, option_place, value_pattern)
            if key in options:
                raise _bad(option_place, f"the option {key!r} is given twice")
            options[key] = value
    return Step(name, options)


def _parse_option(text: str, place: int, value_pattern: re.Pattern[str]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not is_valid_name(key):
        raise _bad(place, f"{key[:80]!r} is no option name ({NAME_RULE})")
    if not equals:
        raise _bad(place + len(key), f"the option {key!r} needs a value: {key}=...")
    return key, _decode(value, place + len(key) + 1, value_pattern)


def _decode(value: str, place: int, pattern: re.Pattern[str]) -> str:
    match = pattern.match(value)
    assert match is not None  # both patterns match the empty string
    if (end := match.end()) != len(value):
        raise _bad(place + end, _unencoded(value[end]))
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeError as error:
        raise _bad(place, "the value is not UTF-8") from error


def _unencoded(character: str) -> str:
    if character == "%":
        return "'%' must be followed by two hexadecimal digits (write '%25' for the character itself)"
    encoded = "".join(f"%{byte:02X}" for byte in character.encode(errors="replace"))
    return f"{character!r} in a value must be written {encoded}"


def _split(text: str, separator: str, place: int) -> Iterator[tuple[int, str]]:
    for part in text.split(separator):
        yield place, part
        place += len(part) + 1
