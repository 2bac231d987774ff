"""A plugin that makes thumbnails with Pillow, and the function alone, which the peer calls too."""

import io
from collections.abc import Iterable

from PIL import Image

import xformd
from benchmarks.peers.hang import hang_at

SIZE = (256, 256)


def make_thumbnail(picture: bytes) -> bytes:
    """Make a small WebP of a picture."""
    hang_at(picture)
    image = Image.open(io.BytesIO(picture))
    image.thumbnail(SIZE)
    written = io.BytesIO()
    image.save(written, "WEBP")
    return written.getvalue()


@xformd.transform(accepts="image/*", produces="image/webp", warm_up=Image.init, timeout=1)
def thumbnail(poem: bytes) -> bytes:
    """Make a small WebP of a picture."""
    return make_thumbnail(poem)


@xformd.hookimpl
def xformd_transforms() -> Iterable[xformd.Transform]:
    """Return the one that there is."""
    return [thumbnail]
