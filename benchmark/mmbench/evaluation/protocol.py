"""What a protocol decides: which items are candidates, what is masked, and what users without a list or training score.

`paper` is the evaluation of arXiv 2309.05273; `strict` closes what a reviewer may object to in it.
Both are described side by side in docs/evaluation.md; `describe` is what a run records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmbench.config import Evaluation
from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.data.dataset import TrainingData
from mmbench.data.features import ItemFeatures
from mmbench.evaluation.evaluate import RankedLists, Scores, evaluate, rank_each
from mmbench.metrics import resolve
from mmbench.models.base import Recommender, Score


def candidates(training: TrainingData, evaluation: Evaluation) -> TrainSet:
    """The training pairs over the items that may be recommended: those of training, or the whole catalogue."""
    train = training.train
    if evaluation.protocol == "paper":
        return train
    return TrainSet(
        train.users, train.items, train.n_users, train.n_items + len(training.other_item_ids)
    )


def rows_to_score(known: HeldOut, of_others: HeldOut, evaluation: Evaluation) -> HeldOut:
    """The held-out rows that count: those of users of the training data, in strict those of all users."""
    if evaluation.protocol == "paper":
        return known
    users, items, ratings = (
        np.concatenate([getattr(rows, column) for rows in (known, of_others)])
        for column in ("users", "items", "ratings")
    )
    return HeldOut(
        users, items, ratings
    )  # sorted as it is: the others' rows come after all known ones


def validation_rows(training: TrainingData, evaluation: Evaluation) -> HeldOut:
    """The validation rows that count."""
    return rows_to_score(training.valid, training.valid_of_others, evaluation)


def rank_all(
    model: Recommender,
    training: TrainingData,
    features: Mapping[str, ItemFeatures],
    evaluation: Evaluation,
    *,
    users: Index | None = None,
    masks: Sequence[HeldOut | None] = (None,),
) -> list[RankedLists]:
    """The ranked lists of every user, or of some, as long as the longest cut-off, from one scoring pass.

    Args:
        model: A trained model.
        training: Its data; training positives are masked.
        features: What the model was built with.
        evaluation: Says which items are candidates, and how long the lists are.
        users: User rows; None: all.
        masks: Further pairs to mask; one set of lists for each.
    """
    model.train(False)
    longest = max(*evaluation.cutoffs, int(evaluation.select_by.partition("@")[2]))
    train = candidates(training, evaluation)
    with torch.inference_mode():
        return rank_each(
            scorer_of(model, training, features, evaluation),
            train,
            np.arange(train.n_users) if users is None else users,
            k=longest,
            masks=masks,
            device=next(iter(model.state_dict().values()), torch.empty(0)).device,
        )


def scorer_of(
    model: Recommender,
    training: TrainingData,
    features: Mapping[str, ItemFeatures],
    evaluation: Evaluation,
) -> Score:
    """A function from user rows (B,) to scores of the candidates (B, n); called without gradients."""
    if evaluation.protocol == "paper":
        return model.scorer()
    unseen = {modality: torch.from_numpy(one.other_vectors) for modality, one in features.items()}
    return model.scorer_with_unseen(unseen, len(training.other_item_ids))


def lists_for_both(
    model: Recommender,
    training: TrainingData,
    features: Mapping[str, ItemFeatures],
    evaluation: Evaluation,
) -> tuple[RankedLists, RankedLists]:
    """Every user's list for validation and for test; only in strict they differ, by the validation positives."""
    if evaluation.protocol == "paper":
        (lists,) = rank_all(model, training, features, evaluation)
        return lists, lists
    for_valid, for_test = rank_all(
        model, training, features, evaluation, masks=(None, training.valid)
    )
    return for_valid, for_test


def score(
    lists: RankedLists, training: TrainingData, held_out: HeldOut, evaluation: Evaluation
) -> Scores:
    """All metrics of the recipe on held-out rows that `rows_to_score` chose."""
    return evaluate(
        lists,
        candidates(training, evaluation),
        held_out,
        metrics=resolve(evaluation.metrics),
        cutoffs=evaluation.cutoffs,
        threshold=evaluation.threshold,
        missing_users="leave-out" if evaluation.protocol == "paper" else "zero",
        topics=training.topics,
        content=training.content,
    )


def describe(
    evaluation: Evaluation, training: TrainingData, model: type[Recommender] | None
) -> dict[str, Any]:
    """Every choice, in words and numbers.

    Args:
        evaluation: The choices.
        training: The data they are made for.
        model: What was ranked with; None for lists made elsewhere.
    """
    strict = evaluation.protocol == "strict"
    n_unseen = len(training.other_item_ids) if strict else 0
    stop = (
        "never"
        if evaluation.patience is None
        else f"after {evaluation.patience} validations without improvement"
    )
    chosen: dict[str, Any] = {"name": evaluation.protocol}
    chosen["candidates"] = (
        "every item of the interactions and of the items table"
        if strict
        else "items that occur in training"
    )
    chosen["n_candidates"] = training.train.n_items + n_unseen
    chosen["n_candidates_unseen_in_training"] = n_unseen
    if strict and model is not None:
        chosen["unseen_items"] = (
            "scored"
            if model.scores_unseen
            else "never listed: the model represents trained items only"
        )
    if model is not None:
        chosen["masked"] = {
            "valid": "the user's training items",
            "test": "the user's training and validation items"
            if strict
            else "the user's training items",
        }
    return chosen | {
        "relevant": f"rating >= {evaluation.threshold:g}",
        "users_without_list": "score 0" if strict else "left out",
        "users_without_training_rows": "score 0" if strict else "left out",
        "selection": f"first best {evaluation.select_by} on validation, every {evaluation.every} "
        "epochs",
        "early_stopping": stop,
        "test_scored": "once, after selection",
        "ties": "score descending, then training items before others, then item id ascending",
        "cutoffs": list(evaluation.cutoffs),
        "diversity_features": evaluation.diversity_features,
        "categories": evaluation.categories,
    }
