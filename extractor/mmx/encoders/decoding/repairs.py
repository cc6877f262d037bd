"""Repair pictures that fail to decode only because of their metadata or a missing end.

Texts, profiles, dates and densities say nothing about pixels: other decoders (OpenCV, libvips,
torchvision) read such a picture with a warning. Here it is decoded once more without them.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

Decode = Callable[[bytes], bytes]
"""Returns all pixels of a file's content; raises whatever the decoder raises."""

_SOI, _EOI, _SOS, _APP0, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
_FRAMES = {0xC0, 0xC1, 0xC2}  # SOF: baseline, extended, progressive
_RESTART = re.compile(b"\xff[\xd0-\xd7]")
_WITHOUT_LENGTH = {0x01, _SOI, _EOI, *range(0xD0, 0xD8)}
_JUNK = bytes(range(1, 200, 7))  # without 0xff


class Repaired(NamedTuple):
    """A repaired content, and a note on what was wrong."""

    content: bytes
    note: str


def repaired(content: bytes, decode: Decode) -> Iterator[Repaired]:
    """Yield repaired contents of a file that cannot be decoded, the most promising first.

    Args:
        content: All of the file.
        decode: Decodes an attempt, to find out whether pixels are absent.
    """
    without = "its metadata is damaged or too large, and was left out"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        yield Repaired(_png_without_metadata(content), without)
    elif content.startswith(b"\xff\xd8"):
        yield Repaired(content := _jpeg_without_metadata(content), without)
        if _is_whole_jpeg(content, decode):
            yield Repaired(content + b"\xff\xd9", "its end-of-image marker is missing")
    elif content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        yield Repaired(_webp_without_metadata(content), without)
    elif content.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        # What else is absent, the decoder notices by the lengths of the tiles.
        yield Repaired(content.removesuffix(b"\xff") + b"\xff\xd9", "its end marker is missing")


def _png_without_metadata(content: bytes) -> bytes:
    """Keep header, palette, transparency and pixels of the first picture."""
    parts = [content[:8]]
    place, colour = 8, None
    while place + 8 <= len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        name, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        chunk = content[place : place + 12 + length]
        if name == b"IHDR":
            colour = data[9:10]
        is_right = zlib.crc32(name + data) == int.from_bytes(chunk[-4:], "big")
        fits = length == {b"\0": 2, b"\2": 6}.get(colour or b"", length)
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name == b"tRNS" and is_right and fits):
            parts.append(chunk)
        place += 12 + length
    return b"".join(parts)


def _webp_without_metadata(content: bytes) -> bytes:
    """Keep the chunks of pixels that are there."""
    parts = []
    place = 12
    while place + 8 <= len(content):
        name, length = struct.unpack("<4sI", content[place : place + 8])
        end = place + 8 + length + length % 2
        chunk = content[place:end]
        if name == b"VP8X" and length >= 10:
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]  # no profile, Exif, XMP
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            parts.append(chunk)
        place = end
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# ------------------------------------------------------------------------------------------------
# JPEG


class _Segment(NamedTuple):
    marker: int
    start: int  # of the marker
    data: bytes  # behind the length
    end: int  # of the segment; of a scan, of its header


def _segments(content: bytes) -> Iterator[_Segment]:
    """Yield the segments of a JPEG file, passing over the compressed data of its scans."""
    place = 2
    while (place := content.find(b"\xff", place)) >= 0 and place + 1 < len(content):
        marker = content[place + 1]
        if marker in (0, 0xFF) or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
            continue
        length = max(2, int.from_bytes(content[place + 2 : place + 4], "big"))
        end = place + 2 + length
        yield _Segment(marker, place, content[place + 4 : end], end)
        place = end


def _jpeg_without_metadata(content: bytes) -> bytes:
    """Leave out comments and application data that say nothing about colours."""
    parts, done = [], 0
    for marker, start, data, end in _segments(content):
        says_colours = (marker == _APP0 and data[:5] == b"JFIF\0" and len(data) >= 14) or (
            marker == _APP14 and data[:5] == b"Adobe" and len(data) >= 12
        )
        if (_APP0 <= marker <= 0xEF or marker == _COM) and not says_colours:
            parts.append(content[done:start])
            done = end
    return b"".join([*parts, content[done:]])


def _is_whole_jpeg(content: bytes, decode: Decode) -> bool:
    """Whether nothing but the end marker is absent.

    Where pixels are absent, what is put behind the data is decoded in their place.
    """
    if not _has_all_scans(content):
        return False
    seen = _RESTART.findall(content, content.rindex(b"\xff\xda"))
    restart = b"\xff" + bytes([0xD0 + (seen[-1][1] + 1) % 8 if seen else 0xD0])
    digests = {
        hashlib.blake2b(decode(content.removesuffix(b"\xff") + more + b"\xff\xd9")).digest()
        for more in (b"", _JUNK, _JUNK[::-1], restart + _JUNK)
    }
    return len(digests) == 1


def _has_all_scans(content: bytes) -> bool:
    """Whether every coefficient of every component comes in some scan, to its last bit."""
    missing: set[tuple[int, int]] | None = None
    progressive = False
    for marker, _, data, _ in _segments(content):
        if marker in _FRAMES and len(data) > 5 and len(data) >= 6 + 3 * data[5]:
            progressive = marker == 0xC2
            components = data[6 : 6 + 3 * data[5] : 3]
            missing = {(component, k) for component in components for k in range(64)}
        elif marker == _SOS and missing and data and len(data) >= 4 + 2 * data[0]:
            first, last, approximation = data[1 + 2 * data[0] :][:3]
            if not progressive:
                first, last, approximation = 0, 63, 0
            if approximation & 15 == 0:
                scanned = data[1 : 1 + 2 * data[0] : 2]
                missing -= {(one, k) for one in scanned for k in range(first, last + 1)}
    return missing is not None and not missing
