"""What a report is made of: each model's runs, values, published values and cost."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbase.layout import counted
from mmbench.analysis.published import Verdict, verdict
from mmbench.config import Recipe
from mmbench.metrics import sign
from mmbench.models import model_class
from mmbench.runs.finished_runs import System, find_runs
from mmbench.runs.folder import RunFolder
from mmbench.runs.run import cost_of

if TYPE_CHECKING:
    from mmbench.analysis.compare import Comparison
    from mmbench.analysis.controls import ContentGain

Values = Mapping[str, float | None]

COSTS = (
    "train_s_per_epoch", "train_s", "train_cpu_s", "evaluation_s", "peak_memory_bytes", "energy_j",
    "ids", "others",
)  # fmt: skip
"""Of a run's record: timings, memory, energy, and trained weights of ids and others."""

_LONGEST = 150  # bytes of a file's name, to which endings come; file systems allow 255


@dataclass(frozen=True, eq=False)
class Line:
    """One model of the report.

    Attributes:
        runs: Run folder of each seed.
        values: Test metrics of each seed.
        published: Values to compare with; may be empty.
        settings: The searched or given settings, as text.
        best_epochs: Epoch of each seed's model.
        cost: The keys of `COSTS`: medians over seeds, None if unknown.
        features: The feature sets of its runs, as text; empty if it uses none.
        incomparable: Why its values were measured on other things than the published ones.
    """

    model: str
    runs: Sequence[str]
    seeds: Sequence[int]
    values: Sequence[Values]
    published: Mapping[str, float]
    settings: str
    best_epochs: Sequence[int]
    cost: Mapping[str, float | None]
    features: str = ""
    incomparable: str = ""

    def verdict(self, metric: str, margin: float) -> Verdict | None:
        """What our seeds say of the published value; None where either is unknown."""
        ours = self._known(metric)
        if metric not in self.published or not ours or len(ours) < len(self.values):
            return None
        exact = not model_class(self.model).uses_seed
        theirs, why = self.published[metric], self.incomparable
        return verdict(ours, theirs, margin, exact=exact, incomparable=why)

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None if a seed has no value."""
        known = self._known(metric)
        return statistics.fmean(known) if known and len(known) == len(self.values) else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        known = self._known(metric)
        return statistics.stdev(known) if len(known) > 1 else None

    def _known(self, metric: str) -> list[float]:
        return [value for seed in self.values if (value := seed.get(metric)) is not None]


@dataclass(frozen=True)
class Answered:
    """A page of `mmbench ask`: its title, and its verdicts with `**bold**` words."""

    title: str
    verdicts: Sequence[str]


@dataclass(frozen=True, eq=False)
class Reproduction:
    """One page of the report: one dataset, split and protocol.

    Attributes:
        dataset: The dataset's name.
        protocol: The study's protocol; may be empty.
        command: The command line that repeats this part of the report.
        facts: Counts, split and feature sets, one line each.
        warnings: Why values may not be comparable, one line each.
        comparisons: Sentences on which model is better than which.
        controls: Rows under `analysis.controls.HEADER`.
        kind: What tells this page from others of the dataset: `split loo, protocol strict`.
        stem: Name of its files without their extensions; empty for the dataset's.
        margin: By how much, as a share of the published value, ours may differ and count as equal;
            None: no verdicts.
        metric: The metric that orders the systems; empty: Recall at the longest cut-off, or the
            first one.
        systems: The runs of each line, in the order of the lines; `complete` reads them.
        outcome: The comparisons behind `comparisons`.
        gains: The controls behind `controls`.
        answers: What was found out about these runs, by questions.
    """

    dataset: str
    protocol: str
    command: str
    facts: Sequence[str]
    warnings: Sequence[str]
    lines: Sequence[Line]
    comparisons: Sequence[str] = ()
    controls: Sequence[Sequence[str]] = ()
    kind: str = ""
    stem: str = ""
    margin: float | None = None
    metric: str = ""
    systems: Sequence[System] = ()
    outcome: Sequence[Comparison] = ()
    gains: Sequence[ContentGain] = ()
    answers: Sequence[Answered] = ()

    def complete(self) -> Reproduction:
        """Return it with its systems, read from the lines' folders, and its metric.

        Raises:
            DataError: A folder has no finished run, or it cannot be read.
        """
        metric = self.metric if self.metric in self.metrics else self._first_metric()
        systems = self.systems or [
            System(line.model, find_runs([Path(run) for run in line.runs])) for line in self.lines
        ]
        return replace(self, metric=metric, systems=systems)

    def _first_metric(self) -> str:
        cutoff = self.cutoffs[-1] if self.cutoffs else 0
        names = [name for name in self.metrics if name.endswith(f"@{cutoff}")]
        return next((n for n in names if n.startswith("Recall")), names[0] if names else "")

    @property
    def metric_sign(self) -> int:
        """1 if more of `metric` is better or neither side is, -1 if less is."""
        return sign(self.metric) or 1

    @property
    def against_best(self) -> bool:
        """Whether the comparisons are with one system only."""
        n = len(self.systems)
        return 0 < len(self.outcome) < n * (n - 1) // 2

    @property
    def title(self) -> str:
        """The page's heading."""
        return f"{self.dataset}, {self.kind}" if self.kind else self.dataset

    @property
    def page(self) -> str:
        """The name of its files, without their extensions."""
        return file_name(self.stem or self.dataset)

    @property
    def metrics(self) -> list[str]:
        """All metrics of any run, in the order of the runs."""
        names = (name for line in self.lines for seed in line.values for name in seed)
        return list(dict.fromkeys(names))

    @property
    def cutoffs(self) -> list[int]:
        """The cut-offs, ascending."""
        return sorted({int(name.rpartition("@")[2]) for name in self.metrics})

    @property
    def published(self) -> bool:
        """Whether there is anything to compare with."""
        return any(line.published for line in self.lines)

    @property
    def judged(self) -> bool:
        """Whether there are verdicts on published values."""
        return self.margin is not None and self.published

    def verdicts(self, line: Line) -> dict[str, Verdict]:
        """The verdict on each of a line's published values; none without a margin."""
        if self.margin is None:
            return {}
        found = {metric: line.verdict(metric, self.margin) for metric in line.published}
        return {metric: one for metric, one in found.items() if one is not None}

    def pairs(self, metric: str) -> dict[str, tuple[float, float]]:
        """Our mean and the published value of the models that have both."""
        return {
            line.model: (ours, line.published[metric])
            for line in self.lines
            if metric in line.published and (ours := line.mean(metric)) is not None
        }


def file_name(text: str) -> str:
    """Return a text as the name of a file in the report's folder, without its extension.

    Names of datasets are data: they may have slashes, be long, or be the name of the first page.
    """
    name = re.sub(r"[^\w.=-]+", "-", text).encode()[:_LONGEST].decode(errors="ignore")
    if name in ("index", "datasets") or not name.strip(".-"):
        return f"page-{name}"
    return name


def line_of(
    model: str,
    runs: Sequence[Path],
    published: Mapping[str, float],
    settings: str,
    incomparable: str = "",
) -> Line:
    """Return the line of finished run folders, one per seed."""
    metrics = [RunFolder(run).read_json("metrics.json") for run in runs]
    records = [RunFolder(run).read_json("run.json") for run in runs]
    costs = []
    for record in records:
        peak, energy = record["peak_memory_bytes"], cost_of(record)["energy J"]
        costs.append({**record["timings"], "peak_memory_bytes": peak, "energy_j": energy})
        costs[-1] |= record.get("parameters") or {}
    return Line(
        model,
        [str(run) for run in runs],
        [record["seeds"]["run"] for record in records],
        [one["test"] for one in metrics],
        published,
        settings,
        [one["best_epoch"] for one in metrics],
        {key: _median([one.get(key) for one in costs]) for key in COSTS},
        ", ".join(f"{m}={one['name']}" for m, one in records[0]["features"].items()),
        incomparable,
    )


def data_fact(record: Mapping[str, Any]) -> str:
    """Counts, split and digest of a run's dataset, from its `run.json`."""
    data = record["dataset"]
    parts = ", ".join(f"{data[f'n_{part}']:,} {part}" for part in ("train", "valid", "test"))
    counts = f"{counted(data['n_users'], 'user')}, {counted(data['n_items'], 'item')}; {parts} rows"
    return f"{counts}; split `{data['split']}`, digest `{data['digest']}`"


def protocol_fact(record: Mapping[str, Any], recipe: Recipe) -> str:
    """Candidates, relevance, masks and selection of a run."""
    protocol = record["protocol"]
    relevant = protocol.get("relevant", f"rating >= {recipe.evaluation.threshold:g}")
    candidates = protocol.get("candidates", "the items of training")
    told = f"protocol `{protocol['name']}`: candidates {candidates}; relevant {relevant}"
    masked = protocol.get("masked", {}).get("test")
    return f"{told}{f'; masked at test: {masked}' if masked else ''}; {protocol['selection']}"


def feature_facts(record: Mapping[str, Any]) -> list[str]:
    """Describe each modality of a run from its `run.json`: set, encoder, coverage, use, digest."""
    facts = []
    for modality, one in record["features"].items():
        made = one.get("provenance", {})
        named = (made.get("model_id") or made.get("extractor"), made.get("weights"))
        encoder = ", ".join(f"{text}" for text in named if text and text != "none")
        n_items = one["present"] + one["missing"]
        facts.append(
            f"{modality}: `{one['name']}`, {f'encoder {encoder}; ' if encoder else ''}"
            f"{one['dim']:,} numbers per item, scaling {one.get('scaling', 'none')}; "
            f"{one['missing']:,} of {n_items:,} items without a vector "
            f"(missing: {one['missing_policy']}{_induced(one)}); digest `{one['digest'][:16]}`"
        )
    return facts


def _induced(one: Mapping[str, Any]) -> str:
    """What a mask and a control did to a modality, from its entry of `run.json`."""
    mask, control = one.get("mask"), one.get("control")
    told = f"; mask {mask['share']:g} {mask['pattern']}, seed {mask['seed']}" if mask else ""
    return f"{told}; {control} in place of the real ones" if control else told


def _median(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
