"""Handcrafted descriptors as pure array functions: a colour histogram, statistics over frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME_STATISTICS = ("mean", "std", "min", "max", "mean_abs_delta")


def colour_histogram(
    pixels: NDArray[np.floating], bins: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Square root of the share of pixels in each cell of a joint three-channel histogram.

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
    cells = np.minimum(
        (pixels.reshape(-1, 3) * counts).astype(np.int64), counts - 1
    )  # (height * width, 3)
    flat = np.ravel_multi_index(tuple(cells.T), bins)
    share = np.bincount(flat, minlength=int(counts.prod())) / len(flat)
    return np.sqrt(share)


def frame_statistics(frames: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean, standard deviation, minimum, maximum and mean absolute frame-to-frame change of each feature.

    Args:
        frames: One column per frame, shape (n_features, n_frames), n_frames >= 1.

    Returns:
        Shape (5 * n_features,): all means, then all standard deviations, and so on. One frame: no
            deviation, no change.
    """
    x = frames.astype(np.float64)
    change = np.abs(np.diff(x, axis=1)).mean(axis=1) if x.shape[1] > 1 else np.zeros(len(x))
    return np.concatenate([x.mean(axis=1), x.std(axis=1), x.min(axis=1), x.max(axis=1), change])
