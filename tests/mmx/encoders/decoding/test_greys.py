"""A ramp from black to white is one, whatever the depth and the interpretation of a picture."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmx.encoders.decoding import decode_rgb

RAMP = np.linspace(0, 1, 8)
RIGHT = np.rint(RAMP * 255).astype(int)


def packed(values: NDArray[Any], bits: int) -> bytes:
    line = "".join(format(int(value), f"0{bits}b") for value in values)
    line += "0" * (-len(line) % 8)
    return bytes(int(line[k : k + 8], 2) for k in range(0, len(line), 8))


def tiff(data: bytes, bits: int, order: str = "<", photometric: int = 1, **tags: int) -> bytes:
    """One line of grey as a TIFF file."""
    entries = {256: 8, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 279: len(data)}
    entries |= {
        {"max_sample": 281, "sample_format": 339}[name]: value for name, value in tags.items()
    }
    entries[273] = 10 + 12 * (len(entries) + 1) + 4
    body = struct.pack(f"{order}H", len(entries))
    for tag, value in sorted(entries.items()):
        body += struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}HH", value, 0)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, 8) + body + bytes(4) + data


def png(values: NDArray[Any], sbit: int | None = None) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    told = b"" if sbit is None else chunk(b"sBIT", bytes([sbit]))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, 16, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes()))
    return b"\x89PNG\r\n\x1a\n" + header + told + pixels + chunk(b"IEND", b"")


def grey(folder: Path, content: bytes) -> list[int]:
    (folder / "picture").write_bytes(content)
    pixels = np.asarray(decode_rgb(folder / "picture"))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_white_is_zero_and_black_is_zero(
    tmp_path: Path, bits: int, photometric: int, order: str
) -> None:
    top = (1 << bits) - 1
    shown = np.rint(RAMP * top).astype(np.int64)
    values = shown if photometric else top - shown
    data = values.astype(f"{order}u{bits // 8}").tobytes() if bits >= 16 else packed(values, bits)
    found = grey(tmp_path, tiff(data, bits, order, photometric))
    expected = np.rint(shown / top * 255) if bits < 8 else shown >> bits - 8 if bits > 8 else RIGHT
    assert np.abs(np.array(found) - expected).max() <= 1
    assert (found[0], found[-1]) == (0, 255)


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
@pytest.mark.parametrize("photometric", [0, 1])
def test_floating_point_numbers(tmp_path: Path, top: float, photometric: int) -> None:
    if photometric == 0 and top > 1:
        pytest.skip("what is white is not known there")
    values = RAMP * top if photometric else top - RAMP * top
    content = tiff(values.astype("<f4").tobytes(), 32, photometric=photometric, sample_format=3)
    assert np.abs(np.array(grey(tmp_path, content)) - RIGHT).max() <= 1
    # Resampling goes a little beyond white: that is not a scale of its own.
    beyond = tiff((RAMP * top * 1.03).astype("<f4").tobytes(), 32, sample_format=3)
    assert grey(tmp_path, beyond)[-2:] == [225, 255]


def test_signed_integers(tmp_path: Path) -> None:
    whole = np.rint(RAMP * 65535) - 32768
    positive = np.rint(RAMP * 32767)
    eight = np.rint(RAMP * 255) - 128
    for values, bits in ((whole, 16), (positive, 16), (eight, 8)):
        content = tiff(values.astype(f"<i{bits // 8}").tobytes(), bits, sample_format=2)
        assert np.abs(np.array(grey(tmp_path, content)) - RIGHT).max() <= 1


def test_fewer_bits_than_the_samples_have(tmp_path: Path) -> None:
    twelve = np.rint(RAMP * 4095).astype(np.uint16)
    assert grey(tmp_path, tiff(twelve.tobytes(), 16, max_sample=4095)) == (twelve >> 4).tolist()
    assert grey(tmp_path, png(twelve, sbit=12)) == (twelve >> 4).tolist()
    assert grey(tmp_path, png(twelve >> 2, sbit=10)) == (twelve >> 4).tolist()
    # As the standard wants it: scaled to 16 bits. And nothing is known where nothing is said.
    scaled = twelve << 4 | twelve >> 8
    assert grey(tmp_path, png(scaled, sbit=12)) == (twelve >> 4).tolist()
    dark = scaled // 16 & 0xFFF0
    assert grey(tmp_path, png(dark, sbit=12)) == (dark >> 8).tolist()
    assert grey(tmp_path, png(twelve)) == (twelve >> 8).tolist()
    assert grey(tmp_path, png(scaled ^ 1, sbit=12)) == (scaled >> 8).tolist()


def test_thirty_two_bits_with_sixteen_in_use(tmp_path: Path) -> None:
    values = np.rint(RAMP * 65535)
    for code, more in (("<u4", {}), ("<i4", {"sample_format": 2})):
        assert grey(tmp_path, tiff(values.astype(code).tobytes(), 32, **more)) == RIGHT.tolist()


@pytest.mark.parametrize("top", [1, 15, 100, 255, 1023, 4095, 65535])
def test_any_maximum_of_a_graymap(tmp_path: Path, top: int) -> None:
    values = np.rint(RAMP * top).astype(">u2" if top > 255 else "u1")
    found = grey(tmp_path, b"P5 8 1 %d\n" % top + values.tobytes())
    assert np.abs(np.array(found) - np.rint(values.astype(int) / top * 255)).max() <= 1


def test_a_jpeg_2000_of_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16)[None].repeat(8, 0)).save(
        tmp_path / "a.jp2", irreversible=False
    )
    assert (
        np.abs(np.asarray(decode_rgb(tmp_path / "a.jp2"))[0, :, 0].astype(int) - RIGHT).max() <= 1
    )
