"""Sounds that libsndfile does not read: with FFmpeg's libraries (PyAV), where installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import plain_reason
from mmx.encoders.decoding.foreign import Foreign
from mmx.encoders.decoding.memory import reserve
from mmx.encoders.decoding.reading import tell
from mmx.errors import ContentError

TOLERATED_S = 0.1  # containers count in frames and milliseconds
_PROMISES = ("mov", "matroska", "wv", "ape", "tta", "dsf")
"""Containers that tell their length. That of others is worked out from the size of the file."""


def read_foreign(
    path: Path, kind: Foreign, limit: int, sample_bytes: int
) -> tuple[NDArray[np.float32], int]:
    """Read the first sound track of a file, channels averaged.

    The file is handed over open and its format is given, so that no file is taken for a list of
    others.

    Args:
        path: The file.
        kind: Its format.
        limit: The most samples that are accepted.
        sample_bytes: Memory that a sample takes until it is encoded.

    Returns:
        Samples, shape (n,), and the rate in Hz.

    Raises:
        ContentError: There is no sound, it cannot be decoded, or it ends before its time.
    """
    av = kind.module()
    blocks: list[NDArray[np.float32]] = []
    n_samples, promised_s = 0, 0.0
    try:
        with path.open("rb") as file, av.open(file, format=kind.known_as) as container:
            if not container.streams.audio:
                raise ContentError(f"{kind.name} without a sound track")
            track = container.streams.audio[0]
            rate = int(track.rate)
            if kind.known_as in _PROMISES:
                track_s = float(track.duration * track.time_base) if track.duration else 0.0
                promised_s = track_s or (container.duration or 0) / 1e6
            reserve(sample_bytes * min(limit, int(promised_s * rate)))
            to_floats = av.AudioResampler(format="fltp")
            for packet in container.demux(track):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:  # a cut end, or a damaged packet among others
                    tell(f"parts of the {kind.name} cannot be decoded, and were left out")
                    continue
                for part in (part for frame in frames for part in to_floats.resample(frame)):
                    blocks.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
                    if (n_samples := n_samples + part.samples) > limit:
                        raise ContentError(f"longer than {limit:,} samples")
    except av.FFmpegError as error:
        reason = getattr(error, "strerror", None) or plain_reason(error)
        raise ContentError(f"{kind.name} that cannot be decoded: {reason}") from error
    if n_samples == 0:
        raise ContentError("the audio has no samples")
    if promised_s - n_samples / rate > min(TOLERATED_S, promised_s / 4):
        raise ContentError(
            f"truncated: {n_samples / rate:,.2f} of {promised_s:,.2f} s are there ({kind.name})"
        )
    return np.concatenate(blocks), rate
