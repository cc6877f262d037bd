"""Functions of a sparse matrix times some columns, as series of its products: `pagerank`, `heat`.

Neither an inverse nor an exponential of a matrix is formed; memory is that of the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mmbench.data.missing.diffusion import COLUMNS, Diffusion, Operator
from mmbench.data.missing.graph import ItemGraph, matrix, product
from mmbench.ops.dense import top_k
from mmbench.ops.sparse import SparseMatrix

PRECISION = 1e-5
"""What a truncated series may leave out, relative to the whole."""

_STEPS = 4096


def resolvent(h: SparseMatrix, b: Tensor, alpha: float) -> Tensor:
    """Return alpha (I - (1 - alpha) H)^-1 b, for H of eigenvalues in [-1, 1] or rows of sum 1.

    Chebyshev's semi-iteration on y = (1 - alpha) H y + alpha b, whose error falls by a factor
    (1 - sqrt(1 - c²)) / c in each step, c = 1 - alpha, if the eigenvalues are real; where the
    residual says that they are not, the power series, with its factor c.

    Source: Golub & Van Loan, Matrix Computations, section 10.1.5 (3rd edition).
    """
    c, start = 1 - alpha, alpha * b
    if c == 0:
        return start
    factor = (1 - math.sqrt(1 - c * c)) / c
    before, y, weight = torch.zeros_like(b), start, 2.0
    for _ in range(_steps(factor)):
        weight = 1 / (1 - c * c * weight / 4)
        after = product(h, y).mul_(c).add_(start).sub_(before).mul_(weight).add_(before)
        before, y = y, after
    residual = (product(h, y).mul_(c).add_(start) - y).abs().max()
    if not residual <= 10 * PRECISION * start.abs().max():
        y = start
        for _ in range(_steps(c)):
            y = product(h, y).mul_(c).add_(start)
    return y


def _steps(factor: float) -> int:
    """Steps after which an error that falls by a factor in each is within `PRECISION`."""
    return max(1, math.ceil(math.log(PRECISION / 2) / math.log(factor)))


def exponential(h: SparseMatrix, b: Tensor, t: float) -> Tensor:
    """Return exp(-t (I - H)) b = sum over j of e^-t t^j / j! H^j b.

    The weights are those of a Poisson distribution with mean t; the series ends where what is left
    of them is less than `PRECISION`.
    """
    power, total, left = b, torch.zeros_like(b), 1.0
    j = 0
    while left > PRECISION:
        weight = math.exp(j * math.log(t) - t - math.lgamma(j + 1))
        total.add_(power, alpha=weight)
        left -= weight
        j += 1
        if left > PRECISION:
            power = product(h, power)
    return total


class _Series(Diffusion):
    """S = f(H), H = D^-1/2 (A + I) D^-1/2 with D the rows' sums of A + I.

    `paper`: A is not symmetric, and as all rows have the same sum so does the one degree that the
    code divides by, that of item 0. Of each *column* of f(H) the `top_k` largest entries are kept
    and divided by their sum; S has what is left. `corrected` takes all of f(H), and the weights of
    the rows are what adds up to 1 (see `Diffusion`).
    """

    n_hops: int = Field(1, ge=1, le=1000, description="how often S is applied, known rows held")

    @property
    def hops(self) -> int:
        """`n_hops`."""
        return self.n_hops

    def function(self, h: SparseMatrix, x: Tensor) -> Tensor:
        """f(H) x."""
        raise NotImplementedError

    def operator(self, items: ItemGraph, senders: NDArray[np.bool_]) -> Operator:
        """All of f(H), or the largest entries of its columns."""
        h = items.normalised(loops=True)
        if self.form == "corrected":
            return lambda x: self.function(h, x)
        wanted = np.flatnonzero(senders)
        kept = matrix(
            largest_of_columns(lambda x: self.function(h, x), h.shape[0], wanted, items.k)
        )
        return lambda x: product(kept, x)


def largest_of_columns(
    f: Callable[[Tensor], Tensor], n: int, columns: NDArray[np.int64], k: int
) -> sp.csr_matrix:
    """Return the k largest entries of some columns of an n x n operator, divided by their sum.

    Some columns at a time. Of entries equal to within a `_STEPS`th of the column's largest, those
    of the first rows: a truncated series can't tell them apart. A column whose kept entries add up
    to 0 or less is divided by 1.
    """
    data, rows, where = [], [], []
    for start in range(0, columns.size, COLUMNS):
        chosen = columns[start : start + COLUMNS]
        unit = torch.zeros(n, chosen.size)
        unit[torch.from_numpy(chosen), torch.arange(chosen.size)] = 1
        entries_of = f(unit).T.contiguous()
        steps = entries_of / entries_of.amax(1, keepdim=True).clamp(min=1e-30)
        found = top_k(torch.round(steps * _STEPS), min(k, n))
        values = entries_of.gather(1, found)
        total = values.sum(1, keepdim=True)
        data.append((values / torch.where(total > 0, total, 1.0)).numpy().ravel())
        rows.append(found.numpy().ravel())
        where.append(np.repeat(chosen, found.shape[1]))
    entries = np.concatenate(data), (np.concatenate(rows), np.concatenate(where))
    return sp.csr_matrix(entries, shape=(n, n))


class PageRank(_Series):
    """PersPageRank: f(H) = alpha (I - (1 - alpha) H)^-1, see `_Series` for H and the two forms.

    f(H)_ij is the chance that a walk from i that ends at each node with probability `alpha` ends at
    j (up to the degrees' square roots).
    """

    NAME: ClassVar[str] = "pagerank"

    alpha: float = Field(0.1, gt=0, le=1, description="chance that a walk ends at each item")

    def function(self, h: SparseMatrix, x: Tensor) -> Tensor:
        """See `resolvent`."""
        return resolvent(h, x, self.alpha)


class Heat(_Series):
    """Heat: f(H) = exp(-t (I - H)), see `_Series` for H and the two forms."""

    NAME: ClassVar[str] = "heat"

    t: float = Field(5.0, gt=0, le=100, description="time for which heat flows")

    def function(self, h: SparseMatrix, x: Tensor) -> Tensor:
        """See `exponential`."""
        return exponential(h, x, self.t)
