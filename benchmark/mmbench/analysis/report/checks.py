"""What a reader should know before trusting a page: warnings, and a reproducibility checklist.

The checklist's questions are those that reviewers of recommender research ask: Ferrari Dacrema et
al. (RecSys 2019), Shehzad and Jannach (RecSys 2023), Ihemelandu and Ekstrand (SIGIR 2023), and the
machine learning reproducibility checklist (Pineau et al., JMLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmbase.layout import counted
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.setup import runs_of, space_of, trials_tried
from mmbench.models import model_class
from mmbench.models.base import Recommender
from mmbench.runs.finished_runs import System
from mmbench.runs.kinds import conditions


@dataclass(frozen=True)
class Check:
    """An item of the checklist: whether it holds, the question, and the facts."""

    holds: bool
    question: str
    facts: str


def warnings_of(part: Reproduction) -> list[str]:
    """Return the warnings of a page, the gravest first."""
    out = list(part.warnings)
    trained = [one for one in part.systems if _kind(one).trained]
    untuned = [one.label for one in trained if not trials_tried(one)]
    if untuned:
        out.append(
            f"Untuned: {_names(untuned)}. Their settings were given, not chosen on validation; "
            "an untuned baseline makes any model look good."
        )
    budgets = {trials_tried(one) for one in trained if trials_tried(one)}
    if len(budgets) > 1:
        told = ", ".join(str(n) for n in sorted(budgets))
        out.append(f"Unequal budgets: validation chose from {told} trials.")
    single = [one.label for one in part.systems if len(one.runs) == 1 and not one.exact]
    if single:
        out.append(f"One seed: {_names(single)}. How much trainings vary is unknown.")
    out += [
        f"Content not shown: the control “{gain.control}” of {gain.label} is not significantly "
        f"worse on {gain.metric}, so its gain may not be content."
        for gain in part.gains
        if not gain.worse
    ]
    by = {run.recipe.evaluation.select_by for run in runs_of(part)}
    if len(by) > 1:
        out.append(f"Different selection: epochs were chosen by {', '.join(sorted(by))}.")
    failed = sum("failed" in t for run in runs_of(part) for t in run.record.get("trials", ()))
    if failed:
        out.append(f"{counted(failed, 'trial')} diverged and could not be chosen.")
    lost = {s for run in runs_of(part) for s in run.record["protocol"].get("no_hit_possible", ())}
    if lost:
        out.append(f"No hit is possible on {', '.join(sorted(lost))}: no relevant item is listed.")
    approximate = {name for run in runs_of(part) for name in run.record.get("approximate", ())}
    if approximate:
        out.append(f"Approximate: {', '.join(sorted(approximate))}; numbers may differ slightly.")
    return out


def checklist(part: Reproduction) -> list[Check]:
    """Return the checklist, filled in from the runs."""
    return [*_of_protocol(part), *_of_training(part), *_of_content(part), *_of_record(part)]


def _of_protocol(part: Reproduction) -> Iterator[Check]:
    runs = runs_of(part)
    data, protocol = runs[0].record["dataset"], runs[0].record["protocol"]
    kinds = {repr(conditions(run)) for run in runs}
    same = f"split {data['split']}, protocol {protocol['name']}"
    told = f"{data['name']}, digest {data['digest'][:16]}, {same}"
    facts = told if len(kinds) == 1 else f"{len(kinds)} kinds of runs"
    yield Check(len(kinds) == 1, "Same data, split and protocol for all?", facts)
    candidates = protocol.get("candidates")
    ranked = "Full ranking, no sampled candidates?"
    yield Check(candidates is not None, ranked, str(candidates or "not recorded"))
    scored = protocol.get("test_scored", "once, after selection")
    selected = f"test scored {scored}; {protocol['selection']}"
    yield Check(True, "Test kept out of training and selection?", selected)
    tests = "paired randomisation over users, Holm; Welch over seeds"
    n = counted(len(part.outcome), "comparison")
    facts = f"{n}: {tests}" if part.outcome else "nothing was compared"
    tested = "Differences tested, with correction for many comparisons?"
    yield Check(bool(part.outcome), tested, facts)


def _of_training(part: Reproduction) -> Iterator[Check]:
    trained = [one for one in part.systems if _kind(one).trained]
    drawn = [len(one.runs) for one in part.systems if not one.exact]
    facts = f"fewest: {counted(min(drawn), 'seed')}" if drawn else "no system has randomness"
    enough = min(drawn, default=3) >= 3
    yield Check(enough, "At least three seeds where there is randomness?", facts)
    tuned = [one for one in trained if space_of(one)]
    facts = f"{len(tuned)} of {len(trained)}"
    yield Check(len(tuned) == len(trained), "Every trained system tuned on validation?", facts)
    budgets = sorted({trials_tried(one) for one in trained})
    facts = ", ".join(map(str, budgets)) or "nothing is trained"
    yield Check(len(budgets) <= 1, "Same number of trials for each?", facts)


def _of_content(part: Reproduction) -> Iterator[Check]:
    simple = [one.label for one in part.systems if not _kind(one).trained]
    yield Check(bool(simple), "Simple baselines without training?", _names(simple) or "none")
    content = [one for one in part.systems if one.runs[0].record["features"]]
    alone = [
        one.label for one in part.systems if _kind(one).trained and not _kind(one).uses_features
    ]
    nothing = "no content is used"
    facts = _names(alone) or ("none" if content else nothing)
    yield Check(bool(alone) or not content, "A trained baseline without content?", facts)
    facts = counted(len(part.gains), "control") if part.gains else "none; `mmbench train --control`"
    shown = bool(part.gains) or not content
    question = "A control with shuffled or random content?"
    yield Check(shown, question, facts if content else nothing)
    made = [
        entry.get("provenance", {})
        for one in content
        for entry in one.runs[0].record["features"].values()
    ]
    known = [one for one in made if one.get("extractor") or one.get("model_id")]
    facts = f"{len(known)} of {counted(len(made), 'use')} of feature sets" if made else nothing
    yield Check(len(known) == len(made), "Encoder of every feature set recorded?", facts)


def _of_record(part: Reproduction) -> Iterator[Check]:
    records = [run.record for run in runs_of(part)]
    devices = [one.get("device", {}) for one in records]
    names = sorted({str(one.get("chosen") or one.get("type")) for one in devices})
    timed = sum(one["timings"].get("train_s") is not None for one in records)
    facts = f"training seconds of {timed} of {counted(len(records), 'run')}; on {', '.join(names)}"
    yield Check(timed == len(records), "Cost recorded?", facts)
    versions = sorted({_versions(record) for record in records})
    yield Check(len(versions) == 1, "One version of the software?", "; ".join(versions))
    facts = f"{part.page}.csv; the recipe of each run spells out every default"
    yield Check(True, "All values, unrounded, with the run of each?", facts)


def _kind(system: System) -> type[Recommender]:
    return model_class(system.runs[0].recipe.model)


def _versions(record: Mapping[str, Any]) -> str:
    libraries = record.get("libraries", {})
    told = [f"mmbench {record.get('tool', {}).get('version', '?')}"]
    return ", ".join(
        [*told, *(f"{n} {libraries[n]}" for n in ("torch", "numpy") if n in libraries)]
    )


def _names(labels: Sequence[str]) -> str:
    if len(labels) <= 4:
        return ", ".join(labels)
    return f"{', '.join(labels[:3])} and {len(labels) - 3} others"
