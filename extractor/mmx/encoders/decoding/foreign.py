"""Formats that Pillow and libsndfile don't read: their names, and the packages that read them.

The extra `formats` installs these packages. Without them, an item says what it is and what reads
it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmx.errors import ContentError

HEAD_BYTES = 1024
EXTRA = "the extra formats reads it (pip install '.[formats]' in the checkout)"


@dataclass(frozen=True)
class Foreign:
    """A format.

    Attributes:
        name: As people call it.
        package: The module that reads it; None where none does.
        known_as: The name by which that package knows it.
    """

    name: str
    package: str | None = None
    known_as: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether it is read as a picture."""
        return self.package in ("pillow_heif", "pillow_jxl")

    @property
    def is_sound(self) -> bool:
        """Whether it is read as a sound."""
        return self.package == "av"

    def module(self) -> Any:
        """Import the package.

        Raises:
            ContentError: It is not installed.
        """
        assert self.package is not None  # else there is nothing to read
        try:
            return importlib.import_module(self.package)
        except ImportError as error:
            raise ContentError(f"{self.name}: {EXTRA}") from error


_BRANDS = {
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        Foreign("HEIC", "pillow_heif", "HEIF"),
    ),
    b"crx ": Foreign("a raw photograph (CR3)"),
}
_MP4 = Foreign("MP4 (M4A: AAC or ALAC)", "av", "mov")
_STARTS = {
    b"\xff\x0a": Foreign("JPEG XL", "pillow_jxl", "JXL"),
    b"\0\0\0\x0cJXL ": Foreign("JPEG XL", "pillow_jxl", "JXL"),
    b"\x1a\x45\xdf\xa3": Foreign("WebM or Matroska (Opus, Vorbis)", "av", "matroska"),
    b"wvpk": Foreign("WavPack", "av", "wv"),
    b"MAC ": Foreign("Monkey's Audio", "av", "ape"),
    b"#!AMR": Foreign("AMR", "av", "amr"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Foreign("Windows Media", "av", "asf"),
    b"TTA1": Foreign("TTA", "av", "tta"),
    b"\x0b\x77": Foreign("AC-3", "av", "ac3"),
    b"FLV\x01": Foreign("Flash video", "av", "flv"),
    b"DSD ": Foreign("DSD (DSF)", "av", "dsf"),
    b"ADIF": Foreign("AAC (ADIF)"),
    b"MThd": Foreign("MIDI, which holds notes and no sound"),
    b"8BPS": Foreign("a Photoshop document"),
    b"%PDF": Foreign("a PDF document"),
    b"%!PS": Foreign("PostScript"),
    b"PK\x03\x04": Foreign("a ZIP archive"),
    b"\x1f\x8b": Foreign("a gzip file"),
    b"FUJIFILMCCD-RAW": Foreign("a raw photograph (RAF)"),
    b"\x76\x2f\x31\x01": Foreign("OpenEXR"),
    b"#?RADIANCE": Foreign("Radiance HDR"),
    b"version https://git-lfs": Foreign("a pointer of Git LFS in place of the file"),
}
_MARKUP = {
    b"<svg": Foreign("SVG, a drawing without pixels"),
    b"<!doctype html": Foreign("a web page"),
    b"<html": Foreign("a web page"),
}


def foreign(path: Path) -> Foreign | None:
    """Return the format of a file by its first bytes; None if it is none of these."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return None
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[k : k + 4] for k in range(16, min(head[3], len(head)), 4))}
        if b"avif" in brands or b"avis" in brands:
            return None
        return next((_BRANDS[brand] for brand in sorted(brands & _BRANDS.keys())), _MP4)
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return Foreign("AAC", "av", "aac")
    for start, found in _STARTS.items():
        if head.startswith(start):
            return found
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return next((found for mark, found in _MARKUP.items() if mark in text), None)
    return None
