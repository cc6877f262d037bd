"""Pictures of every kind decoded to 8-bit RGB."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmx.encoders.base import plain_reason, require
from mmx.encoders.decoding.foreign import Foreign, foreign
from mmx.encoders.decoding.greys import eight_bits, is_deep
from mmx.encoders.decoding.memory import is_shortage, reserve
from mmx.encoders.decoding.reading import background, remembered, tell
from mmx.encoders.decoding.repairs import repaired
from mmx.errors import ContentError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO", "AVIF")
"""Formats to try, whatever a file's name: some others of Pillow start programs."""

_CANNOT, _UNKNOWN = "the image cannot be decoded: ", "not an image of a known format"
_MAX_REPAIRED = 1 << 28  # bytes of a file

# What Pillow's decoders raise on damaged input. OSError covers "truncated" and "cannot identify".
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
    AssertionError, EOFError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

# What Pillow's table of TIFF pixels lacks: byte order, photometric interpretation, sample format,
# fill order, bits, further samples → mode, raw mode. Samples of 12 bits are packed alike in both
# orders. White is zero where the interpretation is 0, which `eight_bits` sees to.
_MORE_TIFFS = {
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 0, (1,), 1, (32,), ()): ("I", "I;32N"),
    (b"MM", 0, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"MM", 0, (3,), 1, (32,), ()): ("F", "F;32BF"),
}

# Bytes per pixel: of modes other than 4-byte ones, and what decoders of a format need on top.
_MODE_BYTES = {"1": 1, "L": 1, "P": 5, "PA": 8, "I": 16, "I;16": 8, "I;16B": 8, "F": 24}
_FORMAT_BYTES = {"WEBP": 8, "AVIF": 8, "JPEG2000": 16}


@remembered
def decode_rgb(content: Path | str) -> Image:
    """Decode an image file to 8-bit RGB.

    As torchvision's own loader does: the EXIF orientation is not applied, an alpha channel is
    dropped (unless `on_background` gives a colour), of an animation the first frame is taken. Grey
    of more than 8 bits is scaled as `eight_bits` says (Pillow's own conversion would clip it). What
    only damaged metadata or a missing end keeps from being decoded is decoded without them.

    Raises:
        ContentError: Not a picture, damaged, without pixels, or larger than Pillow's
            decompression-bomb limit.
        FileNotFoundError: There is no such file: absent, not corrupt.
        MemoryError: There is no memory for it now.
    """
    path = Path(content)
    if path.stat().st_size == 0:
        raise ContentError("the file is empty")
    try:
        return _decoded(path, path)
    except ContentError as error:
        if (kind := foreign(path)) is not None:
            if kind.is_picture:
                return _decoded(path, path, kind)
            raise ContentError(f"{_UNKNOWN}: {kind.name}") from error
        found = _decoded_anyway(path)
        if found is None:
            raise
        image, note = found
        reason = str(error).removeprefix(_CANNOT)
        tell(note if reason == _UNKNOWN else f"{note} ({reason})")
        return image


def _decoded_anyway(path: Path) -> tuple[Image, str] | None:
    """Return the picture after a repair, with a note on what was wrong; None without success."""

    def pixels(content: bytes) -> bytes:
        return _decoded(io.BytesIO(content), path).tobytes()

    try:
        if path.stat().st_size > _MAX_REPAIRED:
            return None
        for content, note in repaired(path.read_bytes(), pixels):
            with suppress(ContentError):
                return _decoded(io.BytesIO(content), path), note
    except (OSError, ContentError):
        pass
    return None


def _decoded(source: Path | io.BytesIO, path: Path, kind: Foreign | None = None) -> Image:
    """Decode a file, or its repaired content, of a usual format or of `kind`.

    Raises:
        ContentError: It cannot be decoded.
        MemoryError: There is no memory for it now.
    """
    pillow = _pillow()
    formats = _formats()
    if kind is not None:
        if register := getattr(kind.module(), "register_heif_opener", None):
            register()  # the others do so when they are imported
        formats = [kind.known_as]
    n_bytes = 0
    try:
        with pillow.open(source, formats=formats) as image:
            check_pixels(*image.size)
            n_bytes = _decoding_bytes(image)
            reserve(n_bytes)
            image.load()
            return _to_rgb(image, path)
    except FileNotFoundError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ContentError(
            f"larger than the decompression-bomb limit of {pillow.MAX_IMAGE_PIXELS} pixels"
        ) from error
    except pillow.UnidentifiedImageError as error:
        raise ContentError(_UNKNOWN) from error
    except (MemoryError, *_DECODE_ERRORS) as error:
        is_memory = isinstance(error, MemoryError) or "out of memory" in str(error)
        if is_memory and is_shortage(n_bytes):
            raise MemoryError(str(error)) from error
        raise ContentError(f"{_CANNOT}{plain_reason(error)}") from error


def _decoding_bytes(image: Any) -> int:
    """Return the memory that a picture takes at most while it is decoded and made RGB."""
    per_pixel = 4 + (12 if background() else 0) + _MODE_BYTES.get(image.mode, 4)
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


def _to_rgb(image: Any, path: Path) -> Image:
    mode = image.mode
    colour = background()
    if colour and image.has_transparency_data and not is_deep(image):
        if mode == "La":
            image = image.convert("LA")
        whole = _pillow().new("RGBA", image.size, colour)
        composed: Image = _pillow().alpha_composite(whole, image.convert("RGBA"))
        return composed.convert("RGB")
    if mode == "RGB":
        return image._new(image.im)  # type: ignore[no-any-return]  # without the file
    if is_deep(image):
        image = _pillow().fromarray(eight_bits(image, path))
    elif mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        image = image.convert(mode.upper())
    elif mode == "PA" or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")  # the direct way to RGB warns
    return image.convert("RGB")  # type: ignore[no-any-return]


@functools.cache
def _formats() -> list[str]:
    pillow = _pillow()
    pillow.init()
    from PIL import TiffImagePlugin

    for kind, modes in _MORE_TIFFS.items():
        TiffImagePlugin.OPEN_INFO.setdefault(kind, modes)
    return [name for name in FORMATS if name in pillow.OPEN]


@functools.cache
def _pillow() -> Any:
    """Return `PIL.Image` with its warnings off: each is an error here or has no consequence."""
    module = require("PIL.Image")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.simplefilter("ignore", module.DecompressionBombWarning)
    return module
