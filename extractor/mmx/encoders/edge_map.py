"""Edges of a picture as a map of 64 x 64 numbers: what it shows by its shape, without its colours.

A joint set for models that convolve over it: `content-style` takes it for the shape of an item.
Source: the shape features of Deldjoo, Di Noia, Malitesta, Merra: Leveraging content-style item
representation for visual recommendation (ECIR 2022), whose code adds up Canny's edges and a
Laplacian. Here their sum saturates (8-bit integers overflow there, which turns edges into
background), the picture is smoothed before Canny, and edges are 1 on a background of 0, so that
what pads a convolution is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import own_work, require
from mmx.encoders.decoding import decode_rgb
from mmx.encoders.handcrafted import Handcrafted

if TYPE_CHECKING:
    from PIL import Image

SIZE = 256
"""Pictures are scaled to SIZE x SIZE first (bilinear, the aspect ratio is not kept)."""

CANNY = {"sigma": 1.0, "low": 50.0, "high": 150.0}
"""Smoothing in pixels, and the thresholds of a Sobel response to grey values of 0 to 255."""

LAPLACIAN = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float64)


class EdgeMapEncoder(Handcrafted):
    """Strength of the edges in each of 64 x 64 cells, row by row: 4,096 numbers in [0, 1].

    The grey picture's edges by Canny count 1, elsewhere its Laplacian over eight neighbours where
    it is positive, as a share of 255; a cell has the mean of its 4 x 4 pixels.
    """

    modality = "visual"
    name = "edge-map"
    layer = "edges"
    pooling = "cells"
    input = "256 x 256 RGB"
    dim = 64 * 64
    libraries = ("pillow", "scikit-image", "scipy")

    SIDE: ClassVar[int] = 64

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        return {
            "resize": [SIZE, SIZE],
            "interpolation": "bilinear",
            "exif_orientation": "ignored",
            "canny": CANNY,
            "laplacian_neighbours": 8,
            "map": [self.SIDE, self.SIDE],
        }

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """Decode a picture and find its edges in one step: the map, shape (4096,)."""
        picture = scaled(content)
        with own_work():
            grey = np.asarray(picture.convert("L"), np.float64)
            cell = SIZE // self.SIDE
            cells = edge_strength(grey).reshape(self.SIDE, cell, self.SIDE, cell)
            return np.asarray(cells.mean((1, 3)).ravel(), np.float32)

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack the maps, shape (len(batch), 4096)."""
        return np.stack(batch)


def scaled(content: Path | str) -> Image.Image:
    """Decode a picture and scale it to SIZE x SIZE; raises ContentError."""
    return decode_rgb(content).resize((SIZE, SIZE), resample=2)  # 2: bilinear


def canny_edges(grey: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a picture of grey values in [0, 255] has an edge, of the same shape.

    Source: Canny, A computational approach to edge detection (IEEE TPAMI 1986); scikit-image.
    """
    feature = require("skimage.feature")
    found: NDArray[np.bool_] = feature.canny(
        grey, sigma=CANNY["sigma"], low_threshold=CANNY["low"], high_threshold=CANNY["high"]
    )
    return found


def edge_strength(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the strength of the edge at each pixel, in [0, 1], of the shape of `grey`."""
    ndimage = require("scipy.ndimage")
    # The picture goes on beyond its border as its outermost pixels: no edge there.
    laplacian = ndimage.convolve(grey, LAPLACIAN, mode="nearest") / 255
    strength: NDArray[np.float64] = np.where(canny_edges(grey), 1.0, np.clip(laplacian, 0.0, 1.0))
    return strength


FAMILY = EdgeMapEncoder.family()
