"""Which colours the object of a picture has, in 512 numbers.

Source: the colour features of Deldjoo, Di Noia, Malitesta, Merra: Leveraging content-style item
representation for visual recommendation (ECIR 2022): a joint histogram of 8 x 8 x 8 cells over red,
green and blue of the pixels inside the largest contour, divided by its largest cell. Their code
leaves out every pixel with a channel of 255, and gives zeros where there is no contour; here all
pixels between edges count, and without edges the whole picture does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.base import own_work
from mmx.encoders.edge_map import CANNY, SIZE, canny_edges, scaled
from mmx.encoders.handcrafted import Handcrafted


class ColourHistogramEncoder(Handcrafted):
    """Joint histogram of red, green and blue (8 cells each) of the object, 512 numbers in [0, 1].

    The object is what has edges on all four sides. The largest entry is 1; blue varies fastest,
    then green.
    """

    modality = "visual"
    name = "colour-histogram"
    layer = "histogram"
    pooling = "object"
    input = "256 x 256 RGB"
    dim = 8**3
    libraries = ("pillow", "scikit-image")

    BINS: ClassVar[int] = 8

    def _preprocessing(self, seed: int) -> dict[str, Any]:
        return {
            "resize": [SIZE, SIZE],
            "interpolation": "bilinear",
            "exif_orientation": "ignored",
            "rgb_bins": [self.BINS] * 3,
            "region": "enclosed by edges",
            "canny": CANNY,
            "scale": "largest bin is 1",
        }

    def load(self, content: Path | str) -> NDArray[np.float32]:
        """Decode a picture and count its object's colours in one step, shape (512,)."""
        picture = scaled(content)
        with own_work():
            region = enclosed(canny_edges(np.asarray(picture.convert("L"), np.float64)))
            cells = np.asarray(picture, np.int64)[region] * self.BINS // 256  # (n, 3)
            flat = np.ravel_multi_index(tuple(cells.T), (self.BINS,) * 3)
            counts = np.bincount(flat, minlength=self.dim)
            return np.asarray(counts / counts.max(), np.float32)

    def encode(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack the histograms, shape (len(batch), 512)."""
        return np.stack(batch)


def enclosed(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where edges lie on all four sides, the edges themselves included; without edges all.

    An outline with gaps still encloses its object, which filling a contour would not give.
    """
    if not edges.any():
        return np.ones_like(edges)
    passed = np.logical_or.accumulate
    beside = passed(edges, 1) & passed(edges[:, ::-1], 1)[:, ::-1]
    inside: NDArray[np.bool_] = beside & passed(edges, 0) & passed(edges[::-1], 0)[::-1]
    return inside


FAMILY = ColourHistogramEncoder.family()
