"""HTML to PDF by xhtml2pdf, within a policy that lets a page read nothing but the fonts that come with it."""

import io
import logging
import re
from pathlib import Path

import font_source_sans_pro
import reportlab.rl_config
from xhtml2pdf.config.resources import RenderLimitError, ResourceAccessPolicy
from xhtml2pdf.default import DEFAULT_CSS
from xhtml2pdf.document import pisaDocument

import xformd
from xformd_documents import more_fonts

MAX_SECONDS = 60
MAX_BYTES = 10_000_000
"""Of HTML: the layout takes about 100 times as much memory."""

FONTS = Path(font_source_sans_pro.font_directory)
"""Latin, Greek and Cyrillic. The fonts that every reader of PDFs has cover Western Europe alone."""

_LONG_SPAN = re.compile(r"""(span\s*=\s*["']?\s*)\d{4,}""", re.IGNORECASE)
"""Of cells in a table: browsers take 1,000 for anything above, and xhtml2pdf makes a list with an item for each."""

_FAMILIES = "SourceSans, sans-serif, helvetica, arial, verdana, tahoma"
_FACES = {"Regular": "", "It": "font-style: italic", "Bold": "font-weight: bold"}
_FACES["BoldIt"] = f"{_FACES['It']}; {_FACES['Bold']}"

_UPRIGHT = {"Regular": "", "Bold": _FACES["Bold"]}
"""For Greek and Cyrillic in italics, which Source Sans Pro does not have."""

_STYLE = """
html { font-size: 11pt; line-height: 1.4 }
h1 { font-size: 22pt } h2 { font-size: 16pt } h3 { font-size: 13pt } h4, h5, h6 { font-size: 11pt }
h1, h2, h3, h4, h5, h6 { color: #1f3a4d; margin: 14pt 0 6pt 0 }
table { margin: 6pt 0 } th, td { border: 0.5pt solid #999999; padding: 3pt 5pt; text-align: left }
th { background-color: #eef2f5 }
code, pre { font-family: courier, SourceSans, Upright; font-size: 9.5pt }
pre { background-color: #f4f4f4; padding: 6pt; white-space: pre-wrap }
blockquote { margin: 6pt 0 6pt 14pt; color: #555555; font-style: italic }
"""

reportlab.rl_config.invariant = 1  # no time of day in the result, and numbers instead of random names
logging.getLogger("xhtml2pdf").setLevel(logging.CRITICAL)  # its warnings quote the page


def lay_out(html: str, *, page: str, landscape: bool, margin_mm: int) -> bytes:
    """Return a page of HTML as PDF; raise ``GibberishError`` if it cannot be laid out."""
    html = _LONG_SPAN.sub(r"\g<1>1000", html)
    sheet = f"@page {{ size: {page} {'landscape' if landscape else 'portrait'}; margin: {margin_mm}mm }}"
    rules = [DEFAULT_CSS, _fonts(), _STYLE, "" if "@page" in html else sheet]  # of two for the page the first would win
    result, left_s = io.BytesIO(), xformd.deadline()
    policy = ResourceAccessPolicy.server(
        None,  # no folder
        allow_remote=False,
        extra_roots=(FONTS, *more_fonts),
        max_render_seconds=MAX_SECONDS if left_s is None else left_s,
        max_document_bytes=MAX_BYTES,
    )
    try:
        pisaDocument(html, dest=result, default_css="\n".join(rules), resource_policy=policy)
    except RenderLimitError as error:
        raise xformd.GibberishError(f"this page is too much: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # on odd pages it raises whatever it stumbles over
        raise xformd.GibberishError(f"this page cannot be laid out: {type(error).__name__}") from None
    return result.getvalue()


def _fonts() -> str:
    """Return the rules that load fonts; a family is asked for the characters that those before it lack."""
    more = {f"more{number}": path for number, path in enumerate(more_fonts)}
    faces = [_face(_FAMILIES, FONTS / f"SourceSansPro-{name}.ttf", rule) for name, rule in _FACES.items()]
    faces += [_face("Upright", FONTS / f"SourceSansPro-{name}.ttf", rule) for name, rule in _UPRIGHT.items()]
    faces += [_face(name, path) for name, path in more.items()]
    return "\n".join([*faces, f"html {{ font-family: {', '.join(['SourceSans', 'Upright', *more])} }}"])


def _face(families: str, path: Path, rule: str = "") -> str:
    return f'@font-face {{ font-family: {families}; src: url("{path}"); {rule} }}'
