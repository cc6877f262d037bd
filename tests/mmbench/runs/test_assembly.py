"""Models as a recipe's approximations ask for them."""

from __future__ import annotations

import pytest
import torch
from tests.benchmarks.test_training import random_neighbours

from mmbench.config import make_settings
from mmbench.core.interactions import TrainSet
from mmbench.models.base import Content, Recommender
from mmbench.runs.assembly import assemble
from mmbench.trainer import Trainer


@pytest.mark.parametrize(
    "name", ["vbpr", "deepstyle", "bm3", "freedom", "lattice", "mgcn", "smore"]
)
def test_half_precision_trains_what_rounded_and_fixed_vectors_train(
    name: str, block_train: TrainSet, block_features: Content
) -> None:
    rounded = {m: x.half().float() for m, x in block_features.vectors.items()}
    assert any(not torch.equal(x, block_features[m].vectors) for m, x in rounded.items())
    settings = make_settings(name, {"embedding_dim": 8, "epochs": 3, "batch_size": 16})

    def trained(content: Content, approximation: str) -> Recommender:
        model = assemble(name, block_train, content, settings, 1, (approximation,))
        trainer = Trainer(
            model,
            block_train,
            settings,
            lambda _: {"x": 0.0},
            metric="x",
            every=9,
            patience=None,
            seed=1,
        )
        assert len(list(trainer.run())) == 3
        return model.train(False)

    vectors = {m: x.clone() for m, x in block_features.vectors.items()}
    half = trained(Content.complete(vectors, random_neighbours), "half-features")
    full = trained(Content.complete(rounded, random_neighbours), "frozen-features")
    assert [m for m in vectors if not torch.equal(vectors[m], block_features[m].vectors)] == []
    assert half.parameter_counts() == full.parameter_counts()
    with torch.inference_mode():
        for ours, theirs in zip(half.embeddings(), full.embeddings(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fixed_vectors_are_not_copied(block_train: TrainSet, block_features: Content) -> None:
    settings = make_settings("freedom", {})
    model = assemble("freedom", block_train, block_features, settings, 1, ("frozen-features",))
    for m, x in block_features.vectors.items():
        assert model.get_buffer(f"features.{m}.values").data_ptr() == x.data_ptr()
