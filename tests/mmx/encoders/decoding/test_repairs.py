"""What damaged metadata, or a missing end, would ruin is decoded; what lacks pixels is not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmx.encoders.decoding import decode_rgb, observed, on_background
from mmx.errors import ContentError

RNG = np.random.default_rng(1)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((150, 117))
)
PLAIN = Image.fromarray(PIXELS)


def saved(kind: str, image: Image.Image = PLAIN, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(folder: Path, content: bytes) -> tuple[NDArray[np.uint8], list[str]]:
    (folder / "picture").write_bytes(content)
    with observed() as seen:
        return np.asarray(decode_rgb(folder / "picture")), seen.notes


def chunk(name: bytes, data: bytes, crc: int = 0) -> bytes:
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data) ^ crc)
    )


BOMB = zlib.compress(bytes(70 << 20))
CHUNKS = {
    "text over the limit": chunk(b"zTXt", b"a\0\0" + BOMB),
    "international text over the limit": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "profile over the limit": chunk(b"iCCP", b"a\0\0" + BOMB),
    "many texts": b"".join(
        chunk(b"zTXt", b"%d\0\0" % k + zlib.compress(bytes(1 << 20))) for k in range(70)
    ),
    "profile of no method": chunk(b"iCCP", b"a\0\5xx"),
    "short cHRM": chunk(b"cHRM", b"abc"),
    "short pHYs": chunk(b"pHYs", b"abc"),
    "short gAMA": chunk(b"gAMA", b"a"),
    "empty sRGB": chunk(b"sRGB", b""),
    "a CRC of text": chunk(b"tEXt", b"a\0b", crc=1),
    "a CRC of something private": chunk(b"prVt", b"ab", crc=1),
    "short acTL": chunk(b"acTL", b"ab"),
    "transparency of another kind of picture": chunk(b"tRNS", b"a"),
}


@pytest.mark.parametrize("what", CHUNKS)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_png_with_damaged_metadata(tmp_path: Path, what: str, place: str) -> None:
    whole = saved("PNG")
    at = 33 if place == "before" else len(whole) - 12
    pixels, notes = read(tmp_path, whole[:at] + CHUNKS[what] + whole[at:])
    assert np.array_equal(pixels, PIXELS)
    assert place == "behind" or "metadata" in notes[0]


def test_a_png_with_damaged_pixels(tmp_path: Path) -> None:
    whole = saved("PNG")
    at = whole.index(b"IDAT") + 100
    for content in (
        whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :],
        whole[:-200],
        whole[:33] + CHUNKS["short pHYs"] + whole[33:-200],
    ):
        with pytest.raises(ContentError):
            read(tmp_path, content)


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "damaged",
    [
        segment(0xEE, b"Adobe"), segment(0xEE, b"Adobe\0"), segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE0, b"JFIF"), segment(0xE0, b"JFIF\0"), segment(0xE1, b"Exif\0\0II*\0"),
        segment(0xED, b"Photoshop 3.0\0008BIM"), segment(0xFE, b""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_with_damaged_metadata(tmp_path: Path, damaged: bytes, mode: str) -> None:
    whole = saved("JPEG", PLAIN.convert(mode))
    expected, _ = read(tmp_path, whole)
    pixels, _ = read(tmp_path, whole[:2] + damaged + whole[2:])
    assert np.array_equal(pixels, expected)


KINDS: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: saved("JPEG", quality=90),
    "progressive": lambda: saved("JPEG", quality=90, progressive=True),
    "restarts": lambda: saved("JPEG", quality=90, restart_marker_blocks=2),
    "restarts of rows": lambda: saved("JPEG", quality=90, restart_marker_rows=1),
    "grey": lambda: saved("JPEG", PLAIN.convert("L")),
    "4:4:4": lambda: saved("JPEG", subsampling=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_jpeg_is_missing_and_nothing_else(tmp_path: Path, kind: str) -> None:
    whole = KINDS[kind]()
    expected, notes = read(tmp_path, whole)
    assert notes == []
    for content in (whole[:-2], whole[:-1]):
        pixels, notes = read(tmp_path, content)
        assert np.array_equal(pixels, expected)
        assert "end-of-image marker is missing" in notes[0]
    # From here on pixels are absent, too.
    shortest = len(whole) // 3
    for size in {*range(shortest, len(whole) - 5, len(whole) // 9), len(whole) - 6}:
        with pytest.raises(ContentError, match="truncated"):
            read(tmp_path, whole[:size])
    for marker in range(0xD0, 0xD8):  # at the end of an interval
        if (place := whole.rfind(bytes([0xFF, marker]))) > 0:
            with pytest.raises(ContentError, match="truncated"):
                read(tmp_path, whole[:place])


def test_a_progressive_jpeg_without_its_last_scans(tmp_path: Path) -> None:
    whole = KINDS["progressive"]()
    scans = [k for k in range(len(whole)) if whole[k : k + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for place in scans[1:]:
        with pytest.raises(ContentError, match="truncated"):
            read(tmp_path, whole[:place])


def test_a_webp_whose_metadata_is_cut(tmp_path: Path) -> None:
    whole = saved("WEBP", lossless=True, exif=b"Exif\0\0II*\0" + bytes(50))
    pixels, notes = read(tmp_path, whole[:-20])
    assert np.array_equal(pixels, PIXELS) and "metadata" in notes[0]
    with pytest.raises(ContentError):
        read(tmp_path, whole[: len(whole) // 2])


def test_a_jpeg_2000_without_its_end(tmp_path: Path) -> None:
    for whole in (saved("JPEG2000"), saved("JPEG2000", no_jp2=True)):
        assert np.array_equal(read(tmp_path, whole[:-2])[0], PIXELS)
        with pytest.raises(ContentError):
            read(tmp_path, whole[:-200])


# ------------------------------------------------------------------------------------------------
# transparency


def test_premultiplied_colours_are_divided(tmp_path: Path) -> None:
    """Associated alpha, TIFF's ExtraSamples 1, of grey."""
    tags = {256: 1, 257: 1, 259: 1, 262: 1, 273: 8, 277: 2, 278: 1, 279: 2, 338: 1}
    body = struct.pack("<H", len(tags) + 1)
    for tag, value in sorted([*tags.items(), (258, 8 | 8 << 16)]):
        count = 2 if tag == 258 else 1
        body += struct.pack("<HHI", tag, 3, count) + struct.pack("<I", value)
    content = b"II*\0" + struct.pack("<I", 10) + bytes([50, 128]) + body + bytes(4)
    pixels, _ = read(tmp_path, content)
    assert abs(int(pixels[0, 0, 0]) - 100) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGB"])
def test_transparent_pictures_on_a_colour(tmp_path: Path, mode: str) -> None:
    if mode == "RGB":  # one colour is transparent
        image, more = Image.new("RGB", (2, 1), (9, 9, 9)), {"transparency": (9, 9, 9)}
        image.putpixel((1, 0), (0, 0, 0))
        kind = "PNG"
    elif mode == "P":
        image, more, kind = Image.new("P", (2, 1)), {"transparency": 0}, "GIF"
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.putpixel((1, 0), 1)
    else:
        image = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
        image.putpixel((1, 0), (0, 0, 0, 255))
        more, kind = {}, "PNG"
        image = image.convert("RGBA" if mode == "PA" else mode)
    content = saved(kind, image, **more)
    assert read(tmp_path, content)[0].tolist() == [[[9] * 3, [0] * 3]]  # transparency is dropped
    with on_background("#f0e0d0"):
        assert read(tmp_path, content)[0].tolist() == [[[0xF0, 0xE0, 0xD0], [0] * 3]]
