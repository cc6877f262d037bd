"""A contrast that keeps the modalities of an item together in their common space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from mmbench.ops.dense import normalise_rows

AT_ONCE = 256  # rows that are compared with each other: bounds the matrix of cosines


def contrasted(content: Sequence[Tensor], items: Tensor, temperature: float) -> Tensor:
    """The mean over rows b and ordered pairs of modalities (m, n) of their cross entropy.

        -log(e(b, b) / sum over c of e(b, c)),   e(b, c) = exp(cos(x_b^m, x_c^n) / temperature)
                          c: row b itself and the rows of other items among the same AT_ONCE rows

    Args:
        content: The rows of each modality, (B, d) each, two modalities or more.
        items: The item of each row, (B,); another row of the same item is no negative.
        temperature: > 0.

    Returns:
        A scalar in nats, >= 0.

    Source: van den Oord et al., contrastive predictive coding (arXiv 1807.03748), equation 4, with
    cosines as in CLIP (Radford et al., ICML 2021).
    """
    unit = [normalise_rows(x) for x in content]
    losses = []
    for start in range(0, len(items), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows = items[part]
        own = torch.arange(len(rows), device=rows.device)
        same = (rows[:, None] == rows[None]) & (own[:, None] != own[None])
        for x, y in itertools.combinations(unit, 2):
            # The cosines of y with x are those of x with y, transposed.
            logits = (x[part] / temperature) @ y[part].T  # (b, b)
            logits = logits.masked_fill(same, -math.inf)
            both = logits.logsumexp(1) + logits.logsumexp(0)
            losses.append((both - 2 * logits.diagonal()).sum())
    n_pairs = len(unit) * (len(unit) - 1)
    return reduce(torch.add, losses) / (n_pairs * len(items))
