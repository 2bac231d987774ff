"""Markdown to DOCX by python-docx, on the styles of its template, which a reader can change in one place."""

import datetime
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import docx
from docx.document import Document
from docx.enum.text import WD_ALIGN_PARAGRAPH
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from docx.oxml.numbering import CT_Num
from docx.shared import RGBColor
from docx.table import _Cell
from docx.text.paragraph import Paragraph
from docx.text.run import Run
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode

MADE = datetime.datetime(2000, 1, 1)
"""Of every document, and of every file in it: the same poem gives the same bytes."""

MAX_LEVELS = 3
"""Of lists that the template has styles for; those below look like the third."""

_LINK_COLOUR = RGBColor(0x05, 0x63, 0xC1)
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FORMATS = {"strong": "bold", "em": "italic", "s": "strike"}
_ALIGNMENTS = {"text-align:right": WD_ALIGN_PARAGRAPH.RIGHT, "text-align:center": WD_ALIGN_PARAGRAPH.CENTER}


def write(tokens: list[Token], title: str) -> bytes:
    """Return Markdown as DOCX."""
    document = docx.Document()
    properties = document.core_properties
    properties.title, properties.author, properties.comments = _clean(title)[:255], "", ""
    properties.created = properties.modified = MADE
    _Writer(document).write(SyntaxTreeNode(tokens).children)
    made = io.BytesIO()
    document.save(made)
    return _without_times(made)


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", text)


def _without_times(made: io.BytesIO) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name, MADE.timetuple()[:6]), source.read(name), zipfile.ZIP_DEFLATED)
    return result.getvalue()


class _Writer:
    """Writes blocks of Markdown to the end of a document.

    Args:
        document: where to.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._end = document.element.body.sectPr
        self._styles: dict[str, str] = {each.name: each.style_id for each in document.styles}
        self._numbers: list[CT_Num] = document.part.numbering_part.element.num_lst
        self._last_number = max(self._numbers, key=lambda each: each.numId)
        self._kinds: dict[str, int] = {}
        self._links: dict[str, str] = {}

    def write(self, blocks: Iterable[SyntaxTreeNode], style: str = "Normal", level: int = 0) -> None:
        """Write blocks; ``style`` is that of their paragraphs, ``level`` that of the list around them."""
        for block in blocks:
            match block.type:
                case "paragraph" | "heading":
                    chosen = style if block.type == "paragraph" else f"Heading {block.tag[1]}"
                    self._write_text(self._start(chosen), block)
                case "bullet_list" | "ordered_list":
                    self._write_list(block, level + 1)
                case "blockquote":
                    self.write(block.children, "Quote", level)
                case "fence" | "code_block":
                    self._start("macro").add_run(_clean(block.content.removesuffix("\n")))
                case "table":
                    self._write_table(block)
                case "hr":
                    _draw_line_below(self._start("Normal"))

    def _start(self, style: str) -> Paragraph:
        # Document.add_paragraph() looks for the end and for the style each time, which is quadratic in all.
        element = OxmlElement("w:p")
        self._end.addprevious(element)
        if style != "Normal":
            element.style = self._styles[style]
        return Paragraph(element, self._document._body)

    def _write_list(self, block: SyntaxTreeNode, level: int) -> None:
        depth = "" if level == 1 else f" {min(level, MAX_LEVELS)}"
        is_ordered = block.type == "ordered_list"
        style = f"List {'Number' if is_ordered else 'Bullet'}{depth}"
        number = self._number_from(int(block.attrs.get("start", 1)), style) if is_ordered else None
        for item in block.children:
            paragraph, rest = self._start(style), item.children
            if number is not None:
                numbering = paragraph._p.get_or_add_pPr().get_or_add_numPr()
                numbering.get_or_add_ilvl().val, numbering.get_or_add_numId().val = 0, number
            if rest and rest[0].type == "paragraph":
                self._write_text(paragraph, rest[0])
                rest = rest[1:]
            self.write(rest, f"List Continue{depth}", level)

    def _number_from(self, start: int, style: str) -> int:
        """Return the id of a new count: all lists of a style go on counting otherwise."""
        if style not in self._kinds:
            base = self._document.styles[style].element.pPr.numPr.numId.val
            (self._kinds[style],) = (each.abstractNumId.val for each in self._numbers if each.numId == base)
        count = CT_Num.new(self._last_number.numId + 1, self._kinds[style])
        count.add_lvlOverride(ilvl=0).add_startOverride(start)
        self._last_number.addnext(count)  # add_num() looks through all that there are
        self._last_number = count
        return count.numId

    def _write_table(self, block: SyntaxTreeNode) -> None:
        rows = [row for part in block.children for row in part.children]
        table = self._document.add_table(len(rows), len(rows[0].children), "Table Grid")
        for row, made in zip(rows, table.rows, strict=True):
            for cell, place in zip(row.children, made._tr.tc_lst, strict=False):
                paragraph = _Cell(place, table).paragraphs[0]
                paragraph.alignment = _ALIGNMENTS.get(str(cell.attrs.get("style", "")))
                self._write_text(paragraph, cell, **{"bold": True} if cell.type == "th" else {})

    def _write_text(self, paragraph: Paragraph, block: SyntaxTreeNode, **formats: Any) -> None:
        for inline in block.children:
            self._write_spans(paragraph, inline.children, formats)

    def _write_spans(self, place: Any, spans: Iterable[SyntaxTreeNode], formats: Mapping[str, Any]) -> None:
        """Write spans to a paragraph, or to a link in one."""
        for span in spans:
            match span.type:
                case "strong" | "em" | "s":
                    self._write_spans(place, span.children, {**formats, _FORMATS[span.type]: True})
                case "link":
                    self._write_spans(self._link(place, str(span.attrs["href"])), span.children, formats)
                case "softbreak":
                    _add_run(place, " ", formats)
                case "hardbreak":
                    _add_run(place, "\n", formats)
                case "code_inline":
                    _add_run(place, span.content, {**formats, "name": "Courier New"})
                case _:  # text; of a picture, its description
                    _add_run(place, span.content, formats)

    def _link(self, place: Any, target: str) -> "_Link":
        element = OxmlElement("w:hyperlink")
        if target not in self._links:  # relate_to() looks through all that there are
            self._links[target] = f"link{len(self._links)}"
            kind = RELATIONSHIP_TYPE.HYPERLINK
            self._document.part.rels.add_relationship(kind, _clean(target), self._links[target], is_external=True)
        element.set(qn("r:id"), self._links[target])
        place._p.append(element)
        return _Link(element)


@attrs.frozen
class _Link:
    """Where the runs of a link go, as those of a paragraph go to it."""

    _p: Any = attrs.field(alias="_p")


def _add_run(place: Any, text: str, formats: Mapping[str, Any]) -> None:
    element = OxmlElement("w:r")
    place._p.append(element)
    run = Run(element, place)
    run.text = _clean(text)
    for name, value in formats.items():
        setattr(run.font, name, value)
    if isinstance(place, _Link):
        run.font.underline, run.font.color.rgb = True, _LINK_COLOUR


def _draw_line_below(paragraph: Paragraph) -> None:
    borders, line = OxmlElement("w:pBdr"), OxmlElement("w:bottom")
    for name, value in {"val": "single", "sz": "6", "space": "1", "color": "999999"}.items():
        line.set(qn(f"w:{name}"), value)
    borders.append(line)
    paragraph._p.get_or_add_pPr().append(borders)
