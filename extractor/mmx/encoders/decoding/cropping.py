"""Pictures resized and centre-cropped by Pillow, as torchvision's transforms do it.

Nothing here needs torch, so that a loading process starts in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmx.encoders.decoding.jpegs import EncodedJpeg, open_picture, size_of
from mmx.encoders.decoding.pictures import check_pixels


@dataclass(frozen=True)
class Cropping:
    """Loads a picture as torchvision's classification models take it.

    Attributes:
        decoder: `pil`, `torchvision` or `nvjpeg`.
        size: Of the shorter side after resizing, in pixels.
        crop: Side of the square that is cut out of the middle, at most `size`.
        interpolation: Number of Pillow's filter.
    """

    decoder: str
    size: int
    crop: int
    interpolation: int

    def load(
        self,
        content: Path | str,
        tensors: Callable[[Any], NDArray[np.uint8]] | None = None,
    ) -> NDArray[np.uint8] | EncodedJpeg:
        """Decode, resize and crop: (crop, crop, 3) uint8. With nvjpeg, a JPEG file is only read.

        Args:
            content: A file.
            tensors: Crops what torchvision has decoded.
        """
        picture = open_picture(content, self.decoder)
        width, height = size_of(picture)
        # Checked before it is enlarged: a line of 1 x 30,000 becomes enormous.
        scale = self.size / min(width, height)
        check_pixels(max(1, int(width * scale)), max(1, int(height * scale)))
        if isinstance(picture, EncodedJpeg):
            return picture
        if tensors is not None and hasattr(picture, "permute"):
            return tensors(picture)
        return self.cropped(picture)

    def cropped(self, picture: Any) -> NDArray[np.uint8]:
        """Return the middle of a resized picture of Pillow, (crop, crop, 3).

        Sizes and places are rounded as in torchvision.transforms.functional: the longer side by
        `int`, the corner by `round`, to even.
        """
        width, height = picture.size
        shorter, longer = min(width, height), max(width, height)
        longer = int(self.size * longer / shorter)
        new = (self.size, longer) if width <= height else (longer, self.size)
        if new != (width, height):
            picture = picture.resize(new, self.interpolation)
        left, top = (round((side - self.crop) / 2.0) for side in new)
        return np.asarray(picture.crop((left, top, left + self.crop, top + self.crop)))
