"""Each bad input ends as docs/statuses.md promises, and never as a wrong vector."""

from __future__ import annotations

import io
import math
import resource
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from tests.processes import ended

from mmstore import FeatureSet, Status
from mmx.cli import cli
from mmx.config import RunConfig, SetConfig
from mmx.encoders.decoding import sounds
from mmx.extraction.extract import extract
from mmx.extraction.summary import Summary

RNG = np.random.default_rng(11)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
)
TONE = (np.sin(np.arange(16_000) / 9) / 2).astype(np.float32)


def jpeg(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\0\0\0\0"


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def statuses(summary: Summary) -> dict[str, str]:
    with FeatureSet(summary.path) as features:
        assert features.verify() == []
        return {
            item: Status(status).name.lower()
            for item, status in zip(features.ids.tolist(), features.status, strict=True)
        }


def vectors(summary: Summary) -> dict[str, NDArray[np.float32]]:
    with FeatureSet(summary.path) as features:
        ids = features.ids.tolist()
        matrix, present = features.matrix(ids)
        assert np.isfinite(matrix[present]).all()
        return {item: matrix[row] for row, item in enumerate(ids) if present[row]}


def go(root: Path, modality: str, model: str, **options: Any) -> Summary:
    config = SetConfig(
        modality=modality, model=model, weights=options.pop("weights", "default"), batch_size=4
    )  # type: ignore[arg-type]
    run = RunConfig(data=root, device="cpu", max_failures="100%", **options)
    return extract(run, config)


# ------------------------------------------------------------------------------------------------
# pictures

GREY16 = (np.asarray(Image.fromarray(SMOOTH).convert("L")).astype(np.uint16) << 8) | 0x80
PLAIN = Image.fromarray(SMOOTH)

PICTURES: dict[str, tuple[bytes, str, str]] = {
    "whole.jpg": (jpeg(), "ok", ""),
    "rotated.jpg": (jpeg(exif=exif(6)), "ok", ""),
    "cmyk.jpg": (saved(PLAIN.convert("CMYK"), "JPEG"), "ok", ""),
    "palette.png": (saved(PLAIN.convert("P"), "PNG"), "ok", ""),
    "sixteen.png": (saved(Image.fromarray(GREY16), "PNG"), "ok", ""),
    "grey.png": (saved(PLAIN.convert("L"), "PNG"), "ok", ""),
    "alpha.png": (saved(PLAIN.convert("RGBA"), "PNG"), "ok", ""),
    "animated.gif": (
        saved(PLAIN, "GIF", save_all=True, append_images=[Image.new("RGB", (80, 60))]), "ok", "",
    ),
    "pixel.png": (saved(Image.new("RGB", (1, 1)), "PNG"), "ok", ""),
    "png-named.jpg": (saved(PLAIN, "PNG"), "ok", ""),
    "zero.jpg": (b"", "corrupt", "the file is empty"),
    "text.jpg": (b"this is no picture", "corrupt", "not an image"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 "
                   b"9\n%%EndComments\nshowpage\n", "corrupt", "not an image"),
    "header.jpg": (jpeg()[:200], "corrupt", "image"),
    "truncated.jpg": (jpeg()[:-300], "corrupt", "truncated"),
    "truncated.png": (saved(PLAIN, "PNG")[:-300], "corrupt", "image"),
    "nothing.png": (png_header(0, 0), "corrupt", "image"),
    "bomb.png": (png_header(30_000, 30_000), "corrupt", "decompression-bomb limit"),
    "line.png": (saved(Image.new("L", (1, 60_000)), "PNG"), "corrupt", "larger than"),
    "absent.jpg": (b"", "missing", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    (root.parent / "outside.jpg").write_bytes(jpeg())
    (root / "images" / "link.jpg").symlink_to(root.parent / "outside.jpg")
    (root / "images" / "loop.jpg").symlink_to(root / "images" / "loop.jpg")
    (root / "images" / "folder.jpg").mkdir()
    rows = [f"{name}\timages/{name}" for name in PICTURES]
    for name, (content, status, _) in PICTURES.items():
        if status != "missing":
            (root / "images" / name).write_bytes(content)
    rows += [
        "climbs\t../outside.jpg", f"absolute\t{root.parent / 'outside.jpg'}",
        "link\timages/link.jpg", "loop\timages/loop.jpg", "folder\timages/folder.jpg",
        "device\t/dev/zero", "unsaid\t",
    ]  # fmt: skip
    (root / "items.tsv").write_text("item_id\timage\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("model", ["resnet18", "colour-hog"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
def test_pictures(catalogue: Path, tmp_path: Path, model: str) -> None:
    weights = "default" if model == "colour-hog" else "random"
    summary = go(catalogue, "visual", model, out=tmp_path, weights=weights)
    expected = {name: status for name, (_, status, _) in PICTURES.items()} | {
        "climbs": "corrupt", "absolute": "corrupt", "link": "corrupt", "loop": "corrupt",
        "folder": "corrupt", "device": "corrupt", "unsaid": "missing",
    }  # fmt: skip
    if model == "colour-hog":
        expected["line.png"] = "ok"  # resized to a square, so that no enormous picture comes of it
    assert statuses(summary) == expected
    assert summary.exit_code == 3
    with FeatureSet(summary.path) as features:
        reasons = {str(features.ids[row]): message for row, message in features.errors()}
    for name, (_, status, reason) in PICTURES.items():
        if expected[name] == status == "corrupt":
            assert reason in reasons[name], name
    for name in ("climbs", "absolute", "link", "device"):
        assert "out of the dataset folder" in reasons[name]
    assert not any(str(catalogue) in message for message in reasons.values())

    found = vectors(summary)
    scale = np.linalg.norm(found["whole.jpg"])
    for same in ("rotated.jpg",):
        assert np.array_equal(found[same], found["whole.jpg"])  # the orientation is not applied
    for close in ("palette.png", "cmyk.jpg", "alpha.png", "png-named.jpg", "animated.gif"):
        assert np.linalg.norm(found[close] - found["whole.jpg"]) < 0.5 * scale, close
    assert np.linalg.norm(found["sixteen.png"] - found["grey.png"]) < 1e-3 * scale


# ------------------------------------------------------------------------------------------------
# texts


def test_texts(tmp_path: Path) -> None:
    cells = {
        "plain": ("a red dress for the summer", "ok"),
        "empty": ("", "missing"),
        "blank": (" \u00a0 ", "missing"),
        "nan": ("NaN", "missing"),
        "word": ("Nan and the red dress", "ok"),
        "latin": (b"robe d'\xe9t\xe9", "corrupt"),
        "hebrew": ("\u05e9\u05de\u05dc\u05d4 \u05d0\u05d3\u05d5\u05de\u05d4 \u200f red", "ok"),
        "emoji": ("\U0001f457 dress \U0001f468\u200d\U0001f469\u200d\U0001f467", "ok"),
        "long": ("summer dress " * 80_000, "ok"),
    }
    rows = [b"item_id\ttitle"]
    rows += [
        f"{name}\t".encode() + (cell if isinstance(cell, bytes) else cell.encode())
        for name, (cell, _) in cells.items()
    ]
    (tmp_path / "items.tsv").write_bytes(b"\n".join(rows) + b"\n")
    summary = go(tmp_path, "textual", "tfidf-lsa")
    assert statuses(summary) == {name: status for name, (_, status) in cells.items()}
    assert summary.errors == (("latin", "title: not valid UTF-8 (byte 0xe9 at 7)"),)
    assert len(vectors(summary)) == 5


def test_absent_texts_of_a_data_frame(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"item_id": ["a", "b", "c"], "title": ["a dress", None, math.nan], "brand": [math.nan] * 3}
    )
    for name in ("items.parquet", "items.csv"):
        root = tmp_path / name
        root.mkdir()
        frame.to_parquet(root / name) if name.endswith("parquet") else frame.to_csv(
            root / name, index=False, na_rep="nan"
        )
        assert statuses(go(root, "textual", "tfidf-lsa")) == {
            "a": "ok",
            "b": "missing",
            "c": "missing",
        }


# ------------------------------------------------------------------------------------------------
# sounds


def wav(
    samples: NDArray[np.float32], rate: int = 16_000, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


SOUNDS: dict[str, tuple[bytes, str]] = {
    "whole.wav": (wav(TONE), "ok"),
    "silent.wav": (wav(np.zeros(16_000, np.float32)), "ok"),
    "eight.wav": (wav(TONE, subtype="PCM_U8"), "ok"),
    "twentyfour.wav": (wav(TONE, subtype="PCM_24"), "ok"),
    "fast.wav": (wav(np.repeat(TONE, 6), 96_000), "ok"),
    "stereo.wav": (wav(np.stack([TONE, TONE], axis=1)), "ok"),
    "whole.flac": (wav(TONE, kind="FLAC"), "ok"),
    "whole.ogg": (wav(TONE, kind="OGG"), "ok"),
    "whole.mp3": (wav(TONE, kind="MP3"), "ok"),
    "short.wav": (wav(TONE[:160]), "ok"),
    "sample.wav": (wav(TONE[:1]), "ok"),
    "none.wav": (wav(TONE[:0]), "corrupt"),
    "zero.wav": (b"", "corrupt"),
    "text.wav": (b"no sound", "corrupt"),
    "header.wav": (wav(TONE)[:30], "corrupt"),
    "nan.wav": (wav(np.full(100, np.nan, np.float32), subtype="FLOAT"), "corrupt"),
    "cut.wav": (wav(TONE)[:-2000], "corrupt"),
    "cut.flac": (wav(TONE, kind="FLAC")[:60], "corrupt"),
    "late.flac": (wav(TONE, kind="FLAC")[:-2000], "corrupt"),
    "absent.wav": (b"", "missing"),
}


def hear(tmp_path: Path, files: dict[str, tuple[bytes, str]]) -> Summary:
    (tmp_path / "audio").mkdir()
    for name, (content, status) in files.items():
        if status != "missing":
            (tmp_path / "audio" / name).write_bytes(content)
    rows = "".join(f"{name}\taudio/{name}\n" for name in files)
    (tmp_path / "items.tsv").write_text("item_id\taudio\n" + rows, encoding="utf-8")
    return go(tmp_path, "audio", "mfcc")


def test_sounds(tmp_path: Path) -> None:
    summary = hear(tmp_path, SOUNDS)
    assert statuses(summary) == {name: status for name, (_, status) in SOUNDS.items()}
    found = vectors(summary)
    whole = found["whole.wav"]
    for same in ("twentyfour.wav", "stereo.wav", "whole.flac"):
        assert np.abs(found[same] - whole).max() < 0.05 * np.abs(whole).max(), same


def test_a_wav_that_was_written_to_a_pipe_has_no_length_and_is_whole(tmp_path: Path) -> None:
    content = wav(TONE)
    place = content.index(b"data") + 4
    files = {
        f"{k}.wav": (content[:place] + size + content[place + 4 :], "ok")
        for k, size in enumerate((b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"))
    }
    summary = hear(tmp_path, {**files, "whole.wav": (content, "ok")})
    assert statuses(summary) == dict.fromkeys([*files, "whole.wav"], "ok")
    found = vectors(summary)
    assert np.array_equal(found["0.wav"], found["whole.wav"])


def test_a_long_clip_and_one_of_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MAX_SAMPLES", 8000 * 700)  # 22 MB: more than is had for the asking
    long = wav(np.tile(TONE[:8000], 690), 8000, kind="FLAC")
    longer = wav(np.zeros(8000 * 710, np.float32), 8000, kind="FLAC")
    summary = hear(tmp_path, {"long.flac": (long, "ok"), "bomb.flac": (longer, "corrupt")})
    assert statuses(summary) == {"long.flac": "ok", "bomb.flac": "corrupt"}
    assert "longer than" in summary.errors[0][1]


def test_what_was_read_with_a_remark_is_in_the_summary(tmp_path: Path) -> None:
    short = wav(TONE)
    files = {
        "whole.wav": (wav(TONE), "ok"),
        "joined.flac": (2 * wav(TONE, kind="FLAC"), "ok"),
        "promise.wav": (short[:40] + struct.pack("<I", 32_008) + short[44:], "ok"),
        "cut.aiff": (wav(TONE, kind="AIFF")[:-4000], "corrupt"),
    }
    summary = hear(tmp_path, files)
    assert statuses(summary) == {name: status for name, (_, status) in files.items()}
    expected = {
        "joined.flac": "2 sounds in one file, joined",
        "promise.wav": "samples: 4 fewer than the header promises",
    }
    assert dict(summary.notes) == expected
    told = summary.as_json()
    assert (told["this_run"]["noted"], told["this_run"]["seconds_of_sound"]) == (2, 4.0)
    assert {"item_id": "joined.flac", "note": expected["joined.flac"]} in told["first_notes"]
    text = summary.as_text()
    assert "4.0 s of sound" in text and "promise.wav: samples: 4 fewer" in text


# ------------------------------------------------------------------------------------------------
# transparency


def test_transparent_pictures_on_a_colour(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cut_out = PLAIN.convert("RGBA")
    cut_out.putalpha(
        Image.fromarray(np.where(np.arange(80) < 40, 0, 255).astype(np.uint8)[None].repeat(60, 0))
    )
    on_white = SMOOTH.copy()
    on_white[:, :40] = 255
    for name, image in (("cut", cut_out), ("white", Image.fromarray(on_white)), ("plain", PLAIN)):
        image.save(tmp_path / "images" / f"{name}.png")
    run = ["--data", str(tmp_path)]
    assert command(*run).exit_code == 0
    for colour in ("white", "#FFFFFF"):  # the same set
        assert command(*run, "--background", colour).exit_code == 0
    found = {}
    for name in ("colour-hog", "colour-hog-on-ffffff"):
        with FeatureSet(tmp_path / "features" / "visual" / f"{name}.h5") as features:
            matrix, _ = features.matrix(["cut", "white", "plain"])
            told = features.header.provenance["input"].get("background")
            found[name] = matrix, told
    (ignored, nothing), (composed, colour) = found.values()
    assert (nothing, colour) == (None, "#ffffff")
    assert np.array_equal(ignored[0], ignored[2]) and not np.array_equal(ignored[0], ignored[1])
    assert np.array_equal(composed[0], composed[1])
    assert np.array_equal(composed[1:], ignored[1:])
    wrong = command(*run, "--background", "beige")
    assert wrong.exit_code == 2 and "white, black, grey or #rrggbb" in wrong.stderr


# ------------------------------------------------------------------------------------------------
# the command line


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(jpeg() if name == "a" else b"broken")
    return tmp_path


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(
        cli, ["extract", "--modality", "visual", "--model", "colour-hog", *map(str, arguments)]
    )


def test_exit_code_three_with_a_list_and_a_retry_of_what_was_repaired(broken: Path) -> None:
    first = command("--data", broken)
    assert first.exit_code == 3
    assert "1 ok, 0 missing, 2 corrupt" in first.stderr
    assert "b: not an image" in first.stderr and "c: not an image" in first.stderr
    (broken / "images" / "b.jpg").write_bytes(jpeg())
    (broken / "images" / "c.jpg").write_bytes(jpeg())
    assert command("--data", broken).exit_code == 3
    again = command("--data", broken, "--retry-failed")
    assert again.exit_code == 0
    assert "3 ok, 0 missing, 0 corrupt" in again.stderr


def test_too_many_failures_end_with_one_message(broken: Path) -> None:
    result = command("--data", broken, "--max-failures", "1")
    assert result.exit_code == 1
    assert "more than --max-failures 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(tmp_path: Path) -> None:
    rows = "".join(f"i{k}\ta title with number {k}\n" for k in range(3000))
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + rows, encoding="utf-8")
    line = ["extract", "--modality", "textual", "--model", "tfidf-lsa", "--data", tmp_path]
    narrow = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    full = ended("mmx", *line, cwd=tmp_path, prepare=narrow, expect=1)
    assert full.stderr.count("error:") == 1
    assert not (tmp_path / "features/textual/tfidf-lsa.h5").exists()
    ended("mmx", *line, cwd=tmp_path)


# ------------------------------------------------------------------------------------------------
# mutated files


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with up to eight flipped bits, every other time cut short."""
    data = bytearray(raw)
    for position in rng.integers(0, len(data), rng.integers(1, 9)):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.5 else data)


def fuzz(
    root: Path, originals: list[Path], modality: str, model: str, n: int, **options: Any
) -> Summary:
    rng = np.random.default_rng(2)
    folder = root / {"visual": "images", "audio": "audio"}[modality]
    folder.mkdir(parents=True)
    for k in range(n):
        source = originals[k % len(originals)]
        (folder / f"{k:05d}{source.suffix}").write_bytes(mutated(source.read_bytes(), rng))
    return go(root, modality, model, **options)


def check_fuzz(summary: Summary, n: int) -> None:
    found = statuses(summary)  # every vector is finite: `verify` looks
    assert len(found) == n
    assert set(found.values()) <= {"ok", "corrupt"}
    assert 0.05 * n < summary.counts.corrupt < 0.95 * n


def originals_of(real_data: Path, name: str, suffix: str) -> list[Path]:
    return sorted((real_data / name).rglob(f"*{suffix}"))[:100]


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
def test_mutated_photographs_and_clips(real_data: Path, tmp_path: Path) -> None:
    check_fuzz(
        fuzz(
            tmp_path / "v", originals_of(real_data, "images", ".jpg"), "visual", "colour-hog", 150
        ),
        150,
    )
    check_fuzz(
        fuzz(tmp_path / "a", originals_of(real_data, "speech", ".wav"), "audio", "mfcc", 150), 150
    )


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
def test_ten_thousand_mutated_photographs_and_clips(real_data: Path, tmp_path: Path) -> None:
    check_fuzz(
        fuzz(
            tmp_path / "v", originals_of(real_data, "images", ".jpg"), "visual", "colour-hog", 7000
        ),
        7000,
    )
    check_fuzz(
        fuzz(tmp_path / "a", originals_of(real_data, "speech", ".wav"), "audio", "mfcc", 3000), 3000
    )
