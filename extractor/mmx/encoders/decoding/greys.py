"""Grey pictures of high depth brought to 8 bits, by photometric interpretation and bit depth."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# TIFF's tags
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 262, 281, 339
_SIGNED = 2


def is_deep(image: Any) -> bool:
    """Whether `image`, a loaded Pillow picture, has grey values that are not 8 bits from 0 on."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return True
    return mode == "L" and _tag(image, _SAMPLE_FORMAT) == _SIGNED


def eight_bits(image: Any, path: Path) -> NDArray[np.uint8]:
    """Return the grey values of a deep picture, shape (height, width): 0 is black, 255 white.

    The highest of the bits that the file says to use count, of TIFF files by BitsPerSample or
    MaxSampleValue, of PNG files by the sBIT chunk where the values are not scaled to 16 bits. Of
    32-bit integers the lower 16 count where all values fit in them. Signed integers go from the
    least one on where one is negative, else from 0. Floating-point numbers are taken as [0, 1],
    [0, 255] or [0, 65535], whichever they do not exceed by more than their double.
    """
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=65535.0, neginf=0.0)
        highest = values.max(initial=0.0)
        top = next((top for top in (1.0, 255.0, 65535.0) if highest <= 2 * top), 65535.0)
        grey = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
    else:
        grey = _of_integers(image, path)
    # Pillow has inverted 8 bits already, but no others.
    is_inverted = image.mode != "L" and _tag(image, _PHOTOMETRIC) == 0
    return 255 - grey if is_inverted else grey


def _of_integers(image: Any, path: Path) -> NDArray[np.uint8]:
    values = np.asarray(image)  # uint8, uint16 or int32
    bits = _tag(image, _BITS) or 16
    if _tag(image, _SAMPLE_FORMAT) == _SIGNED:
        values = (values.view(np.int8) if image.mode == "L" else values).astype(np.int64)
        if values.min(initial=0) < 0:
            values = values + (1 << bits - 1)
        else:
            bits -= 1
    elif bits == 32:
        values = values.view(np.uint32)
    highest = int(values.max(initial=0))
    if bits > 16 and highest < 1 << 16:
        bits = 16
    elif bits == 16:
        bits = _significant_bits(image, path, values, highest)
    grey: NDArray[np.uint8] = np.minimum(values >> max(0, bits - 8), 255).astype(np.uint8)
    return grey


def _significant_bits(image: Any, path: Path, values: NDArray[Any], highest: int) -> int:
    """Return the bits that 16-bit samples use, which are the lower ones."""
    told = (_tag(image, _MAX_SAMPLE) or 0xFFFF).bit_length()
    if image.format == "PNG":
        told = _sbit(path) or 16
    if not 8 <= told < 16 or highest >= 1 << told:
        return 16
    # Scaled values, as they should be in a PNG file, repeat their highest bits below, or have
    # zeros there. So may a dark picture.
    low, high = values & (1 << 16 - told) - 1, values >> told
    is_scaled = image.format == "PNG" and bool(((low == high) | (low == 0)).all())
    return 16 if is_scaled else told


def _sbit(path: Path) -> int | None:
    """Return the significant bits of grey that a PNG file tells; None where it tells none."""
    with path.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
            if head[4:] == b"sBIT":
                return stream.read(1)[0]
            stream.seek(struct.unpack(">I", head[:4])[0] + 4, 1)
    return None


def _tag(image: Any, tag: int) -> int | None:
    """Return the (first) value of a tag of a TIFF file; None where there is none."""
    value = getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None
