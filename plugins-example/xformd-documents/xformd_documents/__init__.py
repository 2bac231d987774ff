"""Transforms of documents: HTML and Markdown to PDF, PDF to text, Markdown to DOCX.

A document may come from a stranger. None reads a file or an address that it names, and the same document gives the
same bytes, whenever it is made.
"""

import html
import importlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import attrs
from annotated_types import Ge, Le
from markdown_it import MarkdownIt
from markdown_it.token import Token

import xformd

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"

MAX_NESTING = 100
"""Of quotes and lists. Past its own limit, which must be two above this one, markdown-it drops text silently."""

Page = Literal["a3", "a4", "a5", "letter", "legal"]
Margin = Annotated[int, Ge(0), Le(100)]

_parser = MarkdownIt("default", {"html": False, "maxNesting": MAX_NESTING + 2})


@attrs.frozen
class Settings:
    """What an operator may set in ``[plugin."xformd-documents"]``.

    Args:
        fonts: paths of TrueType files for what Source Sans Pro lacks, such as Chinese, the preferred ones first.
    """

    fonts: list[str] = attrs.field(factory=list)


def load_pdf() -> None:
    """Import what lays pages out, which takes half a second."""
    importlib.import_module("xformd_documents.pdf")


def load_text() -> None:
    """Load what reads PDFs."""
    importlib.import_module("xformd_documents.text")


def load_docx() -> None:
    """Import what writes DOCX."""
    importlib.import_module("xformd_documents.docx")


@xformd.transform(accepts="text/html", produces="application/pdf", warm_up=load_pdf)
def html_to_pdf(poem: str, *, page: Page = "a4", landscape: bool = False, margin_mm: Margin = 20) -> bytes:
    """Lay out a page of HTML with its CSS as PDF.

    Pictures are those that the page contains as data: nothing is fetched, and no file is read.

    Args:
        poem: HTML. A rule for @page in it is taken instead of the options.
        page: the size of the paper.
        landscape: whether the paper lies on its long side.
        margin_mm: around the text, in millimetres.

    Raises:
        xformd.GibberishError: the page cannot be laid out.
    """
    from xformd_documents import pdf  # here, so that only those who make a PDF wait for it

    return pdf.lay_out(poem, page=page, landscape=landscape, margin_mm=margin_mm)


@xformd.transform(accepts="text/markdown", produces="application/pdf", warm_up=load_pdf)
def markdown_to_pdf(poem: str, *, page: Page = "a4", landscape: bool = False, margin_mm: Margin = 20) -> bytes:
    """Lay out Markdown as PDF.

    Args:
        poem: Markdown, with tables. HTML in it stays text; pictures are left out.
        page: the size of the paper.
        landscape: whether the paper lies on its long side.
        margin_mm: around the text, in millimetres.

    Raises:
        xformd.GibberishError: quotes and lists are nested more than 100 levels deep.
    """
    from xformd_documents import pdf

    tokens = parse(poem)
    title = f"<title>{html.escape(title_of(tokens))}</title>"
    body = _parser.renderer.render(tokens, _parser.options, {})
    return pdf.lay_out(title + body, page=page, landscape=landscape, margin_mm=margin_mm)


@xformd.transform(accepts="text/markdown", produces=DOCX, warm_up=load_docx)
def markdown_to_docx(poem: str) -> bytes:
    """Turn Markdown into a document for Word and LibreOffice.

    Args:
        poem: Markdown, with tables. HTML in it stays text; of a picture, its description is shown.

    Raises:
        xformd.GibberishError: quotes and lists are nested more than 100 levels deep.
    """
    from xformd_documents import docx

    tokens = parse(poem)
    return docx.write(tokens, title_of(tokens))


@xformd.transform(
    accepts="application/pdf",
    warm_up=load_text,
    examples=[
        (
            b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
            b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 30]/Contents 4 0 R/Resources<</Font<</F<</Type/Font"
            b"/Subtype/Type1/BaseFont/Helvetica>>>>>>>>endobj\n"
            b"4 0 obj<</Length 34>>stream\nBT /F 12 Tf 9 9 Td (The Owl) Tj ET\nendstream endobj\n"
            b"trailer<</Root 1 0 R>>\n%%EOF\n",
            "The Owl\n",
        )
    ],
)
def pdf_to_text(
    poem: bytes, *, first_page: Annotated[int, Ge(1)] = 1, last_page: Annotated[int, Ge(1)] | None = None
) -> str:
    """Take the text out of a PDF.

    Args:
        poem: a PDF. One that was scanned has no text.
        first_page: the number of the first page to take, from 1.
        last_page: the number of the last one; all if it is left out.

    Returns:
        The text of each page; a form feed stands between two pages.

    Raises:
        xformd.GibberishError: this is no PDF, or it is broken or has a password.
        xformd.BadOptions: it has no such page.
    """
    from xformd_documents import text

    return text.extract(poem, first_page, last_page)


def parse(poem: str) -> list[Token]:
    """Return the tokens of Markdown; raise ``GibberishError`` if they are nested too deeply."""
    tokens = _parser.parse(poem)
    if any(token.level > MAX_NESTING for token in tokens):
        raise xformd.GibberishError(f"quotes and lists are nested more than {MAX_NESTING} levels deep")
    return tokens


def title_of(tokens: list[Token]) -> str:
    """Return the text of the first heading."""
    heading = next((after for token, after in pairwise(tokens) if token.type == "heading_open"), None)
    return "" if heading is None else _parser.renderer.renderInlineAsText(heading.children, _parser.options, {})


@xformd.hookimpl
def xformd_settings() -> type:
    """Return the class of this plugin's settings."""
    return Settings


@xformd.hookimpl
def xformd_transforms(settings: Settings) -> Iterable[xformd.Transform]:
    """Return the transforms of this plugin."""
    more_fonts[:] = map(Path, settings.fonts)
    return [html_to_pdf, markdown_to_pdf, markdown_to_docx, pdf_to_text]


more_fonts: list[Path] = []
"""Of the settings, for the workers, which are forked from the process that has loaded this module."""
