"""Every error of xformd: its code, exception, HTTP status and exit status.

This is the one table, which ``docs/errors.md`` shows, written as classes. Invariant: each class with a code is one row,
and ``ERRORS`` finds it by that code.
"""

import json
from collections.abc import Iterable
from typing import Any, ClassVar

MESSAGE_MAX_CHARACTERS = 1_000

REDACTED = "[withheld: it may quote the poem]"
"""Replaces, in a log, a message that a transform wrote or that quotes a request."""


def printable(text: str) -> str:
    """Replace characters that are not printable: controls, terminal escapes, lone surrogates."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def printable_json(value: object, indent: int | None = None) -> str:
    """Return JSON, all in printable ASCII: JSON itself allows DEL, which terminals interpret."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def one_line(text: str) -> str:
    """Make a text safe for a log line, a terminal and the wire; it may quote bytes from a hostile peer.

    Returns:
        One printable line of at most ``MESSAGE_MAX_CHARACTERS``.
    """
    # Only the start is split, so that a huge text costs no more than a short one.
    line = printable(" ".join(text[: 4 * MESSAGE_MAX_CHARACTERS].split()))
    if len(line) <= MESSAGE_MAX_CHARACTERS:
        return line
    return line[: MESSAGE_MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def safe_str(error: BaseException) -> str:
    """Return ``str(error)``, or nothing if a plugin's exception class fails at that."""
    try:
        return str(error)
    except Exception:
        return ""


class XformError(Exception):
    """The base of every exception that xformd raises.

    Args:
        message: one line for a person: what is wrong and what to do.
        poem: the poem that was sent, so that a caller can fall back to it.
        retry_after_ms: milliseconds to wait before another try, if the server named any.
        log_message: replaces the message in logs, if that may quote the poem.

    Attributes:
        code: the name of this error on the wire, in logs and in metrics.
        http_status: its HTTP status; None for an error that is never sent.
        exit_status: the exit status of a command that ends with it (``sysexits.h``).
        retryable: whether the same request may succeed later.
    """

    code: ClassVar[str]
    http_status: ClassVar[int | None]
    exit_status: ClassVar[int]
    retryable: ClassVar[bool]

    # Class attributes, so that a plugin's subclass without super().__init__() still has them.
    message: str = ""
    poem: str | bytes | None = None
    retry_after_ms: int | None = None
    log_message: str = REDACTED

    def __init__(
        self,
        message: str,
        *,
        poem: str | bytes | None = None,
        retry_after_ms: int | None = None,
        log_message: str | None = None,
    ) -> None:
        self.message = one_line(message)
        self.poem = poem
        self.retry_after_ms = retry_after_ms
        self.log_message = self.message if log_message is None else log_message
        Exception.__init__(self, self.message)  # a subclass may also be another library's, with other arguments

    def __init_subclass__(
        cls, *, code: str | None = None, http_status: int | None = None, exit_status: int = 1, retryable: bool = False
    ) -> None:
        if code is not None:
            cls.code, cls.http_status, cls.exit_status, cls.retryable = code, http_status, exit_status, retryable
            ERRORS[code] = cls


ERRORS: dict[str, type[XformError]] = {}
"""The table: error code to exception."""


# Sent by a server.


class BadFrame(XformError, code="bad-frame", http_status=400, exit_status=76):
    """The bytes are not netstrings, or not a message of a session."""


class BadRequest(XformError, code="bad-request", http_status=400, exit_status=64):
    """The request has no ``.``, a malformed spec or attribute, or an id that is in use."""


class BadOptions(XformError, code="bad-options", http_status=400, exit_status=64):
    """The transform does not take the option, or not such a value."""


class NoSuchTransform(XformError, code="no-such-transform", http_status=404, exit_status=66):
    """No transform of that name is registered; the message suggests the nearest one."""


class AmbiguousTransform(XformError, code="ambiguous-transform", http_status=409, exit_status=66):
    """Several plugins provide the name and none is preferred; the message names them."""


class GibberishError(XformError, code="gibberish", http_status=422, exit_status=65):
    """The transform rejects this poem, or takes text and the poem is not UTF-8; transforms raise it with a message.

    Without a message, or with the poem in its place as in the poetry tutorial, it says so in words of its own.
    """

    def __init__(self, message: str | bytes = "", **fields: Any) -> None:
        has_words = isinstance(message, str) and bool(message.strip())
        super().__init__(str(message) if has_words else "the transform rejects this poem", **fields)


class TooLarge(XformError, code="too-large", http_status=413, exit_status=65):
    """The request or the result exceeds its limit; the message has both figures."""


class TransformFailed(XformError, code="transform-failed", http_status=500, exit_status=70):
    """The transform raised an exception, or returned something that is no poem."""


class TransformDied(XformError, code="transform-died", http_status=502, exit_status=70):
    """The transform's worker crashed or ran out of memory."""


class TransformTimeout(XformError, code="timeout", http_status=504, exit_status=75, retryable=True):
    """The deadline passed before the transform returned; its worker was killed."""


class Busy(XformError, code="busy", http_status=429, exit_status=75, retryable=True):
    """The queue is full."""


class Unavailable(XformError, code="unavailable", http_status=503, exit_status=69, retryable=True):
    """The transform cannot run now: it is in quarantine, what it needs is away, or its plugin may still be loading.

    Transforms raise it as ``Unavailable(message, retry_after=seconds)``.
    """

    def __init__(
        self,
        message: str = "what it needs is away; try again later",
        *,
        retry_after: float | None = None,
        **fields: Any,
    ) -> None:
        if retry_after is not None:
            fields["retry_after_ms"] = max(0, int(1000 * retry_after))
        super().__init__(message, **fields)


class Cancelled(XformError, code="cancelled", http_status=499, exit_status=75):
    """The client cancelled the request."""


class ShuttingDown(XformError, code="shutting-down", http_status=503, exit_status=75, retryable=True):
    """The server is stopping. With ``retry_after_ms`` the request was not started; without, it may have been."""

    @classmethod
    def not_started(cls) -> "ShuttingDown":
        """Return the error for a request that was not started and can safely be repeated."""
        return cls("the server is stopping; try again, here or on another server", retry_after_ms=1_000)

    @classmethod
    def interrupted(cls) -> "ShuttingDown":
        """Return the error for a request that may have been started."""
        return cls("the server stopped before the request was done")


class Unauthorized(XformError, code="unauthorized", http_status=401, exit_status=77):
    """The credentials are missing or wrong."""


class Forbidden(XformError, code="forbidden", http_status=403, exit_status=77):
    """The credentials do not allow this transform."""


class InternalError(XformError, code="internal", http_status=500, exit_status=70):
    """A fault of xformd itself; the message is a request id, to be looked up in the log."""


# Raised by a client on its way to a server, never sent.


class ConnectionFailed(XformError, code="connection-failed", exit_status=69, retryable=True):
    """The client could not connect to the server."""


class ConnectionLost(XformError, code="connection-lost", exit_status=69, retryable=True):
    """The connection was lost before the whole answer arrived."""


class RequestRefused(ConnectionLost, code="refused", exit_status=69):
    """The server closed the connection without an answer, which is how the classic dialect rejects a request."""


# Raised before there is any request, never sent.


class ConfigError(XformError, code="bad-config", exit_status=78):
    """A setting is unknown or invalid, or contradicts another, or names something that does not exist.

    Args:
        reason: one line for a person, without the name of the setting.
        details: one line per problem, if there are several.
        setting: the name of the setting, such as ``plugins_dir``; None if it is not about a single one.
    """

    def __init__(self, reason: str, *, details: Iterable[str] = (), setting: str | None = None) -> None:
        super().__init__(reason if setting is None else f"{setting}: {reason}")
        self.reason = reason
        self.details = tuple(map(one_line, details))
        self.setting = setting

    def located_at(self, subject: str) -> "ConfigError":
        """Return the error with the place where the setting was set, such as ``xformd.toml, line 3: block``."""
        return ConfigError(f"{subject}: {self.reason}", details=self.details)


class ListenFailed(XformError, code="listen-failed", exit_status=69):
    """The server cannot listen on an endpoint."""


class DefinitionError(XformError, code="bad-definition", exit_status=70):
    """A plugin is wrong: the name, signature or example of a transform, or the metadata of its package."""
