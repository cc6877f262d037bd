"""The encoders without weights against the libraries called directly, one item at a time."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.feature
import soundfile
import torch
import torchaudio
from PIL import Image
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from mmx.encoders import Encoder, create
from mmx.encoders.handcrafted import colour_histogram, frame_statistics
from mmx.errors import ContentError, DataError

WORDS = [
    "red",
    "blue",
    "green",
    "cotton",
    "silk",
    "shirt",
    "dress",
    "shoe",
    "lamp",
    "chair",
    "table",
    "novel",
    "cook",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(9):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8))
        coarse.resize((90 + 30 * i, 200), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        paths.append(folder / f"{i}.png")
    return paths


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(9):
        t = np.arange(4000 + 1000 * i) / 8000
        soundfile.write(
            folder / f"{i}.wav", np.sin(t * (800 + 400 * i)) / 2 + rng.normal(0, 0.05, len(t)), 8000
        )
        paths.append(folder / f"{i}.wav")
    return paths


def titles(n: int = 40) -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 7))) for _ in range(n)]


def in_batches(encoder: Encoder, contents: list[Path] | list[str], size: int) -> np.ndarray:
    loaded = [encoder.load(content) for content in contents]
    return np.concatenate(
        [encoder.encode(loaded[i : i + size]) for i in range(0, len(loaded), size)]
    )


def colour_hog_directly(path: Path) -> np.ndarray:
    pixels = np.asarray(
        Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
    )
    hsv = skimage.color.rgb2hsv(pixels).reshape(-1, 3)
    counts, _ = np.histogramdd(hsv, bins=(8, 4, 4), range=[(0, 1)] * 3)
    hog = skimage.feature.hog(
        skimage.color.rgb2gray(pixels),
        orientations=9,
        pixels_per_cell=(32, 32),
        cells_per_block=(2, 2),
    )
    return np.concatenate([np.sqrt(counts.ravel() / counts.sum()), hog / 3])


def mfcc_directly(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    wave = torchaudio.transforms.Resample(rate, 16_000)(torch.from_numpy(samples))
    mel = {"n_fft": 400, "hop_length": 160, "n_mels": 40}
    mfcc = torchaudio.transforms.MFCC(16_000, n_mfcc=20, melkwargs=mel)(wave)
    decibel = torchaudio.transforms.AmplitudeToDB("power", top_db=80.0)
    log_mel = decibel(torchaudio.transforms.MelSpectrogram(16_000, **mel)(wave))
    x = torch.cat([mfcc, log_mel]).double()
    change = (x[:, 1:] - x[:, :-1]).abs().mean(1)
    return torch.cat([x.mean(1), x.std(1, correction=0), x.amin(1), x.amax(1), change]).numpy()


@pytest.mark.parametrize("size", [1, 7, 16])
def test_colour_hog_is_scikit_image(pictures: list[Path], size: int) -> None:
    vectors = in_batches(create("colour-hog", modality="visual"), pictures, size)
    assert vectors.shape == (9, 452) and vectors.dtype == np.float32
    assert (
        np.abs(vectors - np.stack([colour_hog_directly(path) for path in pictures])).max() <= 1e-6
    )
    assert len(np.unique(vectors, axis=0)) == 9


@pytest.mark.parametrize("size", [1, 7, 16])
def test_mfcc_is_torchaudio(sounds: list[Path], size: int) -> None:
    vectors = in_batches(create("mfcc", modality="audio"), sounds, size)
    assert vectors.shape == (9, 300) and vectors.dtype == np.float32
    direct = np.stack([mfcc_directly(path) for path in sounds])
    assert np.abs(vectors - direct.astype(np.float32)).max() <= 1e-5
    assert len(np.unique(vectors, axis=0)) == 9


@pytest.mark.parametrize("size", [1, 7, 16])
def test_tfidf_lsa_is_scikit_learn(size: int) -> None:
    corpus = titles()
    encoder = create("tfidf-lsa", modality="textual")
    encoder.fit(corpus)
    vectors = in_batches(encoder, corpus, size)
    tfidf = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    weighted = tfidf.fit_transform(corpus)
    svd = TruncatedSVD(encoder.spec.dim, n_iter=7, random_state=0).fit(weighted)
    direct = np.concatenate([svd.transform(tfidf.transform([text])) for text in corpus])
    direct /= np.linalg.norm(direct, axis=1, keepdims=True)
    largest = np.abs(svd.components_).argmax(axis=1)
    direct *= np.sign(svd.components_[np.arange(len(largest)), largest])
    assert vectors.shape == (40, encoder.spec.dim) == (40, len(WORDS))
    assert np.abs(vectors - direct).max() <= 1e-6


def test_lsa_has_as_many_dimensions_as_the_corpus_supports() -> None:
    encoder = create("tfidf-lsa", modality="textual")
    assert encoder.needs_fit and encoder.spec.dim == 256
    for corpus, dim in (
        (["a"], 1),
        (["a b", "b c"], 2),
        (["a b", "a b", "c"], 2),
        (["a", "", "b"], 2),
    ):
        encoder.fit(corpus)
        vectors = encoder.encode([encoder.load(text) for text in corpus if text])
        assert encoder.spec.dim == dim == vectors.shape[1]
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    rng = np.random.default_rng(0)
    encoder.fit(" ".join(f"w{i}" for i in rng.integers(0, 900, 12)) for _ in range(400))
    assert encoder.spec.dim == 256


def test_a_fit_is_deterministic_and_its_digest_is_in_the_provenance() -> None:
    encoders = [create("tfidf-lsa", modality="textual") for _ in range(3)]
    for encoder, corpus in zip(encoders, (titles(), titles(), titles()[::-1]), strict=True):
        encoder.fit(iter(corpus))
    first, same, other = (encoder.spec.provenance()["preprocessing"]["fit"] for encoder in encoders)
    assert first == same and first["n_texts"] == 40 and first["n_terms"] == len(WORDS)
    assert first["corpus_sha256"] != other["corpus_sha256"]
    a, b = (encoder.encode([encoder.load("red silk dress")]) for encoder in encoders[:2])
    assert a.tobytes() == b.tobytes()


def test_texts_without_a_known_word_have_no_vector() -> None:
    encoder = create("tfidf-lsa", modality="textual")
    with pytest.raises(RuntimeError, match="fit"):
        encoder.load("red")
    encoder.fit(["red shirt", "blue shirt", "日本 книга"])
    assert encoder.encode([encoder.load("日本")]).any()
    for text in ("unheard-of", "?!", "   ", "", "\udcff"):
        with pytest.raises(ContentError):
            encoder.load(text)
    for corpus in ([], ["?!", " "]):
        with pytest.raises(DataError, match="holds a word"):
            encoder.fit(corpus)


def test_a_clip_of_ten_milliseconds_and_silence(tmp_path: Path) -> None:
    encoder = create("mfcc", modality="audio")
    for name, samples in (
        ("short", np.full(160, 0.5)),
        ("one", np.full(1, 0.5)),
        ("silent", np.zeros(16_000)),
    ):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
        assert np.isfinite(encoder.load(tmp_path / f"{name}.wav")).all()


def test_flat_and_tiny_pictures(tmp_path: Path) -> None:
    encoder = create("colour-hog", modality="visual")
    for size in ((1, 1), (3000, 2)):
        Image.new("RGB", size, "white").save(tmp_path / "a.png")
        vector = encoder.load(tmp_path / "a.png")
        assert np.isfinite(vector).all() and np.linalg.norm(vector) == pytest.approx(
            1.0
        )  # colour only: no edges


@pytest.mark.parametrize(
    ("name", "modality"), [("colour-hog", "visual"), ("tfidf-lsa", "textual"), ("mfcc", "audio")]
)
def test_encoders_travel_between_processes(
    name: str, modality: str, pictures: list[Path], sounds: list[Path]
) -> None:
    encoder = create(name, modality=modality)
    content = {"visual": pictures[0], "audio": sounds[0], "textual": "red silk"}[modality]
    encoder.fit(titles())
    there = pickle.loads(pickle.dumps(encoder))
    assert there.spec == encoder.spec
    assert np.array_equal(
        there.encode([there.load(content)]), encoder.encode([encoder.load(content)])
    )
    assert encoder.sort_key(encoder.load(content)) == 0 and not encoder.truncated(
        encoder.load(content)
    )
    assert encoder.spec.weights == "none" and encoder.spec.weights_sha256 is None


def test_colour_histogram_equals_numpys() -> None:
    # Eighths hit the bins' edges and the maximum.
    pixels = np.random.default_rng(0).integers(0, 9, (20, 30, 3)) / 8
    expected, _ = np.histogramdd(pixels.reshape(-1, 3), bins=(8, 4, 4), range=[(0, 1)] * 3)
    histogram = colour_histogram(pixels, (8, 4, 4))
    assert np.allclose(histogram, np.sqrt(expected.ravel() / 600), rtol=0, atol=1e-15)
    assert np.linalg.norm(histogram) == pytest.approx(1.0)


def test_frame_statistics_by_hand() -> None:
    values = frame_statistics(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]))
    assert values.tolist() == pytest.approx(
        [2.0, 5.0, np.sqrt(2 / 3), 0.0, 1.0, 5.0, 3.0, 5.0, 1.5, 0.0]
    )
    assert frame_statistics(np.array([[4.0]])).tolist() == [4.0, 0.0, 4.0, 4.0, 0.0]


@pytest.mark.real_data
def test_real_contents_equal_the_libraries(real_data: Path) -> None:
    photographs = sorted((real_data / "images").glob("*.jpg"))[:10]
    vectors = in_batches(create("colour-hog", modality="visual"), photographs, 7)
    assert (
        np.abs(vectors - np.stack([colour_hog_directly(path) for path in photographs])).max()
        <= 1e-5
    )
    clips = sorted((real_data / "speech").glob("*.wav"))[:10]
    vectors = in_batches(create("mfcc", modality="audio"), clips, 7)
    assert (
        np.abs(vectors - np.stack([mfcc_directly(path) for path in clips]).astype(np.float32)).max()
        <= 1e-5
    )
