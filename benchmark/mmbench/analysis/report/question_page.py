"""The page that answers a question: verdict, design, tables with intervals, curves, effects."""

from __future__ import annotations

import hashlib
import statistics as stdlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmbase.errors import install_extra
from mmbase.layout import counted
from mmbase.outputs import put
from mmbase.pages import has_extra, static_picture
from mmbench.analysis.effects import Effect, key_of
from mmbench.analysis.question import DESIGN, KIND, Asked, Cell, in_words, number_of
from mmbench.analysis.report import verdicts
from mmbench.analysis.report.answer import Answer, Done, Row, rows_of, values_csv
from mmbench.analysis.report.charts import factor_curves
from mmbench.analysis.report.extraction import costs_table, extra_seconds
from mmbench.analysis.report.pages import Block, Page, Table
from mmbench.analysis.report.results import data_fact, protocol_fact
from mmbench.models import model_class

_MEANS = "Test, mean over seeds ± half the 95 % t-interval over seeds (none without randomness):"


def write(answer: Answer, out: Path) -> list[Path]:
    """Write the page, its values as CSV, and a plot for each kind of data; return their paths."""
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
    names = answer.names
    told = [
        f"- {f'{names[kind]}: ' if names[kind] else ''}{text}" for kind, text in answer.verdicts()
    ]
    blocks.append("\n".join(told) or "No two runs can be compared.")
    blocks += ["## Design", _design(answer), _design_table(answer)]
    for kind, done in kinds.items():
        blocks += [f"## Results: {kind}", _facts(done), _MEANS]
        blocks += _results(answer, done)
        if kind in images:
            blocks.append(f"![{question.title}: {kind}]({images[kind]})")
    if question.curve and not images:
        blocks.append(
            f"Curves need the extra report: `{install_extra('report')}`, then the same command."
        )
    blocks += ["## Effects", _how(answer)]
    for asked, found in answer.effects:
        blocks += [f"### {asked.factor}", *_effects(answer, asked, found)]
    if "features" in answer.planning.factors:
        blocks += ["## What the vectors cost", *costs_table(answer.done)]
    blocks += ["## What ran", _what_ran(answer, csv_name, values)]
    return Page(question.title, [*blocks, f"```\n{answer.command}\n```"])


def _varying(rows: Sequence[Row], factors: Sequence[str]) -> list[str]:
    """Return the factors in which rows differ; the model is always named."""

    def differs(name: str) -> bool:
        return len({key_of(row.levels.get(name)) for row in rows}) > 1

    names = [name for name in factors if name == "model" or differs(name)]
    return [DESIGN, *names] if differs(DESIGN) else names


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
    names = answer.names
    kinds = list(dict.fromkeys(one.contrast.where[KIND] for one in found))
    places = [KIND] * (len(kinds) > 1) + list(asked.by)
    seconds = extra_seconds(answer.done) if asked.factor == "features" else None
    head = [*places, asked.factor, "against", "metric", "difference", "95 % interval", "relative"]
    head += ["p", "p seeds", "ahead", "outcome"]
    head += ["kept of the gain"] * (asked.gain_over is not None)
    head += ["extra seconds of extraction", "gain per extra second"] * (seconds is not None)
    body = []
    for one in found:
        where = {**one.contrast.where, KIND: names[one.contrast.where[KIND]]}
        line = [in_words(where[name]) for name in places]
        line += [in_words(one.contrast.level), in_words(one.contrast.reference), one.metric]
        line += [verdicts.signed(one.difference), verdicts.interval_in_words(one)]
        line += [verdicts.relative(one)]
        line += [_p(one.p), _p(one.p_seeds), f"{one.ahead}/{one.pairs}"]
        line.append(verdicts.SHORT[one.outcome])
        if asked.gain_over is not None:
            share = verdicts.kept(one, found, asked.gain_over)
            line.append("-" if share is None else f"{share:.0%}")
        if seconds is not None:
            extra = seconds(one.contrast.level, one.contrast.reference)
            worth = extra is not None and extra > 0 and one.outcome == "better"
            line.append("not recorded" if extra is None else f"{extra:+.1f}")
            line.append(f"{one.difference / extra:+.1e}" if worth and extra else "-")
        body.append(line)
    left_out = sum(one.left_out for one in found)
    lost = f"{counted(left_out, 'pair')} of combinations lack a run and do not count."
    return [*([lost] if left_out else []), Table(head, body)]


def _how(answer: Answer) -> str:
    """Return how effects are measured, tested and called."""
    margin = answer.planning.question.margin
    return (
        "Differences are paired: the two runs of a pair are equal in all other factors, the model, "
        "the design and the seed. Intervals are t-intervals over the seeds' mean differences; `p` "
        "is of the paired randomisation test over users, with Holm's correction for all "
        "comparisons of the page (a metric without users' values: over seeds), `p seeds` of the "
        "paired t-test over seeds. An outcome needs both below 0.05; it is *no effect* where the "
        f"intervals over seeds and over users lie within {margin:.0%} of the reference's value."
    )


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
        if model_class(recipe.model).trained:
            epochs.setdefault(f"at most {recipe.settings.epochs}, validated every {every}{stop}")
    return [", ".join(changed) or "defaults", ". ".join(grids), "; ".join(epochs) or "-"]


def _facts(done: Done) -> str:
    """Return what the runs were made on: counts, digests, protocol, feature sets."""
    told: dict[str, None] = {}
    for _, run in done:
        told.setdefault(data_fact(run.record))
    for _, run in done:
        told.setdefault(protocol_fact(run.record, run.recipe).rpartition("; ")[0])
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
    digest = hashlib.blake2b(values.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    records = [run.record for _, run in answer.done]
    made = dict.fromkeys(
        f"mmbench {one['tool']['version']}, torch {one.get('libraries', {}).get('torch', '?')}"
        for one in records
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
    if curve is None or not has_extra():
        return {}
    axis = f"{curve}, share of the vectors" if curve == "mask" else curve
    for number_, (kind, done) in enumerate(answer.kinds.items()):
        rows = rows_of(done)
        others = [n for n in _varying(rows, list(answer.planning.factors)) if n != curve]
        panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
        for row in rows:
            mean, half = row.mean(metric), row.half(metric)
            if curve not in row.levels or mean is None:
                continue
            label = ", ".join(
                f"{n} {in_words(row.levels.get(n))}" for n in others if n not in (DESIGN, "model")
            )
            x = number_of(row.levels[curve]) or 0.0
            title = ": ".join(str(row.levels[n]) for n in (DESIGN, "model") if n in others)
            lines = panels.setdefault(title, {})
            lines.setdefault(label or metric, []).append((x, mean, half or 0.0))
        name = f"{out.stem}{f'-{number_ + 1}' if number_ else ''}.svg"
        if panels:
            picture = static_picture(factor_curves(panels, (axis, metric)), "svg")
            put(out.with_name(name), picture)
            images[kind] = name
    return images
