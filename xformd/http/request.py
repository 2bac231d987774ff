"""What one transform request asks for: which transforms, and what HTTP wants to know of their result."""

import hashlib
from collections.abc import Mapping

import attrs

from xformd.errors import BadRequest, GibberishError, TooLarge
from xformd.http import requests
from xformd.plugins.media_type import content_type
from xformd.plugins.registry import Entry, Registry
from xformd.spec import Spec

MAX_QUERY_POEM_BYTES = 16 * 1024
"""Of a poem in an address: what is longer belongs into a body."""

MAX_AGE_S = 60
"""How long a result may be kept without asking whether it is still true: a plugin may have been upgraded."""


@attrs.frozen
class TransformRequest:
    """What a request asks for.

    Args:
        spec: what to do.
        entries: the transforms that do it, in turn.
    """

    spec: Spec
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, spec: Spec, registry: Registry) -> "TransformRequest":
        """Look up what a spec names.

        Raises:
            XformError: a name means nothing here.
        """
        return cls(spec, tuple(registry.resolve(step.name) for step in spec.steps))

    @property
    def made_by(self) -> bytes:
        """The names and versions: ``wrap/0.1.0+upper/0.1.0``."""
        return "+".join(f"{each.transform.name}/{each.plugin.version or '-'}" for each in self.entries).encode()

    @property
    def media_type(self) -> bytes:
        """Of the result."""
        last = self.entries[-1].transform
        return content_type(last.media_type, last.kind).encode()

    @property
    def is_deterministic(self) -> bool:
        """Whether the same poem always gives the same result."""
        return all(each.transform.deterministic for each in self.entries)

    def check_options(self) -> None:
        """See to it that the transforms take the options that they are given.

        Raises:
            BadOptions: one of them does not.
        """
        for step, entry in zip(self.spec.steps, self.entries, strict=True):
            entry.transform.convert(dict(step.options))

    def etag(self, poem: bytes) -> bytes | None:
        """Give the tag of the result for this poem: another one whenever the result may be another one.

        Returns:
            The tag; None where a plugin has no version, as a loose file: after a reload it may be another one, and
            nothing would tell.
        """
        if not all(each.plugin.version for each in self.entries):
            return None
        digest = hashlib.sha256(b"%b %b %b\n" % (str(self.spec).encode(), self.made_by, self.media_type))
        digest.update(poem)
        return b'"%b"' % digest.hexdigest()[:32].encode()

    def decoded(self, poem: bytes, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
        """Give a poem in UTF-8, whatever charset it came in; bytes are left alone.

        Args:
            poem: as it came.
            headers: of the request.
            max_bytes: how long it may be in UTF-8, where it may be several times as long as it came.

        Raises:
            BadRequest: the charset is none that is known here.
            GibberishError: the poem is not in that charset.
            TooLarge: it is too long in UTF-8.
        """
        charset = requests.charset(headers)
        if charset is None or self.entries[0].transform.kind == "bytes":
            return poem
        try:
            decoded = poem.decode(charset).encode()
        except UnicodeError:
            raise GibberishError(f"the poem is not in {charset}, as its Content-Type says") from None
        if len(decoded) > max_bytes:
            raise TooLarge(f"the poem has {len(decoded)} bytes in UTF-8; the limit is {max_bytes} bytes")
        return decoded


def poem_of(parameters: dict[str, str], max_bytes: int) -> bytes:
    """Take the poem out of the parameters of an address.

    Args:
        parameters: of the query; the poem is gone from them afterwards.
        max_bytes: how long a poem may be anywhere.

    Raises:
        BadRequest: there is none.
        TooLarge: it is too long for an address.
    """
    text = parameters.pop("poem", None)
    if text is None:
        raise BadRequest("a GET takes its poem as ?poem=...; POST takes it as the body")
    poem = text.encode()
    if len(poem) > max_bytes:
        raise TooLarge(f"the poem has {len(poem)} bytes; the limit is {max_bytes} bytes")
    if len(poem) > MAX_QUERY_POEM_BYTES:
        raise TooLarge(f"a poem in an address has at most {MAX_QUERY_POEM_BYTES} bytes; POST it as the body")
    return poem


def is_known(headers: Mapping[bytes, bytes], etag: bytes) -> bool:
    """Say whether a client has this result already (RFC 9110, If-None-Match).

    Args:
        headers: of the request.
        etag: of the result.
    """
    given = headers.get(b"if-none-match")
    if given is None:
        return False
    return given.strip() == b"*" or etag in [tag.strip().removeprefix(b"W/") for tag in given.split(b",")]
