"""Transforms for the tests of the page, whose results have a media type."""

import struct
import zlib

import xformd

SIDE = 256
PDF_BEGINNING = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@xformd.transform(produces="image/png")
def pattern(poem: bytes, *, shade: int = 120) -> bytes:
    """Draw a pattern that depends on the poem.

    Args:
        poem: any bytes.
        shade: how much blue there is in it, 0 to 255.
    """
    seed = zlib.crc32(poem)
    rows = bytearray()
    for y in range(SIDE):
        rows.append(0)  # no filter
        for x in range(SIDE):
            rows += bytes(((x ^ y ^ seed) & 255, (x + y) & 255, shade))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(bytes(rows))), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@xformd.transform(produces="image/png")
def no_picture(poem: bytes) -> bytes:
    """Say that it is a picture, where it is none."""
    return poem


@xformd.transform(produces="image/svg+xml")
def badge(poem: str) -> str:
    """Write the poem onto a badge, with whatever markup it has."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="200" height="60"><text y="40">x</text>{poem}</svg>'


@xformd.transform(produces="text/html")
def page(poem: str) -> str:
    """Set the poem as a page, with whatever markup it has."""
    return f"<!doctype html><html lang=en><title>Poem</title><h1>A poem</h1><p>{poem}</p></html>"


@xformd.transform(produces="application/pdf")
def pdf(poem: bytes) -> bytes:
    """Begin like a PDF file."""
    return PDF_BEGINNING + poem


@xformd.transform
def pass_on(poem: bytes) -> bytes:
    """Change nothing."""
    return poem


@xformd.transform(produces="text/csv")
def table(poem: str) -> str:
    """Put a comma after each word."""
    return ",".join(poem.split())


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [pattern, no_picture, badge, page, pdf, pass_on, table]
