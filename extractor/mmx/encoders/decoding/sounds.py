"""Sounds of any kind as mono samples, and resampling.

Sounds are read with soundfile, because torchaudio's own loader needs torchcodec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import plain_reason, require
from mmx.encoders.decoding.chunked import HEAD_BYTES, chunked_layout
from mmx.encoders.decoding.foreign import foreign
from mmx.encoders.decoding.foreign_sounds import read_foreign
from mmx.encoders.decoding.layout import AS_IT_IS, Layout, Piece, Spliced
from mmx.encoders.decoding.memory import reserve
from mmx.encoders.decoding.mpeg import behind_tags, mpeg_layout, parse_frame
from mmx.encoders.decoding.packed import flac_layout, ogg_layout
from mmx.encoders.decoding.reading import remembered, tell
from mmx.errors import ContentError

RATE_RANGE = (1_000, 768_000)  # Hz; anything else is a damaged header
MAX_SAMPLES = 1 << 29
"""Longest clip, 3.4 hours at 44,100 Hz: a small file of silence can unpack to any length."""

TOLERATED_S = 0.025
"""What a sound may lack of the length that its header promises, if it is less than a quarter of it.
Headers count themselves, or a byte of padding; decoders leave that out without a word."""

_UNCHECKED = frozenset({"AVR", "MAT4", "MAT5", "MPC2K", "SD2", "WVE", "XI"})
"""Formats of libsndfile whose headers hold a length that is not read here."""

_SAMPLE_BYTES = 16  # as read, joined, resampled, and as spectra
_BLOCK_SAMPLES = 1 << 21  # of all channels
_MAX_KERNEL = 1 << 24  # numbers in a resampling kernel; 44,100 → 16,000 Hz needs under 1 << 17
_LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, TypeError)


class _Part(NamedTuple):
    """One of the sounds of a file: blocks of samples and their rate in Hz."""

    blocks: list[NDArray[np.float32]]
    rate: int


@remembered
def read_mono(content: Path | str) -> tuple[NDArray[np.float32], int]:
    """Read a sound file, channels averaged: all samples that are there.

    Sounds that follow each other in one file (joined MP3 files, chained Ogg streams) are one sound,
    at the rate of the first.

    Returns:
        Samples in [-1, 1], shape (n,), n >= 1, and the file's sample rate in Hz.

    Raises:
        ContentError: Not audio, damaged, without samples, with fewer than the header promises (see
            `TOLERATED_S`), with samples that are not finite, or with an impossible rate.
        FileNotFoundError: There is no such file: absent, not corrupt.
        MemoryError: There is no memory for it now.
    """
    path = Path(content)
    if path.stat().st_size == 0:
        raise ContentError("the file is empty")
    try:
        samples, rate = _read(path)
    except ContentError as error:
        if (kind := foreign(path)) is None:
            raise
        if not kind.is_sound:
            raise ContentError(f"not a sound of a known format: {kind.name}") from error
        samples, rate = read_foreign(path, kind, MAX_SAMPLES, _SAMPLE_BYTES)
    if not np.isfinite(samples).all():
        raise ContentError("the audio has samples that are not finite")
    tell(sound_s=len(samples) / rate)
    return samples, rate


def _read(path: Path) -> tuple[NDArray[np.float32], int]:
    """Read a file with libsndfile and compare its length with what its header promises."""
    layout = AS_IT_IS
    parts: list[_Part] = []
    try:
        layout = _layout(path)
        if layout.cut:
            raise ContentError(f"truncated: {layout.cut}")
        for pieces in layout.parts or (None,):
            n_read = sum(len(block) for part in parts for block in part.blocks)
            parts.append(_read_part(path, pieces, MAX_SAMPLES - n_read))
    except FileNotFoundError:
        raise
    except _LIBRARY_ERRORS as error:
        reason = getattr(error, "error_string", None) or plain_reason(error)  # of libsndfile
        if "does not exist" in reason:  # so it calls one that is no MP3 in spite of its name
            reason = "Format not recognised."
        if (layout.there or 0) < (layout.promised or 0):
            reason = f"truncated: {layout.there:,} of {layout.promised:,} {layout.unit} are there"
        raise ContentError(f"the audio cannot be decoded: {reason}") from error
    samples, rate = _joined(parts)
    if layout.promised and layout.there:
        promised = int(len(samples) * (layout.promised / layout.there))
        _check_length(len(samples), promised, rate)
    if layout.seconds:
        _check_length(len(samples), int(layout.seconds * rate), rate)
    if len(parts) > 1:
        tell(f"{len(parts)} sounds in one file, joined")
    tell(layout.note)
    return samples, rate


def _layout(path: Path) -> Layout:
    size = path.stat().st_size
    with path.open("rb") as stream:
        start, head = 0, stream.read(HEAD_BYTES)
        if head[:3] in (b"ID3", b"APE"):
            start = behind_tags(stream, 0)
            stream.seek(start)
            head = stream.read(HEAD_BYTES)
        if parse_frame(head) is not None:
            return mpeg_layout(stream, start)
        if head[:4] == b"fLaC":
            return flac_layout(stream, start, size)
        if head[:4] == b"OggS":
            return ogg_layout(stream, start, size)
        return chunked_layout(stream, head, size) if start == 0 else AS_IT_IS


def _read_part(path: Path, pieces: Sequence[Piece] | None, limit: int) -> _Part:
    """Read one sound to its end, at most `limit` samples."""
    soundfile = require("soundfile")
    blocks: list[NDArray[np.float32]] = []
    n_samples = 0
    with ExitStack() as stack:
        source = path if pieces is None else stack.enter_context(Spliced(path, pieces))
        file = stack.enter_context(soundfile.SoundFile(source))
        if file.format in _UNCHECKED:
            tell(f"{file.format_info}: whether the sound is whole is not checked")
        n_bytes = _SAMPLE_BYTES * min(max(0, file.frames), limit)
        reserve(n_bytes)
        # In blocks, so that a damaged length in the header costs no memory.
        n_frames = max(1, _BLOCK_SAMPLES // max(2, file.channels))
        while len(block := file.read(n_frames, dtype="float32", always_2d=True)):
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
            if (n_samples := n_samples + len(block)) > limit:
                raise ContentError(f"longer than {MAX_SAMPLES:,} samples")
            if len(block) < n_frames:
                break  # the end
        return _Part(blocks, int(file.samplerate))


def _joined(parts: Sequence[_Part]) -> tuple[NDArray[np.float32], int]:
    """Return the samples of all parts and their rate, which has to be a possible one."""
    rate = parts[0].rate
    blocks: list[NDArray[np.float32]] = []
    for part in parts:
        if part.blocks and not RATE_RANGE[0] <= part.rate <= RATE_RANGE[1]:
            raise ContentError(
                f"sample rate {part.rate} Hz is outside {RATE_RANGE[0]} ... {RATE_RANGE[1]} Hz"
            )
        if part.blocks and part.rate != rate:
            blocks.append(Resampler(rate)(np.concatenate(part.blocks), part.rate))
        else:
            blocks += part.blocks
    if not blocks:
        raise ContentError("the audio has no samples")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), rate


def _check_length(n_samples: int, promised: int, rate: int) -> None:
    """Compare the samples that were read with the header's promise; a small lack is a note."""
    absent = promised - n_samples
    if absent <= 0:
        return
    there = f"{n_samples / rate:,.2f} of {promised / rate:,.2f} s"
    if absent > TOLERATED_S * rate or 4 * absent > promised:
        raise ContentError(f"truncated: {there} are there ({n_samples:,} of {promised:,} samples)")
    tell(f"samples: {absent:,} fewer than the header promises")


class Resampler:
    """Bring samples to one rate with torchaudio's windowed-sinc filter, built once per rate.

    Args:
        rate: Target rate in Hz.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._transforms: dict[int, Any] = {}

    def __call__(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Resample (n,) samples at `rate` Hz, giving shape (ceil(n * target / rate),)."""
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
            resampled = self._transforms[rate](torch.from_numpy(samples)).numpy()
        return resampled  # type: ignore[no-any-return]
