"""The transform ``highlight``: source code to HTML in colours, by Pygments.

The result is safe to show in a page, even if the code comes from a stranger: it is escaped, and has no script. Lexers
are regular expressions, some of which take a quadratic time on code that is made for it; so there is a time limit.
"""

import difflib
import html
from typing import Literal

from pygments import highlight as render
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import LEXERS, get_lexer_by_name
from pygments.styles import get_all_styles
from pygments.util import ClassNotFound

import xformd

Style = Literal[tuple(sorted(get_all_styles()))]

TIMEOUT_S = 5
"""A megabyte of Python takes 2 s. Code that is made to take longer is not worth waiting for."""

GUESSED = ("bash", "c", "cpp", "diff", "html", "http", "ini", "perl", "php", "python", "rst", "ruby", "tex", "xml")
"""Languages that show. All 600 take 0.3 s to load, and see Scdoc in SQL and GDScript in Go."""

GUESSED_CHARACTERS = 1000
"""What is looked at, in cubic time by some of Pygments' rules."""

MIN_CONFIDENCE = 0.02
"""Below, it is any text."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
</head>
<body style="margin: 0; background: {background}">
{code}</body>
</html>
"""


def load() -> None:
    """Import the lexers that guess, which the first request would wait for otherwise."""
    _guess("x")


@xformd.transform(
    produces="text/html",
    timeout=TIMEOUT_S,
    warm_up=load,
    examples=[
        (
            "owl = 1\n",
            '<div class="highlight" style="background: #f8f8f8"><pre style="line-height: 125%;"><span></span>owl '
            '<span style="color: #666">=</span> <span style="color: #666">1</span>\n</pre></div>\n',
            {"language": "python"},
        ),
    ],
)
def highlight(
    poem: str, *, language: str = "guess", style: Style = "default", line_numbers: bool = False, page: bool = False
) -> str:
    """Turn source code into HTML in colours.

    Args:
        poem: source code. It need not be valid: what a language does not know is shown as it is.
        language: its name, such as python or c++; guess knows the fourteen that show best, and is wrong at times.
        style: the colours, by their name in Pygments.
        line_numbers: put its number before each line.
        page: return a whole page; otherwise an element to put into one. Either needs no style sheet.

    Raises:
        xformd.BadOptions: there is no such language.
    """
    lexer = _guess(poem) if language == "guess" else _lexer(language)
    formatter = HtmlFormatter(noclasses=True, style=style, linenos="inline" if line_numbers else False)
    code = render(poem, lexer, formatter)
    if not page:
        return code
    return _PAGE.format(title=html.escape(lexer.name), background=formatter.style.background_color, code=code)


def _lexer(language: str) -> Lexer:
    try:
        return get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        names = {alias for _, _, aliases, _, _ in LEXERS.values() for alias in aliases}
        near = difflib.get_close_matches(language.lower(), sorted(names))
        hint = f"did you mean {' or '.join(near)}?" if near else "take a name that Pygments lists, such as python"
        raise xformd.BadOptions(f"highlight: there is no language {language[:80]!r}: {hint}") from None


def _guess(poem: str) -> Lexer:
    start = poem.lstrip()[:GUESSED_CHARACTERS]
    lexers = {name: _lexer(name) for name in GUESSED}
    sure = {name: type(lexer).analyse_text(start) for name, lexer in lexers.items()}
    name = max(sure, key=lambda each: sure[each])
    return lexers[name] if sure[name] >= MIN_CONFIDENCE else _lexer("text")


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this plugin."""
    return [highlight]
