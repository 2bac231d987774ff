"""A plugin that formats Python with Black: what blackd does. The first file makes Black load what it needs later."""

from collections.abc import Iterable

import black

import xformd

MODE = black.Mode()


def format_python(source: str) -> str:
    """Format a file, and check as ``black`` and blackd do that it means the same."""
    try:
        return black.format_file_contents(source, fast=False, mode=MODE)
    except black.NothingChanged:
        return source
    except (black.InvalidInput, black.SourceASTParseError) as error:
        raise xformd.GibberishError(str(error)) from None


def warm_up() -> None:
    """Load the grammars."""
    format_python("x  = 1\n")


@xformd.transform(name="format-python", accepts="text/x-python", produces="text/x-python", warm_up=warm_up, timeout=1)
def transform(poem: str) -> str:
    """Format Python with Black."""
    return format_python(poem)


@xformd.hookimpl
def xformd_transforms() -> Iterable[xformd.Transform]:
    """Return the one that there is."""
    return [transform]
