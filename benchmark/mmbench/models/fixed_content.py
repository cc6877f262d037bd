"""Models that read the items' vectors side by side and never train them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmbench.models.base import Content, Recommender
from mmbench.models.stand_ins import StandIns
from mmbench.ops.half_table import in_half


class FixedContent(Recommender):
    """A model whose `projection` reads all modalities of an item as one vector.

    Attributes:
        features: The vectors, (n_items, sum of widths), float32, or float16 with `keep_features`.
        widths: Of each modality.
        stand_ins: What stands in for absent content.
    """

    features: Tensor
    widths: Mapping[str, int]
    stand_ins: StandIns
    projection: nn.Linear

    def keep_features(self, content: Content, *, half: bool) -> None:
        """They are never trained; they may be kept as float16."""
        if half:
            self.features = in_half(self.features)

    def _vectors(self, items: Tensor | None = None) -> Tensor:
        """Content of some items or of all, tokens put in, in the precision of the weights."""
        chosen = self.features if items is None else self.features[items]
        wide = chosen.to(self.projection.weight.dtype)
        return self.stand_ins.side_by_side(wide, self.widths, items)
