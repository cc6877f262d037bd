"""Small copies of pictures, to stand in a page.

Pillow makes them; it comes with the extra `extract`, and pages do without pictures where it is
absent.
"""

from __future__ import annotations

import base64
import io
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mmbase.errors import ContentError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "AVIF")
"""Formats to try, whatever a file's name: some others of Pillow start programs."""

_MOST_PIXELS = 50_000_000
"""Larger pictures would take more than 200 MB, and seconds, for a few hundred pixels."""


def can_draw() -> bool:
    """Whether Pillow is installed."""
    return find_spec("PIL") is not None


def thumbnail(path: Path, side: int, quality: int = 55) -> bytes:
    """Return a picture as WebP, at most `side` pixels wide and high, as a camera held it.

    Transparent pixels become white; of an animation the first frame is taken. The same file gives
    the same bytes with the same release of Pillow.

    Raises:
        ContentError: It is no picture, is damaged or has too many pixels.
    """
    from PIL import Image, ImageOps

    formats = _formats()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which are checked here, and metadata
            with Image.open(path, formats=formats) as opened:
                n_pixels = opened.width * opened.height
                # Of a JPEG only an eighth is decoded where that is enough; twice the size to come
                # leaves enough for a smooth one.
                opened.draft("RGB", (2 * side, 2 * side))
                if n_pixels > _MOST_PIXELS:
                    raise ContentError(f"{n_pixels:,} pixels are too many to show")
                image = opened if opened.mode in ("RGB", "L") else opened.convert("RGBA")
                image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
                image = ImageOps.exif_transpose(image)
                if image.mode == "RGBA":
                    white = Image.new("RGB", image.size, "white")
                    white.paste(image, mask=image.getchannel("A"))
                    image = white
                out = io.BytesIO()
                image.convert("RGB").save(out, "WEBP", quality=quality, method=4)
    except (ContentError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like on damaged input
        reason = str(error).replace(str(path), path.name).splitlines() or [type(error).__name__]
        raise ContentError(f"{path.name}: {reason[0]}") from error
    return out.getvalue()


def data_uri(content: bytes, kind: str = "image/webp") -> str:
    """Return the address that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [one for one in FORMATS if one in Image.OPEN]
