"""Audio files to mono samples at a model's sample rate, with soundfile (torchaudio's own loader needs torchcodec)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import plain_reason, require
from mmx.encoders.decoding.sharing import remembered
from mmx.errors import ContentError

RATE_RANGE = (1_000, 768_000)  # Hz; anything else is a damaged header
MAX_SAMPLES = 1 << 29
"""Longest clip, 3.4 hours at 44,100 Hz: a small file of silence can unpack to any length."""

_MAX_CHUNKS = 64  # of a WAV file, before its samples
_UNKNOWN_SIZE = (
    0x7FFF_0000  # programs that write to a pipe put something just below 2 or 4 GiB there
)
_BLOCK_FRAMES = 1 << 20
_MAX_KERNEL = 1 << 24  # numbers in a resampling kernel; 44,100 → 16,000 Hz needs under 1 << 17


@remembered
def read_mono(content: Path | str) -> tuple[NDArray[np.float32], int]:
    """Samples of a file in [-1, 1], channels averaged, and the sample rate in Hz.

    Read in blocks, so that a damaged length in a header costs no memory.

    Returns:
        Samples, shape (n,), n >= 1, and the file's own sample rate.

    Raises:
        ContentError: Not audio, damaged, without samples, with samples that are not finite, or with
            an impossible rate.
        FileNotFoundError: There is no such file: absent, not corrupt.
    """
    soundfile = require("soundfile")
    path = Path(content)
    blocks: list[NDArray[np.float32]] = []
    try:
        if path.stat().st_size == 0:
            raise ContentError("the file is empty")
        _check_wav_length(path)
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            n_samples = 0
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                if (n_samples := n_samples + len(block)) > MAX_SAMPLES:
                    raise ContentError(f"longer than {MAX_SAMPLES:,} samples")
            if file.format == "FLAC" and n_samples < file.frames:
                raise ContentError(f"truncated: {n_samples:,} of {file.frames:,} samples are there")
    except FileNotFoundError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        MemoryError,
    ) as error:  # LibsndfileError is a RuntimeError
        reason = getattr(error, "error_string", None) or plain_reason(error)
        raise ContentError(f"the audio cannot be decoded: {reason}") from error
    if not blocks:
        raise ContentError("the audio has no samples")
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise ContentError(
            f"sample rate {rate} Hz is outside {RATE_RANGE[0]} ... {RATE_RANGE[1]} Hz"
        )
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise ContentError("the audio has samples that are not finite")
    return samples, rate


def _check_wav_length(path: Path) -> None:
    """Refuse a WAV file whose samples end before they should: libsndfile would take what there is.

    Files that were written to a pipe say 0 or the largest number there, and are taken as they are.

    Raises:
        ContentError: The header promises more bytes of samples than the file has.
    """
    with path.open("rb") as stream:
        if (head := stream.read(12))[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        for _ in range(_MAX_CHUNKS):
            name, size = stream.read(4), int.from_bytes(stream.read(4), "little")
            if name == b"data":
                left = path.stat().st_size - stream.tell()
                if left < size < _UNKNOWN_SIZE:
                    raise ContentError(
                        f"truncated: {left:,} of {size:,} bytes of samples are there"
                    )
            if len(name) < 4 or name == b"data":
                return
            stream.seek(size + size % 2, 1)


class Resampler:
    """Brings samples to one rate with torchaudio's windowed-sinc filter; filters are built once per source rate.

    Args:
        rate: Target rate in Hz.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._transforms: dict[int, Any] = {}

    def __call__(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Samples, shape (n,), at `rate` Hz → samples at the target rate, shape (ceil(n * target / rate),)."""
        if rate == self.rate:
            return samples
        import torch

        common = math.gcd(rate, self.rate)
        if (rate // common) * (self.rate // common) > _MAX_KERNEL:
            # Nearly coprime rates (44,099 → 16,000 Hz) would need gigabytes of filter there.
            signal = require("scipy.signal")
            resampled = signal.resample_poly(
                samples.astype(np.float64), self.rate // common, rate // common
            )
            return resampled.astype(np.float32)  # type: ignore[no-any-return]
        if rate not in self._transforms:
            self._transforms[rate] = require("torchaudio.transforms").Resample(rate, self.rate)
        with torch.inference_mode():
            return self._transforms[rate](torch.from_numpy(samples)).numpy()  # type: ignore[no-any-return]
