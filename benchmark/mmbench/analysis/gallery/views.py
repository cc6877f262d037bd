"""What the page shows of users: histories, held-out items, and what each run lists, by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmbase.progress import Progress
from mmbench.analysis import recommend as lists
from mmbench.core.interactions import HeldOut, Index
from mmbench.data.dataset import Split, TrainingData
from mmbench.errors import DataError, UsageError
from mmbench.runs.finished_runs import FinishedRun, group
from mmbench.runs.kinds import conditions, kind_in_words, kind_of
from mmbench.runs.run import load_model

MOST_RUNS = 8
_SHARED = ("dataset", "split", "the dataset's digest", "the test digest")


@dataclass(frozen=True)
class Listed:
    """What a run lists for a user.

    Attributes:
        items: Ids, best first.
        hits: Which of them the user has in test.
    """

    items: Sequence[str]
    hits: Sequence[bool]


@dataclass(frozen=True)
class User:
    """A user.

    Attributes:
        id: The user's id.
        history: Training items, the latest first where times are known; the first so many.
        n_history: Number of training items.
        valid: Relevant validation items.
        test: Relevant test items: what counts as a hit.
        lists: What the runs list, in their order.
    """

    id: str
    history: Sequence[str]
    n_history: int
    valid: Sequence[str]
    test: Sequence[str]
    lists: Sequence[Listed]


@dataclass(frozen=True, eq=False)
class Views:
    """Users and the runs' lists for them.

    Attributes:
        runs: The runs.
        labels: What the page calls them.
        training: The dataset that they were trained on.
        data: Its folder.
        users: The users.
        chosen: How the users were chosen, in words.
        unknown: Named users who are not there.
    """

    runs: Sequence[FinishedRun]
    labels: Sequence[str]
    training: TrainingData
    data: Path
    users: Sequence[User]
    chosen: str
    unknown: Sequence[str]


def require_one_dataset(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose lists can't stand side by side.

    Raises:
        DataError: Dataset or split differ.
        UsageError: There are more than `MOST_RUNS`.
    """
    facts = [conditions(run) for run in runs]
    for run, own in zip(runs, facts, strict=True):
        for name in _SHARED:
            if own[name] != facts[0][name]:
                one, other = (kind_in_words(kind_of(each)) for each in (runs[0], run))
                raise DataError(
                    f"{run.path} and {runs[0].path}: {name} differs ({other}; {one}), so their "
                    "lists are of other users and items; show runs of one dataset and split: "
                    "--only dataset=…, --only split=…"
                )
    if len(runs) > MOST_RUNS:
        models = Counter(run.recipe.model for run in runs)
        told = ", ".join(f"{n} of {model}" for model, n in models.most_common(3))
        raise UsageError(
            f"{len(runs)} runs ({told}, …): at most {MOST_RUNS} stand side by side; name the run "
            "folders to show"
        )


def gather(
    runs: Sequence[FinishedRun],
    data: Path | None,
    named: Sequence[str] | None,
    n_users: int,
    k: int,
    n_history: int,
    seed: int,
    progress: Progress,
) -> Views:
    """Load the runs' models and make lists for some users, as at test.

    Args:
        runs: See `require_one_dataset`.
        data: The dataset folder, if it has moved.
        named: The users' ids; None draws `n_users` of those with a relevant test item.
        n_users: How many are drawn.
        k: Items of a list.
        n_history: Training items of a user, at most.
        seed: Of the draw.
        progress: Told what is loaded.

    Raises:
        DataError: The data has changed since the training, or no named user is there.
    """
    split: Split | None = None
    shown: list[dict[str, list[str]]] = []
    users: Index = np.empty(0, np.int64)
    chosen, folder = "", Path()
    unknown: list[str] = []
    threshold = runs[0].recipe.evaluation.threshold
    for run in runs:
        progress.note(f"{run.path}: loading {run.recipe.model}")
        model, recipe, inputs = load_model(run.path, data)
        trained = lists.Trained(model, inputs.setting_of(recipe), run.path)
        audience = lists.trained_users(trained)
        if split is None:
            split, folder = inputs.split, Path(recipe.data)
            if named is None:
                users, chosen = _drawn(split, threshold, n_users, seed)
            else:
                users, unknown = lists.user_rows(audience, named)
                chosen = "as named"
        frames = lists.recommendations(
            trained, audience, users, k, include_seen=False, progress=progress
        )
        own: dict[str, list[str]] = {}
        for frame in frames:
            for user, items in frame.groupby("user_id", sort=False)["item_id"]:
                own[str(user)] = items.tolist()
        shown.append(own)
    assert split is not None
    return Views(
        runs,
        _labels(runs),
        split.training,
        folder,
        list(_views(split, threshold, users, shown, n_history)),
        chosen,
        unknown,
    )


def _drawn(split: Split, threshold: float, n_users: int, seed: int) -> tuple[Index, str]:
    """Users with a relevant test item, drawn without repetition, ascending by row."""
    rows = split.test.rows
    n_trained = split.training.train.n_users
    able = np.unique(rows.users[(rows.ratings >= threshold) & (rows.users < n_trained)])
    if not able.size:
        raise DataError(
            f"{split.training.name}: no user with training rows has a relevant test item; name "
            "users: --users ID,ID"
        )
    n = min(n_users, able.size)
    drawn = np.sort(np.random.default_rng(seed).choice(able, n, replace=False))
    return drawn, f"drawn from the {able.size:,} with a relevant test item (seed {seed})"


def _views(
    split: Split,
    threshold: float,
    users: Index,
    lists_of: Sequence[dict[str, list[str]]],
    n_history: int,
) -> Iterable[User]:
    training = split.training
    histories, ids = training.histories, training.item_ids
    for row in users.tolist():
        user = str(training.user_ids[row])
        begin, end = histories.indptr[row], histories.indptr[row + 1]
        history = dict.fromkeys(ids[histories.items[begin:end][::-1]].tolist())
        valid, test = (
            _relevant(rows, row, threshold, ids) for rows in (training.valid, split.test.rows)
        )
        hits = set(test)
        listed = [
            Listed(own.get(user, []), [item in hits for item in own.get(user, [])])
            for own in lists_of
        ]
        yield User(user, list(history)[:n_history], len(history), valid, test, listed)


def _relevant(rows: HeldOut, user: int, threshold: float, ids: NDArray[np.object_]) -> list[str]:
    begin, end = np.searchsorted(rows.users, [user, user + 1])
    own = slice(begin, end)
    items: list[str] = ids[rows.items[own][rows.ratings[own] >= threshold]].tolist()
    return items


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The systems' labels, with the seed where a system has several."""
    found: dict[Path, str] = {}
    for system in group(runs):
        for run in system.runs:
            seed = f", seed {run.recipe.seed}" if len(system.runs) > 1 else ""
            found[run.path] = system.label + seed
    return [found.get(run.path, run.path.name) for run in runs]
