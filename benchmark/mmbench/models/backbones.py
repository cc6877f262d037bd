"""What the schema puts between the vectors of users and items and their inner products: rho."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.core.sampling import Init
from mmbench.ops.dense import linear
from mmbench.ops.graph import propagate
from mmbench.ops.sparse import SparseMatrix


class Towers(nn.Module):
    """A perceptron for each of several vectors: A_L relu(… relu(A_1 y + a_1) …), all of width d.

    Args:
        count: How many vectors of a row there are.
        width: d.
        n_layers: L >= 1.
        name: Prefix of the purposes of the initial values.
        init: Draws them.

    Trainable: <part>.<layer>.weight (d, d), and .bias (d,) of all layers but the last, where that
    of an item would cancel in s(u, i) - s(u, j).
    """

    def __init__(self, count: int, width: int, n_layers: int, name: str, init: Init) -> None:
        super().__init__()
        for part in range(count):
            layers = [init.linear(f"{name}.{part}.{k}", width, width) for k in range(n_layers)]
            layers[-1].register_parameter("bias", None)
            self.add_module(str(part), nn.ModuleList(layers))

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The same rows behind their towers, (n, d) each."""
        found = []
        for x, tower in zip(parts, self.children(), strict=True):
            for k, layer in enumerate(cast("list[nn.Linear]", tower)):
                x = linear(functional.relu(x) if k else x, layer.weight, layer.bias)
            found.append(x)
        return found


def over_graph(
    graph: SparseMatrix,
    users: Sequence[Tensor],
    items: Sequence[Tensor],
    n_layers: int,
    rows: tuple[Tensor, Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Propagate each vector of all users and items as LightGCN; see `mmbench.ops.graph.propagate`.

    Args:
        graph: The normalised adjacency of users, then items.
        users: Their vectors, (n_users, d) each.
        items: Those that they meet, (n_items, d) each.
        n_layers: L.
        rows: Users and items whose vectors are wanted; None: all.

    Returns:
        The users' vectors and the items', for each part.
    """
    sizes, nodes = [len(users[0]), len(items[0])], None
    if rows is not None:
        nodes = torch.cat([rows[0], rows[1] + sizes[0]])
        sizes = [len(one) for one in rows]
    of_users, of_items = [], []
    for pair in zip(users, items, strict=True):
        z = propagate(graph, torch.cat(pair), n_layers, rows=nodes)
        user, item = torch.split(z, sizes)
        of_users.append(user)
        of_items.append(item)
    return of_users, of_items
