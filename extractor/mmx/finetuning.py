"""Adapt an encoder to a catalogue: pull together, in content alone, items of the same users.

A pair of items of one user's training history is a positive; the items of the batch that nobody
took together are negatives (the symmetric InfoNCE of SimCLR and CLIP: Chen et al., ICML 2020;
Radford et al., ICML 2021). Only the training part of a split is ever opened. Batch norms keep their
statistics and dropout is off, so that the same call gives the same weights (on a GPU up to
rounding: the backward of some layers adds up in any order there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mmbase.catalogue.items import Items
from mmbase.catalogue.paths import Absent
from mmbase.dataset import checked_ids, columns_of, open_interactions
from mmbase.layout import counted
from mmbase.progress import Progress
from mmbase.tables import SUFFIXES
from mmx.catalogue.contents import Contents
from mmx.encoders.compute import exact_arithmetic
from mmx.errors import ContentError, DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


@runtime_checkable
class Trainable(Protocol):
    """An encoder whose network can be trained and saved."""

    @property
    def network(self) -> nn.Module:
        """The network to train."""

    def load(self, content: Path | str) -> Any:
        """Decode one item, as in `Encoder`."""

    def differentiable(self, batch: Sequence[Any]) -> Tensor:
        """Return vectors of loaded items, shape (b, d), with gradients."""

    def save(self, path: Path, training: Mapping[str, Any]) -> None:
        """Write the weights for `--weights PATH` (or `--model PATH`), with their training."""


@dataclass(frozen=True)
class Training:
    """How to fine-tune.

    Attributes:
        epochs: Passes over the users; in each pass every user gives one pair.
        batch_size: Pairs per step, >= 2.
        lr: AdamW's learning rate, > 0.
        temperature: Divides cosines, > 0.
        seed: Of pairs and batches.
    """

    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-5
    temperature: float = 0.07
    seed: int = 0


def training_part(data: Path, split: str) -> Path:
    """Return the file of a split's training part; no other part is looked for.

    Raises:
        DataError: There is none.
    """
    folder = data / "splits" / split
    for path in (folder / f"train{suffix}" for suffix in SUFFIXES):
        if path.is_file():
            return path
    raise DataError(
        f"{folder}: no train.tsv here; make a split with `mmbench data split {data} --name {split}`"
    )


def histories(path: Path, items: Items) -> list[NDArray[np.int64]]:
    """Return the distinct items (rows) of each user who has two or more, users sorted by id.

    Raises:
        DataError: No such columns, or no user has two items of the catalogue.
    """
    table = open_interactions(path)
    user, item = (
        next(iter(columns_of(role, table.columns)), None) for role in ("user_id", "item_id")
    )
    if user is None or item is None:
        raise DataError(
            f"{path}: no columns of users and items (expected user_id and item_id; got "
            f"{', '.join(table.columns)})"
        )
    columns = {
        role: checked_ids(table, role, cells)
        for role, cells in table.read([user, item], ids=[user, item]).items()
    }
    rows = {text: row for row, text in enumerate(items.ids.to_pylist())}
    taken: dict[str, set[int]] = {}
    for who, what in zip(columns[user].to_pylist(), columns[item].to_pylist(), strict=True):
        if what in rows:
            taken.setdefault(who, set()).add(rows[what])
    several = [np.array(sorted(own)) for _, own in sorted(taken.items()) if len(own) > 1]
    if not several:
        raise DataError(
            f"{path}: no user has two items of the catalogue; are the ids those of the items table?"
        )
    return several


def pairs(users: Sequence[NDArray[np.int64]], seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw a pair of different items of each user, users in random order: (n_users, 2)."""
    rng = np.random.default_rng([seed, epoch])
    drawn = np.array([rng.choice(own, 2, replace=False) for own in users])
    return drawn[rng.permutation(len(drawn))]


def contrastive_loss(a: Tensor, b: Tensor, together: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of pairs (a_k, b_k) against the other pairs' items.

    Args:
        a: First items' vectors, shape (n, d).
        b: Second items' vectors, shape (n, d).
        together: Whether somebody took both a_k and b_l, shape (n, n), bool.
        temperature: Divides cosines.
    """
    import torch

    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    # Items that somebody took together are no negatives of each other.
    others = together & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    logits = (a @ b.T / temperature).masked_fill(others, -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return (
        torch.nn.functional.cross_entropy(logits, target)
        + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2


class TakenTogether:
    """The pairs of items that some user took both of.

    Args:
        users: From `histories`.
    """

    def __init__(self, users: Sequence[NDArray[np.int64]]) -> None:
        items = np.concatenate(users)
        takers = np.repeat(np.arange(len(users)), [len(own) for own in users])
        self._takers = csr_matrix((np.ones(items.size, np.int32), (items, takers)))

    def __call__(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (n, m) for items (n,) and (m,); an item that is taken is together with itself."""
        both = csr_matrix(self._takers[first] @ self._takers[second].T)
        return np.asarray(both.toarray() > 0)


def finetune(
    encoder: Trainable,
    contents: Contents,
    users: Sequence[NDArray[np.int64]],
    training: Training,
    *,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Train an encoder's network in place.

    Args:
        encoder: The encoder.
        contents: The items' contents; pairs with an item without usable content are left out.
        users: From `histories`.
        training: The settings.
        progress: Shows pairs and losses.
        stop: Asked between steps; a true answer ends the training.

    Returns:
        Mean loss of each epoch.

    Raises:
        UsageError: A value is out of range.
        Interrupted: `stop` said so.
        DataError: No pair has content, or the loss is not finite.
    """
    import torch

    finite = 0 < training.lr < np.inf and 0 < training.temperature < np.inf
    if training.batch_size < 2 or training.epochs < 1 or not finite:
        raise UsageError(
            "finetune: batch size must be >= 2, epochs >= 1, lr and temperature positive"
        )
    network = encoder.network.requires_grad_(True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.lr)
    together = TakenTogether(users)
    losses = []
    with progress.task("finetune", training.epochs * len(users)) as task:
        for epoch in range(training.epochs):
            total, n = 0.0, 0
            drawn, size = pairs(users, training.seed, epoch), training.batch_size
            batches = _batches(encoder, contents, drawn, size)
            for at, (rows, first, second) in enumerate(batches):
                if stop():
                    raise Interrupted(
                        "interrupted: nothing was saved; the same command begins anew"
                    )
                task.advance(min(size, len(drawn) - at * size), "limited by device")
                if len(rows) < 2:  # no negatives
                    continue
                optimiser.zero_grad()
                with exact_arithmetic:
                    vectors = encoder.differentiable([*first, *second])
                    a, b = vectors[: len(rows)], vectors[len(rows) :]
                    known = torch.from_numpy(together(rows[:, 0], rows[:, 1])).to(a.device)
                    loss = contrastive_loss(a, b, known, training.temperature)
                    if not torch.isfinite(loss):
                        raise DataError(
                            f"finetune: the loss is {loss.item()} in epoch {epoch + 1}; lower --lr "
                            f"(now {training.lr:g})"
                        )
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                total, n = total + loss.item() * len(rows), n + len(rows)
            if not n:
                raise DataError("finetune: no pair of items has usable content")
            losses.append(total / n)
            note = f"epoch {epoch + 1}/{training.epochs}: loss {losses[-1]:.4f}"
            note += f" over {counted(n, 'pair')}"
            if n < len(drawn):
                note += f" ({len(drawn) - n:,} left out: no usable content, or alone in a batch)"
            progress.note(note)
    network.requires_grad_(False)
    return losses


def _batches(
    encoder: Trainable, contents: Contents, drawn: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.int64], list[Any], list[Any]]]:
    """Rows (n, 2) and loaded items of up to `size` pairs; those without content are left out."""

    def load(row: int) -> Any:
        (content,) = contents.fetch(row, row + 1)
        if isinstance(content, tuple):  # several files: the first one
            content = content[0]
        if content is None or isinstance(content, ContentError | Absent):
            return None
        try:
            return encoder.load(content)
        except (ContentError, FileNotFoundError):
            return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(drawn), size):
            rows = drawn[start : start + size]
            loaded = list(pool.map(load, rows.T.reshape(-1).tolist()))
            first, second = loaded[: len(rows)], loaded[len(rows) :]
            kept = [k for k in range(len(rows)) if first[k] is not None and second[k] is not None]
            yield rows[kept], [first[k] for k in kept], [second[k] for k in kept]
