"""Pictures come out small, upright, in the right colours and without metadata; those of an attacker do not come in."""

import io
import random
import struct
import tracemalloc
import zlib
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image, ImageCms
from xformd_images import FORMATS, strip_metadata, thumbnail, to_jpeg, to_png, to_webp

import xformd
from xformd.kit.pytest_plugin import XformdServer

TRANSFORMS = [thumbnail, to_jpeg, to_png, to_webp, strip_metadata]
MAKERS = [thumbnail, to_jpeg, to_png, to_webp]
ORIENTATION, MAKE, GPS = 0x0112, 0x010F, 0x8825
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}


def picture(kind: str = "PNG", image: Image.Image | None = None, **settings: object) -> bytes:
    """Return a file of this format: red above, blue below, 40 x 30 pixels."""
    if image is None:
        image = Image.new("RGB", (40, 30), "red")
        image.paste("blue", (0, 15, 40, 30))
    file = io.BytesIO()
    image.save(file, kind, **{**LOSSLESS.get(kind, {}), **settings})
    return file.getvalue()


def photograph(orientation: int = 1) -> bytes:
    """Return a JPEG as a telephone makes it: with its make, its place, a comment and a profile."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Owl & Pussy-cat"
    exif.get_ifd(GPS)[1] = "N"
    return picture("JPEG", exif=exif, comment=b"went to sea", icc_profile=SRGB, quality=95)


def opened(result: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(result))
    image.load()
    return image


def is_close(pixel: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return all(abs(one - other) < 12 for one, other in zip(pixel, expected, strict=True))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiny_png(width: int, height: int, *more: bytes) -> bytes:
    """Return a PNG of a few bytes that says it is this large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def tiny_webp(side: int) -> bytes:
    """Return a moving WebP of 90 bytes on a canvas of this side."""
    frame = bytes(6) + struct.pack("<I", 8)[:3] * 2 + bytes(4) + picture("WEBP", Image.new("RGB", (9, 9)))[12:]
    canvas = b"\2\0\0\0" + struct.pack("<I", side - 1)[:3] * 2
    parts = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))
    content = b"WEBP" + b"".join(kind + struct.pack("<I", len(part)) + part for kind, part in parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("make", "made"), [(to_jpeg, "JPEG"), (to_png, "PNG"), (to_webp, "WEBP"), (thumbnail, "WEBP")])
def test_each_format_becomes_each_other(make: xformd.Transform, made: str, kind: str) -> None:
    result = opened(make(picture(kind)))
    assert (result.format, result.size) == (made, (40, 30))
    assert is_close(result.getpixel((20, 3)), (255, 0, 0))
    assert is_close(result.getpixel((20, 26)), (0, 0, 255))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"width": 20}, (20, 15)),
        ({"height": 15}, (20, 15)),
        ({"width": 20, "height": 3}, (4, 3)),
        ({"width": 1, "height": 1}, (1, 1)),
        ({"width": 4096, "height": 4096}, (40, 30)),
        ({"width": 20, "height": 20, "crop": True}, (20, 20)),
        ({"width": 80, "height": 50, "crop": True}, (80, 50)),
    ],
)
def test_a_thumbnail_fits_into_its_box(options: dict[str, int], size: tuple[int, int]) -> None:
    assert opened(thumbnail(picture(), **options)).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_comes_out_upright(orientation: int) -> None:
    """Its pixels are turned, so that no viewer need know the field of the metadata."""
    turned = opened(picture("JPEG", quality=95))
    shown = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}
    expected = turned.transpose(shown[orientation]) if orientation in shown else None
    for make in MAKERS:
        result = opened(make(photograph(orientation)))
        assert result.size == ((40, 30) if orientation < 5 else (30, 40))
        assert not result.getexif()
        if expected is not None:
            assert is_close(result.convert("RGB").getpixel((4, 4)), expected.getpixel((4, 4)))


@pytest.mark.parametrize("make", TRANSFORMS, ids=lambda each: each.name)
def test_nothing_tells_who_took_it_and_where(make: xformd.Transform) -> None:
    result = make(photograph() + b"PK\x03\x04 and a film beside it")
    for secret in (b"Pussy-cat", b"went to sea", b"GPS", b"PK\x03\x04"):
        assert secret not in result
    exif = opened(result).getexif()
    assert (dict(exif), dict(exif.get_ifd(GPS))) == ({}, {})


def test_pngs_lose_their_texts_and_profiles_too() -> None:
    poem = picture(icc_profile=SRGB, dpi=(72, 72), exif=Image.Exif())
    poem = poem[:33] + chunk(b"tEXt", b"Author\0an owl") + poem[33:]
    result = to_png(poem)
    assert b"an owl" not in result
    assert b"iCCP" not in result
    assert opened(result).tobytes() == opened(poem).tobytes()


def test_colours_are_those_of_the_profile() -> None:
    """A viewer without colour management shows the result as others show the poem."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    with_other_profile, broken = picture(icc_profile=lab), picture(icc_profile=b"no profile")
    for poem in (with_other_profile, broken):
        assert opened(to_png(poem)).getpixel((1, 1)) == (255, 0, 0)
    assert opened(to_png(picture(icc_profile=SRGB))).getpixel((1, 1)) == (255, 0, 0)


def test_transparency_is_kept_where_it_can_be() -> None:
    image = Image.new("RGBA", (9, 9), (0, 255, 0, 0))
    assert opened(thumbnail(picture(image=image))).getpixel((4, 4))[3] == 0
    assert is_close(opened(to_jpeg(picture(image=image))).getpixel((4, 4)), (255, 255, 255))
    assert is_close(opened(to_jpeg(picture(image=image), background="black")).getpixel((4, 4)), (0, 0, 0))
    palette = picture("GIF", image.convert("P"), transparency=image.convert("P").getpixel((4, 4)))
    assert opened(to_png(palette)).getpixel((4, 4))[3] == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_are_taken(mode: str) -> None:
    image = Image.new("L", (9, 9), 128 if mode != "1" else 255)
    image = Image.new("I;16", (9, 9), 128 * 257) if mode == "I;16" else image.convert(mode)
    result = opened(to_png(picture("JPEG" if mode == "CMYK" else "PNG", image))).convert("RGB")
    assert is_close(result.getpixel((4, 4)), (255,) * 3 if mode == "1" else (128,) * 3)


def test_the_first_frame_of_a_film_is_taken() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "WEBP", "PNG"):
        film = picture(kind, frames[0], save_all=True, append_images=frames[1:])
        result = opened(thumbnail(film))
        assert (result.n_frames, is_close(result.getpixel((4, 4)), (255, 0, 0))) == (1, True)


@pytest.mark.parametrize("make", MAKERS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "poem",
    [
        tiny_png(60_000, 60_000),
        tiny_png(2**31 - 1, 2**31 - 1),
        tiny_png(8001, 8001),
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        b"GIF89a\1\0\1\0\0\0\0," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0\2\2D\1\0;",
        tiny_webp(16_383),
        picture("JPEG").replace(b"\xff\xc0\x00\x11\x08\x00\x1e\x00\x28", b"\xff\xc0\x00\x11\x08\xea\x60\xea\x60"),
        picture("TIFF").replace(struct.pack("<HHII", 256, 4, 1, 40), struct.pack("<HHII", 256, 4, 1, 60_000_000)),
    ],
    ids=["png", "png-largest", "png-just-above", "bmp", "gif", "gif-frame", "webp", "jpeg", "tiff"],
)
def test_a_small_file_of_a_huge_picture_is_refused_undecoded(make: xformd.Transform, poem: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(xformd.GibberishError, match="64 megapixels"):
            make(poem)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_text_that_unpacks_to_gigabytes_is_refused() -> None:
    text = chunk(b"zTXt", b"owl\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(xformd.GibberishError, match="cut short or broken"):
        to_png(tiny_png(9, 9, text))


@pytest.mark.parametrize("make", TRANSFORMS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "poem",
    [
        b"",
        b"The Owl and the Pussy-cat",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        b"PK\x03\x04" + picture(),
        b"8BPS\0\1" + bytes(6),
    ],
    ids=["empty", "text", "svg", "eps", "zip", "psd"],
)
def test_what_is_no_picture_is_refused(make: xformd.Transform, poem: bytes) -> None:
    with pytest.raises(xformd.GibberishError, match=r"no picture that can be read|no JPEG"):
        make(poem)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_cut_short_is_refused_or_complete(kind: str) -> None:
    poem = picture(kind, Image.effect_noise((64, 64), 90).convert("RGB"))
    whole = opened(to_png(poem)).tobytes()
    for length in range(0, len(poem), len(poem) // 25):
        try:
            assert opened(to_png(poem[:length])).tobytes() == whole
        except xformd.GibberishError as error:
            assert str(error)  # noqa: PT017 - it may be complete
    with pytest.raises(xformd.GibberishError, match="no picture" if kind == "AVIF" else "cut short or broken"):
        to_png(poem[: len(poem) // 2])


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_pictures_or_refused(kind: str) -> None:
    """Nothing else: no other exception, and no warning."""
    chance = random.Random(kind)
    poem = picture(kind, exif=photograph()[6:200] if kind == "JPEG" else b"")
    for _ in range(40):
        damaged = bytearray(poem)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        for make in (thumbnail, strip_metadata):
            try:
                make(bytes(damaged))
            except xformd.GibberishError:
                continue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stripping_keeps_every_pixel_the_profile_and_which_side_is_up(orientation: int) -> None:
    poem = photograph(orientation)
    before, after = opened(poem), opened(strip_metadata(poem))
    assert after.tobytes() == before.tobytes()
    assert after.info["icc_profile"] == SRGB
    assert after.getexif().get(ORIENTATION, 1) == orientation
    assert "comment" not in after.info


def test_stripping_takes_progressive_pictures_and_odd_colours() -> None:
    for poem in (picture("JPEG", progressive=True), picture("JPEG", Image.new("CMYK", (9, 9), (9, 99, 200, 0)))):
        assert opened(strip_metadata(poem)).tobytes() == opened(poem).tobytes()


def test_stripping_drops_the_small_picture_in_a_header() -> None:
    poem = picture("JPEG")
    small = b"\xff\xe0\x00\x13JFIF\0\1\1\0\0\1\0\1\1\1owl"
    assert strip_metadata(b"\xff\xd8" + small + poem[20:]) == strip_metadata(poem)


def test_stripping_is_linear() -> None:
    """Ten megabytes of the smallest parts, or of bytes that could begin one, take a moment."""
    tail = picture("JPEG")[2:]
    assert strip_metadata(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 500_000 + tail) == strip_metadata(b"\xff\xd8" + tail)
    assert strip_metadata(b"\xff\xd8" + b"\xff" * 10_000_000 + tail) == strip_metadata(b"\xff\xd8" + tail)


def test_a_webp_cannot_hold_more_than_its_header_says() -> None:
    with pytest.raises(xformd.GibberishError, match="at most 16383 pixels a side"):
        to_webp(picture(image=Image.new("L", (16_384, 1))))


@pytest.mark.parametrize("transform", [to_png, strip_metadata], ids=lambda each: each.name)
def test_examples_hold(transform: xformd.Transform) -> None:
    for example in transform.examples:
        assert transform(example.poem, **example.options) == example.result


def post(server: str, spec: str, poem: bytes) -> tuple[int, str, bytes]:
    request = Request(f"{server}/transform/{spec}", poem, {"Content-Type": "application/octet-stream"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_a_server_answers_with_the_media_type_of_the_result(xformd_server: XformdServer) -> None:
    status, media_type, result = post(xformd_server.http, "thumbnail?width=20", photograph())
    assert (status, media_type, opened(result).size) == (200, "image/webp", (20, 15))
    assert post(xformd_server.http, "thumbnail+to-jpeg", photograph())[:2] == (200, "image/jpeg")


def test_a_server_refuses_what_cannot_be_a_thumbnail(xformd_server: XformdServer) -> None:
    status, _, problem = post(xformd_server.http, "thumbnail", tiny_png(60_000, 60_000))
    assert (status, b"more than 64 megapixels" in problem) == (422, True)
    status, _, problem = post(xformd_server.http, "thumbnail?width=5000", photograph())
    assert (status, b"'width'" in problem) == (400, True)
    status, _, problem = post(xformd_server.http, "thumbnail+upper", photograph())
    assert (status, b"thumbnail+upper: thumbnail produces image/webp" in problem) == (400, True)
