"""Pictures of every kind decoded to 8-bit RGB."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmx.encoders.base import plain_reason, require
from mmx.encoders.decoding.memory import is_shortage, reserve
from mmx.encoders.decoding.reading import remembered
from mmx.errors import ContentError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "AVIF")
"""Formats that are looked for, whatever a file's name: some others of Pillow start programs."""

# What Pillow's decoders raise on damaged input. OSError covers "truncated" and "cannot identify".
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    AssertionError, EOFError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


# Bytes per pixel: of the modes that have not 4, and of what decoders of a format need besides.
_MODE_BYTES = {"1": 1, "L": 1, "P": 5, "PA": 8, "I": 16, "I;16": 8, "I;16B": 8, "F": 24}
_FORMAT_BYTES = {"WEBP": 8, "AVIF": 8, "JPEG2000": 16}


@remembered
def decode_rgb(content: Path | str) -> Image:
    """Decode an image file to 8-bit RGB.

    As torchvision's own loader does: the EXIF orientation is not applied, an alpha channel is
    dropped, of an animation the first frame is taken. 16-bit grey is divided by 256 (Pillow's own
    conversion would clip it), float grey is taken as [0, 1], or as [0, 255] when it exceeds 1.

    Raises:
        ContentError: Not a picture, damaged, without pixels, or larger than Pillow's
            decompression-bomb limit.
        FileNotFoundError: There is no such file: absent, not corrupt.
        MemoryError: There is no memory for it now.
    """
    pillow = _pillow()
    path = Path(content)
    n_bytes = 0
    try:
        if path.stat().st_size == 0:
            raise ContentError("the file is empty")
        with pillow.open(path, formats=_formats()) as image:
            check_pixels(*image.size)
            n_bytes = _decoding_bytes(image)
            reserve(n_bytes)
            image.load()
            return _to_rgb(image)
    except FileNotFoundError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ContentError(
            f"larger than the decompression-bomb limit of {pillow.MAX_IMAGE_PIXELS} pixels"
        ) from error
    except pillow.UnidentifiedImageError as error:
        raise ContentError("not an image of a known format") from error
    except (MemoryError, *_DECODE_ERRORS) as error:
        is_memory = isinstance(error, MemoryError) or "out of memory" in str(error)
        if is_memory and is_shortage(n_bytes):
            raise MemoryError(str(error)) from error
        raise ContentError(f"the image cannot be decoded: {plain_reason(error)}") from error


def _decoding_bytes(image: Any) -> int:
    """Return the memory that a picture takes at most while it is decoded and made RGB."""
    per_pixel = 4 + _MODE_BYTES.get(image.mode, 4)
    per_pixel += 6 if image.info.get("progressive") else _FORMAT_BYTES.get(image.format, 0)
    return int(image.width * image.height * per_pixel)


def check_pixels(width: int, height: int) -> None:
    """Refuse pictures without pixels or with more than Pillow's limit.

    Raises:
        ContentError: `width` x `height` is 0 or beyond `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    limit = _pillow().MAX_IMAGE_PIXELS
    if width < 1 or height < 1:
        raise ContentError(f"the image has no pixels ({width} x {height})")
    if limit is not None and width * height > limit:
        raise ContentError(
            f"{width} x {height} is larger than the decompression-bomb limit of {limit} pixels"
        )


def _to_rgb(image: Any) -> Image:
    mode = image.mode
    if mode == "RGB":
        return image._new(image.im)  # type: ignore[no-any-return]  # without the file
    if mode == "I" or mode.startswith("I;16"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = _pillow().fromarray(grey.astype(np.uint8))
    elif mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=255.0, neginf=0.0)
        scale = 255.0 if grey.max(initial=0.0) <= 1.0 else 1.0
        image = _pillow().fromarray(np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8))
    elif mode == "PA" or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")  # the direct way to RGB warns
    return image.convert("RGB")  # type: ignore[no-any-return]


@functools.cache
def _formats() -> list[str]:
    pillow = _pillow()
    pillow.init()
    return [name for name in FORMATS if name in pillow.OPEN]


@functools.cache
def _pillow() -> Any:
    """`PIL.Image` without its warnings: each is an error of ours or of no consequence."""
    module = require("PIL.Image")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.simplefilter("ignore", module.DecompressionBombWarning)
    return module
