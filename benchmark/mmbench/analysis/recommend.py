"""Lists that a finished run recommends, and its representations, by original ids."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbase.layout import counted
from mmbase.outputs import new_folder
from mmbase.progress import Progress
from mmbench import __version__
from mmbench.core.content import Known
from mmbench.core.interactions import HeldOut, Histories, Index, TrainSet
from mmbench.data.tables import read_interactions, sorted_ids
from mmbench.errors import DataError, UsageError
from mmbench.evaluation.protocol import Setting
from mmbench.evaluation.ranking import rank
from mmbench.models.base import Recommender, Score
from mmbench.runs.run import load_model

SUFFIXES = (".parquet", ".tsv", ".csv", ".jsonl")
_BLOCK_USERS = 4096


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run: the model of its best epoch, and the data and protocol it was scored with."""

    model: Recommender
    setting: Setting
    path: Path


def load_run(path: Path, data: Path | None = None) -> Trained:
    """Load a finished run's model; errors as in `load_model`."""
    model, recipe, inputs = load_model(path, data)
    return Trained(model, inputs.setting_of(recipe), path)


@dataclass(frozen=True, eq=False)
class Audience:
    """Whom lists can be made for.

    Attributes:
        ids: Id of each user row.
        seen: Their pairs over the candidates, which lists leave out.
        mask: More such pairs; None for none.
        known: What the model may know.
        first: Number of the first of their rows in `known`.
        lacks: What a user who is not among them does not have.
        strangers: Ids of such users in what was read.
        notes: How that was understood, one line each.
    """

    ids: NDArray[np.object_]
    seen: TrainSet
    mask: HeldOut | None
    known: Known
    first: int = 0
    lacks: str = "training rows"
    strangers: Sequence[str] = ()
    notes: Sequence[str] = ()


def trained_users(run: Trained) -> Audience:
    """Return the users of training, as they are ranked for at test."""
    setting = run.setting
    ids = setting.training.user_ids[: setting.training.train.n_users]
    return Audience(ids, setting.masked, setting.test_mask, setting.known_for("test"))


def users_by_history(run: Trained, path: Path) -> Audience:
    """Return the users of a table of interactions, who need not be in training.

    A user is what they did there, and nothing else: training rows of a user of the same id do not
    count. Items that training has not seen are left out of the lists, but say nothing of a user.
    Under the protocol next-item lists may hold what the user has, as at test.

    Raises:
        UsageError: The model has a representation of each trained user.
        DataError: The table is unreadable, or has no item that training has seen.
    """
    setting, model = run.setting, run.model
    if not model.by_history:
        raise UsageError(
            f"--history: {run.path} has learned its own users, and can't rank for others by what "
            "they did; those that can: item-knn, content-knn, sasrec, gru4rec, schema with "
            "ids=none (docs/recommending.md)"
        )
    table = read_interactions(path)
    n_items, n_trained = setting.candidates.n_items, setting.training.n_trained
    items = pd.Index(setting.training.item_ids[:n_items].astype(object)).get_indexer(table.item_ids)
    trained = (items >= 0) & (items < n_trained)
    ids = np.array(sorted_ids(table.user_ids[trained]), object)
    if not ids.size:
        there, here = table.item_ids[0], setting.training.item_ids[0]
        raise DataError(
            f"{path}: none of its {counted(len(table), 'row')} is of an item that training has "
            f"seen ({there!r} there, {here!r} in training); use the dataset's own ids"
        )
    users = pd.Index(ids).get_indexer(table.user_ids)
    strangers = dict.fromkeys(table.user_ids[users < 0].tolist())
    listed = (users >= 0) & (items >= 0)
    seen = TrainSet.from_pairs(users[listed], items[listed], ids.size, n_items)
    seen = seen.without_pairs() if setting.lists_again else seen
    times = None if table.timestamps is None else table.timestamps[trained]
    own = Histories.from_rows(users[trained], items[trained], ids.size, times)
    known = replace(setting.known, find_histories=lambda: setting.training.histories.and_of(own))
    notes = [table.note] if table.note else []
    if n_foreign := int((items < 0).sum()):
        were = counted(n_foreign, "row of an item", "rows of items")
        notes.append(f"{path}: {were} that the run does not list: passed over")
    lacks = f"rows of items that training has seen, in {path}"
    first = setting.training.train.n_users
    return Audience(ids, seen, None, known, first, lacks, list(strangers), notes)


def user_rows(audience: Audience, users: Sequence[str] | None) -> tuple[Index, list[str]]:
    """Return the rows of the named users (None: all), and the ids of those that are not there.

    Raises:
        UsageError: No user is named.
        DataError: None of the named users is there.
    """
    ids = audience.ids
    if users is None:
        return np.arange(ids.size), list(audience.strangers)
    if not len(users):
        raise UsageError("users: names nobody; leave it out for all users")
    rows = pd.Index(ids.astype(object)).get_indexer(pd.Index(list(users), dtype=object))
    unknown = [user for user, row in zip(users, rows, strict=True) if row < 0]
    if len(unknown) == len(users):
        told = f"{counted(len(unknown), 'user has', 'users have')} no {audience.lacks}"
        example = f"e.g. {unknown[0]!r} (there: {str(ids[0])!r})"
        raise DataError(f"{told}, {example}; only known users can be ranked for")
    return np.asarray(list(dict.fromkeys(rows[rows >= 0].tolist())), np.int64), unknown


def recommendations(
    run: Trained,
    audience: Audience,
    users: Index,
    k: int,
    *,
    include_seen: bool,
    progress: Progress,
) -> Iterator[pd.DataFrame]:
    """Yield lists, best first, in blocks: columns user_id, item_id, rank (from 1) and score.

    As at test, the user's training items are left out, in `strict` the validation items too, or
    the items of their history, unless seen ones are included; in `next-item` nothing is, or both.
    Lists are shorter than k where fewer candidates are left.
    """
    train, mask = audience.seen, audience.mask
    if include_seen:
        train, mask = train.without_pairs(), None
    device = next(iter(run.model.state_dict().values()), torch.empty(0)).device
    user_ids = audience.ids.astype(object)
    item_ids = run.setting.training.item_ids.astype(object)
    with torch.inference_mode(), progress.task("recommend", users.size) as task:
        of_known = run.model.scorer(audience.known)

        def score(rows: Tensor) -> Tensor:
            return of_known(rows + audience.first)

        k = min(k, train.n_items)
        for start in range(0, users.size, _BLOCK_USERS):
            block = users[start : start + _BLOCK_USERS]
            items, scores = _lists(score, train, block, k, mask, device)
            row, place = np.nonzero(items >= 0)
            users_of, items_of = user_ids[block[row]], item_ids[items[row, place]]
            columns = {"user_id": users_of, "item_id": items_of, "rank": place + 1}
            yield pd.DataFrame({**columns, "score": scores[row, place]})
            task.advance(block.size)


def write(frames: Iterator[pd.DataFrame], out: Path) -> int:
    """Write lists in the format of the suffix, in one step, and return the number of rows.

    Raises:
        UsageError: Another suffix.
        DataError: An id holds what the format has no place for.
    """
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: expected a file name that ends in {', '.join(SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    try:
        if out.suffix == ".parquet":
            n = _write_parquet(frames, partial)
        else:
            n = _write_text(frames, partial, out.suffix)
        partial.replace(out)
    except csv.Error as error:
        fix = "write .csv, .parquet or .jsonl"
        raise DataError(f"{out}: an id holds a tab or a line break; {fix}") from error
    finally:
        partial.unlink(missing_ok=True)
    return n


def _write_text(frames: Iterator[pd.DataFrame], path: Path, suffix: str) -> int:
    # TSV files are never quoted.
    style: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE}
    if suffix == ".csv":
        style = {"sep": ",", "quoting": csv.QUOTE_MINIMAL}
    n = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for frame in frames:
            if suffix == ".jsonl":
                for user, own in frame.groupby("user_id", sort=False):
                    lists = {"item_ids": own["item_id"].tolist(), "scores": own["score"].tolist()}
                    file.write(json.dumps({"user_id": user, **lists}, ensure_ascii=False) + "\n")
            else:
                header = file.tell() == 0
                frame.to_csv(file, index=False, header=header, lineterminator="\n", **style)
            n += len(frame)
    return n


def export_embeddings(run: Trained, out: Path) -> dict[str, int]:
    """Write user and item representations whose inner products are the scores.

    `users.npy`, `items.npy` (rows x d, float32), `users.txt`, `items.txt` (one id a line) and
    `about.json`.

    Raises:
        UsageError: The model's score is no inner product.
        DataError: `out` is there, or an id holds a line break.
    """
    if not run.model.factorises:
        told = "no inner products of a user and an item representation"
        raise UsageError(f"{run.path}: the scores of this model are {told}")
    training = run.setting.training
    with new_folder(out) as partial:
        with torch.inference_mode():
            users, items = (table.cpu().numpy() for table in run.model.embeddings())
        tables = {"users": (training.user_ids, users), "items": (training.item_ids, items)}
        for name, (all_ids, table) in tables.items():
            ids = all_ids[: len(table)].tolist()
            for text in ids:
                if "\n" in text or "\r" in text:
                    raise DataError(f"{run.path}: id {text!r} holds a line break; rename it")
            np.save(partial / f"{name}.npy", table)
            (partial / f"{name}.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        about = {
            "run": run.path.name,
            "score": "inner product of a row of users.npy and a row of items.npy",
            "rows": "row i belongs to line i of the .txt file of the same name",
            "users": list(users.shape),
            "items": list(items.shape),
            "tool": {"name": "mmbench", "version": __version__},
        }
        (partial / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return {"users": len(users), "items": len(items), "dim": users.shape[1]}


def _lists(
    score: Score, train: TrainSet, block: Index, k: int, mask: HeldOut | None, device: torch.device
) -> tuple[Index, np.ndarray[Any, Any]]:
    lists = rank(score, train, block, k=k, also_masked=mask, device=device)
    scores = np.full(lists.items.shape, np.nan, np.float32)
    step = max(1, (1 << 24) // max(1, train.n_items))
    for start in range(0, block.size, step):
        part = slice(start, start + step)
        listed = torch.from_numpy(lists.items[part].clip(min=0))
        own = score(torch.from_numpy(block[part]).to(device))
        scores[part] = own.gather(1, listed.to(own.device)).cpu().numpy()
    return lists.items, scores


def _write_parquet(frames: Iterator[pd.DataFrame], path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"user_id": pa.string(), "item_id": pa.string(), "rank": pa.int64()}
    schema = pa.schema({**types, "score": pa.float32()})
    n = 0
    with pq.ParquetWriter(path, schema) as writer:
        for frame in frames:
            writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))
            n += len(frame)
    return n
