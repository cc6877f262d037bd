"""Evaluate by a protocol: candidates, masks, who is scored; with a model, or lists made elsewhere.

`paper` is the evaluation of arXiv 2309.05273; `strict` closes what a reviewer may object to in it.
docs/evaluation.md describes both side by side; a run records `Setting.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmbench.config import Evaluation
from mmbench.core.content import Known
from mmbench.core.interactions import HeldOut, Index, TrainSet
from mmbench.data.dataset import Split, TestData, TrainingData, load_split
from mmbench.data.features import ItemFeatures, load_content, load_presence
from mmbench.data.files import known_columns, read_categories
from mmbench.data.lists import read_lists
from mmbench.errors import DataError
from mmbench.evaluation.ranking import rank_each
from mmbench.evaluation.scoring import (
    RankedLists,
    Scores,
    Slice,
    SliceScores,
    evaluate,
    make_slices,
    score_slices,
    without_hits,
)
from mmbench.metrics import resolve
from mmbench.models.base import Recommender

NO_HITS = "none of the relevant items is one that this model and protocol can list"
"""Why metrics of hits have no value."""

Presence = Mapping[str, NDArray[np.bool_]]
"""Modality to which item rows have a vector of their own."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One way to rank and score: a dataset, its content, and the choices of a recipe.

    Attributes:
        training: The data; no test rows.
        evaluation: The protocol, metrics and cut-offs.
        features: Content of all item rows by modality; empty where nothing needs it.
        trained_only: Whether the model lists items that occur in training, and no others.
    """

    training: TrainingData
    evaluation: Evaluation
    features: Mapping[str, ItemFeatures] = field(default_factory=dict)
    trained_only: bool = False

    @property
    def strict(self) -> bool:
        """Whether the protocol is `strict`."""
        return self.evaluation.protocol == "strict"

    @cached_property
    def candidates(self) -> TrainSet:
        """The training pairs over the items that may be listed: the trained ones, in strict all."""
        train = self.training.train
        return replace(train, n_items=self.training.item_ids.size) if self.strict else train

    @property
    def test_mask(self) -> HeldOut | None:
        """Pairs that lists for test leave out beside the training pairs."""
        return self.training.valid if self.strict else None

    @property
    def known(self) -> Known:
        """What a model may know when it scores the candidates."""
        n = self.candidates.n_items
        content = {modality: one.first(n) for modality, one in self.features.items()}
        return Known(n, content, lambda: self.training.histories)

    @property
    def present(self) -> dict[str, NDArray[np.bool_]]:
        """Which candidates have a vector of their own, by modality."""
        n = self.candidates.n_items
        return {modality: one.present[:n] for modality, one in self.features.items()}

    def rows(self, held_out: HeldOut) -> HeldOut:
        """Return the held-out rows that count: those of trained users, in strict of all."""
        return held_out if self.strict else self.training.of_trained_users(held_out)

    def out_of_reach(self, held_out: HeldOut) -> bool:
        """Whether there are relevant rows, and no list can have any of them.

        They are of items that the model or the protocol never lists, or training pairs as well.
        """
        train = self.training.train
        relevant = held_out.take(held_out.ratings >= self.evaluation.threshold)
        n_items = self.training.n_trained if self.trained_only else self.candidates.n_items
        listed = (relevant.items < n_items) & (relevant.users < train.n_users)
        listed &= ~train.contains(relevant.users, relevant.items)
        return bool(relevant.users.size) and not bool(listed.any())

    def describe(self, *, foreign: bool = False) -> dict[str, Any]:
        """Record every choice, in words and numbers; `foreign`: the lists were made elsewhere."""
        evaluation, strict = self.evaluation, self.strict
        n_candidates = self.candidates.n_items
        chosen: dict[str, Any] = {
            "name": evaluation.protocol,
            "candidates": "every item of the interactions and of the items table"
            if strict
            else "items that occur in training",
            "n_candidates": n_candidates,
            "n_candidates_unseen_in_training": n_candidates - self.training.n_trained,
        }
        if strict and not foreign:
            chosen["unseen_items"] = (
                "never listed: the model represents trained items only"
                if self.trained_only
                else "scored"
            )
        if not foreign:
            test = "the user's training and validation items"
            trained = "the user's training items"
            chosen["masked"] = {"valid": trained, "test": test if strict else trained}
        if dropped := self.training.dropped:
            chosen["dropped"] = dict(dropped)
            chosen["candidates"] += f", but for {dropped['items']:,} without {dropped['without']}"
        return chosen | {
            "relevant": f"rating >= {evaluation.threshold:g}",
            "users_without_list": "score 0" if strict else "left out",
            "users_without_training_rows": "score 0" if strict else "left out",
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


def rank_all(
    model: Recommender,
    setting: Setting,
    *,
    users: Index | None = None,
    masks: Sequence[HeldOut | None] = (None,),
) -> list[RankedLists]:
    """Rank for every user, or some, to the longest cut-off, from one scoring pass.

    Args:
        model: A trained model, built with the setting's content.
        setting: Says which items are candidates, and how long the lists are.
        users: User rows; None: all.
        masks: Pairs to mask beside the training pairs; one set of lists for each.
    """
    model.train(False)
    evaluation = setting.evaluation
    longest = max(*evaluation.cutoffs, int(evaluation.select_by.partition("@")[2]))
    train = setting.candidates
    with torch.inference_mode():
        return rank_each(
            model.scorer(setting.known),
            train,
            np.arange(train.n_users) if users is None else users,
            k=longest,
            masks=masks,
            device=next(iter(model.state_dict().values()), torch.empty(0)).device,
        )


def lists_for_both(model: Recommender, setting: Setting) -> tuple[RankedLists, RankedLists]:
    """Rank for validation and for test; in strict alone they differ, by validation positives."""
    if setting.test_mask is None:
        (lists,) = rank_all(model, setting)
        return lists, lists
    for_valid, for_test = rank_all(model, setting, masks=(None, setting.test_mask))
    return for_valid, for_test


def score(lists: RankedLists, setting: Setting, held_out: HeldOut) -> Scores:
    """Compute the setting's metrics on held-out rows that `Setting.rows` chose.

    Where no list can have a hit, metrics of hits have no value: their zeros measure nothing.
    """
    evaluation, training = setting.evaluation, setting.training
    metrics = resolve(evaluation.metrics)
    scores = evaluate(
        lists,
        setting.candidates,
        held_out,
        metrics=metrics,
        cutoffs=evaluation.cutoffs,
        threshold=evaluation.threshold,
        missing_users="zero" if setting.strict else "leave-out",
        topics=training.topics,
        content=training.content,
    )
    return without_hits(scores, metrics) if setting.out_of_reach(held_out) else scores


def with_selected(evaluation: Evaluation) -> tuple[Evaluation, str]:
    """Return the evaluation with the metric that selects among its own, and that metric's key."""
    name, _, cutoff = evaluation.select_by.partition("@")
    both = {
        "metrics": tuple(dict.fromkeys([*evaluation.metrics, name])),
        "cutoffs": tuple(sorted({*evaluation.cutoffs, int(cutoff)})),
    }
    return evaluation.model_copy(update=both), f"{resolve([name])[0].name}@{cutoff}"


def check(setting: Setting, test: TestData, *, selects: bool) -> None:
    """Refuse data that can't be scored or selected on, before anything is trained.

    Every metric is computed on empty lists: that says nothing about the rows, and is not kept.

    Args:
        setting: Training and validation data, and how to score.
        test: The test data.
        selects: Whether validation chooses among epochs.

    Raises:
        DataError: A metric does not take the held-out ratings, or the one that selects has no value
            on validation.
    """
    evaluation, key = with_selected(setting.evaluation)
    training, asked = setting.training, replace(setting, evaluation=evaluation)
    where = f"{training.name}, split {training.split}"
    for part, held_out in (("valid", training.valid), ("test", test.rows)):
        rows = setting.rows(held_out)
        users = np.unique(training.of_trained_users(rows).users)
        empty = RankedLists(users, np.full((users.size, max(evaluation.cutoffs)), -1))
        try:
            scores = score(empty, asked, rows)
        except DataError as error:
            raise DataError(f"{where}, {part} part: {error}") from error
        if not (selects and part == "valid"):
            continue
        if not scores.n_relevant:
            raise DataError(
                f"{where}: {key} has no value on the valid part and can't choose an epoch: no user "
                f"has a row with a rating of {evaluation.threshold:g} or more there; lower "
                "--threshold or choose another split"
            )
        if asked.out_of_reach(rows) and scores.overall[key] is None:
            raise DataError(
                f"{where}: {key} can be nothing but 0 on the valid part and can't choose an epoch: "
                f"{NO_HITS}; choose a model that lists items without training rows (such as vbpr), "
                "another split, or another --select-by"
            )


@dataclass(frozen=True, eq=False)
class Scored:
    """Result of an evaluation.

    Attributes:
        scores: The metrics on `valid` and on `test`.
        slices: The same on their slices; empty if they were not asked for.
        protocol: Every choice that was made, see `Setting.describe`.
        notes: What should be known about the data and the lists, one line each.
    """

    scores: dict[str, Scores]
    slices: dict[str, list[SliceScores]]
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def score_both(
    lists: tuple[RankedLists, RankedLists],
    setting: Setting,
    test: TestData,
    present: Presence | None,
) -> Scored:
    """Score validation and test; with slices where presence is given."""
    slices: list[Slice] = []
    if present is not None:
        training = setting.training
        n_items, n_users = training.item_ids.size, training.user_ids.size
        slices = make_slices(training.train, n_items, n_users, present)
    found = {
        "valid": _score_rows(lists[0], setting, setting.training.valid, slices),
        "test": _score_test(lists[1], setting, test, slices),
    }
    return Scored(
        {split: scores for split, (scores, _) in found.items()},
        {split: sliced for split, (_, sliced) in found.items()} if slices else {},
        notes=(
            *_why_not("valid", found["valid"][0], setting, setting.training.valid),
            *_why_not("test", found["test"][0], setting, test.rows),
        ),
    )


def _why_not(part: str, scores: Scores, setting: Setting, held_out: HeldOut) -> list[str]:
    """Return why metrics of relevant items have no value on a part, in a line if they have none."""
    why = ""
    if not scores.n_relevant:
        least = f"{setting.evaluation.threshold:g}"
        why = f"no user has a row with a rating of {least} or more there; lower --threshold"
    elif None in scores.overall.values() and setting.out_of_reach(setting.rows(held_out)):
        why = NO_HITS
    return [f"{part}: metrics of relevant items are n/a: {why}"] if why else []


def _score_test(
    lists: RankedLists, setting: Setting, test: TestData, slices: Sequence[Slice]
) -> tuple[Scores, list[SliceScores]]:
    """The only place where test rows meet lists."""
    return _score_rows(lists, setting, test.rows, slices)


def _score_rows(
    lists: RankedLists, setting: Setting, held_out: HeldOut, slices: Sequence[Slice]
) -> tuple[Scores, list[SliceScores]]:
    rows, of = setting.rows(held_out), partial(score, lists, setting)
    return of(rows), score_slices(slices, rows, of) if slices else []


def evaluate_lists(
    recs: Path,
    data: Path,
    split: str | None,
    evaluation: Evaluation,
    columns: Mapping[str, str] | None = None,
    *,
    slices: bool = False,
) -> Scored:
    """Score lists made anywhere else on both held-out splits.

    Raises:
        DataError: The lists can't be read or do not belong to the dataset.
    """
    loaded = load_split(data, split, columns, catalogue=evaluation.protocol == "strict")
    evaluation, loaded, _ = side_data(data, evaluation, loaded, known_columns(data, columns))
    training = loaded.training
    setting = Setting(training, evaluation)
    user_ids = training.user_ids[: training.train.n_users]
    longest = max(evaluation.cutoffs)
    users, items, notes = read_lists(recs, user_ids, training.item_ids, longest)
    present = load_presence(data / "features", training.item_ids.tolist()) if slices else None
    seen = _n_listed(users, items, training.train)
    if seen:
        notes.append(
            f"{seen} listed items are training positives of their user; no model here lists such"
        )
    known = _n_listed(users, items, training.valid) if setting.strict else 0
    if known:
        notes.append(
            f"{known} listed items are validation positives of their user; at test they count as "
            "misses"
        )
    lists = RankedLists(users, items)
    scored = score_both((lists, lists), setting, loaded.test, present)
    told = (*training.notes, *notes, *scored.notes)
    return replace(scored, protocol=setting.describe(foreign=True), notes=told)


def _n_listed(users: Index, items: Index, rows: HeldOut | TrainSet) -> int:
    """How many of the pairs are in their user's list."""
    n_items = 1 + max(int(items.max(initial=0)), int(rows.items.max(initial=0)))
    listed = (users[:, None] * n_items + items)[items >= 0]
    return int(np.isin(listed, rows.users * n_items + rows.items).sum())


def side_data(
    data: Path, evaluation: Evaluation, split: Split, columns: Mapping[str, str] | None
) -> tuple[Evaluation, Split, dict[str, str]]:
    """Load what metrics need beside interactions: topics and vectors of items.

    Returns:
        The evaluation with the choice of vectors spelled out, the split with the data, and their
        digests.
    """
    training, digests = split.training, {}
    ids = training.item_ids.tolist()
    if evaluation.protocol == "strict":
        digests["catalogue"] = split.catalogue_digest
    if evaluation.categories is not None:
        topics, digests["categories"] = read_categories(
            data, evaluation.categories, ids, (columns or {}).get("item_id")
        )
        training = replace(training, topics=topics)
    if evaluation.diversity_features is not None:
        content, chosen, digests["diversity_features"] = load_content(
            data / "features", evaluation.diversity_features, ids, training.n_trained
        )
        training = replace(training, content=content)
        evaluation = evaluation.model_copy(update={"diversity_features": chosen})
    return evaluation, replace(split, training=training), digests
