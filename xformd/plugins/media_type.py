"""Media types of poems and results (RFC 9110, section 8.3).

Invariant: a media type that is accepted here fits into a header, and cannot break out of it.
"""

import codecs
import functools
import mimetypes
import re
from collections.abc import Iterable
from encodings import normalize_encoding
from encodings.aliases import aliases
from pathlib import PurePath

ANY = "*/*"
PLAIN_TEXT = "text/plain"
PLAIN_BYTES = "application/octet-stream"

_TEXTS = {"application/json", "application/xml", "application/javascript", "application/yaml", "application/toml"}
_SUFFIXES = {
    PLAIN_TEXT: ".txt",
    PLAIN_BYTES: ".bin",
    "application/gzip": ".gz",
    "application/x-ndjson": ".jsonl",
    "application/yaml": ".yaml",
    "application/toml": ".toml",
    "application/epub+zip": ".epub",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "image/avif": ".avif",
    "image/webp": ".webp",
    "text/markdown": ".md",
}
"""Those that the standard library of every supported Python does not know, or knows by a rarer suffix."""

MAX_CHARACTERS = 200  # it is sent in a header of every answer

_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*"'
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}(?: ?; ?{_TOKEN}=(?:{_TOKEN}|{_QUOTED}))*\Z")
_CHARSET = re.compile(r'; ?charset="?([^";]*)"?', re.IGNORECASE)

_CHARSET_NAME = re.compile(r"[a-z0-9._:-]{1,40}\Z")
_KNOWN_CHARSETS = (frozenset(aliases) | frozenset(aliases.values())) - {"mbcs", "ansi", "dbcs"}  # those are Windows's
# Python knows more codecs, and some are slow: punycode, and utf-7 in pieces.
_CHARSETS = re.compile(
    r"utf(?!-7)|ascii|iso8859|iso2022|latin|cp[0-9]|koi8|mac-|shift_jis|euc_|gb|big5|tis-620|hz|johab"
)


def is_media_type(value: object) -> bool:
    """Whether this is a media type, such as ``text/html`` or ``text/csv; header=present``."""
    return isinstance(value, str) and len(value) <= MAX_CHARACTERS and _MEDIA_TYPE.match(value) is not None


def charset(media_type: str) -> str | None:
    """Return the character set of a media type, in lower case."""
    match = _CHARSET.search(media_type)
    return None if match is None else match[1].lower()


def python_charset(name: str) -> str | None:
    """Return Python's name of a charset for text, such as ``cp1252`` for ``Windows-1252``; None if it is unknown."""
    # Python remembers every name that it is asked for, and each that it does not know for ever.
    name = normalize_encoding(name.lower()) if _CHARSET_NAME.match(name.lower()) else ""
    found = codecs.lookup(name).name if name in _KNOWN_CHARSETS else ""
    return found if _CHARSETS.match(found) else None


def is_media_range(value: object) -> bool:
    """Whether this is a media type, or a range of them: ``image/*`` or ``*/*``."""
    return value == ANY or is_media_type(re.sub(r"/\*\Z", "/x", value) if isinstance(value, str) else value)


def default_media_type(kind: str) -> str:
    """Return the media type of what nothing is known about but its kind."""
    return PLAIN_TEXT if kind == "text" else PLAIN_BYTES


def content_type(media_type: str, kind: str) -> str:
    """Return the ``Content-Type`` of results of this media type and kind: text is in UTF-8."""
    needs_charset = media_type.lower().startswith("text/") and charset(media_type) is None
    return f"{media_type}; charset=utf-8" if kind == "text" and needs_charset else media_type


def can_take(accepts: Iterable[str], produces: str, kind: str) -> bool:
    """Whether a step that accepts these types can take a result of another step.

    Plain text stands for any text, and plain bytes for anything: nothing more is known about them.
    """
    made = essence(produces)
    return any(_takes(essence(each), made, is_text=kind == "text" or _is_text(made)) for each in accepts)


def _takes(accepted: str, made: str, *, is_text: bool) -> bool:
    if accepted in (ANY, PLAIN_BYTES) or made in (PLAIN_BYTES, accepted):
        return True
    if accepted.endswith("/*"):
        return made.startswith(accepted[:-1])
    return is_text if accepted == PLAIN_TEXT else made == PLAIN_TEXT and _is_text(accepted)


def essence(media_type: str) -> str:
    """Return a media type without its parameters, in lower case."""
    return media_type.partition(";")[0].strip().lower()


def suffix(media_type: str) -> str:
    """Return the suffix of a file of this type, such as ``.pdf``; ``.bin`` if it is not known."""
    plain = essence(media_type)
    return _SUFFIXES.get(plain) or _standard().guess_extension(plain) or (".txt" if _is_text(plain) else ".bin")


def is_utf8(media_type: str) -> bool:
    """Whether what is of this type is text in UTF-8."""
    return _is_text(essence(media_type)) and charset(media_type) in (None, "utf-8")


def rename(name: str, media_type: str) -> str:
    """Return the name for a file's result of this type: a name whose suffix fits is kept, and so is one without."""
    made, before = essence(media_type), _standard().guess_type(name)[0]
    if made in ("", PLAIN_BYTES, before) or (made == PLAIN_TEXT and (before is None or _is_text(before))):
        return name
    return str(PurePath(name).with_suffix(suffix(made)))


@functools.cache
def _standard() -> mimetypes.MimeTypes:
    """Return what the standard library knows, and not this machine besides: a suffix must not depend on it."""
    return mimetypes.MimeTypes()  # takes 7 ms: it reads what the machine knows all the same


def _is_text(plain: str) -> bool:
    return plain.startswith("text/") or plain in _TEXTS or plain.endswith(("+json", "+xml"))
