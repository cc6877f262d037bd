"""Encoders that need no weights: colour + HOG, TF-IDF + LSA, MFCC + log-mel statistics.

They make a catalogue usable offline, and they are the classical baseline that a pre-trained encoder
has to beat.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import (
    Encoder,
    EncoderFamily,
    EncoderInfo,
    EncoderSpec,
    Request,
    checked_text,
    own_work,
    require,
    versions,
)  # fmt: skip
from mmx.encoders.decoding import Resampler, decode_rgb, read_mono
from mmx.errors import ContentError, DataError

FRAME_STATISTICS = ("mean", "std", "min", "max", "mean_abs_delta")


class Handcrafted(Encoder):
    """An encoder of one name, without weights, in fp32 on the CPU."""

    modality: ClassVar[str]
    name: ClassVar[str]
    layer: ClassVar[str]
    pooling: ClassVar[str]
    input: ClassVar[str]
    dim: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]

    def __init__(self, request: Request) -> None:
        request.refuse(weights="default", precision="fp32", layer=self.layer, pooling=self.pooling)
        self.spec = EncoderSpec(
            name=self.name,
            modality=self.modality,
            backend="handcrafted",
            model_id=self.name,
            dim=self.dim,
            layer=self.layer,
            pooling=self.pooling,
            preprocessing=self._preprocessing(request.seed),
            weights="none",
            weights_sha256=None,
            licence=None,
            precision="fp32",
            libraries=versions(*self.libraries),
        )

    @classmethod
    def family(cls) -> EncoderFamily:
        """Return the family of this one encoder."""
        info = EncoderInfo(
            cls.name, cls.modality, cls.name, cls.dim, cls.layer, cls.pooling, licence=None,
            input=cls.input, weights="none needed",
        )  # fmt: skip
        return EncoderFamily(
            name=cls.name,
            modalities=frozenset({cls.modality}),
            accepts=lambda model, _: model == cls.name,
            known=lambda *_: [info],
            build=cls,
            needs_torch=False,
        )

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        raise NotImplementedError


class ColourHogEncoder(Handcrafted):
    """Colour histogram and histogram of oriented gradients, 452 numbers.

    - 0 ... 127: joint HSV histogram (8 hues x 4 saturations x 4 values) of the picture, square root
      of the shares.
    - 128 ... 451: HOG of the grey picture: 9 orientations, cells of 32 x 32, blocks of 2 x 2 cells
      (L2-Hys), divided by the square root of the number of blocks, so that both halves have a norm
      of at most 1.

    The picture is scaled to 128 x 128 first (bilinear, the aspect ratio is not kept).
    Source: Dalal and Triggs, Histograms of oriented gradients for human detection (CVPR 2005);
    scikit-image's `hog`.
    """

    modality = "visual"
    name = "colour-hog"
    layer = "descriptor"
    pooling = "none"
    input = "128 x 128 RGB"
    dim = 452
    libraries = ("pillow", "scikit-image")

    SIZE: ClassVar[int] = 128
    HSV_BINS: ClassVar[tuple[int, int, int]] = (8, 4, 4)
    ORIENTATIONS: ClassVar[int] = 9
    CELL: ClassVar[int] = 32
    BLOCK: ClassVar[int] = 2
    N_BLOCKS: ClassVar[int] = (128 // 32 - 2 + 1) ** 2

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        return {
            "resize": [self.SIZE, self.SIZE],
            "interpolation": "bilinear",
            "exif_orientation": "ignored",
            "hsv_bins": list(self.HSV_BINS),
            "hog": {
                "orientations": self.ORIENTATIONS,
                "pixels_per_cell": [self.CELL, self.CELL],
                "cells_per_block": [self.BLOCK, self.BLOCK],
                "block_norm": "L2-Hys",
            },
        }

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """Decode and describe a picture in one step: the descriptor, shape (452,)."""
        feature, color = require("skimage.feature"), require("skimage.color")
        image = decode_rgb(content).resize((self.SIZE, self.SIZE), resample=2)  # 2: bilinear
        with own_work():
            pixels = np.asarray(image)  # (128, 128, 3) uint8
            colours = colour_histogram(color.rgb2hsv(pixels), self.HSV_BINS)
            gradients = feature.hog(
                color.rgb2gray(pixels),
                orientations=self.ORIENTATIONS,
                pixels_per_cell=(self.CELL, self.CELL),
                cells_per_block=(self.BLOCK, self.BLOCK),
                block_norm="L2-Hys",
            )
            return np.concatenate([colours, gradients / np.sqrt(self.N_BLOCKS)]).astype(np.float32)

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack the descriptors, shape (len(batch), 452)."""
        return np.stack(batch)


class TfidfLsaEncoder(Handcrafted):
    r"""TF-IDF of words, projected on the corpus' latent semantic space, rows of unit length.

    Words of any script (`\w+`, lower case), at most the 50,000 most frequent, sublinear term
    frequency; then a truncated SVD to 256 dimensions, or to the rank of a corpus that has fewer.
    The sign of each axis is fixed by the largest entry of its component.

    Source: Deerwester et al., Indexing by latent semantic analysis (JASIS 1990); scikit-learn's
    `TfidfVectorizer` and `TruncatedSVD` (its randomized solver, seeded).
    """

    modality = "textual"
    name = "tfidf-lsa"
    layer = "lsa"
    pooling = "none"
    input = "any text"
    dim = 256
    libraries = ("scikit-learn", "scipy")
    needs_fit = True

    MAX_TERMS: ClassVar[int] = 50_000
    POWER_ITERATIONS: ClassVar[int] = 7

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._seed = request.seed
        self._vectorizer: Any = None
        self._components: NDArray[np.float64] | None = None  # (n_terms, dim)

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        return {
            "lowercase": True,
            "token_pattern": r"(?u)\b\w+\b",
            "max_terms": self.MAX_TERMS,
            "sublinear_tf": True,
            "max_dim": self.dim,
            "svd": "randomized",
            "svd_iterations": self.POWER_ITERATIONS,
            "normalisation": "l2",
            "seed": seed,
        }

    def fit(self, contents: Iterable[Path | str]) -> None:
        """Learn vocabulary, document frequencies and latent axes from all texts, in their order.

        Single-threaded, so that the bits don't depend on the machine's load. The digests of corpus
        and result go into `spec`, whose `dim` becomes the final one.

        Raises:
            DataError: No text holds a word.
        """
        text, extmath = require("sklearn.feature_extraction.text"), require("sklearn.utils.extmath")
        limits = require("threadpoolctl").threadpool_limits
        corpus = hashlib.sha256()
        n_texts = 0

        def documents() -> Iterable[str]:
            nonlocal n_texts
            for content in contents:
                try:
                    document = checked_text(content)
                except ContentError:
                    continue  # `load` reports it
                n_texts += 1
                encoded = document.encode()
                corpus.update(len(encoded).to_bytes(8, "little") + encoded)
                yield document

        vectorizer = text.TfidfVectorizer(
            token_pattern=r"(?u)\b\w+\b",
            max_features=self.MAX_TERMS,
            sublinear_tf=True,
            dtype=np.float64,
        )
        with limits(limits=1):
            try:
                weighted = vectorizer.fit_transform(documents())  # (n_texts, n_terms) CSR
            except ValueError as error:  # "empty vocabulary", or no document at all
                raise DataError(
                    f"tfidf-lsa: none of the {n_texts} texts holds a word; check the text columns"
                ) from error
            _, strengths, components = extmath.randomized_svd(
                weighted,
                min(self.dim, *weighted.shape),
                n_iter=self.POWER_ITERATIONS,
                random_state=self._seed,
            )
        rank = max(1, int((strengths > 1e-7 * strengths[0]).sum()))
        components = _fix_signs(components[:rank])  # (rank, n_terms)
        state = hashlib.sha256("\n".join(vectorizer.get_feature_names_out()).encode())
        state.update(np.ascontiguousarray(vectorizer.idf_).tobytes())
        state.update(np.ascontiguousarray(components).tobytes())
        self._vectorizer = vectorizer
        self._components = np.ascontiguousarray(components.T)
        fitted = {
            "n_texts": n_texts,
            "n_terms": weighted.shape[1],
            "corpus_sha256": corpus.hexdigest(),
            "state_sha256": state.hexdigest(),
        }
        self.spec = dataclasses.replace(
            self.spec, dim=rank, preprocessing={**self._preprocessing(self._seed), "fit": fitted}
        )

    def load(self, content: Path | str) -> Any:
        """Return the text's TF-IDF row, sparse, shape (1, n_terms).

        Raises:
            ContentError: The text has no word of the vocabulary, so no vector.
        """
        if self._vectorizer is None:
            raise RuntimeError("tfidf-lsa: fit() comes before load()")
        with own_work():
            row = self._vectorizer.transform([checked_text(content)])
        if row.nnz == 0:
            raise ContentError("no word in the text that the vocabulary knows")
        return row

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Return latent vectors of unit length, (len(batch), dim); zeros outside the space."""
        rows = require("scipy.sparse").vstack(batch, format="csr")
        # Sparse rows are multiplied one by one, so that a vector does not depend on its batch.
        latent = rows @ self._components  # (len(batch), dim) float64
        norms = np.linalg.norm(latent, axis=1, keepdims=True)
        vectors: NDArray[np.float32] = (latent / np.where(norms > 0, norms, 1.0)).astype(np.float32)
        return vectors


class MfccEncoder(Handcrafted):
    """Statistics over time of 20 MFCC and 40 log-mel bands, 300 numbers.

    Mono at 16 kHz, windows of 25 ms every 10 ms, power in dB (at most 80 dB below the clip's
    maximum). Of each of the 60 curves: mean, standard deviation, minimum, maximum, mean absolute
    change from frame to frame, in this order, MFCC before log-mel. A clip shorter than a window is
    padded with zeros to one window.

    Source: Davis and Mermelstein, Comparison of parametric representations (IEEE TASSP 1980);
    torchaudio's `MFCC`.
    """

    modality = "audio"
    name = "mfcc"
    layer = "mfcc+log-mel"
    pooling = "statistics"
    input = "16 kHz mono"
    dim = 300
    libraries = ("torch", "torchaudio", "soundfile")

    RATE: ClassVar[int] = 16_000
    WINDOW: ClassVar[int] = 400
    HOP: ClassVar[int] = 160
    N_MFCC: ClassVar[int] = 20
    N_MELS: ClassVar[int] = 40

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._resample = Resampler(self.RATE)
        self._mfcc = require("torchaudio.transforms").MFCC(
            sample_rate=self.RATE,
            n_mfcc=self.N_MFCC,
            melkwargs={"n_fft": self.WINDOW, "hop_length": self.HOP, "n_mels": self.N_MELS},
        )

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        return {
            "sample_rate": self.RATE,
            "channels": "mean",
            "window": self.WINDOW,
            "hop": self.HOP,
            "n_mfcc": self.N_MFCC,
            "n_mels": self.N_MELS,
            "top_db": 80.0,
            "statistics": list(FRAME_STATISTICS),
        }

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """Read and describe a clip in one step: the statistics, shape (300,)."""
        import torch

        samples = self._resample(*read_mono(content))
        if len(samples) < self.WINDOW:
            samples = np.pad(samples, (0, self.WINDOW - len(samples)))
        with own_work(), torch.inference_mode():
            # The steps of MFCC.forward, keeping the log-mel bands that it goes through.
            power = self._mfcc.MelSpectrogram(torch.from_numpy(samples))
            mel = self._mfcc.amplitude_to_DB(power)  # (40, n_frames)
            mfcc = torch.matmul(mel.T, self._mfcc.dct_mat).T  # (20, n_frames)
            frames = torch.cat([mfcc, mel]).numpy()
            return frame_statistics(frames).astype(np.float32)

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack the statistics, shape (len(batch), 300)."""
        return np.stack(batch)


def _fix_signs(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each row the sign that makes its entry of largest magnitude positive."""
    largest = np.abs(components).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    return components * signs[:, None]


def colour_histogram(
    pixels: NDArray[np.floating], bins: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Return the square root of the share of pixels in each cell of a joint histogram.

    The square root (Hellinger map) makes the Euclidean distance of two histograms meaningful and
    their norm 1.

    Args:
        pixels: Three channels in [0, 1], shape (height, width, 3).
        bins: Number of equal cells per channel.

    Returns:
        Shape (product of bins,), values in [0, 1], Euclidean norm 1; the last channel varies
        fastest.
    """
    counts = np.asarray(bins)
    # The last cell is closed, so that 1.0 falls into it.
    cells = np.minimum((pixels.reshape(-1, 3) * counts).astype(np.int64), counts - 1)  # (h * w, 3)
    flat = np.ravel_multi_index(tuple(cells.T), bins)
    share = np.bincount(flat, minlength=int(counts.prod())) / len(flat)
    return np.sqrt(share)


def frame_statistics(frames: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return mean, deviation, minimum, maximum and mean absolute frame-to-frame change per feature.

    Args:
        frames: One column per frame, shape (n_features, n_frames), n_frames >= 1.

    Returns:
        Shape (5 * n_features,): all means, then all standard deviations, and so on. One frame: no
            deviation, no change.
    """
    x = frames.astype(np.float64)
    change = np.abs(np.diff(x, axis=1)).mean(axis=1) if x.shape[1] > 1 else np.zeros(len(x))
    return np.concatenate([x.mean(axis=1), x.std(axis=1), x.min(axis=1), x.max(axis=1), change])


COLOUR_HOG, TFIDF_LSA, MFCC = (
    encoder.family() for encoder in (ColourHogEncoder, TfidfLsaEncoder, MfccEncoder)
)
