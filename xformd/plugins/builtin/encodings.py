"""Built-in transforms that write bytes as text, read them back, pack them, and compute their digests.

Invariant: what decodes is strict. White space is ignored where an encoding allows it; the first character that is not
in the encoding is named, not guessed at.
"""

import base64
import hashlib
import io
import re
import zlib
from gzip import GzipFile
from typing import Annotated, Literal
from urllib.parse import unquote_to_bytes

from annotated_types import Interval

import xformd
from xformd.plugins.builtin import built_in, provide_all
from xformd.plugins.media_type import python_charset

MAX_UNPACKED_BYTES = 64 * 1024 * 1024  # 1 MB of gzip can hold 1 GB. The limit of a server's results is usually lower

_SPACE = b" \t\r\n\v\f"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*+(?:=\s*+){0,2}", re.ASCII)
_HEX = re.compile(r"\s*+(?:0[xX])?([0-9A-Fa-f\s:-]*+)", re.ASCII)
_PERCENT_ENCODED = re.compile(r"(?>[^%]++|%[0-9A-Fa-f]{2})*+")
_UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"  # RFC 3986, section 2.3
_SEPARATORS = {"space": " ", "colon": ":", "dash": "-"}
_EMPTY_GZIP = bytes.fromhex("1f8b08000000000000ff03000000000000000000")
_OWL_GZIP = bytes.fromhex("1f8b08000000000000ff0bc94855f02fcf010051c00d0007000000")

Digest = Literal["sha256", "sha512", "sha384", "sha224", "sha3_256", "sha3_512", "blake2b", "blake2s", "sha1", "md5"]
Errors = Literal["strict", "replace"]


def _match(valid: re.Pattern[str], poem: str, problem: str) -> re.Match[str]:
    """Match the whole poem; raise ``GibberishError`` about the first character that does not belong there."""
    match = valid.match(poem)
    assert match is not None  # each pattern matches the empty string
    if (end := match.end()) < len(poem):
        raise xformd.GibberishError(f"{poem[end]!r} at offset {end} {problem}")
    return match


@built_in(
    (b"The Owl", "VGhlIE93bA=="),
    (b"\xfb\xff", "-_8", {"url_safe": True, "padding": False}),
    inline=True,
    result_bytes=lambda poem_bytes, **_: poem_bytes * 4 // 3,
)
def base64_encode(poem: bytes, *, url_safe: bool = False, padding: bool = True, columns: Literal[0, 64, 76] = 0) -> str:
    """Encode bytes as base64.

    Args:
        url_safe: write - and _ instead of + and /.
        padding: end with = as often as it takes to fill a group of 4.
        columns: break lines after this many, as PEM (64) and MIME (76) do; 0 for one line.
    """
    encoded = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(poem).decode()
    text = encoded if padding else encoded.rstrip("=")
    return "\n".join(text[at : at + columns] for at in range(0, len(text), columns)) if columns else text


@built_in(("VGhlIE93bA==", b"The Owl"), ("VGhl\r\nIE93bA", b"The Owl"), ("-_8", b"\xfb\xff"), inline=True)
def base64_decode(poem: str) -> bytes:
    """Decode base64, URL-safe or not, with or without padding."""
    _match(_BASE64, poem, "does not belong into base64 there")
    padded = poem.encode().translate(bytes.maketrans(b"-_", b"+/"), _SPACE)
    digits = padded.rstrip(b"=")
    if len(digits) % 4 == 1 or (padded != digits and len(padded) % 4):
        raise xformd.GibberishError(f"base64 has groups of 4 characters, but the last one here has {len(padded) % 4}")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4))


@built_in(
    (b"The Owl", "546865204f776c"),
    (b"\x00\xff", "00:ff", {"separator": "colon"}),
    inline=True,
    result_bytes=lambda poem_bytes, **_: 2 * poem_bytes,
)
def hex_encode(poem: bytes, *, separator: Literal["none", "space", "colon", "dash"] = "none") -> str:
    """Encode bytes as hexadecimal digits.

    Args:
        separator: what stands between two bytes.
    """
    return poem.hex() if separator == "none" else poem.hex(_SEPARATORS[separator])


@built_in(("546865204F776c", b"The Owl"), ("00:ff\n01-02", b"\x00\xff\x01\x02"), ("0xFF", b"\xff"), inline=True)
def hex_decode(poem: str) -> bytes:
    """Decode hexadecimal digits, separated or not."""
    digits = _match(_HEX, poem, "is not a hexadecimal digit")[1].encode().translate(None, _SPACE + b":-")
    if len(digits) % 2:
        raise xformd.GibberishError(f"a byte has two hexadecimal digits, but here are {len(digits)}")
    return bytes.fromhex(digits.decode())


@built_in(
    ("naïve? a+b", "na%C3%AFve%3F%20a%2Bb"),
    ("a b+c/d", "a+b%2Bc/d", {"form": True, "keep": "/"}),
    inline=True,
)
def url_encode(poem: str, *, form: bool = False, keep: str = "") -> str:
    """Percent-encode a text for a URL.

    Args:
        form: write + for a space, as forms do.
        keep: ASCII characters to leave as they are, such as /. Letters, digits and -._~ always are.
    """
    if not keep.isascii():
        raise xformd.BadOptions(f"url-encode: option 'keep' takes ASCII characters, not {keep!r}")
    table = [chr(byte) if chr(byte) in _UNRESERVED + keep else f"%{byte:02X}" for byte in range(256)]
    if form:
        table[ord(" ")] = "+"
    return "".join(map(table.__getitem__, poem.encode()))


@built_in(("na%C3%AFve%3F", "naïve?"), ("a+b%2Bc", "a b+c", {"form": True}), ("a+b", "a+b"))
def url_decode(poem: str, *, form: bool = False) -> str:
    """Decode a percent-encoded text from a URL.

    Args:
        form: take + for a space, as forms write it.
    """
    _match(_PERCENT_ENCODED, poem, "must be followed by two hexadecimal digits")
    encoded = (poem.replace("+", " ") if form else poem).encode()
    return _decode(unquote_to_bytes(encoded), "utf-8", "strict")


@built_in(
    (b"na\xefve", "naïve", {"charset": "latin-1"}),
    (b"\xff\xfeO\x00", "O", {"charset": "utf-16"}),
    (b"a\xff", "a\ufffd", {"charset": "ascii", "errors": "replace"}),
)
def decode(poem: bytes, *, charset: str, errors: Errors = "strict") -> str:
    """Convert a text from another charset to UTF-8.

    Args:
        charset: such as latin-1, windows-1252, utf-16, shift_jis or gb18030.
        errors: reject a poem that is not in the charset, or replace what is not by U+FFFD.
    """
    return _decode(poem, _codec(charset), errors)


def _decode(data: bytes, codec: str, errors: str) -> str:
    try:
        return data.decode(codec, errors)
    except UnicodeDecodeError as error:
        where = f"byte {data[error.start]:#04x} at offset {error.start}"
        raise xformd.GibberishError(f"what was encoded is not {codec}: {where}") from None


def _codec(charset: str) -> str:
    if (codec := python_charset(charset)) is None:
        raise xformd.BadOptions(f"unknown charset {charset[:40]!r}: try latin-1, windows-1252 or utf-16")
    return codec


@built_in(
    ("naïve", b"na\xefve", {"charset": "latin-1"}),
    ("10 €", b"10 ?", {"charset": "ascii", "errors": "replace"}),
)
def encode(poem: str, *, charset: str, errors: Errors = "strict") -> bytes:
    """Convert a text from UTF-8 to another charset.

    Args:
        charset: such as latin-1, windows-1252, utf-16-le, shift_jis or gb18030.
        errors: reject a poem with characters that are not in the charset, or replace them by ?.
    """
    codec = _codec(charset)
    try:
        return poem.encode(codec, errors)
    except UnicodeEncodeError as error:
        where = f"{poem[error.start]!r} at offset {error.start}"
        raise xformd.GibberishError(f"{codec} does not have the character {where}") from None


@built_in(
    (b"The Owl", "9f196f1575127d7e46e5b216e6fa518998ad355a10ff31588f825bc48b049433"),
    (b"", "1B2M2Y8AsgTpgAmY7PhCfg==", {"algorithm": "md5", "form": "base64"}),
    inline=True,
)
def digest(poem: bytes, *, algorithm: Digest = "sha256", form: Literal["hex", "base64"] = "hex") -> str:
    """Compute the digest of bytes: SHA-256 or another.

    Args:
        algorithm: md5 and sha1 tell files apart, but are not secure.
        form: how to write it.
    """
    hashed = hashlib.new(algorithm, poem, usedforsecurity=False)
    return hashed.hexdigest() if form == "hex" else base64.b64encode(hashed.digest()).decode()


@built_in((b"The Owl", _OWL_GZIP), (b"", _EMPTY_GZIP), produces="application/gzip")
def gzip(poem: bytes, *, level: Annotated[int, Interval(ge=1, le=9)] = 6) -> bytes:
    """Compress bytes with gzip.

    Args:
        level: from 1, fast, to 9, small.
    """
    packed = zlib.compress(poem, level, wbits=31)
    return packed[:8] + b"\x00\xff" + packed[10:]  # what the header says of system and level depends on the build


@built_in((_EMPTY_GZIP, b""), (_OWL_GZIP + _EMPTY_GZIP, b"The Owl"), accepts=("application/gzip", "application/x-gzip"))
def gunzip(poem: bytes) -> bytes:
    """Uncompress a gzip file of up to 64 MiB."""
    result = bytearray()
    try:
        with GzipFile(fileobj=io.BytesIO(poem)) as file:
            while len(result) <= MAX_UNPACKED_BYTES and (piece := file.read1()):
                result += piece
    except (EOFError, OSError, zlib.error) as error:
        raise xformd.GibberishError(f"not gzip: {error}") from None
    if not poem:
        raise xformd.GibberishError("not gzip: it is empty")
    if len(result) > MAX_UNPACKED_BYTES:
        raise xformd.TooLarge(f"gunzip would return more than its limit of {MAX_UNPACKED_BYTES} bytes")
    return bytes(result)


xformd_transforms = provide_all(globals())
