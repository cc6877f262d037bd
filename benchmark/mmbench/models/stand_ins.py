"""Trained stand-ins for absent content: the part of the policy `learned` that lives in models.

    x̃_i^m = token_m     if item i has no vector of modality m, or loses it in this epoch
          = x_i^m       else

Each epoch every item with a vector loses it with probability `dropout`, in each modality for
itself, so that a model learns to do without; all vectors are there when it ranks. A token starts
from the mean of the vectors that are there, and is trained with everything else.

A model that takes part makes `self.stand_ins = content.stand_ins()` and puts them in wherever it
has computed something of x: `self.stand_ins.put_in(m, W x, lambda token: W token, items)`. Under
any other policy there are none, and rows pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmbench.core.content import ItemContent
from mmbench.core.sampling import epoch_stream
from mmbench.ops.draws import kept


class StandIn(nn.Module):
    """The token of one modality, shape (dim,), and the items it stands for.

    Args:
        modality: Names its stream of random numbers.
        content: Of the items that are trained on.
        dropout: Share of the vectors that are lost in each epoch, in [0, 1).
    """

    absent: Tensor
    replaced: Tensor

    def __init__(self, modality: str, content: ItemContent, dropout: float) -> None:
        super().__init__()
        self.modality, self.dropout = modality, dropout
        there = content.present.to(content.vectors.dtype)
        self.token = nn.Parameter(there @ content.vectors / there.sum())
        self.register_buffer("absent", ~content.present, persistent=False)
        self.register_buffer("replaced", ~content.present, persistent=False)

    def start_epoch(self, epoch: int, seed: int) -> None:
        """Draw whose vectors this epoch (1-based) goes without."""
        stream = epoch_stream(seed, f"stand-in {self.modality}", epoch, self.absent.device)
        there = kept(stream, tuple(self.absent.shape), self.dropout)
        self.replaced.copy_(self.absent | ~there)  # in place: a captured step reads it

    def put_in(
        self, rows: Tensor, image: Callable[[Tensor], Tensor], items: Tensor | None
    ) -> Tensor:
        """See `StandIns.put_in`."""
        replaced = self.replaced if self.training else self.absent
        chosen = replaced if items is None else replaced[items]
        return torch.where(chosen[:, None], image(self.token[None]), rows)


class StandIns(nn.ModuleDict):
    """The tokens by modality: of those that some item of training lacks.

    Args:
        content: Modality to content of the items that are trained on.
        dropout: See `StandIn`; None: there are no tokens.
    """

    def __init__(self, content: Mapping[str, ItemContent], dropout: float | None) -> None:
        super().__init__(
            {m: StandIn(m, one, dropout) for m, one in content.items() if not one.present.all()}
            if dropout is not None
            else {}
        )

    def put_in(
        self,
        modality: str,
        rows: Tensor,
        image: Callable[[Tensor], Tensor],
        items: Tensor | None = None,
    ) -> Tensor:
        """Return the rows, the token's image in those of items that go without content.

        Args:
            modality: Whose.
            rows: Of the items, computed from their vectors, shape (n, w).
            image: The same computation, from the token, (1, dim) to (1, w).
            items: Which items, shape (n,); None: all.
        """
        if modality not in self:
            return rows
        stand_in: StandIn = self[modality]  # type: ignore[assignment]
        return stand_in.put_in(rows, image, items)

    def side_by_side(
        self, x: Tensor, widths: Mapping[str, int], items: Tensor | None = None
    ) -> Tensor:
        """Return concatenated vectors (n, sum of widths) with tokens put in; see `put_in`."""
        if not len(self):
            return x
        parts = torch.split(x, list(widths.values()), dim=1)
        named = zip(widths, parts, strict=True)
        return torch.cat([self.put_in(m, part, lambda t: t, items) for m, part in named], 1)

    def of_others(self, modality: str, content: ItemContent, rows: slice) -> Tensor:
        """Return the vectors of some items outside training, the token where they have none."""
        vectors = content.vectors[rows]
        if modality not in self:
            return vectors
        stand_in: StandIn = self[modality]  # type: ignore[assignment]
        token = stand_in.token.detach().to(vectors.device)
        return torch.where(content.present[rows, None], vectors, token)
