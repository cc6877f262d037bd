"""The protocol `next-item` against an evaluation by hand, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbase.progress import Silent
from mmbench.config import Recipe, make_evaluation, make_settings
from mmbench.core.content import Known
from mmbench.core.interactions import HeldOut
from mmbench.errors import DataError, UsageError
from mmbench.evaluation.protocol import evaluate_lists, lists_for_both, score_both
from mmbench.evaluation.scoring import Scores
from mmbench.models import MODELS, ModelConfig, model_class
from mmbench.models.base import Recommender, Score
from mmbench.runs import run as experiment
from mmbench.runs.fit import build
from mmbench.runs.inputs import Inputs, load_inputs
from mmstore import FeatureSetWriter

K = 4
ITEMS = [f"i{number:02d}" for number in range(30)]
"""The last ones occur in the items table alone, or at the end of a sequence alone."""


def sequences() -> dict[str, list[str]]:
    """A user's items in order: some again, some that only a last or last but one row has."""
    rng = np.random.default_rng(11)
    found = {}
    for user in range(26):
        own = [ITEMS[item] for item in rng.integers(0, 20, 2 + user % 6)]
        ends = [ITEMS[item] for item in rng.integers(0, 27, 2)]
        found[f"u{user:02d}"] = [*own, *(ends if user % 3 else [own[0], own[-1]])]
    return {**found, "short": ["i03", "i04"], "single": ["i05"]}


def write(folder: Path, order: str = "position") -> Path:
    """Write the sequences, in another order than the positions say, and two feature sets."""
    folder.mkdir(parents=True)
    rows = [
        f"{user}\t{item}\t{3 + 2 * place}"
        for user, own in sequences().items()
        for place, item in enumerate(own)
    ]
    rows = [rows[row] for row in np.random.default_rng(3).permutation(len(rows))]
    table = "\n".join([f"user_id\titem_id\t{order}", *rows])
    (folder / "interactions.tsv").write_text(table + "\n")
    items = "\n".join(["item_id\ttitle", *(f"{item}\ttitle" for item in ITEMS)])
    (folder / "items.tsv").write_text(items + "\n")
    rng = np.random.default_rng(4)
    for modality, dim in (("visual", 5), ("textual", 3)):
        path = folder / "features" / modality / "toy.h5"
        given = {"dim": dim, "ids": ITEMS, "provenance": {"extractor": "test"}}
        with FeatureSetWriter(path, modality=modality, **given) as writer:
            writer.write(np.arange(1, 30), rng.normal(size=(29, dim)).astype(np.float32))
            writer.mark_missing(np.array([0]))
            writer.finish()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("next") / "toy")


def recipe_of(
    data: Path, model: str = "item-knn", settings: dict[str, Any] | None = None, **evaluation: Any
) -> tuple[Recipe, Inputs]:
    evaluation = {
        "protocol": "next-item", "metrics": ("HR", "Recall", "NDCG", "MRR"), "cutoffs": (2, K),
        "select_by": f"NDCG@{K}", "every": 1, **evaluation,
    }  # fmt: skip
    settings = settings or {}
    if model_class(model).trained:
        settings = {"epochs": 1, "batch_size": 32, "embedding_dim": 4, **settings}
    return load_inputs(
        Recipe(
            data=str(data),
            split="leave-one-out",
            model=model,
            settings=make_settings(model, settings),
            evaluation=make_evaluation(**evaluation),
        )
    )


# -- by hand
# ---------------------------------------------------------------------------------------------


@dataclass
class ByHand:
    """What precedes each user's target, and the target, by ids; users too short have none."""

    before: dict[str, list[str]]
    target: dict[str, str]


def parts() -> dict[str, ByHand]:
    long = {user: own for user, own in sequences().items() if len(own) >= 3}
    return {
        part: ByHand(
            {user: own[:end] for user, own in long.items()},
            {user: own[end] for user, own in long.items()},
        )
        for part, end in (("valid", -2), ("test", -1))
    }


def trained_items() -> set[str]:
    short = [own for own in sequences().values() if len(own) < 3]
    return {item for own in [*parts()["valid"].before.values(), *short] for item in own}


def metrics_by_hand(ranks: Iterable[int | None]) -> dict[str, float]:
    """HR, NDCG and MRR of the target's ranks, from 0; None: not listed."""
    found = list(ranks)
    out = {}
    for k in (2, K):
        hits = [rank if rank is not None and rank < k else None for rank in found]
        hit_rate = sum(rank is not None for rank in hits) / len(hits)
        gains = [0.0 if rank is None else 1 / math.log2(rank + 2) for rank in hits]
        reciprocal = [0.0 if rank is None else 1 / (rank + 1) for rank in hits]
        out |= {f"HitRate@{k}": hit_rate, f"Recall@{k}": hit_rate}
        out |= {f"nDCG@{k}": sum(gains) / len(gains), f"MRR@{k}": sum(reciprocal) / len(hits)}
    return out


def without_lauc(scores: Scores) -> dict[str, float | None]:
    return {key: value for key, value in scores.overall.items() if "LAUC" not in key}


class AfterTheLast(Recommender):
    """A score for each pair of the last item and the next; few values, so that there are ties.

    Unseen items count in a history as they do in a list.
    """

    Config = ModelConfig
    trained = False
    uses_features = False
    scores_unseen = True
    TABLE = torch.from_numpy(np.random.default_rng(7).integers(0, 4, (30, 30)).astype(np.float32))
    TABLE.fill_diagonal_(5.0)  # the last item once more, before all others

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.of = torch.tensor(rows)  # number in ITEMS of each item row

    def scorer(self, known: Known) -> Score:
        ends = torch.from_numpy(known.histories.items[known.histories.indptr[1:] - 1])
        table = self.TABLE[self.of][:, self.of[: known.n_items]]
        return lambda users: table[ends[users]]


@pytest.mark.parametrize("repeats", ["allowed", "masked"])
@pytest.mark.parametrize("order", ["position", "timestamp"])
def test_metrics_are_those_of_an_evaluation_by_hand(
    tmp_path: Path, order: str, repeats: str
) -> None:
    metrics = ("HR", "Recall", "NDCG", "MRR", "LAUC")
    recipe, inputs = recipe_of(write(tmp_path / "d", order), repeats=repeats, metrics=metrics)
    training = inputs.split.training
    setting = inputs.setting(recipe.evaluation)
    assert training.item_ids.size == setting.candidates.n_items == 30
    model = AfterTheLast([ITEMS.index(item) for item in training.item_ids])
    found = score_both(lists_for_both(model, setting), setting, inputs.split.test, {})
    trained, occurring = trained_items(), {one for own in sequences().values() for one in own}
    assert 0 < len(trained) < len(occurring) < 30

    def tied(item: str) -> tuple[bool, bool, str]:  # the order of rows
        return item not in trained, item not in occurring, item

    for part, truth in parts().items():
        ranks: dict[str, int | None] = {}
        below: list[float] = []  # LAUC: the share of candidates below a hit
        for user, target in truth.target.items():
            before = truth.before[user]
            scores = AfterTheLast.TABLE[ITEMS.index(before[-1])]
            candidates = [one for one in ITEMS if repeats == "allowed" or one not in before]
            listed = sorted(
                candidates,
                key=lambda one, s=scores: (-float(s[ITEMS.index(one)]), *tied(one)),
            )
            ranks[user] = rank = listed.index(target) if target in listed else None
            known = set(parts()["valid"].before[user]) if repeats == "masked" else set()
            n = 30 - len(known)
            below.append((n - rank) / n if rank is not None and rank < K else 0.0)
        expected = metrics_by_hand(ranks.values())
        overall = found.scores[part].overall
        assert overall.pop(f"LAUC@{K}") == pytest.approx(sum(below) / len(below), rel=1e-12)
        del overall["LAUC@2"]
        assert overall == pytest.approx(expected, rel=1e-12), part
        assert found.scores[part].n_evaluated == len(truth.target) == 26
        slices = {(one.slice.family, one.slice.name): one.scores for one in found.slices[part]}
        for name, again in (("repeated", True), ("new", False)):
            own = [ranks[u] for u, one in truth.target.items() if (one in truth.before[u]) == again]
            of_slice = without_lauc(slices["target", name])
            if repeats == "masked" and again:  # no list can have any
                assert set(of_slice.values()) <= {None, 0.0}
            else:
                assert of_slice == pytest.approx(metrics_by_hand(own)), name
        unseen = [ranks[u] for u, one in truth.target.items() if one not in trained]
        assert unseen and without_lauc(slices["items", "cold"]) == pytest.approx(
            metrics_by_hand(unseen)
        )


def test_item_knn_counts_the_history_of_its_part(data: Path) -> None:
    """Its similarities by hand; `latest` counts the last rows of items that training has."""
    train = {**parts()["valid"].before, "short": ["i03", "i04"], "single": ["i05"]}
    trained = sorted(trained_items())
    having = {one: {user for user, own in train.items() if one in own} for one in trained}

    def similarity(one: str, other: str) -> float:
        both = len(having[one] & having[other])
        norm = math.sqrt(len(having[one]) * len(having[other]))
        return 0.0 if one == other else both / (norm + 10)

    for latest in (None, 1, 2):
        recipe, inputs = recipe_of(data, settings={"latest": latest})
        setting = inputs.setting(recipe.evaluation)
        model, ids = build(recipe, setting), inputs.split.training.user_ids.tolist()
        for part in ("valid", "test"):
            scores = model.scorer(setting.known_for(part))(torch.arange(28))  # type: ignore[arg-type]
            for user, before in parts()[part].before.items():
                own = [item for item in before if item in having]
                counted = set(own if latest is None else own[-latest:])
                row = scores[ids.index(user)]
                expected = [sum(similarity(one, other) for other in counted) for one in trained]
                assert row[: len(trained)].tolist() == pytest.approx(expected, rel=1e-5)
                assert torch.isneginf(row[len(trained) :]).all()


# -- every model
# ---------------------------------------------------------------------------------------------


def naive(scores: Tensor, rows: HeldOut, masked: list[set[int]]) -> dict[str, float]:
    """The metrics from all scores, one user at a time."""
    ranks: list[int | None] = []
    for user, item in zip(rows.users.tolist(), rows.items.tolist(), strict=True):
        order = sorted(
            range(scores.shape[1]), key=lambda one, u=user: (-float(scores[u, one]), one)
        )
        listed = [one for one in order if scores[user, one] > -math.inf and one not in masked[user]]
        ranks.append(listed.index(item) if item in listed else None)
    return metrics_by_hand(ranks)


@pytest.mark.parametrize(
    "model",
    [  # those that the dataset suffices for
        name
        for name, kind in ((name, model_class(name)) for name in MODELS)
        if kind.content_of == "item" and not kind.uses_categories
    ],
)
def test_every_model_runs_under_the_protocol(model: str, data: Path, tmp_path: Path) -> None:
    """A run's metrics against the ranking of all scores of its model."""
    recipe, inputs = recipe_of(data, model)
    folder = experiment.run_folder(tmp_path, recipe, inputs)
    result = experiment.run(recipe, inputs, folder, progress=Silent())
    setting = inputs.setting_of(result.recipe)
    trained = build(recipe, setting)
    folder.load_model(trained, result.best_epoch)
    choice = recipe.evaluation.model_copy(update={"repeats": "masked"})
    without = replace(setting, evaluation=choice)
    masked_scores = score_both(lists_for_both(trained, without), without, inputs.split.test, None)
    for part, rows in (("valid", setting.training.valid), ("test", inputs.split.test.rows)):
        known = setting.known_for(part)  # type: ignore[arg-type]
        with torch.inference_mode():
            scores = trained.train(False).scorer(known)(torch.arange(28)).cpu()
        assert not scores.isnan().any() and scores.shape == (28, 30)
        bounds = zip(known.histories.indptr[:-1], known.histories.indptr[1:], strict=True)
        own = [set(known.histories.items[a:b].tolist()) for a, b in bounds]
        expected = naive(scores, rows, [set() for _ in own])
        assert getattr(result, part) == pytest.approx(expected, rel=1e-9), part
        expected = naive(scores, rows, own)
        assert masked_scores.scores[part].overall == pytest.approx(expected, rel=1e-9), part


# -- what it takes and refuses
# ---------------------------------------------------------------------------------------------


def test_the_record_says_every_choice(data: Path) -> None:
    for repeats, masked in (("allowed", "nothing"), ("masked", "the user's training and valid")):
        recipe, inputs = recipe_of(data, repeats=repeats)
        told = inputs.setting(recipe.evaluation).describe()
        assert (told["name"], told["repeats"]) == ("next-item", repeats)
        assert told["masked"]["test"].startswith(masked)
        assert told["histories"]["test"].startswith("the user's training and validation rows, by ")
        assert told["targets"] and told["ties"].startswith("score descending")
        assert set(inputs.evaluation) == {"catalogue", "histories"}


def test_another_order_of_the_same_rows_is_another_run(data: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other")
    lines = (other / "interactions.tsv").read_text().splitlines()
    header, *rows = lines
    own = [row.split("\t") for row in rows if row.startswith("u11\t")]
    first, second = sorted(own, key=lambda row: int(row[2]))[:2]
    assert first[1] != second[1]
    swapped = {tuple(first): (*first[:2], second[2]), tuple(second): (*second[:2], first[2])}
    rows = ["\t".join(swapped.get(tuple(row.split("\t")), row.split("\t"))) for row in rows]
    (other / "interactions.tsv").write_text("\n".join([header, *rows]) + "\n")
    (recipe, here), (_, there) = recipe_of(data), recipe_of(other)
    assert here.split.training.digest == there.split.training.digest
    assert recipe.digest(here.digests) != recipe.digest(there.digests)


def test_selection_sees_no_test_row(data: Path, tmp_path: Path) -> None:
    """With other test rows everything up to test is the same."""
    other = write(tmp_path / "other")
    last = {user: own[-1] for user, own in sequences().items() if len(own) >= 3}
    lines = (other / "interactions.tsv").read_text().splitlines()
    ends = {f"{u}\t{item}\t{1 + 2 * len(sequences()[u])}" for u, item in last.items()}
    assert ends <= set(lines)
    changed = [
        f"{line.split()[0]}\ti00\t{line.split()[2]}" if line in ends else line for line in lines
    ]
    (other / "interactions.tsv").write_text("\n".join(changed) + "\n")
    found = []
    for number, folder in enumerate((data, other)):
        recipe, inputs = recipe_of(folder, "bpr-mf", {"epochs": 3})
        run = experiment.run_folder(tmp_path / str(number), recipe, inputs)
        result = experiment.run(recipe, inputs, run, progress=Silent())
        history = [
            json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()
        ]
        found.append((result.best_epoch, [one.get("valid") for one in history], result.test))
        lengths = np.diff(inputs.split.training.longer_histories.indptr)
        assert lengths.sum() == inputs.split.training.interactions.users.size + 26
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("random:0.3,0.3", "several rows in the valid part"),
        ("any", "is earlier than the end of their history"),
    ],
)
def test_rows_that_are_no_next_items_are_refused(tmp_path: Path, method: str, message: str) -> None:
    from mmbench.data.splitting import make_split

    data = write(tmp_path / "d")
    if method == "any":
        make_split(
            data, "any", "leave-k-out", test_ratio=0.2, valid_ratio=0.2, seed=1, k=1, last=False
        )
    recipe, _ = recipe_of(data)
    recipe, inputs = load_inputs(recipe.model_copy(update={"split": method}))
    folder = experiment.run_folder(tmp_path / "runs", recipe, inputs)
    with pytest.raises(DataError, match=message) as error:
        experiment.run(recipe, inputs, folder, progress=Silent())
    assert "--split leave-one-out" in str(error.value)
    assert not (folder.path / "metrics.json").exists()


def test_repeats_belong_to_the_protocol() -> None:
    with pytest.raises(UsageError, match="repeats = masked: has no meaning under the protocol"):
        make_evaluation(repeats="masked")
    plain = make_evaluation().model_dump()
    assert "repeats" not in plain  # the digests of older runs stay
    assert make_evaluation(protocol="next-item").model_dump()["repeats"] == "allowed"


def test_the_name_of_an_item_knn_run_has_what_differs(data: Path) -> None:
    for latest, told in ((None, False), (2, True)):
        recipe, _ = recipe_of(data, settings={"latest": latest})
        assert ("latest" in recipe.dump()["settings"]) == told


def test_rows_without_times_have_the_order_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    own = {user: items for user, items in sequences().items() if len(items) >= 3}
    cuts = {"train": slice(0, -2), "valid": slice(-2, -1), "test": slice(-1, None)}
    for part, cut in cuts.items():
        rows = [f"{user}\t{item}" for user, items in own.items() for item in items[cut]]
        (folder / f"{part}.tsv").write_text("user_id\titem_id\n" + "\n".join(rows) + "\n")
    recipe, _ = recipe_of(write(tmp_path / "d"))
    given = recipe.model_copy(update={"data": str(folder), "split": "given"})
    recipe, inputs = load_inputs(given)
    training = inputs.split.training
    told = inputs.setting(recipe.evaluation).describe()["histories"]
    assert told["valid"].endswith("in the order of the file")
    ids = training.item_ids
    for user, items in own.items():
        row = training.user_ids.tolist().index(user)
        for histories, end in ((training.histories, -2), (training.longer_histories, -1)):
            first, last = histories.indptr[row : row + 2]
            assert ids[histories.items[first:last]].tolist() == items[:end]


def test_lists_from_elsewhere_may_repeat(data: Path, tmp_path: Path) -> None:
    rows = [f"{user}\t{item}" for user, item in parts()["test"].target.items()]
    lists = tmp_path / "lists.tsv"
    lists.write_text("user_id\titem_id\n" + "\n".join(rows) + "\n")
    evaluation = make_evaluation(protocol="next-item", metrics=("HR",), cutoffs=(1,))
    scored = evaluate_lists(lists, data, "leave-one-out", evaluation)
    assert scored.scores["test"].overall == {"HitRate@1": 1.0}
    assert not any("positives" in note for note in scored.notes)
