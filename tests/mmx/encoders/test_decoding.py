"""Decoding: every picture mode, every kind of sound; damaged files end in a ContentError."""

from __future__ import annotations

import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmx.encoders.decoding import Resampler, decode_rgb, read_mono
from mmx.errors import ContentError

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
TONE = np.sin(np.arange(1600) / 5).astype(np.float32) / 2


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("RGBA", "png"),
        ("CMYK", "jpg"), ("CMYK", "tiff"), ("YCbCr", "jpg"), ("L", "jpg"), ("P", "gif"),
        ("RGB", "webp"), ("RGB", "bmp"), ("F", "tiff"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(PIXELS).convert(mode).save(path)
    picture = decode_rgb(path)
    assert (picture.mode, picture.size) == ("RGB", (17, 12))
    if mode != "F":
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(picture), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert np.asarray(decode_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_float_grey_in_the_unit_interval_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    assert np.asarray(decode_rgb(tmp_path / "a.tiff"))[0, :, 1].tolist() == [0, 128, 255]


def test_palette_with_transparency(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    assert decode_rgb(tmp_path / "a.png").mode == "RGB"


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_rgb(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_the_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    assert decode_rgb(tmp_path / "a.jpg").size == (17, 12)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"no picture", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image")],
)
def test_what_is_no_picture(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "secret-name.jpg"
    path.write_bytes(content)
    with pytest.raises(ContentError, match=reason) as caught:
        decode_rgb(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_truncated_picture_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ContentError, match="truncated"):
        decode_rgb(path)


@pytest.mark.parametrize("size", [(0, 5), (30_000, 30_000), (10_000, 10_000)])
def test_no_pixels_and_decompression_bombs(tmp_path: Path, size: tuple[int, int]) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\0\0\0\0")
    with pytest.raises(ContentError):
        decode_rgb(tmp_path / "a.png")


def test_an_absent_file_is_absent_and_a_folder_is_corrupt(tmp_path: Path) -> None:
    for read in (decode_rgb, read_mono):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")
        with pytest.raises(ContentError):
            read(tmp_path)


@pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL.*"
)  # as in production; pytest resets the filters
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files_are_decoded_or_corrupt(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["jpg", "png", "gif", "tiff", "webp", "wav", "flac", "ogg"]))
    path = tmp_path / f"damaged.{kind}"
    if kind in ("wav", "flac", "ogg"):
        soundfile.write(path, TONE, 16_000)
    else:
        Image.fromarray(PIXELS).save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        if kind in ("wav", "flac", "ogg"):
            samples, _ = read_mono(path)
            assert samples.ndim == 1 and np.isfinite(samples).all()
        else:
            assert decode_rgb(path).mode == "RGB"
    except ContentError as error:
        assert str(path) not in str(error)


@pytest.mark.parametrize(
    ("subtype", "tolerance"), [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("FLOAT", 0.0)]
)
def test_sample_formats(tmp_path: Path, subtype: str, tolerance: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, 0 * TONE], axis=1), 96_000, subtype=subtype)
    samples, rate = read_mono(tmp_path / "a.wav")
    assert (rate, samples.dtype) == (96_000, np.float32)
    assert np.abs(samples - TONE / 2).max() <= tolerance  # channels are averaged


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_formats(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"a.{suffix}", TONE, 16_000)
    assert abs(len(read_mono(tmp_path / f"a.{suffix}")[0]) - 1600) < 2500


def test_sounds_without_content(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound")
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "slow.wav", TONE, 7)
    for name, reason in [
        ("zero", "empty"),
        ("text", "decoded"),
        ("none", "no samples"),
        ("nan", "finite"),
        ("slow", "7 Hz"),
    ]:
        with pytest.raises(ContentError, match=reason):
            read_mono(tmp_path / f"{name}.wav")


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_resampling_is_torchaudios(rate: int) -> None:
    resample = Resampler(16_000)
    wave = torch.from_numpy(TONE)
    expected = torchaudio.transforms.Resample(rate, 16_000)(wave).numpy()
    for _ in range(2):  # the second time from the cache
        assert np.array_equal(resample(TONE, rate), expected)
    # The functional form computes its filter in single precision.
    assert (
        np.abs(torchaudio.functional.resample(wave, rate, 16_000).numpy() - expected).max() < 5e-5
    )


def test_resampling_from_an_odd_rate_needs_little_memory() -> None:
    x = np.sin(2 * np.pi * 440 * np.arange(44_099) / 44_099).astype(np.float32)
    y = Resampler(16_000)(x, 44_099)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(y) == 16_000
    assert np.abs(y - expected)[500:-500].max() < 1e-2
