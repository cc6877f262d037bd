"""A question with its finished runs: rows of seeds, effects, verdicts; as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import statistics as stdlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbench.analysis import statistics
from mmbench.analysis.answering import observe, with_instead
from mmbench.analysis.effects import Effect, effects, key_of
from mmbench.analysis.question import DESIGN, KIND, Asked, Cell, Planning, in_words
from mmbench.analysis.report import verdicts
from mmbench.analysis.report.tables import number
from mmbench.metrics import sign
from mmbench.runs.finished_runs import FinishedRun
from mmbench.runs.kinds import KINDS, kind_in_words, kind_of

Done = Sequence[tuple[Cell, FinishedRun]]


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one combination: they differ in their seed alone."""

    levels: Mapping[str, Any]
    runs: Sequence[FinishedRun]

    def values(self, metric: str) -> list[float]:
        """One value per seed; fewer where it is not defined."""
        known = (run.metrics["test"].get(metric) for run in self.runs)
        return [value for value in known if value is not None]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds."""
        values = self.values(metric)
        return stdlib.fmean(values) if values else None

    def half(self, metric: str) -> float | None:
        """Half the 95 % t-interval over seeds; None for one seed."""
        values = self.values(metric)
        if len(values) < 2:
            return None
        low, high = statistics.t_interval(np.array(values))
        return (high - low) / 2

    def cell(self, metric: str) -> str:
        """Mean and half interval as text."""
        mean, half = self.mean(metric), self.half(metric)
        if mean is None:
            return "n/a"
        return number(mean) if half is None else f"{number(mean)} ± {number(half)}"


@dataclass(frozen=True, eq=False)
class Answer:
    """A question with its runs and the effects of its factors.

    Attributes:
        planning: The question and what it asked for.
        done: Its runs.
        effects: By number of the factor in `question.ask`, all in one family of tests.
        command: The command line that repeats the page.
    """

    planning: Planning
    done: Done
    effects: Sequence[tuple[Asked, Sequence[Effect]]]
    command: str

    @property
    def kinds(self) -> dict[str, list[tuple[Cell, FinishedRun]]]:
        """The runs by dataset, split and protocol."""
        out: dict[str, list[tuple[Cell, FinishedRun]]] = {}
        for cell, run in self.done:
            out.setdefault(kind_in_words(kind_of(run)), []).append((cell, run))
        return out

    @property
    def names(self) -> dict[str, str]:
        """The kinds of data by what tells them from each other: `split cold`."""
        facts = {kind: kind_of(done[0][1]) for kind, done in self.kinds.items()}
        differ = [n for n in KINDS if len({one[n] for one in facts.values()}) > 1]
        return {
            kind: ", ".join(f"{name} {one[name]}" for name in differ) for kind, one in facts.items()
        }

    def verdicts(self) -> list[tuple[str, str]]:
        """Return the sentences that answer the question: the kind of data, and what is known."""
        question = self.planning.question
        out = []
        for asked, found in self.effects:
            for kind in self.kinds:
                own = [one for one in found if one.contrast.where[KIND] == kind]
                told = verdicts.verdicts(asked, own, question.metrics[0], question.margin)
                out += [(kind, text) for text in told]
        return out


def answer_of(planning: Planning, done: Done, command: str) -> Answer:
    """Return the effects of a question's factors in its finished runs."""
    question = planning.question
    kinds = list(dict.fromkeys(kind_in_words(kind_of(run)) for _, run in done))
    contrasts = [(one, planning.contrasts(one, kinds)) for one in question.ask]
    found = effects(
        with_instead(observe(done, question.metrics), question.ask),
        [contrast for _, own in contrasts for contrast in own],
        question.metrics,
        margin=question.margin,
    )
    of_asked = [
        (one, [effect for effect in found if any(effect.contrast is mine for mine in own)])
        for one, own in contrasts
    ]
    return Answer(planning, done, of_asked, command)


def values_csv(answer: Answer) -> str:
    """All values, unrounded, a line per run: its levels, what validation chose, metrics, folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    factors = [name for name in answer.planning.factors]
    metrics = [*answer.planning.question.metrics, *answer.planning.question.also]
    head = ["dataset", "split", "protocol", "design", *factors, "seed", "best_epoch", "chosen"]
    writer.writerow([*head, *metrics, "run"])
    for cell, run in answer.done:
        kind = kind_of(run)
        levels = [in_words(cell.levels[f]) if f in cell.levels else "" for f in factors]
        names = [name for c in answer.planning.cells for name in c.recipe.searched]
        settings = run.recipe.settings.model_dump(mode="json")
        chosen = "; ".join(f"{n}={settings[n]}" for n in dict.fromkeys(names) if n in settings)
        seed = "" if cell.seed is None else cell.seed
        known = (run.metrics["test"].get(metric) for metric in metrics)
        values = ["" if value is None else repr(value) for value in known]
        fixed = [*kind.values(), cell.design, *levels, seed, run.metrics["best_epoch"], chosen]
        writer.writerow([*fixed, *values, run.path.name])
    return text.getvalue()


def rows_of(done: Done) -> list[Row]:
    """Group runs by all but their seed, in order."""
    groups: dict[str, tuple[dict[str, Any], list[FinishedRun]]] = {}
    for cell, run in done:
        levels = {DESIGN: cell.design, **cell.levels}
        groups.setdefault(key_of(levels), (levels, []))[1].append(run)
    return [Row(levels, runs) for levels, runs in groups.values()]


def document_of(answer: Answer) -> dict[str, Any]:
    """Return question, rows, effects and verdicts as JSON values."""
    question = answer.planning.question
    metrics = [*question.metrics, *question.also]
    rows = [
        {
            "data": kind,
            "levels": dict(row.levels),
            "runs": [str(run.path) for run in row.runs],
            "values": {metric: row.values(metric) for metric in metrics},
        }
        for kind, done in answer.kinds.items()
        for row in rows_of(done)
    ]
    found = [
        {
            "factor": one.contrast.factor,
            "level": one.contrast.level,
            "reference": one.contrast.reference,
            "where": dict(one.contrast.where),
            **{name: value for name, value in vars(one).items() if name != "contrast"},
            "better": None if sign(one.metric) is None else one.outcome == "better",
        }
        for _, own in answer.effects
        for one in own
    ]
    return {
        "title": question.title,
        "question": question.question,
        "rows": rows,
        "effects": found,
        "verdicts": [{"data": kind, "text": text} for kind, text in answer.verdicts()],
        "left_out": list(answer.planning.notes),
    }
