"""What a protocol decides for a dataset: candidates, masks, histories, and the rows that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmbench.config import Evaluation
from mmbench.core.content import Known, Source
from mmbench.core.interactions import HeldOut, TrainSet
from mmbench.data.dataset import TrainingData
from mmbench.data.features import ItemFeatures

Part = Literal["valid", "test"]
"""What is ranked for."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One way to rank and score: a dataset, its content, and the choices of a recipe.

    Attributes:
        training: The data; no test rows.
        evaluation: The protocol, metrics and cut-offs.
        features: Content by modality, of all item rows or of the training pairs; empty where
            nothing needs it.
        trained_only: Whether the model lists items that occur in training, and no others.
    """

    training: TrainingData
    evaluation: Evaluation
    features: Mapping[str, ItemFeatures] = field(default_factory=dict)
    trained_only: bool = False

    @cached_property
    def candidates(self) -> TrainSet:
        """The training pairs over the items that may be listed: the trained ones, or all."""
        train = self.training.train
        if not self.evaluation.whole_catalogue:
            return train
        return replace(train, n_items=self.training.item_ids.size)

    @property
    def lists_again(self) -> bool:
        """Whether items of a user's history may be listed again."""
        return self.evaluation.next_item and self.evaluation.repeats == "allowed"

    @property
    def masked(self) -> TrainSet:
        """The pairs that every list leaves out, over the candidates."""
        return self.candidates.without_pairs() if self.lists_again else self.candidates

    @property
    def test_mask(self) -> HeldOut | None:
        """Pairs that lists for test leave out beside these."""
        leaves_out = self.evaluation.whole_catalogue and not self.lists_again
        return self.training.valid if leaves_out else None

    def content_of(self, source: Source) -> dict[str, ItemFeatures]:
        """Return the content of items, or of the training pairs."""
        return {m: one for m, one in self.features.items() if one.source == source}

    @property
    def known(self) -> Known:
        """What a model may know when it scores the candidates for validation."""
        return self.known_for("valid")

    def known_for(self, part: Part) -> Known:
        """What a model may know when it scores the candidates for a part."""
        n, training = self.candidates.n_items, self.training
        content = {modality: one.first(n) for modality, one in self.content_of("item").items()}
        if part == "test" and self.evaluation.next_item:
            return Known(n, content, lambda: training.longer_histories)
        return Known(n, content, lambda: training.histories)

    @property
    def present(self) -> dict[str, NDArray[np.bool_]]:
        """Which candidates have a vector of their own, by modality."""
        n = self.candidates.n_items
        return {m: one.present[:n] for m, one in self.content_of("item").items()}

    def rows(self, held_out: HeldOut) -> HeldOut:
        """Return the held-out rows that count: those of trained users, in `paper`, or of all."""
        if self.evaluation.whole_catalogue:
            return held_out
        return self.training.of_trained_users(held_out)

    def out_of_reach(self, held_out: HeldOut) -> bool:
        """Whether there are relevant rows, and no list can have any of them.

        They are of items that the model or the protocol never lists, or masked training pairs.
        """
        train = self.training.train
        relevant = held_out.take(held_out.ratings >= self.evaluation.threshold)
        n_items = self.training.n_trained if self.trained_only else self.candidates.n_items
        listed = (relevant.items < n_items) & (relevant.users < train.n_users)
        listed &= ~self.masked.contains(relevant.users, relevant.items)
        return bool(relevant.users.size) and not bool(listed.any())

    def describe(self, *, foreign: bool = False) -> dict[str, Any]:
        """Record every choice, in words and numbers; `foreign`: the lists were made elsewhere."""
        evaluation, whole = self.evaluation, self.evaluation.whole_catalogue
        n_candidates = self.candidates.n_items
        chosen: dict[str, Any] = {
            "name": evaluation.protocol,
            "candidates": "every item of the interactions and of the items table"
            if whole
            else "items that occur in training",
            "n_candidates": n_candidates,
            "n_candidates_unseen_in_training": n_candidates - self.training.n_trained,
        }
        if whole and not foreign:
            chosen["unseen_items"] = (
                "never listed: the model represents trained items only"
                if self.trained_only
                else "scored"
            )
        if not foreign:
            chosen["masked"] = self._masks()
        if evaluation.next_item:
            chosen |= {
                "repeats": evaluation.repeats,
                "targets": "the next item of a user: one row of each part",
                "histories": self._histories(),
            }
        if dropped := self.training.dropped:
            chosen["dropped"] = dict(dropped)
            chosen["candidates"] += f", but for {dropped['items']:,} without {dropped['without']}"
        return chosen | {
            "relevant": f"rating >= {evaluation.threshold:g}",
            "users_without_list": "score 0" if whole else "left out",
            "users_without_training_rows": "score 0" if whole else "left out",
            "selection": f"first best {evaluation.select_by} on validation, every "
            f"{evaluation.every} epochs{evaluation.rounded}",
            "early_stopping": "never"
            if evaluation.patience is None
            else f"after {evaluation.patience} validations without improvement",
            "test_scored": "once, after selection",
            "ties": "score descending, then training items before others, then item id ascending",
            "cutoffs": list(evaluation.cutoffs),
            "diversity_features": evaluation.diversity_features,
            "categories": evaluation.categories,
        }

    def _masks(self) -> dict[Part, str]:
        """What lists for each part leave out, in words."""
        if self.lists_again:
            nothing = "nothing: an item may be listed again"
            return {"valid": nothing, "test": nothing}
        both = "the user's training and validation items"
        trained = "the user's training items"
        return {"valid": trained, "test": both if self.evaluation.whole_catalogue else trained}

    def _histories(self) -> dict[Part, str]:
        """What a model knows of a user before the item that is to be found, in words."""
        timed = self.training.histories.times is not None
        order = "by time or position" if timed else "in the order of the file"
        return {
            "valid": f"the user's training rows, {order}",
            "test": f"the user's training and validation rows, {order}",
        }
