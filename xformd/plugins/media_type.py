"""Media types of results (RFC 9110, section 8.3).

Invariant: a media type that is accepted here fits into a header, and cannot break out of it.
"""

import re

MAX_CHARACTERS = 200
"""It is sent in a header of every answer."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}(?: ?; ?{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*\Z")
_CHARSET = re.compile(r'; ?charset="?([^";]*)"?', re.IGNORECASE)


def is_media_type(value: object) -> bool:
    """Whether this is a media type, such as ``text/html`` or ``text/csv; header=present``."""
    return isinstance(value, str) and len(value) <= MAX_CHARACTERS and _MEDIA_TYPE.match(value) is not None


def charset(media_type: str) -> str | None:
    """Return the character set of a media type, in lower case."""
    match = _CHARSET.search(media_type)
    return None if match is None else match[1].lower()


def content_type(media_type: str | None, kind: str) -> str:
    """Return the ``Content-Type`` of a transform's results: what it declares, if anything; text is in UTF-8."""
    if media_type is None:
        return "text/plain; charset=utf-8" if kind == "text" else "application/octet-stream"
    needs_charset = media_type.lower().startswith("text/") and charset(media_type) is None
    return f"{media_type}; charset=utf-8" if kind == "text" and needs_charset else media_type
