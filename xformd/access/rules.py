"""The identities of an access file, and the credentials that show one (``docs/access.md``).

Invariant: of a token only the SHA-256 is known here, and finding whose it is takes as long whatever is wrong with it.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import attrs
from annotated_types import Ge

from xformd.config.sources import read_tables
from xformd.errors import ConfigError
from xformd.plugins.settings import make_settings, read_class

ANONYMOUS = "anonymous"  # the identity of whoever shows nothing
MAX_TOKEN_BYTES = 1_024  # what is longer is nobody's, and is not hashed: it may be as long as a request

IDENTITY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}\Z")
NAME_RULE = "name an identity with letters and digits; _ . @ - may stand after the first of them"
_PATTERN = re.compile(r"[a-z0-9_*?\[\]!-]{1,64}\Z")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/(s|min|h)\Z")
_SECONDS = {"s": 1, "min": 60, "h": 3_600}


def _read_patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and _PATTERN.match(each) for each in value):
        raise ValueError('write names of transforms, or patterns: ["wrap", "format-*"]')
    return tuple(value)


def _read_digest(value: Any) -> bytes:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("expected 64 hexadecimal digits, as 'xformd token new NAME' prints")
    return bytes.fromhex(value)


def _read_rate(value: Any) -> float:
    if not isinstance(value, str) or not (match := _RATE.match(value)) or not float(match[1]):
        raise ValueError("write 50/s, 100/min or 1000/h")
    return float(match[1]) / _SECONDS[match[2]]


@attrs.frozen(slots=False)
class Identity:
    """Who somebody is, and what they may do."""

    name: str  # in the access file
    transforms: Annotated[tuple[str, ...], _read_patterns] = ()  # names and patterns of what it may use
    token_sha256: Annotated[bytes, _read_digest] = attrs.field(default=b"", repr=False)  # empty if it has no token
    tls_san: str = ""  # a name in its client certificate; empty if it needs none
    unix_uid: Annotated[int, Ge(0)] | None = None  # of its processes at the other end of a Unix socket
    rate: Annotated[float, _read_rate] | None = None  # requests a second that it may make; None for no limit
    max_in_flight: Annotated[int, Ge(1)] | None = None  # requests over all of its connections; None for no limit
    monitor: bool = False  # it may see metrics, and so may know which transforms there are

    def __attrs_post_init__(self) -> None:
        if self.name == ANONYMOUS and any(self.credentials):
            raise ValueError("anonymous shows no credentials: leave them out, or choose another name")
        if self.name not in ("", ANONYMOUS) and not any(self.credentials):
            raise ValueError("give it a token_sha256, a tls_san or a unix_uid, or nobody can be it")

    @property
    def credentials(self) -> tuple[object, ...]:
        """What shows it, in any of these ways; None where a way is not there."""
        return self.token_sha256 or None, self.san or None, None if self.unix_uid is None else (self.unix_uid,)

    @cached_property
    def san(self) -> str:
        """The name in its certificate, as it is read from there: in lower case, but for a URI, whose case matters."""
        return self.tls_san if ":" in self.tls_san else self.tls_san.lower()

    @cached_property
    def may_use_all(self) -> bool:
        """Whether it may use every transform."""
        return "*" in self.transforms

    def may_use(self, name: str) -> bool:
        """Whether it may use a transform."""
        return self.may_use_all or any(fnmatchcase(name, pattern) for pattern in self.transforms)


NOBODY = Identity("")
"""Whoever shows nothing where the file has no ``anonymous``."""

_FIELDS = {name: field for name, field in read_class(Identity).items() if name != "name"}


@attrs.frozen
class Rules:
    """The identities of an access file, by their names."""

    identities: Mapping[str, Identity]

    def changes(self, before: "Rules") -> Iterator[str]:
        """Yield who is new, who is gone, and who has other rights or credentials."""
        for name in sorted(self.identities.keys() | before.identities.keys()):
            new, old = self.identities.get(name), before.identities.get(name)
            if new != old:
                yield f"{name} is {'gone' if new is None else 'new' if old is None else 'changed'}"

    def by_token(self, token: bytes) -> Identity | None:
        """Return whose token this is, None if nobody's. All are compared, whichever it is."""
        if len(token) > MAX_TOKEN_BYTES:
            return None
        digest, found = hashlib.sha256(token).digest(), None
        for identity in self.identities.values():
            if hmac.compare_digest(identity.token_sha256.ljust(32, b"\0"), digest) and identity.token_sha256:
                found = identity
        return found

    def by_peer(self, names: Collection[str] = (), uid: int = -1) -> Identity:
        """Return who is at the other end: by the names in its certificate, or else by its user on a Unix socket."""
        identities = self.identities.values()
        by_name = (each for each in identities if each.tls_san and each.san in names)
        by_uid = (each for each in identities if each.unix_uid is not None and each.unix_uid == uid)
        return next(by_name, None) or next(by_uid, None) or self.identities.get(ANONYMOUS, NOBODY)


def read_rules(file: Path) -> Rules:
    """Read an access file; raise ``ConfigError`` with a line for each mistake in it."""
    if file.exists() and not file.is_file():  # reading a pipe again would wait for a writer
        raise ConfigError(f"{file} is not a regular file")
    tables = read_tables(file, "identity")
    identities: dict[str, Identity] = {}
    owners: dict[object, str] = {}  # of credentials
    mistakes: list[str] = []
    for name, table in tables.items():
        try:
            if not IDENTITY_NAME.match(name):
                raise ConfigError("", details=[table.locate("", NAME_RULE)])
            identity, _ = make_settings(partial(Identity, name), _FIELDS, table)
        except ConfigError as error:
            mistakes += (line.replace("ValueError: ", "") for line in error.details)
            continue
        for other in {owners.setdefault(each, name) for each in filter(None, identity.credentials)} - {name}:
            mistakes.append(table.locate("", f"identity {name} has the same credentials as {other}"))
        identities[name] = identity
    if mistakes:
        raise ConfigError(f"correct these mistakes in {file}", details=mistakes)
    return Rules(identities)


def new_token() -> tuple[str, str]:
    """Return a new token of 256 random bits, and its SHA-256 as an access file has it."""
    token = f"xformd_{secrets.token_urlsafe(32)}"
    return token, hashlib.sha256(token.encode()).hexdigest()
