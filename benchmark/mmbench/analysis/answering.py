"""Answering questions: their runs, those that start from others last, and what these have shown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from mmbench.analysis.effects import Observation, key_of
from mmbench.analysis.question import DESIGN, KIND, Asked, Cell, Planning, depth_of
from mmbench.errors import UsageError
from mmbench.runs.batch import Batch
from mmbench.runs.finished_runs import FinishedRun, find_runs
from mmbench.runs.kinds import conditions, kind_in_words, kind_of

_AHEAD = 64  # runs whose trainings are given to the executor at once: their inputs are in memory


def answer(planning: Planning, batch: Batch) -> list[tuple[Cell, FinishedRun]]:
    """Do what is left of a question's runs; those that diverge are left out.

    Designs that start from others' runs come after those.
    """
    done: list[tuple[Cell, FinishedRun]] = []
    names = list(planning.question.designs)
    for name in sorted(names, key=lambda one: depth_of(planning.question, one)):
        cells = [cell for cell in planning.cells if cell.design == name]
        started = [_started(cell, done) for cell in cells]
        searching: dict[str, Cell] = {}  # the first seed of each combination
        for cell in started:
            searching.setdefault(_without_seed(cell), cell)
        first = _run(list(searching.values()), batch)
        done += first
        chosen = {_without_seed(cell): run.recipe.settings.model_dump() for cell, run in first}
        rest = [
            Cell(cell.design, cell.recipe.trial(chosen[key]), cell.levels)
            for cell in started
            if (key := _without_seed(cell)) in chosen and cell is not searching[key]
        ]
        done += _run(rest, batch)
    order = {_in_order(cell): place for place, cell in enumerate(planning.cells)}
    return sorted(done, key=lambda one: order[_in_order(one[0])])


def _run(cells: Sequence[Cell], batch: Batch) -> list[tuple[Cell, FinishedRun]]:
    found: list[tuple[Cell, FinishedRun]] = []
    for start in range(0, len(cells), _AHEAD):
        part = cells[start : start + _AHEAD]
        batch.train_ahead(cell.recipe for cell in part)
        for cell, result in zip(part, batch.outcomes([c.recipe for c in part]), strict=True):
            if result is not None:
                found.append((cell, find_runs([result.path])[0]))
    return found


def _without_seed(cell: Cell) -> str:
    return key_of([cell.design, cell.levels, cell.recipe.data, cell.recipe.split])


def _in_order(cell: Cell) -> str:
    return key_of([_without_seed(cell), cell.recipe.seed])


def _started(cell: Cell, done: Sequence[tuple[Cell, FinishedRun]]) -> Cell:
    """Return the cell with `start_from: @NAME` replaced by that design's run."""
    start = cell.recipe.start_from
    if start is None or not start.run.startswith("@"):
        return cell
    given = start.run
    for other, run in done:
        shared = (cell.levels.keys() & other.levels.keys()) - {"start_from", "epochs", "features"}
        same = all(key_of(cell.levels[name]) == key_of(other.levels[name]) for name in shared)
        if other.design == given[1:] and same and other.recipe.seed == cell.recipe.seed:
            there = start.model_copy(update={"run": str(run.path)})
            recipe = cell.recipe.model_copy(update={"start_from": there})
            return Cell(cell.design, recipe, cell.levels)
    told = f"has no run of {cell.recipe.model} with seed {cell.recipe.seed}"
    raise UsageError(f"designs.{cell.design}: start_from: {given}: that design {told}")


def observe(done: Sequence[tuple[Cell, FinishedRun]], metrics: Sequence[str]) -> list[Observation]:
    """Return what runs have shown on test, with the users' values of some metrics."""
    seen = []
    for cell, run in done:
        users = {}
        for metric in metrics:
            try:
                users[metric] = run.per_user("test", metric)
            except UsageError:  # a metric of the whole list has none
                continue
        levels = {**cell.levels, KIND: kind_in_words(kind_of(run)), DESIGN: cell.design}
        facts = repr(conditions(run))
        seen.append(Observation(levels, cell.seed, run.metrics["test"], users, facts))
    return seen


def with_instead(observed: Sequence[Observation], asked: Sequence[Asked]) -> list[Observation]:
    """Return runs, and those that stand for a level of another model; see `Asked.instead`."""
    seen: dict[str, Observation] = {}
    for one in asked:
        levels = [(label, pair) for label, pairs in one.instead.items() for pair in pairs.items()]
        for label, (model, stand_in) in levels:
            places = [o.levels for o in observed if o.levels["model"] == model]
            for place, other in itertools.product(places, observed):
                if other.levels["model"] == stand_in and other.levels[KIND] == place[KIND]:
                    mine = replace(other, levels={**place, one.factor: label})
                    seen.setdefault(key_of([mine.levels, mine.seed]), mine)
    return [*observed, *seen.values()]
