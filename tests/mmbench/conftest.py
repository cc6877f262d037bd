"""Small data sets for the tests of mmbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.processes import server

from mmbench.core.content import Known
from mmbench.core.interactions import Histories, TrainSet
from mmbench.models.base import Content
from mmbench.runs import executors


def fork_workers(patch: pytest.MonkeyPatch | None = None) -> None:
    """Let workers of `ProcessExecutor` be forks of a server, which import nothing again.

    What they get is pickled, too. `test_trainings_beside_each_other_share_a_card` has real ones.
    """

    def get_context(kind: str) -> BaseContext:
        assert kind == "spawn"  # CUDA doesn't bear a fork
        return server()

    patch = patch or pytest.MonkeyPatch()
    patch.setattr(executors, "multiprocessing", SimpleNamespace(get_context=get_context))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fork_workers`."""
    fork_workers(monkeypatch)


@pytest.fixture
def block_train() -> TrainSet:
    """A checkerboard of 24 users x 16 items: users see most items of their block, no others.

    They see them in any order.
    """
    rng = np.random.default_rng(1)
    pairs = [(u, i) for u in range(24) for i in range(16) if u % 2 == i % 2 and rng.random() < 0.7]
    users, items = np.array(pairs).T
    order = rng.permutation(users.size)
    in_order = Histories.from_rows(users[order], items[order], 24)
    return replace(TrainSet.from_pairs(users, items, 24, 16), in_order=in_order)


def reviews_of(train: TrainSet, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Vectors of the training pairs by modality, at random."""
    draw = torch.Generator().manual_seed(7)
    return {m: torch.randn(train.n_edges, width, generator=draw) for m, width in widths.items()}


@pytest.fixture
def block_features(block_train: TrainSet) -> Content:
    """Two modalities for the 16 items of `block_train` that tell the blocks apart, and reviews."""
    rng = np.random.default_rng(2)
    side = np.where(np.arange(16) % 2 == 0, 1.0, -1.0)[:, None]
    return Content.complete(
        {
            "visual": torch.tensor(side + 0.3 * rng.standard_normal((16, 6)), dtype=torch.float32),
            "textual": torch.tensor(
                -side + 0.3 * rng.standard_normal((16, 5)), dtype=torch.float32
            ),
        },
        edges=reviews_of(block_train, {"visual": 6, "textual": 5}),
        categories=torch.arange(16) // 4 % 2,
    )


def known(
    train: TrainSet, content: Content | None = None, unseen: dict[str, torch.Tensor] | None = None
) -> Known:
    """What a model may know of training items and of unseen ones with the given vectors."""
    content = content or Content({})
    vectors = {m: torch.cat([x, unseen[m]]) if unseen else x for m, x in content.vectors.items()}
    n_unseen = len(next(iter(unseen.values()))) if unseen else 0
    return Known(train.n_items + n_unseen, Content.complete(vectors), lambda: train.histories)


def write_dataset(
    folder: Path,
    *,
    seed: int = 0,
    users: int = 40,
    items: int = 30,
    encoder: Mapping[str, object] | None = None,
    reviews: bool = True,
) -> Path:
    """Write a dataset: interactions.tsv, a visual and a textual set, one of reviews of all pairs.

    Ids are not numbers. `encoder` is more of the sets' provenance, `reviews` whether the last one
    is made.
    """
    from mmstore import FeatureSetWriter

    rng = np.random.default_rng(seed)
    ids = [f"B{item:03d}X" for item in range(items)]
    side = rng.integers(0, 2, items)
    lines = ["user_id\titem_id\trating\ttimestamp"]
    for user in range(users):
        weights = np.where(side == user % 2, 1.0, 0.1) / (1 + np.arange(items) % 7)
        chosen = rng.choice(items, 10, replace=False, p=weights / weights.sum())
        lines += [
            f"u{user}\t{ids[item]}\t{rng.integers(1, 6)}\t{rng.integers(1000)}" for item in chosen
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "interactions.tsv").write_text("\n".join(lines) + "\n")
    for modality, name, dim in (("visual", "toy", 6), ("textual", "words", 4)):
        vectors = (2.0 * side[:, None] - 1 + 0.3 * rng.standard_normal((items, dim))).astype(
            np.float32
        )
        path = folder / "features" / modality / f"{name}.h5"
        with FeatureSetWriter(
            path,
            modality=modality,
            dim=dim,
            ids=ids,
            provenance={"extractor": "test", **(encoder or {})},
        ) as writer:
            writer.write(np.arange(1, items), vectors[1:])
            writer.mark_missing(np.array([0]))
            writer.finish()
    pairs = [tuple(line.split("\t")[:2]) for line in lines[1:]]
    if not reviews:
        return folder
    write_reviews(folder, "opinions", pairs, **(encoder or {}))
    return folder


def write_reviews(
    folder: Path,
    name: str,
    pairs: Sequence[tuple[str, ...]],
    vectors: np.ndarray | None = None,
    **provenance: object,
) -> None:
    """Write a set of interactions, textual/NAME, of all pairs but the first: at random, 5 wide."""
    from mmstore import FeatureSetWriter
    from mmstore.ids import Pairs

    if vectors is None:
        vectors = np.random.default_rng(9).standard_normal((len(pairs) - 1, 5)).astype(np.float32)
    users, items = zip(*pairs, strict=True)
    with FeatureSetWriter(
        folder / "features" / "textual" / f"{name}.h5",
        modality="textual",
        dim=vectors.shape[1],
        ids=Pairs(users, items),
        provenance={"extractor": "test", **provenance},
    ) as writer:
        writer.write(np.arange(1, len(pairs)), vectors)
        writer.mark_missing(np.array([0]))
        writer.finish()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """See `write_dataset`."""
    return write_dataset(tmp_path / "toy")
