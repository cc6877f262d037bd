"""The report of a study that was done again: our values beside the published ones, orders, claims, cost, and what ran."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbench.analysis.report.pages import Block, Page, Table, put
from mmbench.analysis.report.plots import learning_curves, trade_offs
from mmbench.analysis.report.tables import number
from mmbench.metrics import sign
from mmbench.runs.folder import RunFolder
from mmbench.runs.run import cost_of

Values = Mapping[str, float | None]

COSTS = ("train_s_per_epoch", "train_cpu_s", "evaluation_s", "peak_memory_bytes", "energy_j")

CLAIMS: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    (
        "LATTICE, BM3 and FREEDOM lead on accuracy",
        frozenset({"lattice", "bm3", "freedom"}),
        ("Recall@10", "Recall@20", "nDCG@10", "nDCG@20"),
    ),
    (
        "GRCN and VBPR lead on diversity, novelty and popularity bias",
        frozenset({"grcn", "vbpr"}),
        ("Gini@20", "EFD@20", "APLT@20", "iCov@20"),
    ),
)
"""What arXiv 2309.05273 concludes, as sets of models that lead on metrics; larger is better in all of these."""


@dataclass(frozen=True, eq=False)
class Line:
    """One model of the report.

    Attributes:
        model: Its name.
        runs: Run folder of each seed.
        seeds: The seeds.
        values: Test metrics of each seed.
        published: Values to compare with; empty where there are none.
        settings: The settings that were searched or given, in words.
        best_epochs: Epoch of each seed's model.
        cost: `train_s_per_epoch`, `train_cpu_s`, `evaluation_s`, `peak_memory_bytes`, `energy_j`:
            medians over seeds, None if unknown.
    """

    model: str
    runs: Sequence[str]
    seeds: Sequence[int]
    values: Sequence[Values]
    published: Mapping[str, float]
    settings: str
    best_epochs: Sequence[int]
    cost: Mapping[str, float | None]

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None where a seed has no value."""
        values = [seed.get(metric) for seed in self.values]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        known = [value for seed in self.values if (value := seed.get(metric)) is not None]
        return statistics.stdev(known) if len(known) > 1 else None


@dataclass(frozen=True, eq=False)
class Reproduction:
    """One dataset of the report.

    Attributes:
        dataset: Its name.
        protocol: What was done, in a word or two; may be empty.
        command: What makes this part of the report again.
        facts: Counts, split and feature sets, one line each.
        warnings: Why values may not be comparable, one line each.
        lines: The models.
        comparisons: Sentences on which model is better than which.
    """

    dataset: str
    protocol: str
    command: str
    facts: Sequence[str]
    warnings: Sequence[str]
    lines: Sequence[Line]
    comparisons: Sequence[str] = ()

    @property
    def cutoffs(self) -> list[int]:
        """The cut-offs, ascending."""
        return sorted({int(name.rpartition("@")[2]) for name in self.metrics})

    @property
    def metrics(self) -> list[str]:
        """All metrics that a run has, in the order of the runs."""
        return list(
            dict.fromkeys(name for line in self.lines for seed in line.values for name in seed)
        )

    @property
    def published(self) -> bool:
        """Whether there is anything to compare with."""
        return any(line.published for line in self.lines)


def page(part: Reproduction, images: Sequence[str] = ()) -> Page:
    """A dataset's page."""
    blocks: list[Block] = ["\n".join(f"- {fact}" for fact in part.facts)]
    if part.warnings:
        blocks.append("\n>\n".join(f"> **Note.** {text}" for text in part.warnings))
    for cutoff in part.cutoffs:
        blocks += [f"## Test @{cutoff}", values_table(part, cutoff)]
    if part.published:
        blocks += [
            "## Order of the models",
            _order_table(part),
            "## Claims of the paper",
            "\n".join(claims(part)),
        ]
    if part.comparisons:
        blocks += [
            "## Which differences are resolved",
            "\n".join(f"- {text}" for text in part.comparisons),
        ]
    blocks += [f"![{part.dataset}]({image})" for image in images]
    blocks += [
        "## Cost",
        _cost_table(part),
        "## What ran",
        _runs_table(part),
        f"```\n{part.command}\n```",
    ]
    return Page(part.dataset, blocks)


def index(parts: Sequence[Reproduction], images: Mapping[str, Sequence[str]]) -> Page:
    """The first page: datasets, and the verdict on each claim."""
    blocks: list[Block] = ["One page per dataset:"]
    blocks.append(
        "\n".join(
            f"- [{part.dataset}]({part.dataset}.md){f', {part.protocol}' if part.protocol else ''}"
            for part in parts
        )
    )
    for part in parts:
        if part.published:
            blocks += [f"## {part.dataset}", "\n".join(claims(part))]
        blocks += [f"![{part.dataset}]({image})" for image in images.get(part.dataset, ())]
    if not any(images.values()):
        blocks.append(
            "Plots need matplotlib: `pip install 'mmx-mmbench[report]'`, then the same command."
        )
    return Page("Reproduction" if any(part.published for part in parts) else "Report", blocks)


def values_csv(part: Reproduction) -> str:
    """All values, unrounded: model, seed, metric, ours, published, run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "model", "seed", "metric", "ours", "published", "run"])
    for line in part.lines:
        for seed, values, run in zip(line.seeds, line.values, line.runs, strict=True):
            for metric, value in values.items():
                ours = "" if value is None else repr(value)
                writer.writerow(
                    [
                        part.dataset,
                        line.model,
                        seed,
                        metric,
                        ours,
                        line.published.get(metric, ""),
                        run,
                    ]
                )
    return text.getvalue()


def pairs(part: Reproduction, metric: str) -> dict[str, tuple[float, float]]:
    """Our mean and the published value of the models that have both."""
    both = {line.model: (line.mean(metric), line.published.get(metric)) for line in part.lines}
    return {
        model: (ours, theirs)
        for model, (ours, theirs) in both.items()
        if ours is not None and theirs is not None
    }


def _order_in_words(values: Mapping[str, float], metric: str) -> str:
    """`a > b = c`: best first, smallest where less is better, equals in the order given."""
    models = sorted(values, key=lambda model: -(sign(metric) or 1) * values[model])
    joints = [" = " if values[a] == values[b] else " > " for a, b in itertools.pairwise(models)]
    return "".join(itertools.chain.from_iterable(zip(models, [*joints, ""], strict=True)))


def claims(part: Reproduction) -> list[str]:
    """A sentence per claim: whether it holds in the published table, and in ours."""
    lines = []
    for text, leaders, metrics in CLAIMS:
        known = [metric for metric in metrics if leaders < set(pairs(part, metric))]
        if not known:
            lines.append(
                f"- *{text}*: not judged; it needs {', '.join(sorted(leaders))} and others to "
                "compare with."
            )
            continue
        leads = {
            ours: [m for m in known if _leads(part, m, leaders, ours=ours)]
            for ours in (True, False)
        }
        verdict = (
            "holds" if leads[True] == known else "holds in part" if leads[True] else "does not hold"
        )
        lines.append(
            f"- *{text}*: **{verdict}** here: on {len(leads[True])} of {len(known)} metrics "
            f"({', '.join(known)}) their mean rank "
            f"is better than that of the others; in the published table on {len(leads[False])} of "
            f"{len(known)}."
        )
    return lines


def _leads(part: Reproduction, metric: str, leaders: frozenset[str], *, ours: bool) -> bool:
    """Whether the mean rank of some models is better than that of the others; equals share the mean of their ranks."""
    from scipy.stats import rankdata

    both = pairs(part, metric)
    ranks = rankdata([-(sign(metric) or 1) * values[0 if ours else 1] for values in both.values()])
    means = [
        statistics.fmean(r for m, r in zip(both, ranks, strict=True) if (m in leaders) is led)
        for led in (True, False)
    ]
    return means[0] < means[1]


def write(parts: Sequence[Reproduction], out: Path) -> None:
    """Write the report: `index`, and for each dataset a page, its tables as LaTeX, its values and plots.

    Pages are there as Markdown and as HTML.
    """
    out.mkdir(parents=True, exist_ok=True)
    images: dict[str, list[str]] = {}
    for part in parts:
        images[part.dataset] = []
        for name, draw in (
            (f"{part.dataset}.svg", trade_offs),
            (f"{part.dataset}-curves.svg", learning_curves),
        ):
            partial = out / f"{name}.partial"
            if draw(part, partial):
                partial.replace(out / name)
                images[part.dataset].append(name)
        _put_page(page(part, images[part.dataset]), out / part.dataset)
        put(out / f"{part.dataset}.csv", values_csv(part))
        tables = (
            f"% {part.dataset}, test @{k}\n{values_table(part, k).latex()}" for k in part.cutoffs
        )
        put(out / f"{part.dataset}.tex", "\n".join(tables))
    _put_page(index(parts, images), out / "index")


def _put_page(one: Page, path: Path) -> None:
    put(path.with_name(path.name + ".md"), one.markdown())
    put(path.with_name(path.name + ".html"), one.html())


def line_of(
    model: str, runs: Sequence[Path], published: Mapping[str, float], settings: str
) -> Line:
    """A line from finished run folders, one per seed."""
    metrics, records = (
        [RunFolder(run).read_json(name) for run in runs] for name in ("metrics.json", "run.json")
    )
    timings = [
        {
            **record["timings"],
            "peak_memory_bytes": record["peak_memory_bytes"],
            "energy_j": cost_of(record)["energy J"],
        }
        for record in records
    ]
    return Line(
        model,
        [str(run) for run in runs],
        [record["seeds"]["run"] for record in records],
        [one["test"] for one in metrics],
        published,
        settings,
        [one["best_epoch"] for one in metrics],
        {key: _median([one.get(key) for one in timings]) for key in COSTS},
    )


def data_fact(record: Mapping[str, Any]) -> str:
    """Counts, split and digest of a run's dataset, from its `run.json`."""
    data = record["dataset"]
    return (
        f"{data['n_users']:,} users, {data['n_items']:,} items; {data['n_train']:,} train, "
        f"{data['n_valid']:,} valid, "
        f"{data['n_test']:,} test rows; split `{data['split']}`, digest `{data['digest']}`"
    )


def _median(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def values_table(part: Reproduction, cutoff: int) -> Table:
    """Mean and spread over seeds of each model, the best of a metric bold, with the published value below."""
    metrics = [name for name in part.metrics if name.endswith(f"@{cutoff}")]
    means = {
        metric: [mean for line in part.lines if (mean := line.mean(metric)) is not None]
        for metric in metrics
    }
    rows = []
    for line in part.lines:
        cells = []
        for metric in metrics:
            mean, spread = line.mean(metric), line.spread(metric)
            text = (
                "-"
                if mean is None
                else number(mean) + ("" if spread is None else f" ± {number(spread)}")
            )
            best = (
                mean is not None
                and sign(metric) == 1
                and len(means[metric]) > 1
                and mean == max(means[metric])
            )
            cells.append(f"**{text}**" if best else text)
        rows.append([line.model, *cells])
        if line.published:
            given = [line.published.get(metric) for metric in metrics]
            rows.append(
                ["published", *("-" if value is None else number(value) for value in given)]
            )
            rows.append(
                [
                    "difference",
                    *(_difference(line.mean(m), v) for m, v in zip(metrics, given, strict=True)),
                ]
            )
    return Table(["", *(name.rpartition("@")[0] for name in metrics)], rows)


def _difference(ours: float | None, published: float | None) -> str:
    return "-" if ours is None or not published else f"{(ours - published) / published:+.1%}"


def _order_table(part: Reproduction) -> Table:
    from scipy.stats import kendalltau

    rows = []
    for metric in part.metrics:
        both = pairs(part, metric)
        if len(both) < 2:
            continue
        ours, theirs = ({model: values[k] for model, values in both.items()} for k in (0, 1))
        tau = kendalltau(
            list(ours.values()), list(theirs.values())
        ).statistic  # tau-b, nan where all are equal
        words = [_order_in_words(values, metric) for values in (ours, theirs)]
        rows.append([metric, *words, "-" if math.isnan(tau) else f"{tau:.2f}"])
    return Table(["metric", "ours", "published", "Kendall's tau"], rows)


def _cost_table(part: Reproduction) -> Table:
    rows = []
    for line in part.lines:
        peak, energy = line.cost["peak_memory_bytes"], line.cost["energy_j"]
        cells = [line.cost[key] for key in ("train_s_per_epoch", "train_cpu_s", "evaluation_s")]
        rows.append(
            [
                line.model,
                *("-" if value is None else number(value) for value in cells),
                "-" if peak is None else f"{peak / 2**30:.2f}",
                "-" if energy is None else f"{energy:,.0f}",
            ]
        )
    head = [
        "",
        "seconds per epoch",
        "CPU seconds of training",
        "seconds of evaluation",
        "peak memory of the process, GiB",
        "joules of training",
    ]
    return Table(head, rows)


def _runs_table(part: Reproduction) -> Table:
    rows = [
        [line.model, str(seed), line.settings or "defaults", str(epoch), f"`{run}`"]
        for line in part.lines
        for seed, epoch, run in zip(line.seeds, line.best_epochs, line.runs, strict=True)
    ]
    return Table(["", "seed", "settings", "epoch", "run folder"], rows)
