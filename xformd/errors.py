"""Every way in which xformd fails, and what each way is called.

This is the one table from error code to exception, HTTP status and exit status (``docs/wire.md``, "Errors").
The table is written as classes: a class that names a code is a row, its docstring says when it happens, and
``ERRORS`` finds it by its code.
"""

from collections.abc import Iterable
from typing import ClassVar

MESSAGE_MAX_CHARACTERS = 1_000

REDACTED = "what it says may quote the poem"
"""What a log has in place of a message in which a transform speaks, or that quotes what a client sent."""


def printable(text: str) -> str:
    """Replace what is not printable: controls, terminal escapes, lone surrogates."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def one_line(text: str) -> str:
    """Make any text fit for a log line, a terminal and the wire.

    Args:
        text: what a person should read; it may quote bytes that a hostile peer chose.

    Returns:
        The text on one line, of at most ``MESSAGE_MAX_CHARACTERS``, and printable.
    """
    # A line of this many characters comes from at most this many words: the rest is not worth a look.
    line = printable(" ".join(text[: 4 * MESSAGE_MAX_CHARACTERS].split()))
    if len(line) <= MESSAGE_MAX_CHARACTERS:
        return line
    return line[: MESSAGE_MAX_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def safe_str(error: BaseException) -> str:
    """Say what an exception says, whatever its class does when it is asked."""
    try:
        return str(error)
    except Exception:
        return ""


class XformError(Exception):
    """The root of everything that xformd raises.

    Args:
        message: one line for a person: what is wrong and what to do about it.
        poem: the poem that was sent, so that a caller can fall back to it.
        retry_after_ms: how many milliseconds to wait before another try, where the server said so.
        log_message: what a log says in place of the message, where that may quote the poem.

    Attributes:
        code: the name of this error on the wire, in logs and in metrics.
        http_status: the same for HTTP; None for what never leaves the process.
        exit_status: the same for a command (``sysexits.h``).
        retryable: whether the same request may succeed later.
    """

    code: ClassVar[str]
    http_status: ClassVar[int | None]
    exit_status: ClassVar[int]
    retryable: ClassVar[bool]

    # Defaults, so that a plugin's subclass that forgets super().__init__() is still whole.
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
        super().__init__(self.message)

    def __init_subclass__(
        cls, *, code: str | None = None, http_status: int | None = None, exit_status: int = 1, retryable: bool = False
    ) -> None:
        if code is not None:
            cls.code, cls.http_status, cls.exit_status, cls.retryable = code, http_status, exit_status, retryable
            ERRORS[code] = cls


ERRORS: dict[str, type[XformError]] = {}
"""The table: error code to exception."""


# What a server answers.


class BadFrame(XformError, code="bad-frame", http_status=400, exit_status=76):
    """The bytes are not netstrings, or not a message of the protocol."""


class BadRequest(XformError, code="bad-request", http_status=400, exit_status=64):
    """A request without a ``.``, or with a spec that does not parse."""


class BadOptions(XformError, code="bad-options", http_status=400, exit_status=64):
    """An option that the transform does not take, or a value of the wrong type."""


class NoSuchTransform(XformError, code="no-such-transform", http_status=404, exit_status=66):
    """No transform of that name is registered here."""


class AmbiguousTransform(XformError, code="ambiguous-transform", http_status=409, exit_status=66):
    """Two plugins provide the name and none is preferred."""


class GibberishError(XformError, code="gibberish", http_status=422, exit_status=65):
    """The transform refuses this poem. Transforms raise it; its message reaches the caller."""


class TooLarge(XformError, code="too-large", http_status=413, exit_status=65):
    """The request, or the result, is over its limit."""


class TransformFailed(XformError, code="transform-failed", http_status=500, exit_status=70):
    """The transform raised, or returned something that is no poem.

    Attributes:
        detail: what it raised and where; it stays in the process, and the wire carries the message alone.
    """

    def __init__(
        self,
        message: str,
        *,
        poem: str | bytes | None = None,
        retry_after_ms: int | None = None,
        log_message: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message, poem=poem, retry_after_ms=retry_after_ms, log_message=log_message)
        self.detail = one_line(detail)


class TransformDied(XformError, code="transform-died", http_status=502, exit_status=70):
    """The transform's worker crashed, or ran out of memory."""


class TransformTimeout(XformError, code="timeout", http_status=504, exit_status=75, retryable=True):
    """The deadline passed before the result was there."""


class Busy(XformError, code="busy", http_status=429, exit_status=75, retryable=True):
    """The queue is full."""


class Unavailable(XformError, code="unavailable", http_status=503, exit_status=69, retryable=True):
    """This transform is quarantined after repeated deaths."""


class Cancelled(XformError, code="cancelled", http_status=499, exit_status=75):
    """The client gave the request up."""


class ShuttingDown(XformError, code="shutting-down", http_status=503, exit_status=75, retryable=True):
    """The server is stopping. With ``retry_after_ms`` the request has not begun; without, it may have."""

    @classmethod
    def not_started(cls) -> "ShuttingDown":
        """Make the error for what has not begun, and may be asked for again."""
        return cls("the server is stopping; ask again, here or elsewhere", retry_after_ms=1_000)

    @classmethod
    def interrupted(cls) -> "ShuttingDown":
        """Make the error for what may have begun."""
        return cls("the server stopped before this was done")


class Unauthorized(XformError, code="unauthorized", http_status=401, exit_status=77):
    """No credentials, or wrong ones."""


class Forbidden(XformError, code="forbidden", http_status=403, exit_status=77):
    """These credentials may not use this transform."""


class InternalError(XformError, code="internal", http_status=500, exit_status=70):
    """A fault of xformd itself; the message is a request id to look up in the log."""


# What happens to a client on its way to a server: never on the wire.


class ConnectionFailed(XformError, code="connection-failed", exit_status=69, retryable=True):
    """No connection to the server could be made."""


class ConnectionLost(XformError, code="connection-lost", exit_status=69, retryable=True):
    """The connection broke before the whole answer was there."""


class RequestRefused(ConnectionLost, code="refused", exit_status=69):
    """The server closed without a word, which is how the classic form says no to a request."""


# What stops a command or a plugin before there is any request: never on the wire.


class ConfigError(XformError, code="bad-config", exit_status=78):
    """Settings that do not go together, or that name something that is not there.

    Args:
        reason: one line for a person; where it is about a setting, the rest of a line that begins with its name.
        details: where there are several problems, each on a line.
        setting: whose value is wrong, as a file names it: ``plugins_dir``. None for an error about no single one.
        entry: the key, where that value is a table and one line of it is wrong.
    """

    def __init__(
        self, reason: str, *, details: Iterable[str] = (), setting: str | None = None, entry: str | None = None
    ) -> None:
        super().__init__(reason if setting is None else f"{setting}: {reason}")
        self.reason = reason
        self.details = tuple(map(one_line, details))
        self.setting = setting
        self.entry = entry

    def located_at(self, subject: str) -> "ConfigError":
        """Say the same of the place where the setting was set.

        Args:
            subject: how the operator knows it: ``xformd.toml, line 3: block``, ``XFORMD_BLOCK`` or ``--block``.
        """
        return ConfigError(f"{subject}: {self.reason}", details=self.details)


class ListenFailed(XformError, code="listen-failed", exit_status=69):
    """The server cannot listen where it was told to."""


class DefinitionError(XformError, code="bad-definition", exit_status=70):
    """A plugin defines something that does not fit: a transform's name, signature or example, or its metadata."""
