"""What is found by an id can be read, and what cannot says what it is."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from tests.conftest import REPOSITORY

from mmbase.dataset import FILE_SUFFIXES
from mmx.config import RunConfig, SetConfig
from mmx.encoders.decoding import decode_rgb, observed, read_mono
from mmx.errors import ContentError
from mmx.extraction.extract import extract

TONE = (np.sin(np.arange(48_000) / 9) / 2).astype(np.float32)
PICTURE = Image.new("RGB", (64, 48), (200, 100, 50))
PICTURES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jfif", ".jpe"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"), ".webp": "WEBP", ".gif": "GIF",
    **dict.fromkeys((".bmp", ".dib"), "BMP"), **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), "JPEG2000"), ".ico": "ICO",
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
}  # fmt: skip
SOUNDS = {
    **dict.fromkeys((".wav", ".wave", ".bwf"), ("WAV", None)), ".flac": ("FLAC", None),
    **dict.fromkeys((".mp3", ".mpga"), ("MP3", None)), ".mp2": ("MP3", "MPEG_LAYER_II"),
    **dict.fromkeys((".ogg", ".oga"), ("OGG", None)), ".opus": ("OGG", "OPUS"),
    **dict.fromkeys((".aiff", ".aif"), ("AIFF", None)), ".aifc": ("AIFF", "ULAW"),
    **dict.fromkeys((".au", ".snd"), ("AU", None)), ".w64": ("W64", None), ".caf": ("CAF", None),
    ".rf64": ("RF64", None),
}  # fmt: skip
WITH_EXTRA = {
    "visual": {".heic", ".heif", ".hif", ".jxl"},
    "audio": {
        ".m4a", ".aac", ".mp4", ".m4b", ".webm", ".weba", ".mka", ".wv", ".ape", ".wma", ".amr",
        ".ac3", ".tta", ".dsf",
    },
}  # fmt: skip


def picture(suffix: str) -> bytes:
    if suffix == ".pfm":
        return b"Pf\n8 8\n-1.0\n" + np.full(64, 0.5, "<f4").tobytes()
    stream = io.BytesIO()
    PICTURE.save(stream, PICTURES[suffix])
    return stream.getvalue()


def sound(suffix: str) -> bytes:
    stream = io.BytesIO()
    kind, subtype = SOUNDS[suffix]
    try:
        soundfile.write(stream, TONE, 48_000, format=kind, subtype=subtype)
    except soundfile.LibsndfileError:  # it reads layer II and does not write it
        return sound(".mp3")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("modality", "model", "folder"),
    [("visual", "colour-hog", "images"), ("audio", "mfcc", "audio")],
)
def test_files_of_every_extension_are_found_by_id_and_read(
    tmp_path: Path, modality: Any, model: str, folder: str
) -> None:
    suffixes = set(FILE_SUFFIXES[modality]) - WITH_EXTRA[modality] - {".svg"}
    make = picture if modality == "visual" else sound
    (tmp_path / folder).mkdir()
    for suffix in suffixes:
        content = make(suffix)
        (tmp_path / folder / f"small{suffix[1:]}{suffix}").write_bytes(content)
        (tmp_path / folder / f"large{suffix[1:]}{suffix.upper()}").write_bytes(content)
    run = RunConfig(data=tmp_path, device="cpu", workers=2)
    summary = extract(run, SetConfig(modality=modality, model=model))
    assert (summary.counts.ok, summary.counts.total) == (2 * len(suffixes), 2 * len(suffixes))


def test_the_documented_extensions_are_those_that_are_looked_for() -> None:
    text = (REPOSITORY / "docs" / "statuses.md").read_text(encoding="utf-8")
    for modality, name in (("visual", "pictures"), ("audio", "sounds")):
        listed = re.search(rf"^- {name}:((?:\s+\.\w+)+)", text, re.MULTILINE)
        assert listed is not None
        assert tuple(listed[1].split()) == FILE_SUFFIXES[modality]


HEADS: dict[str, tuple[bytes, str, bool]] = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif", True),
    "HEIC by a later brand": (b"\0\0\0\x18ftypXXXX\0\0\0\0heixmiaf", "pillow_heif", True),
    "JPEG XL": (b"\xff\x0a\0\0", "pillow_jxl", True),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", True),
    "SVG": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<SVG></SVG>', "", True),
    "a web page": (b"\n<!DOCTYPE html><html>", "", True),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "", True),
    "a Photoshop document": (b"8BPS\0\1", "", True),
    "M4A": (b"\0\0\0\x18ftypM4A \0\0\0\0isommp42", "av", False),
    "AAC": (b"\xff\xf1\x50\x80\x02\x1f\xfc", "av", False),
    "WebM": (b"\x1a\x45\xdf\xa3\x93\x42\x82\x88webm", "av", False),
    "WavPack": (b"wvpk\0\0\0\0", "av", False),
    "Monkey's Audio": (b"MAC \x96\x0f", "av", False),
    "AMR": (b"#!AMR\n", "av", False),
    "MIDI": (b"MThd\0\0\0\6", "", False),
}


@pytest.mark.parametrize("what", HEADS)
def test_a_format_is_named_with_the_extra_that_reads_it(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, package, is_picture = HEADS[what]
    (tmp_path / "file").write_bytes(head + bytes(100))
    for module in ("pillow_heif", "pillow_jxl", "av"):
        monkeypatch.setitem(sys.modules, module, None)  # not installed
    name = what.partition(" by ")[0].partition(" in ")[0]
    with pytest.raises(ContentError, match=name) as caught:
        (decode_rgb if is_picture else read_mono)(tmp_path / "file")
    assert ("the extra formats" in str(caught.value)) == bool(package)
    with pytest.raises(ContentError, match="of a known format: .*" + name):  # as the other kind
        (read_mono if is_picture else decode_rgb)(tmp_path / "file")


@pytest.mark.parametrize(
    ("package", "name", "kind"), [("pillow_heif", "a.heic", "HEIF"), ("pillow_jxl", "a.jxl", "JXL")]
)
def test_pictures_of_the_extra(tmp_path: Path, package: str, name: str, kind: str) -> None:
    module = pytest.importorskip(package)
    getattr(module, "register_heif_opener", int)()
    PICTURE.save(tmp_path / name, kind)
    assert np.abs(np.asarray(decode_rgb(tmp_path / name)).astype(int) - [200, 100, 50]).max() < 9


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.m4a", "aac", "mp4"), ("lossless.m4a", "alac", "mp4"), ("a.aac", "aac", "adts"),
        ("a.webm", "libopus", "webm"), ("a.wv", "wavpack", "wv"), ("a.mp2", "mp2", "mp2"),
    ],
)  # fmt: skip
def test_sounds_of_the_extra(tmp_path: Path, name: str, codec: str, container: str) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / name
    with av.open(str(path), "w", format=container) as file:
        track = file.add_stream(codec, rate=48_000, layout="stereo")
        whole = av.AudioFrame.from_ndarray(np.stack([TONE, 0 * TONE]), "fltp", "stereo")
        whole.sample_rate = 48_000
        size = track.codec_context.frame_size or 1024
        fit = av.AudioResampler(track.codec_context.format.name, "stereo", 48_000, size)
        for frame in (*fit.resample(whole), *fit.resample(None)):
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
    samples, rate = read_mono(path)
    assert rate == 48_000 and abs(len(samples) - len(TONE)) <= 2400
    middle = samples[10_000:30_000]
    assert 0.9 < np.sqrt(np.mean(middle**2)) / (0.25 / np.sqrt(2)) < 1.1  # channels are averaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if container in ("adts", "mp2"):  # which promise nothing
        with observed():
            assert len(read_mono(path)[0]) < len(TONE)
    else:
        with pytest.raises(ContentError) as caught:
            read_mono(path)
        assert str(tmp_path) not in str(caught.value)
