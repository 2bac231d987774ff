"""What an HTTP request asks for, as the service wants to hear it. Decisions alone: nothing is sent or received here."""

import codecs
import functools
import random
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote

from xformd import spec
from xformd.errors import BadRequest
from xformd.plugins import media_type
from xformd.spec import SHORT_CHARACTERS, Spec

MAX_TIMEOUT_MS = 10**12 - 1

_MAX_FIELDS = 1_000
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")
_MILLISECONDS = re.compile(rb"[0-9]{1,12}\Z")
_UTF_8 = "utf-8"
# Python knows more, such as punycode, which takes long.
_CHARSETS = re.compile(r"utf|ascii|iso8859|latin|cp[0-9]|koi8|mac-|shift_jis|euc_|gb|big5|tis-620|hz|johab")


def read_spec(segment: bytes, options: Mapping[str, str]) -> Spec:
    """Read what to do with a poem.

    Args:
        segment: the last part of the path, as it came: a spec in its wire form or its readable one, or either of
            them percent-encoded as a whole.
        options: more options, for a single step.

    Returns:
        The spec.

    Raises:
        BadRequest: it does not parse, or an option is given twice.
    """
    parsed = _parse_short(segment) if len(segment) <= SHORT_CHARACTERS else _parse(segment)
    if not options:
        return parsed
    if twice := sorted(options.keys() & dict(parsed.steps[0].options).keys()):
        raise BadRequest(f"the option {twice[0]!r} is given twice: in the path and as a query parameter")
    return spec.build(str(parsed), options)


def _parse(segment: bytes) -> Spec:
    text = segment.decode("ascii", "replace")
    try:
        return spec.parse_readable(text)
    except BadRequest:
        if "%" not in text:
            raise
        return spec.parse_readable(unquote(text))


_parse_short = functools.lru_cache(maxsize=1_024)(_parse)


def read_query(query: bytes) -> dict[str, str]:
    """Read the parameters of a query.

    Raises:
        BadRequest: it is malformed, or a name is given twice.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise BadRequest("the query is malformed: write ?option=value&option=value, percent-encoded") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"the query parameter {twice!r} is given twice")
    return parameters


def charset(headers: Mapping[bytes, bytes]) -> str | None:
    """Say in which charset a text came.

    Returns:
        Python's name of it; None for UTF-8, which needs nothing done.

    Raises:
        BadRequest: it is none that is known here.
    """
    content_type = headers.get(b"content-type")
    named = None if content_type is None else media_type.charset(content_type.decode("latin-1"))
    if named is None or named == _UTF_8:
        return None
    try:
        found = codecs.lookup(named).name
    except (LookupError, ValueError):
        found = ""
    if not _CHARSETS.match(found):
        raise BadRequest(f"the charset {named[:40]!r} is not known here; send UTF-8")
    return None if found == _UTF_8 else found


def timeout_s(headers: Mapping[bytes, bytes]) -> float | None:
    """Say how many seconds the client wants to wait; None where it does not say.

    Raises:
        BadRequest: ``X-Timeout-Ms`` is no number above 0.
    """
    value = headers.get(b"x-timeout-ms")
    if value is None:
        return None
    if not _MILLISECONDS.match(value) or not int(value):
        raise BadRequest(f"X-Timeout-Ms takes a whole number of milliseconds, 1 to {MAX_TIMEOUT_MS}")
    return int(value) / 1_000


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Give the id of a request: the client's own where it has one that is fit for a log, else a new one."""
    own = headers.get(b"x-request-id")
    if own is not None and _REQUEST_ID.match(own):
        return own.decode()
    return f"{random.getrandbits(64):016x}"  # not secret: it only has to be another one each time


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Say how long the body will be; None where nobody says. uvicorn has refused what is no number."""
    value = headers.get(b"content-length")
    return None if value is None else int(value)
