"""The page that answers a question: verdict, design, tables with intervals, curves, effects."""

from __future__ import annotations

import csv
import hashlib
import io
import statistics as stdlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbase.errors import install_extra
from mmbase.layout import counted
from mmbench.analysis import statistics
from mmbench.analysis.effects import Effect, effects, key_of
from mmbench.analysis.question import (
    KIND,
    Asked,
    Cell,
    Planning,
    in_words,
    number_of,
    observe,
    with_instead,
)
from mmbench.analysis.report import verdicts
from mmbench.analysis.report.extraction import costs_table, extra_seconds
from mmbench.analysis.report.pages import Block, Page, Table, put
from mmbench.analysis.report.plots import factor_curves
from mmbench.analysis.report.results import data_fact, protocol_fact
from mmbench.analysis.report.tables import number
from mmbench.metrics import sign
from mmbench.runs.finished_runs import FinishedRun
from mmbench.runs.kinds import kind_in_words, kind_of

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


def write(answer: Answer, out: Path) -> list[Path]:
    """Write the page, its values as CSV, and a plot for each kind of data; return their paths."""
    out.parent.mkdir(parents=True, exist_ok=True)
    csv_path = out.with_suffix(".csv")
    text = values_csv(answer)
    put(csv_path, text)
    images = _draw(answer, out)
    put(out, page(answer, csv_path.name, text, images).markdown())
    return [out, csv_path, *(out.with_name(name) for name in images.values())]


def page(answer: Answer, csv_name: str, values: str, images: Mapping[str, str]) -> Page:
    """Return the page."""
    question, kinds = answer.planning.question, answer.kinds
    blocks: list[Block] = [f"> {' '.join(question.question.split())}", "## Answer"]
    several = len(kinds) > 1
    told = [f"- {f'{kind}: ' if several else ''}{text}" for kind, text in answer.verdicts()]
    blocks.append("\n".join(told) or "No two runs can be compared.")
    blocks += ["## Design", _design(answer), _design_table(answer)]
    for kind, done in kinds.items():
        blocks += [f"## Results: {kind}", _facts(done)]
        blocks += _results(answer, done)
        if kind in images:
            blocks.append(f"![{question.title}: {kind}]({images[kind]})")
    if question.curve and not images:
        blocks.append(
            f"Curves need matplotlib: `{install_extra('report')}`, then the same command."
        )
    for asked, found in answer.effects:
        blocks += [f"## The effect of `{asked.factor}`", *_effects(answer, asked, found)]
    if "features" in answer.planning.factors:
        blocks += ["## What the vectors cost", *costs_table(answer.done)]
    blocks += ["## What ran", _what_ran(answer, csv_name, values)]
    return Page(question.title, [*blocks, f"```\n{answer.command}\n```"])


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
    groups: dict[str, list[tuple[Cell, FinishedRun]]] = {}
    for cell, run in done:
        groups.setdefault(key_of(cell.levels), []).append((cell, run))
    return [Row(own[0][0].levels, [run for _, run in own]) for own in groups.values()]


def _varying(rows: Sequence[Row], factors: Sequence[str]) -> list[str]:
    """Return the factors in which rows differ; the model is always named."""

    def differs(name: str) -> bool:
        return len({key_of(row.levels.get(name)) for row in rows}) > 1

    return [name for name in factors if name == "model" or differs(name)]


def _results(answer: Answer, done: Done) -> list[Block]:
    """Return a table of all metrics, or one per metric with a column per point of the curve."""
    question, rows = answer.planning.question, rows_of(done)
    factors = _varying(rows, list(answer.planning.factors))
    metrics = [*question.metrics, *question.also]
    curve = question.curve if question.curve in factors else None
    if curve is None:
        cost = ["training, CPU s"] if question.cost else []
        table = Table(
            [*factors, *metrics, *cost],
            [
                [
                    *_labels(row, factors),
                    *map(row.cell, metrics),
                    *([_cpu_seconds(row)] if cost else []),
                ]
                for row in rows
            ],
        )
        return [table]
    others = [name for name in factors if name != curve]
    levels = sorted(answer.planning.factors[curve], key=lambda one: number_of(one) or 0.0)
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        rest = key_of({name: row.levels.get(name) for name in others})
        lines.setdefault(rest, {})[key_of(row.levels.get(curve))] = row
    blocks: list[Block] = []
    for metric in metrics:
        body = [
            [
                *_labels(next(iter(own.values())), others),
                *(own[k].cell(metric) if (k := key_of(one)) in own else "-" for one in levels),
            ]
            for own in lines.values()
        ]
        head = [*others, *(f"{curve} {in_words(level)}" for level in levels)]
        blocks += [f"{metric}:", Table(head, body)]
    return blocks


def _labels(row: Row, factors: Sequence[str]) -> list[str]:
    return [in_words(row.levels[name]) if name in row.levels else "-" for name in factors]


def _cpu_seconds(row: Row) -> str:
    known = [run.record["timings"].get("train_cpu_s") for run in row.runs]
    values = [value for value in known if value is not None]
    return f"{stdlib.median(values):.3g}" if values else "-"


def _effects(answer: Answer, asked: Asked, found: Sequence[Effect]) -> list[Block]:
    """Return the table of a factor's effects."""
    if not found:
        return ["No two runs differ in it alone."]
    kinds = list(dict.fromkeys(one.contrast.where[KIND] for one in found))
    places = ["data"] * (len(kinds) > 1) + list(asked.by)
    seconds = extra_seconds(answer.done) if asked.factor == "features" else None
    head = [*places, asked.factor, "against", "metric", "difference", "95 % interval", "relative"]
    head += ["p", "p seeds", "ahead", "outcome"]
    head += ["kept of the gain"] * (asked.gain_over is not None)
    head += ["extra seconds of extraction", "gain per extra second"] * (seconds is not None)
    body = []
    for one in found:
        where = {**one.contrast.where, "data": one.contrast.where[KIND]}
        line = [in_words(where[name]) for name in places]
        line += [in_words(one.contrast.level), in_words(one.contrast.reference), one.metric]
        line += [verdicts.signed(one.difference), verdicts.interval_in_words(one)]
        line += [f"{one.difference / abs(one.base):+.1%}" if one.base else "-"]
        line += [_p(one.p), _p(one.p_seeds), f"{one.ahead}/{one.pairs}"]
        line.append(verdicts.SHORT[one.outcome])
        if asked.gain_over is not None:
            share = verdicts.kept(one, found, asked.gain_over)
            line.append("-" if share is None else f"{share:.0%}")
        if seconds is not None:
            extra = seconds(one.contrast.level, one.contrast.reference)
            worth = extra is not None and extra > 0
            line.append("not recorded" if extra is None else f"{extra:+.1f}")
            line.append(f"{one.difference / extra:+.1e}" if worth and extra else "-")
        body.append(line)
    left_out = sum(one.left_out for one in found)
    note = f" {counted(left_out, 'pair')} of combinations lack a run and do not count."
    about = (
        "Differences are paired: the two runs of a pair are equal in all other factors, the model "
        f"and the seed ({counted(found[0].n_seeds, 'seed')}). Intervals are t-intervals over the "
        "seeds' mean differences; `p` is of the paired randomisation test over users, with Holm's "
        "correction for all comparisons of the page (a metric without users' values: over seeds), "
        "`p seeds` of the paired t-test over seeds. An outcome needs both below 0.05; it is *no "
        "effect* where the intervals over seeds and over users lie within "
        f"{answer.planning.question.margin:.0%} of the reference's value."
    )
    return [about + (note if left_out else ""), Table(head, body)]


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _design(answer: Answer) -> str:
    """Return the design as a paragraph."""
    planning = answer.planning
    seeds = sorted({cell.seed for cell in planning.cells if cell.seed is not None})
    lost = len(planning.cells) - len(answer.done)
    told = [
        f"{counted(len(answer.done), 'run')}: every combination of the values below, at "
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})."
    ]
    if any(cell.recipe.searched for cell in planning.cells):
        told.append(
            "Every combination has the same budget: the first seed trains the grid, validation "
            "chooses, and the other seeds train what it chose."
        )
    selected = dict.fromkeys(cell.recipe.evaluation.select_by for cell in planning.cells)
    told.append(f"Validation {' or '.join(selected)} chooses the epoch; test is scored once.")
    told += [f"{note}." for note in planning.notes]
    if lost:
        told.append(f"{counted(lost, 'run')} diverged and are missing.")
    return " ".join(told)


def _design_table(answer: Answer) -> Table:
    rows = []
    for name in answer.planning.question.designs:
        cells = [cell for cell in answer.planning.cells if cell.design == name]
        if not cells:
            continue
        levels: dict[str, list[str]] = {}
        for cell in cells:
            for factor, level in cell.levels.items():
                if (told := in_words(level)) not in levels.setdefault(factor, []):
                    levels[factor].append(told)
        several = [f"`{f}`: {', '.join(tried)}" for f, tried in levels.items() if len(tried) > 1]
        fixed = [f"`{f}`: {tried[0]}" for f, tried in levels.items() if len(tried) == 1]
        rows.append([name, "; ".join([*several, *fixed]), *_budget(cells)])
    return Table(["design", "values", "fixed settings", "grid", "epochs"], rows)


def _budget(cells: Sequence[Cell]) -> list[str]:
    """Return the settings that differ from the defaults, the grid, and how long is trained."""
    factors = {name for cell in cells for name in cell.levels}
    changed: dict[str, None] = {}
    grids: dict[str, None] = {}
    epochs: dict[str, None] = {}
    for cell in cells:
        recipe, default = cell.recipe, type(cell.recipe.settings)()
        for name, value in recipe.settings:
            own = name not in factors and name not in ("epochs", *recipe.searched)
            if own and value != getattr(default, name):
                changed.setdefault(f"{recipe.model}.{name}={in_words(value)}")
        if recipe.scaling != "none" and "scaling" not in factors:
            changed.setdefault(f"scaling={recipe.scaling}")
        tried = [f"{name} {', '.join(map(in_words, of))}" for name, of in recipe.grid.items()]
        if recipe.search is not None:
            tried.append(f"{recipe.search.budget} trials of {', '.join(recipe.search.space)}")
        grids.setdefault(f"{recipe.model}: {'; '.join(tried) or 'none'}")
        every, patience = recipe.evaluation.every, recipe.evaluation.patience
        stop = f", ends after {patience} validations without gain" if patience else ""
        epochs.setdefault(f"at most {recipe.settings.epochs}, validated every {every}{stop}")
    return [", ".join(changed) or "defaults", ". ".join(grids), "; ".join(epochs)]


def _facts(done: Done) -> str:
    """Return what the runs were made on: counts, digests, protocol, feature sets."""
    told: dict[str, None] = {}
    for _, run in done:
        told.setdefault(data_fact(run.record))
    for _, run in done:
        told.setdefault(protocol_fact(run.record, run.recipe))
    for _, run in done:
        for modality, one in run.record["features"].items():
            made = one.get("provenance", {})
            encoder = made.get("model_id") or made.get("extractor") or "not recorded"
            told.setdefault(
                f"{modality}: `{one['name']}`, encoder {encoder}, {one['dim']:,} numbers per item; "
                f"digest `{one['digest'][:16]}`"
            )
    return "\n".join(f"- {text}" for text in told)


def _what_ran(answer: Answer, csv_name: str, values: str) -> str:
    digest = hashlib.blake2b(values.encode(), digest_size=8).hexdigest()
    records = [run.record for _, run in answer.done]
    made = dict.fromkeys(
        f"mmbench {one['tool']['version']}, torch {one['libraries']['torch']}" for one in records
    )
    return (
        f"[{csv_name}]({csv_name}) has every run with its levels, chosen settings, unrounded "
        f"values and run folder, whose name is a digest of recipe, data, split and features "
        f"(digest of this file: `{digest}`). Made by {'; '.join(made)}:"
    )


def _draw(answer: Answer, out: Path) -> dict[str, str]:
    """Draw the curves of the first metric: a plot per kind of data; return their names."""
    question, images = answer.planning.question, {}
    curve, metric = question.curve, question.metrics[0]
    if curve is None:
        return {}
    for number_, (kind, done) in enumerate(answer.kinds.items()):
        rows = rows_of(done)
        others = [n for n in _varying(rows, list(answer.planning.factors)) if n != curve]
        panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
        for row in rows:
            mean, half = row.mean(metric), row.half(metric)
            if curve not in row.levels or mean is None:
                continue
            label = ", ".join(f"{n} {in_words(row.levels.get(n))}" for n in others if n != "model")
            x = number_of(row.levels[curve]) or 0.0
            lines = panels.setdefault(in_words(row.levels["model"]), {})
            lines.setdefault(label or metric, []).append((x, mean, half or 0.0))
        name = f"{out.stem}{f'-{number_ + 1}' if number_ else ''}.svg"
        partial = out.with_name(f"{name}.partial")
        if panels and factor_curves(panels, (f"{curve}, share", metric), partial):
            partial.replace(out.with_name(name))
            images[kind] = name
    return images


def as_json(answer: Answer) -> dict[str, Any]:
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
