"""What a reader should know before trusting a page: warnings, and a reproducibility checklist.

The checklist's questions are those that reviewers of recommender research ask: Ferrari Dacrema et
al. (RecSys 2019), Shehzad and Jannach (RecSys 2023), Ihemelandu and Ekstrand (SIGIR 2023), and the
machine learning reproducibility checklist (Pineau et al., JMLR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmbase.layout import counted
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.setup import runs_of, space_of, trials_tried
from mmbench.models import model_class
from mmbench.runs.finished_runs import System


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
    runs, systems = runs_of(part), part.systems
    record = runs[0].record
    data, protocol = record["dataset"], record["protocol"]
    trained = [one for one in systems if _kind(one).trained]
    tuned = [one for one in trained if space_of(one)]
    random_ = [one for one in systems if not one.exact]
    fewest = min((len(one.runs) for one in random_), default=0)
    simple = [one.label for one in systems if not _kind(one).trained]
    alone = [one.label for one in trained if not _kind(one).uses_features]
    content = [one for one in systems if one.runs[0].record["features"]]
    made = [f for one in content for f in one.runs[0].record["features"].values()]
    known = [
        one
        for one in made
        if one.get("provenance", {}).get("extractor") or one.get("provenance", {}).get("model_id")
    ]
    versions = sorted({_versions(run.record) for run in runs})
    devices = sorted(
        {
            str(
                run.record.get("device", {}).get("chosen")
                or run.record.get("device", {}).get("type")
            )
            for run in runs
        }
    )
    timed = sum(run.record["timings"].get("train_s") is not None for run in runs)
    return [
        Check(not part.warnings or "kinds" not in " ".join(part.warnings), "Same data, split and protocol for all?", f"{data['name']}, digest {data['digest'][:16]}, split {data['split']}, protocol {protocol['name']}"),
        Check("candidates" in protocol, "Full ranking, no sampled candidates?", f"{protocol.get('candidates', 'not recorded')}"),
        Check(True, "Test kept out of training and selection?", f"test scored {protocol.get('test_scored', 'once, after selection')}; {protocol['selection']}"),
        Check(fewest >= 3, "At least three seeds where there is randomness?", f"fewest: {counted(fewest, 'seed')}" if random_ else "no system has randomness"),
        Check(len(tuned) == len(trained), "Every trained system tuned on validation?", f"{len(tuned)} of {len(trained)}"),
        Check(len({trials_tried(one) for one in trained}) <= 1, "Same number of trials for each?", ", ".join(str(n) for n in sorted({trials_tried(one) for one in trained})) or "nothing is trained"),
        Check(bool(simple), "Simple baselines without training?", _names(simple) if simple else "none"),
        Check(bool(alone) or not content, "A trained baseline without content?", _names(alone) if alone else "none"),
        Check(bool(part.gains) or not content, "A control with shuffled or random content?", f"{counted(len(part.gains), 'control')}" if part.gains else "none (`mmbench train --control`)" if content else "no content is used"),
        Check(len(known) == len(made), "Encoder and provenance of every feature set recorded?", f"{len(known)} of {counted(len(made), 'use')} of feature sets" if made else "no content is used"),
        Check(bool(part.outcome), "Differences tested, with correction for many comparisons?", f"{counted(len(part.outcome), 'comparison')}: paired randomisation over users, Holm; Welch over seeds" if part.outcome else "nothing was compared"),
        Check(timed > 0 or not trained, "Cost recorded?", f"training seconds of {timed} of {counted(len(runs), 'run')}; on {', '.join(devices)}"),
        Check(len(versions) == 1, "One version of the software?", "; ".join(versions)),
        Check(True, "All values, unrounded, with the run of each?", f"{part.page}.csv; the recipe of each run spells out every default"),
    ]  # fmt: skip


def _kind(system: System) -> type:
    return model_class(system.runs[0].recipe.model)


def _versions(record: dict) -> str:
    libraries = record.get("libraries", {})
    told = [f"mmbench {record.get('tool', {}).get('version', '?')}"]
    return ", ".join(
        [*told, *(f"{n} {libraries[n]}" for n in ("torch", "numpy") if n in libraries)]
    )


def _names(labels: Sequence[str]) -> str:
    if len(labels) <= 4:
        return ", ".join(labels)
    return f"{', '.join(labels[:3])} and {len(labels) - 3} others"
