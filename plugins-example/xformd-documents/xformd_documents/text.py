"""PDF to text by PDFium, which Chromium has for them."""

import pypdfium2
import pypdfium2.raw

import xformd

_HYPHENS = {0x02: "-", 0xFFFE: "-"}
"""What PDFium has for one at the end of a line."""


def extract(pdf: bytes, first_page: int, last_page: int | None) -> str:
    """Return the text of these pages, from 1, with a form feed between two."""
    try:
        with pypdfium2.PdfDocument(pdf) as document:
            count = len(document)
            last_page = count if last_page is None else min(last_page, count)
            if first_page > last_page:
                raise xformd.BadOptions(f"pdf-to-text: no page is chosen: first_page is {first_page}, of {last_page}")
            return "\f".join(_text_of(document, number - 1) for number in range(first_page, last_page + 1))
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise xformd.GibberishError("this PDF has a password: remove it first") from None
        raise xformd.GibberishError("this is no PDF, or it is broken") from None


def _text_of(document: pypdfium2.PdfDocument, index: int) -> str:
    page = document[index]
    reader = page.get_textpage()
    try:
        text = reader.get_text_range().replace("\r\n", "\n").translate(_HYPHENS)
    finally:
        reader.close()
        page.close()
    return text if not text or text.endswith("\n") else text + "\n"
