"""Documents come out complete, and the same each time; hostile ones read no file and reach no server."""

import base64
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import docx
import pypdfium2
import pytest
from PIL import Image
from xformd_documents import DOCX, MAX_NESTING, Settings, html_to_pdf, markdown_to_docx, markdown_to_pdf, pdf_to_text
from xformd_documents import xformd_transforms as hook

import xformd
from xformd.kit.pytest_plugin import XformdServer

POEM = """\
# The Owl & the *Pussy-cat*

They took some **honey**, and ~~plenty of~~ `money`,\\
wrapped up in a [five-pound note](https://example.org/note). <b>Привет</b>

1. a pea-green boat
2. a small guitar

   - with strings

> O lovely Pussy!

| who | what |
|-----|-----:|
| Owl | sang |

```
dance = by("the light")
```

***

3. the moon

![a runcible spoon](spoon.png)
"""
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
SVG = f'<svg {NAMESPACES} width="90" height="90">{{}}</svg>'
LAUGHS = "".join(f'<!ENTITY a{number + 1} "{f"&a{number};" * 10}">' for number in range(8))
BOMB = "iVBORw0KGgoAAAANSUhEUgAA6mAAAOpgCAYAAACA0nVCAAAACUlEQVR4nGMAAAABAAFe/335AAAAAElFTkSuQmCC"
"""A PNG of 60,000 x 60,000 pixels."""
TAGS = ["p", "b", "i", "code", 'p style="font-family: Arial"', 'p style="font-family: sans-serif"']
EUROPE = "“naïve” — Größe… Ελληνικά Привет, ЖУК Việt Nam zł Łódź ő"
ODD = [
    *("", "\n", "\x00\x01\x0b\ufffe\uffff owl", "- ", "1.\n", "> ", "|a|\n|-|\n", "####### owl", "![](x)"),
    "- > - owl\n\n      code",
]

accesses: list[str] = []
"""What this process has opened or connected to, for the tests that listen."""


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen"):
        accesses.append(f"{event} {arguments}")


sys.addaudithook(_note)


def text_of(pdf: bytes) -> str:
    return pdf_to_text(pdf)


def size_of(pdf: bytes) -> tuple[int, int]:
    with pypdfium2.PdfDocument(pdf) as document:
        return tuple(round(points * 25.4 / 72) for points in document.get_page_size(0))


def count_pictures(pdf: bytes) -> int:
    with pypdfium2.PdfDocument(pdf) as document:
        page = document[0]
        number = sum(each.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE for each in page.get_objects(max_depth=9))
        page.close()
        return number


def svg(content: str, doctype: str = "") -> str:
    data = base64.b64encode((doctype + SVG.format(content)).encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}">'


def png(size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (12, 34, 56)).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with what a page must not show."""
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "secret.txt").write_text("SESAME")
    (tmp_path / "secret.css").write_text("p::before { content: 'SESAME' }")
    return tmp_path


def test_markdown_becomes_a_pdf_with_all_its_text() -> None:
    lines = text_of(markdown_to_pdf(POEM)).splitlines()
    assert {"The Owl & the Pussy-cat", "1. a pea-green boat", "3. the moon", "Owl sang"} <= {*lines}
    assert 'dance = by("the light")' in lines
    assert any("<b>Привет</b>" in line for line in lines)


@pytest.mark.parametrize("tag", TAGS)
def test_european_scripts_are_there(tag: str) -> None:
    assert text_of(html_to_pdf(f"<{tag}>{EUROPE}</{tag.split()[0]}>")) == EUROPE + "\n"


def test_more_fonts_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of the Symbola kind; here it is one that has no Cyrillic itself, and is asked for last."""
    import reportlab

    monkeypatch.setattr("xformd_documents.more_fonts", more := [])
    assert hook(Settings(fonts=[str(Path(reportlab.__file__).with_name("fonts") / "Vera.ttf")]))
    assert len(more) == 1
    assert text_of(html_to_pdf("<p>Привет</p>")) == "Привет\n"


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (210, 297)),
        ({"page": "a5"}, (148, 210)),
        ({"page": "letter"}, (216, 279)),
        ({"page": "a4", "landscape": True}, (297, 210)),
        ({"margin_mm": 0}, (210, 297)),
    ],
)
def test_paper_is_of_the_size_that_is_asked_for(options: dict[str, object], size: tuple[int, int]) -> None:
    assert size_of(html_to_pdf("<p>owl</p>", **options)) == size
    assert size_of(markdown_to_pdf("owl", **options)) == size


def test_the_style_of_a_page_stands_above_ours() -> None:
    pdf = html_to_pdf("<style>@page { size: a6; margin: 1cm } p { display: none }</style><p>owl</p><b>cat</b>")
    assert (size_of(pdf), text_of(pdf)) == ((105, 148), "cat\n")


def test_long_text_goes_on_on_the_next_page() -> None:
    pdf = html_to_pdf("<p>owl</p>" * 300)
    assert text_of(pdf).count("owl") == 300
    assert text_of(pdf).count("\f") > 3
    assert "owl" in pdf_to_text(pdf, first_page=2, last_page=2)


def test_a_picture_in_the_page_itself_is_shown() -> None:
    assert count_pictures(html_to_pdf(f'<img src="{data_url(png())}">')) == 1
    assert "owl" in text_of(html_to_pdf(svg('<text x="9" y="20">owl</text>')))


@pytest.mark.parametrize("make", [html_to_pdf, markdown_to_pdf, markdown_to_docx], ids=lambda each: each.name)
def test_the_same_poem_gives_the_same_bytes(make: xformd.Transform, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(POEM)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert make(POEM) == first


def test_text_of_a_page_that_is_missing_is_refused() -> None:
    pdf = markdown_to_pdf("owl")
    for options in ({"first_page": 2}, {"first_page": 2, "last_page": 1}, {"first_page": 9, "last_page": 9}):
        with pytest.raises(xformd.BadOptions, match="no page is chosen"):
            pdf_to_text(pdf, **options)
    assert pdf_to_text(pdf, last_page=99) == "owl\n"


@pytest.mark.parametrize("poem", [b"", b"The Owl", b"%PDF-1.7\n%%EOF", png(), b"%PDF-1.4\n" + b"\0" * 10_000])
def test_what_is_no_pdf_is_refused(poem: bytes) -> None:
    with pytest.raises(xformd.GibberishError, match="this is no PDF, or it is broken"):
        pdf_to_text(poem)


def test_a_pdf_with_a_password_is_refused() -> None:
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen.canvas import Canvas

    file = io.BytesIO()
    canvas = Canvas(file, encrypt=StandardEncryption("sesame"))
    canvas.drawString(99, 99, "The Owl")
    canvas.save()
    with pytest.raises(xformd.GibberishError, match="has a password"):
        pdf_to_text(file.getvalue())


def test_a_pdf_that_is_cut_short_is_text_or_refused() -> None:
    pdf = markdown_to_pdf(POEM)
    for length in range(0, len(pdf), len(pdf) // 40):
        try:
            pdf_to_text(pdf[:length])
        except xformd.GibberishError:
            continue


def hostile_pages(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield pages that ask for the secrets in a folder, and for a server, in each way that HTML, CSS and SVG have."""
    for place in (folder.as_uri(), str(folder), "http://127.0.0.1:9"):
        picture, sheet, text = (f"{place}/secret.{suffix}" for suffix in ("png", "css", "txt"))
        image = f'<image xlink:href="{picture}" width="50" height="50"/><text x="9" y="20">owl</text>'
        yield "img", f'<img src="{picture}"><input type="image" src="{picture}"><object data="{picture}"></object>'
        yield "odd", f'<img src="{picture.replace("http", "ftp")}"><img src="{picture.partition(":")[2]}">'
        yield "link", f'<link rel="stylesheet" href="{sheet}"><style>@import url({sheet}); @import "{sheet}";</style>'
        yield "css", f"<style>p, body, @page {{ background-image: url({picture}) }}</style><p>owl</p>"
        yield "page", f"<style>@page {{ background-image: url({picture}) }}</style>owl"
        yield "list", f"<style>li {{ list-style-image: url({picture}) }}</style><ul><li>owl</ul>"
        yield "font", f"<style>@font-face {{ font-family: x; src: url({picture}) }} p {{ font-family: x }}</style><p>x"
        yield "frame", f'<iframe src="{text}"></iframe><embed src="{text}"><script src="{text}"></script>'
        yield "pdf", f'<pdf:font name="x" src="{picture}"/><pdf:insertpdf src="{text}"/><pdf:signature src="{text}"/>'
        yield "base", f'<base href="{place}/"><img src="secret.png"><link rel="stylesheet" href="secret.css">'
        yield "svg", svg(image) + SVG.format(image)
        yield "svg-css", svg(f"<style>@import url({sheet});</style><text x='9' y='20'>owl</text>")
        yield "svg-use", svg(f'<use xlink:href="{place}/secret.svg#a"/><text x="9" y="20">owl</text>')
        yield "xxe", svg("<text x='9' y='20'>owl &x;</text>", f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{text}">]>')
        yield "dtd", svg("<text x='9' y='20'>owl</text>", f'<!DOCTYPE svg SYSTEM "{text}">')


def test_a_page_reads_no_file_and_reaches_no_server(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way it asks, and also if the file lies beside it."""
    monkeypatch.chdir(secrets)
    html_to_pdf("<p>owl</p>")
    for way, page in [*hostile_pages(secrets), ("relative", '<img src="secret.png"><img src="./secret.png">')]:
        accesses.clear()
        try:
            pdf = html_to_pdf(f"<p>went to sea</p>{page}")
        except xformd.GibberishError:
            pdf = b""
        assert not [each for each in accesses if str(secrets) in each or not each.startswith("open ")], way
        if pdf:
            assert ("SESAME" in text_of(pdf), count_pictures(pdf)) == (False, 0), way


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 250 + "owl",
        svg("<text>&a8;</text>", f'<!DOCTYPE svg [<!ENTITY a0 "owl">{LAUGHS}]>'),
        f'<img src="{data_url(b"broken")}">',
        f'<img src="{data_url(base64.b64decode(BOMB))}">',
        "<table><tr><td colspan=999999999 rowspan='999999999'>owl</td></tr></table>",
        "<style>@page { size: 1e9px 1e9px; margin: 99999mm }</style>owl",
        "<p style='font-size: 99999999pt; width: 1e12px; margin-left: -1e9px'>owl</p>",
        "owl" * 50_000,
        "<style>" + "a{" * 5_000,
        "\0\x01<p>\ufffe",
        '<pdf:barcode value="owl" type="qr"/>',
    ],
    ids=["deep", "laughs", "broken", "bomb", "span", "paper", "lengths", "word", "rules", "control", "barcode"],
)
def test_odd_pages_are_laid_out_or_refused_soon(page: str) -> None:
    before = time.process_time()
    try:
        assert html_to_pdf(page).startswith(b"%PDF")
    except xformd.GibberishError as error:
        assert "this page" in str(error)  # noqa: PT017 - it may be laid out
    assert time.process_time() - before < 5


def read(made: bytes) -> docx.document.Document:
    return docx.Document(io.BytesIO(made))


def test_markdown_becomes_a_docx_with_its_structure() -> None:
    document = read(markdown_to_docx(POEM))
    shown = [(each.style.name, each.text) for each in document.paragraphs]
    for expected in [
        ("Heading 1", "The Owl & the Pussy-cat"),
        ("List Number", "a pea-green boat"),
        ("List Bullet 2", "with strings"),
        ("Quote", "O lovely Pussy!"),
        ("macro", 'dance = by("the light")'),
        ("Normal", "a runcible spoon"),
    ]:
        assert expected in shown
    text = "They took some honey, and plenty of money,\nwrapped up in a five-pound note. <b>Привет</b>"
    assert ("Normal", text) in shown
    runs = {run.text: run.font for each in document.paragraphs for run in each.runs}
    assert (runs["honey"].bold, runs["Pussy-cat"].italic, runs["plenty of"].strike) == (True, True, True)
    (link,) = (link for each in document.paragraphs for link in each.hyperlinks)
    assert (link.text, link.url) == ("five-pound note", "https://example.org/note")
    (table,) = document.tables
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["who", "what"], ["Owl", "sang"]]
    assert (document.core_properties.title, document.core_properties.author) == ("The Owl & the Pussy-cat", "")


def test_each_numbered_list_of_a_docx_counts_for_itself() -> None:
    document = read(markdown_to_docx("1. owl\n2. cat\n\npea\n\n1. sea\n\npig\n\n7. ring\n"))
    numbers = [each._p.pPr.numPr.numId.val for each in document.paragraphs if each.style.name == "List Number"]
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 3
    counts = document.part.numbering_part.element.num_lst[-3:]
    starts = {each.numId: each.lvlOverride_lst[0].startOverride.val for each in counts}
    assert [starts[number] for number in numbers] == [1, 1, 1, 7]


@pytest.mark.parametrize("target", ["javascript:alert(1)", "file:///etc/passwd", "vbscript:x", "data:text/html,x"])
def test_a_link_of_a_docx_cannot_run_or_open_a_file(target: str) -> None:
    assert not [link for each in read(markdown_to_docx(f"[owl]({target})")).paragraphs for link in each.hyperlinks]


@pytest.mark.parametrize("poem", ODD)
def test_odd_markdown_becomes_a_docx_and_a_pdf(poem: str) -> None:
    assert read(markdown_to_docx(poem))
    assert markdown_to_pdf(poem).startswith(b"%PDF")


@pytest.mark.parametrize("make", [markdown_to_pdf, markdown_to_docx], ids=lambda each: each.name)
def test_markdown_that_is_nested_too_deeply_is_refused(make: xformd.Transform) -> None:
    assert make(">" * 20 + "owl")
    with pytest.raises(xformd.GibberishError, match=f"more than {MAX_NESTING} levels deep"):
        make(">" * 20_000 + "owl")


@pytest.mark.parametrize("part", ["- owl\n", "1. owl\n2) cat\n", "owl\n\n", "[owl](sea{n}) ", "**owl** ", "# owl\n"])
def test_a_docx_takes_linear_time(part: str) -> None:

    def cpu_s(count: int) -> float:
        before = time.process_time()
        markdown_to_docx("".join(part.replace("{n}", str(number)) for number in range(count)))
        return time.process_time() - before

    few_s, many_s = (min(cpu_s(count) for _ in range(3)) for count in (100, 400))
    assert many_s < 8 * few_s


def post(server: str, spec: str, poem: bytes) -> tuple[int, str, bytes]:
    request = Request(f"{server}/transform/{spec}", poem, {"Content-Type": "application/octet-stream"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_a_server_turns_documents_into_others(xformd_server: XformdServer) -> None:
    status, media_type, pdf = post(xformd_server.http, "markdown-to-pdf?page=a5", POEM.encode())
    assert (status, media_type, size_of(pdf)) == (200, "application/pdf", (148, 210))
    assert post(xformd_server.http, "markdown-to-docx", POEM.encode())[:2] == (200, DOCX)
    status, _, text = post(xformd_server.http, "html-to-pdf+pdf-to-text+upper", b"<p>The Owl</p>")
    assert (status, text) == (200, b"THE OWL\n")
    status, _, problem = post(xformd_server.http, "markdown-to-pdf+upper", b"")
    assert (status, b"markdown-to-pdf produces application/pdf" in problem) == (400, True)
