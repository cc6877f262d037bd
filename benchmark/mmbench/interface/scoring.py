"""Score finished runs and lists made anywhere else; rank with a finished run's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import pandas as pd

from mmbase.layout import counted
from mmbase.progress import Progress
from mmbase.tabular import Tabular
from mmbench.analysis import recommend as lists
from mmbench.config import RECIPE_FILE, Evaluation, make_evaluation, read_recipe
from mmbench.core.interactions import Index
from mmbench.errors import ToolError, UsageError
from mmbench.evaluation.protocol import evaluate_lists
from mmbench.interface.choices import (
    Place,
    RunPlace,
    Scoring,
    of,
    reporter,
    require_count,
    require_known,
    run_folder,
)  # fmt: skip
from mmbench.interface.process import as_found
from mmbench.interface.results import Dataset, Evaluated
from mmbench.runs.run import evaluate_run

_SHOWN_USERS = 5


def evaluate(
    run: RunPlace | None = None,
    *,
    recs: Place | pd.DataFrame | None = None,
    data: Place | Dataset | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    slices: bool = False,
    **choices: Unpack[Scoring],
) -> Evaluated:
    """Score a finished run, or lists made anywhere else, with the same code.

    Args:
        run: A finished run; it is scored on its own split, with its own protocol and threshold
            unless told otherwise.
        recs: Lists in its place: a file, or a frame, with columns user_id, item_id and perhaps
            rank; the order of a user's rows is the ranking.
        data: The dataset that the lists were made for; of a run, where it has moved to.
        split: With `recs`: name of the split, as in `load_dataset`.
        columns: With `recs`: the columns of the interactions, as in `load_dataset`.
        slices: Metrics by popularity, activity, cold items and modalities, too.
        choices: Metrics, cut-offs, protocol: `Scoring` lists them.

    Raises:
        UsageError: A name or value that does not exist, or arguments that do not go together.
        DataError: The run is not finished or its data have changed; the lists can't be read or do
            not belong to the dataset.
    """
    require_known(choices, Scoring)
    if (run is None) == (recs is None):
        raise UsageError("give either a run folder or --recs FILE with --data DIR")
    if run is not None and (split is not None or columns):
        raise UsageError("--split and --columns go with --recs; a run is scored on its own split")
    chosen = of(Evaluation, choices)
    if run is not None:
        folder = run_folder(run)
        own = read_recipe(folder / RECIPE_FILE).evaluation
        chosen = {"protocol": own.protocol, "threshold": own.threshold} | chosen
        if chosen["protocol"] == own.protocol:
            chosen = {"repeats": own.repeats} | chosen
        evaluation, place = make_evaluation(**chosen), None
        if data is not None:
            place = data.path if isinstance(data, Dataset) else Path(data)
        with as_found():
            scored = evaluate_run(folder, evaluation, place, slices=slices)
        return Evaluated(str(folder), evaluation, scored)
    evaluation = make_evaluation(**chosen)
    assert recs is not None
    if data is None:
        raise UsageError("--recs needs --data DIR: the dataset that the lists were made for")
    if isinstance(data, Dataset):
        split, columns = split or data.training.split, columns or data.columns
        data = data.path
    with _file_of(recs) as path:
        scored = evaluate_lists(path, Path(data), split, evaluation, columns, slices=slices)
    return Evaluated(path.name, evaluation, scored)


@contextmanager
def _file_of(recs: Place | pd.DataFrame) -> Iterator[Path]:
    """Yield the file of lists; a frame is written into one, whose place messages do not name."""
    if not isinstance(recs, pd.DataFrame):
        yield Path(recs)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recs.parquet"
        recs.to_parquet(path, index=False)
        try:
            yield path
        except ToolError as error:
            error.args = (str(error).replace(str(path), "recs"),)
            raise


@dataclass(frozen=True, eq=False, repr=False)
class Recommendations(Tabular):
    """Lists that a finished run recommends, by original ids; they are made when they are asked for.

    Attributes:
        run: The model of the run, with its data and protocol.
        audience: Whom lists can be made for.
        rows: Whom they are made for: rows of the audience.
        k: Items per user.
        include_seen: Whether items that the user has are listed, too.
        unknown: Users that were named and are not there.
        notes: How the users were read, one line each.
    """

    run: lists.Trained
    audience: lists.Audience
    rows: Index
    k: int
    include_seen: bool
    unknown: Sequence[str]
    notes: Sequence[str]
    progress: Progress = field(repr=False)

    @property
    def title(self) -> str:
        """Whose lists these are, and how many."""
        n = self.rows.size
        told = f"{self.run.path.name}: {self.k} items for each of {counted(n, 'user')}"
        return told + ("; the first ones" if n > _SHOWN_USERS else "")

    def to_pandas(self) -> pd.DataFrame:
        """Return all lists, best item first: columns user_id, item_id, rank (from 1) and score."""
        return self._frame(self.rows)

    def write(self, out: Place) -> int:
        """Write all lists, a block of users at a time, and return the number of rows.

        Args:
            out: The file: .parquet, .tsv, .csv or .jsonl.

        Raises:
            UsageError: Another suffix.
            DataError: An id holds what the format has no place for.
        """
        with as_found():
            return lists.write(self._frames(self.rows), Path(out))

    def _frames(self, rows: Index) -> Iterator[pd.DataFrame]:
        return lists.recommendations(
            self.run,
            self.audience,
            rows,
            self.k,
            include_seen=self.include_seen,
            progress=self.progress,
        )

    def _frame(self, rows: Index) -> pd.DataFrame:
        with as_found():
            return pd.concat(list(self._frames(rows)), ignore_index=True)

    def _listed(self) -> pd.DataFrame:
        return self._frame(self.rows[:_SHOWN_USERS])


def recommend(
    run: RunPlace | lists.Trained,
    *,
    k: int = 20,
    users: Sequence[str] | None = None,
    history: Place | None = None,
    include_seen: bool = False,
    data: Place | None = None,
    progress: Progress | bool = False,
) -> Recommendations:
    """Return the recommendations of a finished run.

    As at test, the user's training items are left out, under the protocol strict the validation
    items too; under next-item lists are what follows the user's history. See `mmbench recommend`.

    Args:
        run: A finished run, or one that `mmbench.analysis.recommend.load_run` has loaded.
        k: Items per user, at least 1.
        users: Ids of users; None: all of training, or of `history`.
        history: Table of users, who need not be in training, and the items that they have; for
            models that know a user by that alone.
        include_seen: List items that the user has, too.
        data: The dataset folder, if it has moved.
        progress: True: warnings and a bar on stderr.

    Raises:
        UsageError: `k` is less than 1, or the model can't rank for users of a history.
        DataError: The run is not finished, its data have changed, or no user is known.
    """
    require_count("k", k)
    told = reporter(progress)
    if isinstance(run, lists.Trained):
        trained = run
    else:
        with as_found():
            trained = lists.load_run(run_folder(run), None if data is None else Path(data))
    audience = lists.trained_users(trained)
    if history is not None:
        audience = lists.users_by_history(trained, Path(history))
    notes = list(audience.notes)
    for note in notes:
        told.warn(note)
    rows, unknown = lists.user_rows(audience, users)
    if unknown:
        had = counted(len(unknown), "of the users has", "of the users have")
        notes.append(f"{had} no {audience.lacks}, e.g. {unknown[0]!r}, and no list")
        told.warn(notes[-1])
    return Recommendations(trained, audience, rows, k, include_seen, unknown, notes, told)
