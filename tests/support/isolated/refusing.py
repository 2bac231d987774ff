"""Transforms that refuse poems."""

import xformd


@xformd.transform
def speechless(poem: str) -> str:
    """Refuse without a word."""
    raise xformd.GibberishError


@xformd.transform
def empty(poem: str) -> str:
    """Refuse without a word, and call it."""
    raise xformd.GibberishError()


@xformd.transform
def tutorial(poem: bytes) -> bytes:
    """Refuse with the poem as the argument, as the tutorial does."""
    raise xformd.GibberishError(poem)


@xformd.transform
def quoting(poem: str) -> str:
    """Refuse with the poem as the argument, as text."""
    raise xformd.GibberishError(poem)


@xformd.transform(inline=True)
def inline_tutorial(poem: bytes) -> bytes:
    """Refuse in the server with the poem as the argument."""
    raise xformd.GibberishError(poem)


@xformd.transform
def away(poem: str) -> str:
    """Say that what it needs is away."""
    raise xformd.Unavailable("the dictionary is away", retry_after=2)


@xformd.transform(inline=True)
def inline_away(poem: str) -> str:
    """Say the same in the server."""
    raise xformd.Unavailable("the dictionary is away", retry_after=2)


@xformd.transform
def away_for_good(poem: str) -> str:
    """Say that what it needs is away, and no more."""
    raise xformd.Unavailable


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [speechless, empty, tutorial, quoting, inline_tutorial, away, inline_away, away_for_good]
