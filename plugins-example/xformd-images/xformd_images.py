"""Transforms of pictures, by Pillow: thumbnails, other formats, and JPEGs without metadata.

A picture may come from a stranger. Only formats that Pillow decodes itself are read, nothing is decoded before the
header has said how many pixels there are, and no result carries metadata over.

What a transform produces is one media type, so each format has a transform of its own: ``to-jpeg``, not ``convert``
with an option for the format. A thumbnail is WebP, which is small, can be transparent and shows in every browser.
"""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Annotated, Literal

from annotated_types import Ge, Le
from PIL import Image, ImageCms, ImageOps

import xformd

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow knows 40 more: some of them run other programs, and few of their decoders are looked at by many."""

MAX_MEGAPIXELS = 64
"""More than phones take. As red, green, blue and alpha this is 256 MB."""

MAX_SIDE = {"WEBP": 16383, "JPEG": 65535}
"""Their headers have no room for more."""

Side = Annotated[int, Ge(1), Le(4096)]
Quality = Annotated[int, Ge(1), Le(100)]

_NO_PICTURE = "this is no picture that can be read: send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"


def load() -> None:
    """Import Pillow's decoders, which it does on the first picture otherwise."""
    Image.init()


@xformd.transform(accepts="image/*", produces="image/webp", warm_up=load)
def thumbnail(
    poem: bytes, *, width: Side = 256, height: Side = 256, crop: bool = False, quality: Quality = 80
) -> bytes:
    """Make a small WebP of a picture, upright and in its proportions.

    Args:
        poem: a picture. The first frame is taken if it moves.
        width: the most pixels across.
        height: the most pixels down.
        crop: fill width and height exactly, and cut off what stands over. Otherwise nothing is cut or enlarged.
        quality: of the WebP; more is larger.

    Raises:
        xformd.GibberishError: this is no picture, it is broken, or it has more than 64 megapixels.
    """
    image = _read(poem, side=max(width, height))
    if crop:
        image = ImageOps.fit(image, (width, height))
    else:
        image.thumbnail((width, height))
    return _write(image, "WEBP", quality=quality)


@xformd.transform(accepts="image/*", produces="image/jpeg", warm_up=load)
def to_jpeg(poem: bytes, *, quality: Quality = 85, background: Literal["white", "black"] = "white") -> bytes:
    """Turn a picture into a JPEG, upright and without metadata.

    Args:
        poem: a picture. The first frame is taken if it moves.
        quality: of the JPEG; more is larger.
        background: what shows where the picture is transparent, which a JPEG cannot be.

    Raises:
        xformd.GibberishError: this is no picture, it is broken, or it has more than 64 megapixels.
    """
    image = _read(poem)
    if image.mode == "RGBA":
        flat = Image.new("RGB", image.size, background)
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    return _write(image, "JPEG", quality=quality, optimize=True)


@xformd.transform(
    accepts="image/*",
    produces="image/png",
    warm_up=load,
    examples=[
        (
            b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"
            b"\x00\x00\x00\x0cIDATx\x9cc```\x00\x00\x00\x04\x00\x01\xf6\x178U\x00\x00\x00\x00IEND\xaeB`\x82",
        )
    ],
)
def to_png(poem: bytes) -> bytes:
    """Turn a picture into a PNG, upright and without metadata. No pixel is lost.

    Args:
        poem: a picture. The first frame is taken if it moves.

    Raises:
        xformd.GibberishError: this is no picture, it is broken, or it has more than 64 megapixels.
    """
    return _write(_read(poem), "PNG")


@xformd.transform(accepts="image/*", produces="image/webp", warm_up=load)
def to_webp(poem: bytes, *, quality: Quality = 80, lossless: bool = False) -> bytes:
    """Turn a picture into a WebP, upright and without metadata.

    Args:
        poem: a picture. The first frame is taken if it moves.
        quality: of the WebP; more is larger. If it is lossless, more takes longer and is smaller.
        lossless: keep every pixel as it is.

    Raises:
        xformd.GibberishError: this is no picture, it is broken, or it has more than 64 megapixels.
    """
    return _write(_read(poem), "WEBP", quality=quality, lossless=lossless)


def _read(poem: bytes, *, side: int | None = None) -> Image.Image:
    """Decode a picture as RGB or RGBA, upright, in sRGB; at least ``side`` pixels of each side if it has them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is broken, and sizes that are refused below
            image = Image.open(io.BytesIO(poem), formats=FORMATS)
            if image.width * image.height > MAX_MEGAPIXELS * 1_000_000:
                raise Image.DecompressionBombError  # as Pillow does above its own limit, which is higher
            if side is not None:
                image.draft(None, (2 * side, 2 * side))  # an eighth of a JPEG's pixels can be decoded alone
            ImageOps.exif_transpose(image, in_place=True)
            return _in_srgb(image)
    except Image.UnidentifiedImageError:
        raise xformd.GibberishError(_NO_PICTURE) from None
    except Image.DecompressionBombError:
        raise xformd.GibberishError(f"the picture has more than {MAX_MEGAPIXELS} megapixels") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise xformd.GibberishError(f"the picture is cut short or broken: {error}") from None


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        try:
            made = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode
            )
            return made if made is not None else image
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a profile that is broken, or of another kind of picture, says nothing about these colours
    return image.convert(mode)


def _write(image: Image.Image, kind: str, **settings: object) -> bytes:
    if max(image.size) > MAX_SIDE.get(kind, max(image.size)):
        limit = f"{kind.capitalize()} holds at most {MAX_SIDE[kind]} pixels a side"
        raise xformd.GibberishError(f"the picture has {image.width} x {image.height} pixels, and {limit}")
    image.info.clear()  # comments, profiles and the like, some of which Pillow would write again
    result = io.BytesIO()
    image.save(result, kind, **settings)
    return result.getvalue()


# Parts of a JPEG (ITU T.81, table B.1): what a decoder needs, and of the applications' parts those that change colours.
_NEEDED = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF}
_SOI, _EOI, _SOS, _APP0, _APP1 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1
_COLOURS = {0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JFIF_BYTES = 14
"""Of the part JFIF, without the small picture that may follow."""
_ORIENTATION = 0x0112


@xformd.transform(
    accepts="image/jpeg",
    produces="image/jpeg",
    deterministic=True,
    examples=[(b"\xff\xd8\xff\xfe\x00\x0bby an owl\xff\xd9", b"\xff\xd8\xff\xd9")],
)
def strip_metadata(poem: bytes) -> bytes:
    """Remove from a JPEG where, when and by whom it was taken, without encoding it again.

    Its pixels stay as they are. So do its colour profile, and which side is up.

    Args:
        poem: a JPEG. Of other pictures, to-png keeps the pixels and nothing else.

    Raises:
        xformd.GibberishError: this is no JPEG, or it is cut short.
    """
    parts = [b"\xff\xd8"]
    orientation = b""
    for code, part in _parts_of(poem):
        if code == _APP0 and part[4:9] == b"JFIF\0" and len(part) >= 4 + _JFIF_BYTES:
            parts.append(b"\xff\xe0" + struct.pack(">H", 2 + _JFIF_BYTES) + part[4:16] + b"\0\0")
        elif code == _APP1 and part[4:10] == b"Exif\0\0":
            orientation = orientation or _only_orientation(part[4:])
        elif code in _NEEDED or (code in _COLOURS and part[4:].startswith(_COLOURS[code])):
            parts += [orientation, part]
            orientation = b""
    return b"".join([*parts, b"\xff\xd9"])


def _parts_of(poem: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each part's code and bytes, up to the end of the picture: what follows that is something else."""
    if not poem.startswith(b"\xff\xd8\xff"):
        raise xformd.GibberishError("this is no JPEG: to-png keeps the pixels of other pictures, and nothing else")
    start, cut_short = 2, xformd.GibberishError("the JPEG is cut short or broken")
    while (found := _NEXT_MARKER.search(poem, start)) is not None and poem[found.end() - 1] != _EOI:
        start, code = found.start(), poem[found.end() - 1]
        end = start + 2 + int.from_bytes(poem[start + 2 : start + 4])
        if not start + 4 <= end <= len(poem):
            raise cut_short
        if code == _SOS:  # the pixels follow, up to a marker that is none of theirs
            after = _NEXT_MARKER.search(poem, end)
            end = len(poem) if after is None else after.start()
        yield code, poem[start:end]
        start = end
    if found is None:
        raise cut_short


def _only_orientation(exif: bytes) -> bytes:
    """Return a part that says only which side is up; nothing if that is the first row of pixels."""
    read, made = Image.Exif(), Image.Exif()
    try:
        read.load(exif)
        orientation = read.get(_ORIENTATION)
    except Exception:  # broken metadata, which goes away as all other does
        return b""
    if orientation not in range(2, 9):
        return b""
    made[_ORIENTATION] = orientation
    content = made.tobytes()
    return b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    """Return the transforms of this plugin."""
    return [thumbnail, to_jpeg, to_png, to_webp, strip_metadata]
