"""What a poem is called in HTTP's words: media types (RFC 9110, section 8.3), of which nothing may break a header."""

import re

MAX_CHARACTERS = 200
"""It stands in a header of every answer."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}(?: ?; ?{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*\Z")
_CHARSET = re.compile(r'; ?charset="?([^";]*)"?', re.IGNORECASE)


def is_media_type(value: object) -> bool:
    """Whether this is one media type, as ``text/html`` or ``text/csv; header=present``, and fit for a header."""
    return isinstance(value, str) and len(value) <= MAX_CHARACTERS and _MEDIA_TYPE.match(value) is not None


def charset(media_type: str) -> str | None:
    """Give the character set that a media type names, in lower case."""
    match = _CHARSET.search(media_type)
    return None if match is None else match[1].lower()


def content_type(media_type: str | None, kind: str) -> str:
    """Say as what a result is served.

    Args:
        media_type: what the transform declares; None where it declares nothing.
        kind: the transform's, ``text`` or ``bytes``.

    Returns:
        The value of ``Content-Type``. Text is UTF-8, and says so.
    """
    if media_type is None:
        return "text/plain; charset=utf-8" if kind == "text" else "application/octet-stream"
    says_nothing = media_type.lower().startswith("text/") and charset(media_type) is None
    return f"{media_type}; charset=utf-8" if kind == "text" and says_nothing else media_type
