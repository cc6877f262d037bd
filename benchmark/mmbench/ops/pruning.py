"""Degree-sensitive pruning of the user-item graph: fewer edges of popular items and active users, anew each epoch.

Source: Zhou & Shen, FREEDOM (ACM MM 2023), section 3.2. Drawing n edges one after the other without
replacement, each with probability proportional to its weight, is the same as keeping the n smallest
of E / weight with E ~ Exp(1) independent (Efraimidis & Spirakis, Weighted random sampling with a
reservoir, IPL 2006): one pass, no rejection.
"""

from __future__ import annotations

import numpy as np

from mmbench.core.interactions import Index, TrainSet
from mmbench.core.rng import numpy_rng
from mmbench.errors import ShapeError


def kept_edges(train: TrainSet, rate: float, *, seed: int, epoch: int) -> Index:
    """The edges that one epoch keeps, drawn without replacement, edge (u, i) in proportion to (d_u d_i)^-1/2.

    E (1 - rho) of E edges are kept, rounded down, in double precision as the authors' code has it:
    0.2 of 197,338 edges, at rho = 0.8, are 39,467, for 1 - 0.8 is a little less than 0.2.

    Args:
        train: The training pairs; degrees are those of all of them.
        rate: rho, the share of edges that is dropped, in [0, 1).
        seed: The recipe's seed; the edges of an epoch follow from (seed, epoch) alone.
        epoch: 1-based epoch.

    Returns:
        Ascending positions in the training pairs, shape (n_kept,).

    Raises:
        ShapeError: The rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ShapeError(f"kept_edges: rate is {rate}, must be in [0, 1)")
    n = int(train.n_edges * (1.0 - rate))
    if n == train.n_edges:
        return np.arange(n)
    degrees = train.user_degree[train.users] * train.popularity[train.items]
    weights = np.asarray(degrees, np.float64) ** -0.5
    keys = numpy_rng(seed, "pruning", epoch).standard_exponential(train.n_edges) / weights
    return np.sort(np.argpartition(keys, n)[:n])
