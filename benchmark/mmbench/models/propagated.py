"""Images of constant content on a graph: made once, of which a step reads the rows of its batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_COLUMNS = 256  # of content at once: bounds what is needed beside the result
_LARGEST = 4 << 30
"""Bytes of the largest image. Where it is larger, all items are projected in each step instead, and
the projections propagated: equal up to rounding, slower, and without an array of nodes times k."""


class Propagated:
    """By modality the image (n_nodes, k) of content (n_items, k) under one linear map.

    A graph acts on each column of content for itself, and before a projection as well as after it:
    G (F W^T) = (G F) W^T.

    Args:
        n_nodes: Rows of an image.
    """

    def __init__(self, n_nodes: int) -> None:
        self._n_nodes = n_nodes
        self._made: dict[str, Tensor] = {}

    def __contains__(self, modality: str) -> bool:
        return modality in self._made

    def __getitem__(self, modality: str) -> Tensor:
        return self._made[modality]

    @torch.no_grad()
    def make(self, modality: str, content: Tensor, image: Callable[[Tensor], Tensor]) -> None:
        """Make the image of a modality's content, unless it is there, or would be too large.

        `image` is the map, (n_items, w) to (n_nodes, w) for any w.
        """
        there, width = self._made.get(modality), content.shape[1]
        if there is not None and there.device == content.device:
            return
        if self._n_nodes * width * content.element_size() > _LARGEST:
            return
        made = content.new_empty(self._n_nodes, width)
        for start in range(0, width, _COLUMNS):
            part = slice(start, start + _COLUMNS)
            made[:, part] = image(content[:, part].contiguous())
        self._made[modality] = made
