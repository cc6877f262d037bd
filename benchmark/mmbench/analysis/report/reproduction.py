"""The report of a study: our values beside the published ones, orders, claims, cost, and runs."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbase.errors import install_extra
from mmbase.outputs import put
from mmbase.pages import chart_figure, has_extra, static_pictures
from mmbench.analysis.controls import HEADER
from mmbench.analysis.report.pages import Block, Page, Table
from mmbench.analysis.report.results import COSTS, Line, Reproduction
from mmbench.analysis.report.tables import number
from mmbench.metrics import sign

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
"""Conclusions of arXiv 2309.05273: models that lead on metrics, of which all are better larger."""


SECTIONS = {
    "ranking": "-ranking",
    "trade-offs": "",
    "curves": "-curves",
    "slices": "-slices",
    "cost": "-cost",
    "missing": "-missing",
}
"""Figures that become picture files: what follows the page's name."""


def write(parts: Sequence[Reproduction], out: Path) -> Path:
    """Write the report, and return its first page.

    It is an index, and for each part a page as Markdown, LaTeX tables and values; with the extra
    `report` also as HTML, and pictures as SVG and PNG.
    """
    out.mkdir(parents=True, exist_ok=True)
    # All is made before anything is written: a report has the pages of one command.
    files: dict[str, str | bytes] = {}
    if drawn := has_extra():
        parts = [part.complete() for part in parts]
    images: dict[str, list[str]] = {}
    for part in parts:
        name = part.page
        files[f"{name}.csv"] = values_csv(part)
        tables = (
            f"% {part.title}, test @{k}\n{values_table(part, k).latex()}" for k in part.cutoffs
        )
        files[f"{name}.tex"] = "\n".join(tables)
        images[name] = _draw(part, files, several=len(parts) > 1) if drawn else []
        files[f"{name}.md"] = page(part, images[name]).markdown()
    files["index.md"] = index(parts, images).markdown()
    first = "index.md"
    if drawn:
        first = "index.html"
        files[first] = _overview(parts, files)
    for name, content in files.items():
        put(out / name, content)
    return out / first


def _draw(part: Reproduction, files: dict[str, str | bytes], *, several: bool) -> list[str]:
    """Add a part's HTML page and pictures to the files; return the names of the SVG files."""
    from mmbench.analysis.report.board import ordered
    from mmbench.analysis.report.figures import figures_of, look_of, picture
    from mmbench.analysis.report.html import page_html

    board = ordered(part.systems, part.metric)
    figures, look = figures_of(part, board), look_of(part.lines, board)
    names = []
    for section, suffix in SECTIONS.items():
        if section in figures:
            names.append(f"{part.page}{suffix}.svg")
            files |= _pictures(f"{part.page}{suffix}", picture(figures[section], look))
    beside = [f"{part.page}.{kind}" for kind in ("md", "csv", "tex")]
    beside += [name for svg in names for name in (svg, f"{svg.removesuffix('.svg')}.png")]
    html = page_html(part, figures, beside, several=several)
    files[f"{part.page}.html"] = html
    return names


def _overview(parts: Sequence[Reproduction], files: dict[str, str | bytes]) -> str:
    from mmbench.analysis.report import charts, overall
    from mmbench.analysis.report.html import overview_html

    found = overall.mean_ranks(parts)
    if found is None:
        return overview_html(parts, "", None)
    rows = [
        {"system": name, "rank": rank, "joined": ", ".join(found.joined(name)) or "none"}
        for name, rank in found.ranks.items()
    ]
    chart = charts.critical_difference(rows, found.critical, len(found.datasets))
    files |= _pictures("datasets", chart)
    figure = chart_figure(chart, "Mean ranks over datasets", overall.in_words(found))
    return overview_html(parts, figure, found.table())


def _pictures(name: str, chart: Any) -> dict[str, bytes]:
    return {f"{name}.{kind}": content for kind, content in static_pictures(chart).items()}


def index(parts: Sequence[Reproduction], images: Mapping[str, Sequence[str]]) -> Page:
    """Return the first page: the datasets, and the verdict on each claim."""
    links = (
        f"- [{part.title}]({part.page}.md){f', {part.protocol}' if part.protocol else ''}"
        for part in parts
    )
    blocks: list[Block] = ["One page per dataset, split and protocol:", "\n".join(links)]
    for part in parts:
        if part.judged:
            blocks += [f"## {part.title}", verdict_table(part)]
        elif part.published:
            blocks += [f"## {part.title}", "\n".join(claims(part))]
        blocks += [f"![{part.title}]({image})" for image in images.get(part.page, ())]
    if not any(images.values()):
        install = install_extra("report")
        blocks.append(
            f"HTML and pictures need the extra report: `{install}`, then the same command."
        )
    return Page("Reproduction" if any(part.published for part in parts) else "Report", blocks)


def page(part: Reproduction, images: Sequence[str] = ()) -> Page:
    """Return a dataset's page."""
    blocks: list[Block] = [_bullets(part.facts)]
    if part.warnings:
        blocks.append("\n>\n".join(f"> **Note.** {text}" for text in part.warnings))
    for cutoff in part.cutoffs:
        blocks += [f"## Test @{cutoff}", values_table(part, cutoff)]
    if part.judged:
        blocks += ["## Beside the published values", _how_judged(part), verdict_table(part)]
    if part.published:
        blocks += ["## Order of the models", order_table(part)]
    if part.published and not part.judged:
        blocks += ["## Claims of the paper", "\n".join(claims(part))]
    if part.comparisons:
        blocks += ["## Which differences are resolved", _bullets(part.comparisons)]
    if part.controls:
        blocks += ["## How much is content", Table(HEADER, part.controls)]
    for one in part.answers:
        blocks += [f"## {one.title}", _bullets(one.verdicts)]
    blocks += [f"![{part.title}]({image})" for image in images]
    blocks += ["## Cost", cost_table(part), "## What ran", _runs_table(part)]
    return Page(part.title, [*blocks, f"```\n{part.command}\n```"])


def verdict_table(part: Reproduction) -> Table:
    """Return a row for each published value: ours, its interval, and what the test says."""
    rows = []
    for line in part.lines:
        for metric, one in part.verdicts(line).items():
            low, high = map(number, one.interval or (math.nan, math.nan))
            told = one.outcome + (f": {one.reason}" if one.reason else "")
            interval = "-" if one.interval is None else f"{low} … {high}"
            seeds, margin = str(len(line.seeds)), number(one.margin)
            cells = [number(one.mean), interval, number(one.published), f"± {margin}", told]
            rows.append([line.model, metric, seeds, *cells])
    head = ["", "metric", "seeds", "ours", "90 % interval", "published", "margin", "verdict"]
    return Table(head, rows)


def _how_judged(part: Reproduction) -> str:
    assert part.margin is not None
    return (
        f"Equal is what differs by less than {part.margin:.1%} of the published value. *Within*: "
        "two one-sided t-tests over seeds (TOST) reject a larger difference at 5 %, for the 90 % "
        "interval of our mean lies between the margins; *above* or *below*: it lies beyond one."
    )


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def values_csv(part: Reproduction) -> str:
    """All values, unrounded: model, seed, metric, ours, published, run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "model", "seed", "metric", "ours", "published", "run"])
    for line in part.lines:
        for seed, values, run in zip(line.seeds, line.values, line.runs, strict=True):
            for metric, value in values.items():
                ours = "" if value is None else repr(value)
                published = line.published.get(metric, "")
                writer.writerow([part.dataset, line.model, seed, metric, ours, published, run])
    return text.getvalue()


def claims(part: Reproduction) -> list[str]:
    """Return a sentence per claim: whether it holds in our table, and in the published one."""
    lines = []
    for text, leaders, metrics in CLAIMS:
        known = [metric for metric in metrics if leaders < set(part.pairs(metric))]
        if not known:
            needs = f"it needs {', '.join(sorted(leaders))} and others to compare with"
            lines.append(f"- *{text}*: not judged; {needs}.")
            continue
        ours = [metric for metric in known if _leads(part, metric, leaders, 0)]
        published = [metric for metric in known if _leads(part, metric, leaders, 1)]
        verdict = "holds" if ours == known else "holds in part" if ours else "does not hold"
        lines.append(
            f"- *{text}*: **{verdict}** here: on {len(ours)} of {len(known)} metrics "
            f"({', '.join(known)}) their mean rank is better than that of the others; in the "
            f"published table on {len(published)} of {len(known)}."
        )
    return lines


def _leads(part: Reproduction, metric: str, leaders: frozenset[str], column: int) -> bool:
    """Whether the leaders' mean rank is better than the others', in our column or the published."""
    from scipy.stats import rankdata

    pairs = part.pairs(metric)
    # Equals share the mean of their ranks: published values have four decimals, so there are ties.
    ranks = rankdata([-(sign(metric) or 1) * values[column] for values in pairs.values()])
    means = [
        statistics.fmean(r for m, r in zip(pairs, ranks, strict=True) if (m in leaders) is led)
        for led in (True, False)
    ]
    return means[0] < means[1]


def values_table(part: Reproduction, cutoff: int) -> Table:
    """Return each model's mean and spread over seeds, the best bold, published values below."""
    metrics = [name for name in part.metrics if name.endswith(f"@{cutoff}")]
    rows = []
    for line in part.lines:
        rows.append([line.model, *(_value_cell(part, line, metric) for metric in metrics)])
        if line.published:
            given = {metric: line.published.get(metric) for metric in metrics}
            rows.append(["published", *map(_cell, given.values())])
            rows.append(["difference", *(_difference(line.mean(m), v) for m, v in given.items())])
    return Table(["", *(name.rpartition("@")[0] for name in metrics)], rows)


def _value_cell(part: Reproduction, line: Line, metric: str) -> str:
    mean, spread = line.mean(metric), line.spread(metric)
    if mean is None:
        return _cell(mean)
    text = _cell(mean) + ("" if spread is None else f" ± {number(spread)}")
    means = [known for other in part.lines if (known := other.mean(metric)) is not None]
    best = sign(metric) == 1 and len(means) > 1 and mean == max(means)
    return f"**{text}**" if best else text


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def _difference(ours: float | None, published: float | None) -> str:
    return "-" if ours is None or not published else f"{(ours - published) / published:+.1%}"


def order_table(part: Reproduction) -> Table:
    """Return the order of the models by each metric, ours and the published one."""
    from scipy.stats import kendalltau

    rows = []
    for metric in part.metrics:
        pairs = part.pairs(metric)
        if len(pairs) < 2:
            continue
        ours, theirs = ({model: pair[k] for model, pair in pairs.items()} for k in (0, 1))
        # tau-b: it allows for ties, and is NaN if all are equal.
        tau = kendalltau(list(ours.values()), list(theirs.values())).statistic
        orders = (_order(ours, metric), _order(theirs, metric))
        rows.append([metric, *orders, "-" if math.isnan(tau) else f"{tau:.2f}"])
    return Table(["metric", "ours", "published", "Kendall's tau"], rows)


def _order(values: Mapping[str, float], metric: str) -> str:
    """Return `a > b = c`: best first, smallest where less is better, equals in the order given."""
    models = sorted(values, key=lambda model: -(sign(metric) or 1) * values[model])
    joints = [" = " if values[a] == values[b] else " > " for a, b in itertools.pairwise(models)]
    return "".join(itertools.chain.from_iterable(zip(models, [*joints, ""], strict=True)))


def cost_table(part: Reproduction) -> Table:
    """Return what each model cost, medians over seeds."""
    seconds = (
        "seconds per epoch", "seconds of training", "CPU seconds of training",
        "seconds of evaluation",
    )  # fmt: skip
    weights = ("weights of users and items", "other weights")
    head = ["", *seconds, "peak memory of the process, GiB", "joules of training", *weights]
    rows = []
    for line in part.lines:
        peak, energy = line.cost["peak_memory_bytes"], line.cost["energy_j"]
        spent = (line.cost[key] for key in COSTS[:4])
        gib = "-" if peak is None else f"{peak / 2**30:.2f}"
        joules, *counts = (
            "-" if one is None else f"{one:,.0f}"
            for one in (energy, line.cost["ids"], line.cost["others"])
        )
        rows.append([line.model, *map(_cell, spent), gib, joules, *counts])
    return Table(head, rows)


def _runs_table(part: Reproduction) -> Table:
    rows = [
        [
            line.model,
            str(seed),
            line.features or "-",
            line.settings or "defaults",
            str(epoch),
            f"`{run}`",
        ]
        for line in part.lines
        for seed, epoch, run in zip(line.seeds, line.best_epochs, line.runs, strict=True)
    ]
    return Table(["", "seed", "features", "settings", "epoch", "run folder"], rows)
