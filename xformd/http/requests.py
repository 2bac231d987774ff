"""What a transform request says over HTTP: its path, its query, its headers, and the transforms that it names.

Invariant: nothing is sent, received or run here.
"""

import functools
import hashlib
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote

import attrs

from xformd import spec
from xformd.errors import BadRequest, GibberishError, TooLarge
from xformd.http.messages import HttpProblem, header_lines
from xformd.plugins import media_type
from xformd.plugins.registry import Entry, Registry, show_versions
from xformd.spec import Spec

MAX_TIMEOUT_MS = 10**12 - 1

MAX_QUERY_POEM_BYTES = 16 * 1024  # longest poem in a URL; a longer one belongs in the body
MAX_RECODED_BYTES = 1024 * 1024  # longest poem in another charset: to recode it holds the reactor for some 10 to 20 ms
MAX_AGE_S = 60  # how long a result may be cached without revalidation: meanwhile a plugin may have been upgraded

_MAX_FIELDS = 64
_MILLISECONDS = re.compile(rb"[0-9]{1,12}\Z")
_UTF_8 = "utf-8"

# A result may be HTML made from anybody's text: in a browser it runs no script, and belongs to no site.
_SANDBOX = (b"content-security-policy", b"default-src 'none'; sandbox")


# The target.


Parameters = dict[str, str | list[str]]
"""What a query has: a list where a name is given more than once, as for an option that takes a list."""


def read_spec(segment: bytes, options: Mapping[str, str | list[str]]) -> Spec:
    """Read a spec from the last segment of the path; raise ``BadRequest`` if it does not parse.

    It is a spec in its wire form or its readable form, or either of them percent-encoded as a whole. More ``options``
    are for a single step, and none of them may be given twice.
    """
    parsed = _parse(segment)
    if not options:
        return parsed
    if repeated := sorted(options.keys() & dict(parsed.steps[0].options).keys()):
        raise BadRequest(f"the option {repeated[0]!r} is given twice: in the path and as a query parameter")
    return spec.build(str(parsed), options)


def _parse(segment: bytes) -> Spec:
    text = segment.decode("ascii", "replace")
    try:
        return spec.parse_readable(text)
    except BadRequest:
        if "%" not in text:
            raise
        return spec.parse_readable(unquote(text))


def read_query(query: bytes) -> Parameters:
    """Read the parameters of a query; raise ``BadRequest`` if it is malformed."""
    text = "&".join(filter(None, query.decode("ascii").split("&")))  # a form may end with one
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, True, strict_parsing=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        advice = f"write ?option=value&option=value, percent-encoded, with at most {_MAX_FIELDS} fields"
        raise BadRequest(f"the query is malformed: {advice}") from None
    parameters: Parameters = dict(pairs)
    for name in parameters if len(parameters) < len(pairs) else ():
        values = [value for each, value in pairs if each == name]
        parameters[name] = values if len(values) > 1 else values[0]
    return parameters


def take_poem(parameters: Parameters, max_bytes: int) -> bytes:
    """Take the poem out of a query; raise ``BadRequest`` if there is none, ``TooLarge`` if it is too long for a URL."""
    text = parameters.pop("poem", None)
    if text is None:
        raise BadRequest("GET needs the poem as ?poem=...; to send it as the body, use POST")
    if isinstance(text, list):
        raise BadRequest("the query parameter 'poem' is given twice")
    poem = text.encode()
    if len(poem) > max_bytes:
        raise TooLarge(f"the poem has {len(poem)} bytes; the limit is {max_bytes} bytes")
    if len(poem) > MAX_QUERY_POEM_BYTES:
        raise TooLarge(f"a poem in a URL has at most {MAX_QUERY_POEM_BYTES} bytes: POST it as the body")
    return poem


# The headers.


def charset(headers: Mapping[bytes, bytes]) -> str | None:
    """Return Python's name of the body's charset, None for UTF-8; raise ``BadRequest`` if it is unknown."""
    content_type = headers.get(b"content-type")
    named = None if content_type is None else media_type.charset(content_type.decode("latin-1"))
    if named is None or named == _UTF_8:
        return None
    if (found := media_type.python_charset(named)) is None:
        raise BadRequest(f"unknown charset {named[:40]!r}: send UTF-8")
    return None if found == _UTF_8 else found


def timeout_s(headers: Mapping[bytes, bytes]) -> float | None:
    """Return how many seconds the client will wait, None if it does not say; raise ``BadRequest`` if it is unclear."""
    value = headers.get(b"x-timeout-ms")
    if value is None:
        return None
    if not _MILLISECONDS.match(value) or not int(value):
        raise BadRequest(f"invalid X-Timeout-Ms: send a whole number of milliseconds, 1 to {MAX_TIMEOUT_MS}")
    return int(value) / 1_000


def check_body(headers: Mapping[bytes, bytes]) -> None:
    """Raise ``HttpProblem`` if a body cannot be read."""
    coding = headers.get(b"content-encoding", b"").lower()
    if coding not in (b"", b"identity"):
        detail = f"Content-Encoding: {coding.decode('latin-1')[:40]} is not supported: send the body as it is"
        raise HttpProblem(415, detail, b"accept-encoding: identity\r\n")
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        advice = "send the poem alone as the body (curl --data-binary @poem.txt)"
        raise HttpProblem(415, f"a form with parts is not supported: {advice}")


def matches_etag(headers: Mapping[bytes, bytes], etag: bytes) -> bool:
    """Return whether the client already has the result with this tag (RFC 9110, 13.1.2, If-None-Match)."""
    tags = headers.get(b"if-none-match", b"").strip()
    return tags == b"*" or etag in [tag.strip().removeprefix(b"W/") for tag in tags.split(b",")]


def if_match(headers: Mapping[bytes, bytes], etag: bytes | None) -> bool:
    """Return whether this is the result that the client wants, or it wants any (RFC 9110, 13.1.1, If-Match)."""
    tags = headers.get(b"if-match")
    return tags is None or tags.strip() == b"*" or etag in [tag.strip() for tag in tags.split(b",")]


# The transforms.


@attrs.frozen(slots=False)  # its properties are cached
class TransformRequest:
    """A spec, and the transforms of its steps, in order."""

    spec: Spec
    entries: tuple[Entry, ...]

    @classmethod
    def from_spec(cls, spec: Spec, registry: Registry) -> "TransformRequest":
        """Look up the transforms that a spec names; raise an ``XformError`` if one is missing or ambiguous."""
        return cls(spec, tuple(registry.resolve(step.name) for step in spec.steps))

    @classmethod
    def headers_of(cls, spec: Spec, registry: Registry) -> bytes:
        """Return the lines of headers of a result, as ``from_spec(...).result_headers``."""
        return cls.from_spec(spec, registry).result_headers

    def check_repeated(self, options: Mapping[str, str | list[str]]) -> None:
        """Raise ``BadRequest`` if an option is given twice that takes no list."""
        lists = {option.name for option in self.entries[0].transform.options if option.is_list}
        if repeated := sorted(name for name, value in options.items() if isinstance(value, list) and name not in lists):
            raise BadRequest(f"the query parameter {repeated[0]!r} is given twice")

    @property
    def versions(self) -> bytes:
        """What made the result; see ``show_versions``."""
        return show_versions(self.entries).encode()

    @property
    def media_type(self) -> bytes:
        """Media type of the result."""
        last = self.entries[-1].transform
        return media_type.content_type(last.produces, last.result_kind).encode()

    @functools.cached_property
    def result_headers(self) -> bytes:
        """Lines of headers of a response with a result."""
        lines = header_lines((b"content-type", self.media_type), (b"x-transform", self.versions), _SANDBOX)
        return lines + (b"x-deterministic: true\r\n" if self.is_deterministic else b"")  # a proxy may send it again

    @functools.cached_property
    def is_deterministic(self) -> bool:
        """Whether the same poem always has the same result."""
        return all(each.transform.deterministic for each in self.entries)

    def check_options(self) -> None:
        """Raise ``BadOptions`` if a transform does not accept its options."""
        for step, entry in zip(self.spec.steps, self.entries, strict=True):
            entry.transform.convert(dict(step.options))

    def etag(self, target: bytes) -> bytes | None:
        """Return a tag that changes whenever the result of a GET of this target may change.

        There is none where a plugin has no version, as a loose file: a reload may change what it does.
        """
        if self._tag_digest is None:
            return None
        digest = self._tag_digest.copy()
        digest.update(target)
        return b'"%b"' % digest.hexdigest()[:32].encode()

    @functools.cached_property
    def _tag_digest(self) -> "hashlib._Hash | None":
        if not all(each.plugin.version for each in self.entries):
            return None
        return hashlib.sha256(b"%b %b %b\n" % (str(self.spec).encode(), self.versions, self.media_type))

    def decode(self, poem: bytes, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
        """Recode a text as UTF-8 from the charset in the request's headers; return bytes as they are.

        Raises ``BadRequest`` for an unknown charset, ``GibberishError`` if the poem is not in it, and ``TooLarge`` if
        it has more than ``MAX_RECODED_BYTES``, or more than ``max_bytes`` in UTF-8, where it may be longer.
        """
        encoding = charset(headers)
        if encoding is None or self.entries[0].transform.kind == "bytes":
            return poem
        if len(poem) > MAX_RECODED_BYTES:
            raise TooLarge(f"a poem in {encoding} has at most {MAX_RECODED_BYTES} bytes: send a longer one in UTF-8")
        try:
            recoded = poem.decode(encoding).encode()
        except UnicodeError:
            raise GibberishError(f"the poem is not valid {encoding}, which its Content-Type names") from None
        if len(recoded) > max_bytes:
            raise TooLarge(f"the poem has more than {max_bytes} bytes in UTF-8, which is the limit")
        return recoded
