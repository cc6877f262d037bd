"""JPEG files decoded by torchvision and on a GPU, held against Pillow's way."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

import torchvision.io
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from mmstore import ProvenanceMismatch, Status
from mmstore.reader import FeatureSet
from mmx.config import RunConfig, SetConfig
from mmx.encoders import create
from mmx.encoders.decoding import decode_rgb, jpegs
from mmx.encoders.decoding.jpegs import (
    EncodedJpeg,
    NvJpeg,
    decode_jpeg,
    plain_frame,
    read_jpeg,
    scaled,
)
from mmx.errors import ContentError, EncoderError, UsageError
from mmx.extraction.extract import extract

SMALL = "squeezenet1_1"
SIZES = [(400, 533), (300, 200), (300, 200), (50, 70), (231, 500), (640, 480)]


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise, (width, height)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype("u1")
    )


def as_jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


PLAIN = as_jpeg(photograph((60, 40)))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter: ignored by all decoders here


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def with_segment(marker: int, data: bytes) -> bytes:
    return PLAIN[:2] + segment(marker, data) + PLAIN[2:]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for k, size in enumerate(SIZES):
        (folder / f"{k}.jpg").write_bytes(as_jpeg(photograph(size, k)))
    photograph((90, 120), 9).save(folder / "6.png")
    return sorted(folder.iterdir())


@pytest.fixture
def on_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let nvJPEG's part be taken by the processor; gives the sizes of the decoded batches."""
    sizes: list[int] = []

    def decoded(self: NvJpeg, contents: list[Any]) -> list[Any]:
        sizes.append(len(contents))
        assert contents, "torchvision decodes no empty list on a GPU"
        rgb = torchvision.io.ImageReadMode.RGB
        return [torchvision.io.decode_jpeg(one, mode=rgb) for one in contents]

    monkeypatch.setattr(NvJpeg, "_decoded", decoded)
    for module in ("torchvision", "open_clip", "transformers"):
        monkeypatch.setattr(
            f"mmx.encoders.{module}.checked_decoder",
            lambda request, device: NvJpeg(device) if request.decoder == "nvjpeg" else None,
        )
    yield sizes


# ------------------------------------------------------------------------------------------------
# which files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PLAIN, (60, 40, False)),
        (as_jpeg(photograph((60, 40)), progressive=True), (60, 40, True)),
        (as_jpeg(photograph((61, 39)).convert("L")), (61, 39, False)),
        (as_jpeg(photograph((60, 40)), subsampling=0), (60, 40, False)),
        (as_jpeg(photograph((60, 40)), exif=EXIF.tobytes()), (60, 40, False)),
        (as_jpeg(photograph((60, 40)), icc_profile=bytes(300)), (60, 40, False)),
        (with_segment(0xFE, b"a comment"), (60, 40, False)),
        (with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\1"), (60, 40, False)),
    ],
)
def test_plain_files(content: bytes, expected: tuple[int, int, bool]) -> None:
    assert plain_frame(content) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        PLAIN[:-2],
        PLAIN + b"\0\0",
        PLAIN[:300] + b"\xff\xd9",
        b"\x89PNG\r\n\x1a\n" + PLAIN,
        as_jpeg(photograph((60, 40)).convert("CMYK")),
        with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),  # colours are RGB
        with_segment(0xE2, b"MPF\0" + bytes(20)),  # another picture follows
        PLAIN[:2] + b"\xff" + PLAIN[2:],  # a filling byte
        PLAIN[:2] + b"junk" + PLAIN[2:],
        PLAIN.replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
    ],
)
def test_other_files_are_left_to_pillow(content: bytes, tmp_path: Path) -> None:
    assert plain_frame(content) is None
    (tmp_path / "a.jpg").write_bytes(content)
    assert decode_jpeg(tmp_path / "a.jpg") is None and read_jpeg(tmp_path / "a.jpg") is None


def test_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    for decode in (decode_jpeg, read_jpeg):
        with pytest.raises(FileNotFoundError):
            decode(tmp_path / "a.jpg")


def test_a_picture_beyond_the_limit_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    (tmp_path / "a.jpg").write_bytes(PLAIN)
    assert decode_jpeg(tmp_path / "a.jpg") is None and read_jpeg(tmp_path / "a.jpg") is None


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes replaced, taken out, put in or cut off, half of them in the header."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        head = data.index(b"\xff\xda")
        place = int(rng.integers(2, head + 12 if rng.random() < 0.5 else len(data)))
        match rng.integers(4):
            case 0:
                data[place] = rng.integers(256)
            case 1:
                del data[place : place + int(rng.integers(1, 9))]
            case 2:
                data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case 3 if rng.random() < 0.3:
                del data[place:]
                data += b"\xff\xd9"
        if b"\xff\xda" not in data:
            break
    return bytes(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"grey": True}])
def test_what_torchvision_decodes_pillow_decodes_alike(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    rng, path, n_decoded = np.random.default_rng(3), tmp_path / "a.jpg", 0
    image = photograph((48, 40))
    image = image.convert("L") if options.pop("grey", False) else image
    whole = as_jpeg(image, **options)
    for _ in range(150):
        path.write_bytes(damaged(rng, whole))
        pixels = decode_jpeg(path)
        if pixels is not None:
            n_decoded += 1
            expected = np.asarray(decode_rgb(path))
            # What is put in the place of scans that are absent depends on how a file is fed in.
            if not options.get("progressive"):
                assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    path.write_bytes(whole)
    pixels = decode_jpeg(path)
    assert pixels is not None
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(decode_rgb(path)))
    assert n_decoded > 10


# ------------------------------------------------------------------------------------------------
# pixels


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(400, 533), (533, 400), (100, 90), (232, 500)])
@pytest.mark.parametrize("in_passes", [False, True])
def test_scaling_is_pillows_up_to_rounding(
    size: tuple[int, int], mode: str, in_passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_passes:  # as on a GPU
        monkeypatch.setattr(jpegs, "_leave_to_torchvision", lambda *_: False)
    image, how = photograph(size), InterpolationMode(mode)
    expected = np.asarray(reference.resize(image, [232], how, antialias=True)).astype(int)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    found = scaled(pixels, [232], how).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape and found.dtype == np.uint8
    apart = np.abs(found - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02


def test_scaling_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "_leave_to_torchvision", lambda *_: False)
    image = photograph((90, 120))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    found = scaled(pixels, [64, 48], InterpolationMode.BICUBIC).permute(1, 2, 0).numpy()
    expected = np.asarray(image.resize((48, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected).max() <= 1


def near(vectors: np.ndarray, others: np.ndarray, share: float) -> bool:
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    cosines = (vectors * others).sum(1) / norms
    return bool(np.abs(cosines - 1).max() < share)


def models_of(family: str, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    match family:
        case "torchvision":
            return SMALL, {"weights": "random"}
        case "open_clip":
            return f"open_clip:{request.getfixturevalue('tiny_clip')}", {"weights": "random"}
        case _:
            return f"transformers:{request.getfixturevalue('models') / 'clip'}", {}


@pytest.mark.parametrize("family", ["torchvision", "open_clip", "transformers"])
@pytest.mark.parametrize("decoder", ["torchvision", "nvjpeg"])
def test_vectors_are_near_those_of_pillow(
    pictures: list[Path],
    family: str,
    decoder: str,
    on_stand_in: list[int],
    request: pytest.FixtureRequest,
) -> None:
    model, options = models_of(family, request)
    usual = create(model, modality="visual", **options)
    other = create(model, modality="visual", decoder=decoder, **options)
    usual.batch_size = other.batch_size = 8
    expected = usual.encode([usual.load(path) for path in pictures])
    loaded = [other.load(path) for path in pictures]
    assert [isinstance(one, EncodedJpeg) for one in loaded] == [
        decoder == "nvjpeg" and path.suffix == ".jpg" for path in pictures
    ]
    on_stand_in.clear()
    found = other.encode(loaded)
    assert on_stand_in == ([len(SIZES)] if decoder == "nvjpeg" else [])
    assert near(expected, found, 1e-4)
    # A PNG file takes Pillow's way to the last bit, and a picture's vector is its own.
    if decoder == "torchvision":
        assert family != "transformers" or np.array_equal(expected, found)
        assert np.array_equal(usual.encode([usual.load(pictures[-1])]), other.encode(loaded[-1:]))
    for k in (1, 4, 6):
        assert near(found[k : k + 1], other.encode(loaded[k : k + 1]), 1e-6)


def test_pictures_are_decoded_in_parts_that_fit(
    pictures: list[Path], on_stand_in: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create(SMALL, modality="visual", weights="random", decoder="nvjpeg")
    loaded = [encoder.load(path) for path in pictures]
    together = encoder.encode(loaded)
    monkeypatch.setattr(jpegs, "_GPU_BYTES", 400 * 533 * 3 * 4)
    on_stand_in.clear()
    assert np.array_equal(encoder.encode(loaded), together)
    assert on_stand_in == [1, 3, 1, 1]


def test_what_nvjpeg_cannot_decode_pillow_does(
    pictures: list[Path], on_stand_in: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = NvJpeg._decoded

    def fails(self: NvJpeg, contents: list[Any]) -> list[Any]:
        for one in contents:
            if one.numel() == pictures[1].stat().st_size:
                raise RuntimeError("nvjpegDecode failed: 4")
        return decoded(self, contents)

    encoder = create(SMALL, modality="visual", weights="random", decoder="nvjpeg")
    usual = create(SMALL, modality="visual", weights="random")
    encoder.batch_size = usual.batch_size = 8
    loaded = [encoder.load(path) for path in pictures]
    before = encoder.encode(loaded)
    monkeypatch.setattr(NvJpeg, "_decoded", fails)
    found = encoder.encode(loaded)
    others = [0, 2, 3, 4, 5, 6]
    assert np.array_equal(found[others], before[others])
    assert np.array_equal(found[1], usual.encode([usual.load(pictures[1])])[0])

    def broken(self: NvJpeg, contents: list[Any]) -> list[Any]:
        raise RuntimeError("nvjpegDecode failed: 6")

    monkeypatch.setattr(
        NvJpeg, "_decoded", broken
    )  # no file is the reason: nothing to fall back to
    with pytest.raises(RuntimeError, match="failed: 6"):
        encoder.encode(loaded)

    def out_of_memory(self: NvJpeg, contents: list[Any]) -> list[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(NvJpeg, "_decoded", out_of_memory)  # for smaller batches, not for Pillow
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(loaded)


# ------------------------------------------------------------------------------------------------
# whole sets


def save_all_kinds(folder: Path) -> None:
    """A catalogue of files of many kinds, good and bad."""
    (folder / "images").mkdir(parents=True)
    photo = photograph((300, 260), 1)
    grey = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    good = as_jpeg(photo)
    files: dict[str, bytes | Callable[[Path], None]] = {
        "plain.jpg": good,
        "again.jpg": as_jpeg(photograph((300, 260), 2)),
        "progressive.jpg": as_jpeg(photo, progressive=True),
        "grey.jpg": as_jpeg(photo.convert("L")),
        "turned.jpg": as_jpeg(photo, exif=EXIF.tobytes()),
        "cmyk.jpg": as_jpeg(photo.convert("CMYK")),
        "tail.jpg": good + b"more",
        "no-end.jpg": good[:-2],
        "cut.jpg": good[: len(good) // 2],
        "cut-with-end.jpg": good[: len(good) // 2] + b"\xff\xd9",
        "header-alone.jpg": good[: good.index(b"\xff\xda") + 14],
        "text.jpg": b"not a picture",
        "empty.jpg": b"",
        "png.jpg": lambda path: photo.save(path, "PNG"),
        "deep.png": lambda path: grey.save(path),
        "palette.png": lambda path: photo.quantize(9).save(path, transparency=2),
        "alpha.png": lambda path: photo.convert("RGBA").save(path),
        "line.png": lambda path: Image.new("RGB", (1, 30_000)).save(path),
        "line.jpg": as_jpeg(Image.new("RGB", (1, 30_000))),
        "animated.gif": lambda path: photo.save(path, save_all=True, append_images=[photo]),
    }
    for name, content in files.items():
        path = folder / "images" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    names = [*files, "gone.jpg"]
    rows = "".join(f"{name}\timages/{name}\n" for name in names)
    (folder / "items.tsv").write_text(f"item_id\timage\n{rows}")


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
def test_the_same_files_are_corrupt_whichever_decodes(
    tmp_path: Path, on_stand_in: list[int]
) -> None:
    save_all_kinds(tmp_path)
    run = RunConfig(data=tmp_path, device="cpu", max_failures="100%", workers=2)
    found = {}
    for decoder in ("pil", "torchvision", "nvjpeg"):
        config = SetConfig(
            modality="visual", model=SMALL, weights="random", decoder=decoder, name=decoder,
            batch_size=8,
        )  # fmt: skip
        summary = extract(run, config)
        with FeatureSet(summary.path) as features:
            reasons = {features.ids[row]: why for row, why in features.errors()}
            found[decoder] = features.status.tolist(), reasons, features.matrix(features.ids)[0]
            told = dict(features.provenance)["preprocessing"]
        assert ("decoder" in told) == (decoder != "pil")
    assert found["pil"][0].count(Status.OK) >= 10 and len(found["pil"][1]) >= 5
    for decoder in ("torchvision", "nvjpeg"):
        assert found[decoder][:2] == found["pil"][:2], decoder
        assert near_where_there(found[decoder][2], found["pil"][2])


def near_where_there(vectors: np.ndarray, others: np.ndarray) -> bool:
    there = np.isfinite(others).all(1) & (others != 0).any(1)
    return near(vectors[there], others[there], 1e-4)


@pytest.mark.parametrize("decoder", ["torchvision", "nvjpeg"])
def test_processes_load_what_threads_load(
    tmp_path: Path, pictures: list[Path], decoder: str, on_stand_in: list[int]
) -> None:
    rows = "".join(f"{path.stem}\t{path}\n" for path in pictures)
    (tmp_path / "items.tsv").write_text(f"item_id\timage\n{rows}")
    config = SetConfig(
        modality="visual", model=SMALL, weights="random", decoder=decoder, batch_size=4
    )
    digests = set()
    for loading in ("threads", "processes"):
        run = RunConfig(
            data=tmp_path, out=tmp_path / loading, device="cpu", workers=1, loading=loading,
            allow_outside=True,
        )  # fmt: skip
        summary = extract(run, config)
        assert summary.counts.ok == len(pictures)
        assert summary.stages.loading.how == loading
        digests.add(summary.digest)
    assert len(digests) == 1


def test_sets_that_share_pictures_decode_each_once(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmx.encoders.decoding import shared_decoding

    calls: list[int] = []
    decode = torchvision.io.decode_jpeg

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return decode(*arguments, **options)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", counted)
    encoders = [
        create(model, modality="visual", weights="random", decoder="torchvision")
        for model in (SMALL, "resnet18")
    ]
    with shared_decoding():
        one, other = (encoder.load(pictures[0]) for encoder in encoders)
    assert len(calls) == 1 and one.shape == other.shape == (224, 224, 3)


# ------------------------------------------------------------------------------------------------
# what is refused and told


def test_nvjpeg_without_a_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"nvjpeg needs a GPU .*--decoder torchvision") as refusal:
        create(SMALL, modality="visual", weights="random", decoder="nvjpeg", device="cpu")
    assert "\n" not in str(refusal.value)


def test_nvjpeg_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: NvJpeg, contents: list[Any]) -> list[Any]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(NvJpeg, "_decoded", fails)
    with pytest.raises(EncoderError, match=r"nvjpeg does not work here \(.*nvJPEG support\)"):
        NvJpeg(torch.device("cpu"))


@pytest.mark.parametrize(
    ("model", "modality", "decoder", "expected"),
    [
        ("colour-hog", "visual", "torchvision", r"--decoder torchvision is not possible.*pil\."),
        ("tfidf-lsa", "textual", "torchvision", "not possible"),
        (SMALL, "visual", "opencv", "unknown decoder 'opencv'"),
    ],
)
def test_a_decoder_that_an_encoder_lacks_is_refused(
    model: str, modality: str, decoder: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        create(model, modality=modality, decoder=decoder)


def test_a_decoder_is_about_pictures() -> None:
    with pytest.raises(ValueError, match="decoder is about pictures"):
        SetConfig(modality="textual", model="tfidf-lsa", decoder="torchvision")


@pytest.mark.parametrize("family", ["torchvision", "open_clip", "transformers"])
def test_the_provenance_tells_another_decoder_with_its_version(
    family: str, on_stand_in: list[int], request: pytest.FixtureRequest
) -> None:
    model, options = models_of(family, request)
    usual, torchvisions, nvjpegs = (
        create(model, modality="visual", decoder=decoder, **options).spec
        for decoder in ("pil", "torchvision", "nvjpeg")
    )
    assert "decoder" not in usual.preprocessing
    for spec, decoder in ((torchvisions, "torchvision"), (nvjpegs, "nvjpeg")):
        assert spec.preprocessing == {**usual.preprocessing, "decoder": decoder}
        assert spec.libraries["torchvision"] == torchvision.__version__.partition("+")[0]
        assert usual.libraries.items() <= spec.libraries.items()
    assert nvjpegs.libraries["cuda"] == str(torch.version.cuda)


def test_a_set_is_not_continued_with_another_decoder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(PLAIN)
    (tmp_path / "items.tsv").write_text("item_id\na\n")
    run = RunConfig(data=tmp_path, device="cpu")
    config = SetConfig(modality="visual", model=SMALL, weights="random", batch_size=1)
    extract(run, config)
    with pytest.raises(ProvenanceMismatch, match="decoder"):
        extract(run, config.model_copy(update={"decoder": "torchvision"}))
    assert extract(run, config).already_complete


def test_the_reason_is_pillows(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PLAIN[:200] + b"\xff\xd9")
    reasons = set()
    for decoder in ("pil", "torchvision"):
        encoder = create(SMALL, modality="visual", weights="random", decoder=decoder)
        with pytest.raises(ContentError) as error:
            encoder.load(tmp_path / "a.jpg")
        reasons.add(str(error.value))
    assert len(reasons) == 1


# ------------------------------------------------------------------------------------------------
# on a card


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["torchvision", "open_clip", "transformers"])
def test_nvjpeg_is_near_pillow(
    pictures: list[Path], family: str, request: pytest.FixtureRequest
) -> None:
    model, options = models_of(family, request)
    options["device"] = "cuda"
    usual = create(model, modality="visual", **options)
    other = create(model, modality="visual", decoder="nvjpeg", **options)
    usual.batch_size = other.batch_size = 8
    expected = usual.encode([usual.load(path) for path in pictures])
    loaded = [other.load(path) for path in pictures]
    found = other.encode(loaded)
    assert near(expected, found, 1e-2)
    assert near(expected[-1:], found[-1:], 1e-5)  # the PNG file
    assert np.array_equal(found, other.encode(loaded))
    assert near(found[2:5], other.encode(loaded[2:5]), 1e-5)


@pytest.mark.gpu
def test_nvjpeg_keeps_what_is_corrupt(tmp_path: Path) -> None:
    save_all_kinds(tmp_path)
    run = RunConfig(data=tmp_path, device="cuda", max_failures="100%", workers=2)
    found = []
    for decoder in ("pil", "nvjpeg"):
        config = SetConfig(
            modality="visual", model=SMALL, weights="random", decoder=decoder, name=decoder,
            batch_size=8,
        )  # fmt: skip
        with FeatureSet(extract(run, config).path) as features:
            found.append(features.status.tolist())
    assert found[0] == found[1]


@pytest.mark.gpu
def test_scaling_on_a_gpu_is_pillows_up_to_rounding() -> None:
    image = photograph((400, 533))
    expected = np.asarray(reference.resize(image, [232], antialias=True)).astype(int)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).cuda()
    found = scaled(pixels, [232], InterpolationMode.BILINEAR).permute(1, 2, 0).cpu().numpy()
    apart = np.abs(found - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02
