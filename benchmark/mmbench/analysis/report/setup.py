"""What a page compares, as tables: data, protocol, feature sets, budgets, runs and commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmbase.layout import counted
from mmbase.pages import Cell, Column, Table
from mmbench.analysis.report.board import Standing
from mmbench.analysis.report.results import Reproduction
from mmbench.analysis.report.tables import number
from mmbench.config import RECIPE_FILE
from mmbench.models import model_class
from mmbench.runs.finished_runs import FinishedRun, System
from mmbench.runs.kinds import in_short, kind_of


def runs_of(part: Reproduction) -> list[FinishedRun]:
    """All runs of a page."""
    return [run for system in part.systems for run in system.runs]


def paragraph(part: Reproduction, board: Sequence[Standing]) -> str:
    """Return what was compared, how, and what came of it, as a paragraph."""
    runs = runs_of(part)
    data, protocol = runs[0].record["dataset"], runs[0].record["protocol"]
    seeds = sorted({run.recipe.seed for run in runs if model_class(run.recipe.model).uses_seed})
    told = [
        f"{counted(len(part.systems), 'system')} in {counted(len(runs), 'run')} on {data['name']}: "
        f"{data['n_users']:,} users, {data['n_items']:,} items and {data['n_train']:,} training "
        f"rows, split {data['split']}, under protocol {protocol['name']}."
    ]
    if seeds:
        told.append(f"{_seeds(seeds)}. Validation chose the epoch; test was scored once.")
    if not board:
        return " ".join(told)
    best = board[0]
    span = f" (95 % interval over {best.over}: {best.interval_text})" if best.interval else ""
    told.append(f"Highest mean {part.metric}: {best.label} with {number(best.mean)}{span}.")
    with_best = [one for one in part.outcome if best.label in (one.first, one.second)]
    if with_best and all(one.metric == part.metric for one in with_best):
        open_ = [
            one.second if one.first == best.label else one.first
            for one in with_best
            if not one.better
        ]
        if not open_:
            told.append("It is better than every other one, over users and over seeds.")
        elif len(open_) <= 3:
            told.append(f"Its order is not resolved against {', '.join(open_)}.")
        else:
            told.append(f"Its order is not resolved against {len(open_)} of the others.")
    return " ".join(told)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 6:
        return f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    return f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"


def data_table(part: Reproduction) -> Table:
    """Return a row for each dataset and split: counts and digests."""
    names = ("n_users", "n_items", "n_train", "n_valid", "n_test")
    head = ["dataset", "split", "users", "items", "train", "valid", "test", "digest", "test digest"]
    rows: dict[str, list[Cell | str]] = {}
    for run in runs_of(part):
        one = run.record["dataset"]
        counts = [Cell(f"{one[name]:,}", one[name]) for name in names]
        digests = [_code(one[name][:16]) for name in ("digest", "test_digest")]
        rows.setdefault(
            repr(one["digest"] + one["test_digest"]), [one["name"], one["split"], *counts, *digests]
        )
    return Table(
        "Data",
        _columns(head, numeric=head[2:7]),
        list(rows.values()),
        sortable=False,
        hidden_caption=True,
    )


def protocol_table(part: Reproduction) -> Table:
    """Return what the protocol ranks, counts and masks, a fact in each row."""
    facts: dict[str, dict[str, None]] = {}
    for run in runs_of(part):
        protocol = run.record["protocol"]
        known = {
            "protocol": protocol["name"],
            "candidates": _candidates(protocol),
            "relevant": protocol.get("relevant"),
            "masked at test": (protocol.get("masked") or {}).get("test"),
            "users without a list": protocol.get("users_without_list"),
            "selection": protocol["selection"],
            "early stopping": protocol.get("early_stopping"),
            "test": protocol.get("test_scored"),
            "ties": protocol.get("ties"),
            "users evaluated": f"{n:,}"
            if (n := protocol.get("users_evaluated", {}).get("test"))
            else None,
        }
        for name, value in known.items():
            if value:
                facts.setdefault(name, {})[str(value)] = None
    rows: list[list[Cell | str]] = [[name, "; or ".join(values)] for name, values in facts.items()]
    return Table("Protocol", _columns(["fact", "value"]), rows, sortable=False, hidden_caption=True)


def _candidates(protocol: dict[str, Any]) -> str | None:
    known, n = protocol.get("candidates"), protocol.get("n_candidates")
    return f"{known} ({n:,})" if known and n else known


def features_table(part: Reproduction) -> Table | None:
    """Return a row for each feature set as it was used, with its provenance; None without any."""
    rows: dict[str, list[Cell | str]] = {}
    used: dict[str, list[str]] = {}
    for system in part.systems:
        for modality, one in system.runs[0].record["features"].items():
            treated = _treated(one)
            key = repr((modality, one["digest"], treated))
            used.setdefault(key, []).append(system.label)
            n = one["present"] + one["missing"]
            coverage = one["present"] / n if n else 0.0
            rows.setdefault(
                key,
                [
                    modality,
                    Cell(one["name"], note=f"digest {one['digest'][:16]}"),
                    _encoder(one.get("provenance", {})),
                    Cell(f"{one['dim']:,}", one["dim"]),
                    Cell(f"{coverage:.1%}", coverage, note=f"{one['missing']:,} of {n:,} missing"),
                    treated,
                ],
            )
    if not rows:
        return None
    head = ["modality", "set", "encoder", "numbers", "coverage", "treatment", "used by"]
    body = [[*row, _listed(used[key])] for key, row in rows.items()]
    columns = _columns(head, numeric=("numbers", "coverage"))
    return Table("Feature sets", columns, body, sortable=False, hidden_caption=True)


def _encoder(made: Mapping[str, Any]) -> Cell:
    """Return who made the vectors: encoder, weights, layer, pooling and tool."""
    name = made.get("model_id") or made.get("extractor") or "not recorded"
    facts = [str(made[k]) for k in ("layer", "pooling") if made.get(k) not in (None, "none")]
    weights = made.get("weights")
    told = [f"weights {weights}" if weights else "", ", ".join(facts)]
    tool = made.get("tool") or ""
    told.append(" ".join(map(str, tool.values())) if isinstance(tool, Mapping) else str(tool))
    return Cell(str(name), note="; ".join(filter(None, told)))


def _treated(one: dict[str, Any]) -> str:
    told = [f"scaling {one.get('scaling', 'none')}", f"missing: {one['missing_policy']}"]
    if mask := one.get("mask"):
        told.append(f"mask {mask['share']:g} {mask['pattern']}, seed {mask['seed']}")
    if control := one.get("control"):
        told.append(f"{control} in place of the real ones")
    return "; ".join(told)


def budget_table(part: Reproduction) -> Table:
    """Return what each system was given: trials tried, search space, epochs, seeds, settings."""
    rows: list[list[Cell | str]] = []
    for system, line in zip(part.systems, part.lines, strict=True):
        asked = system.runs[0].asked
        n = trials_tried(system)
        trained = model_class(asked.model).trained
        most, chosen = asked.settings.epochs, _chosen_epochs(line.best_epochs)
        rows.append(
            [
                system.label,
                Cell(str(n) if n else "none" if trained else "–", n),
                space_of(system) or "–",
                Cell(str(most), most, note=chosen) if trained else Cell("–"),
                Cell("–" if system.exact else str(len(system.runs)), len(system.runs)),
                line.settings or "defaults",
            ]
        )
    head = ["system", "trials", "search space", "epochs", "seeds", "settings"]
    return Table(
        "Budget", _columns(head, numeric=("trials", "epochs", "seeds")), rows, hidden_caption=True
    )


def trials_tried(system: System) -> int:
    """The largest number of trials that validation chose from, over the system's seeds."""
    return max(len(run.record.get("trials", ())) for run in system.runs)


def space_of(system: System) -> str:
    """Return what was searched: `lr: 0.005, 0.01`, or the ranges of a search."""
    asked = next((run.asked for run in system.runs if run.asked.searched), None)
    if asked is None:
        return ""
    if asked.search is None:
        tried = {name: ", ".join(map(in_short, values)) for name, values in asked.grid.items()}
        return "; ".join(f"{name}: {values}" for name, values in tried.items())
    plain = asked.search.model_dump(mode="json")
    told = [f"{name}: {_plainly(one)}" for name, one in plain.pop("space").items()]
    method = ", ".join(
        f"{name} {in_short(value)}" for name, value in plain.items() if value is not None
    )
    return f"{'; '.join(told)} ({method})"


def _plainly(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {in_short(one)}" for name, one in value.items() if one is not None)
    return in_short(value)


def _chosen_epochs(epochs: Iterable[int]) -> str:
    known = sorted(set(epochs))
    return f"best {known[0]}" if len(known) == 1 else f"best {known[0]}–{known[-1]}"


def runs_table(part: Reproduction) -> Table:
    """Return a row for each run: its seed, epoch, device, versions, folder, and what repeats it."""
    rows: list[list[Cell | str]] = []
    for system in part.systems:
        for run in system.runs:
            record = run.record
            made = (
                f"mmbench {record['tool']['version']}, torch "
                f"{record.get('libraries', {}).get('torch', '?')}"
                if "tool" in record
                else "–"
            )
            device = record.get("device", {})
            rows.append([
                system.label, Cell(str(run.recipe.seed), run.recipe.seed),
                Cell(str(run.metrics["best_epoch"]), run.metrics["best_epoch"]),
                Cell(str(device.get("chosen") or device.get("type") or "–"), note=made),
                _code(command_of(run)),
            ])  # fmt: skip
    head = ["system", "seed", "epoch", "device", "command that makes its numbers again"]
    return Table("Runs", _columns(head, numeric=("seed", "epoch")), rows, hidden_caption=True)


def command_of(run: FinishedRun) -> str:
    """Return the command line that does a run again: its recipe spells out every default."""
    out = run.path.parent.as_posix()
    return shlex.join(["mmbench", "run", (run.path / RECIPE_FILE).as_posix(), "--out", out])


def compare_command(part: Reproduction) -> str:
    """Return the command line that prints the page's comparisons."""
    runs = runs_of(part)
    folders = list(dict.fromkeys(run.path.parent.as_posix() for run in runs))
    only = [f"{name}={value}" for name, value in kind_of(runs[0]).items()]
    options = [word for one in only for word in ("--only", one)]
    return shlex.join(["mmbench", "compare", *folders, "--metric", part.metric, *options])


def notes_of(part: Reproduction) -> list[str]:
    """Return what was noted of the data when it was read."""
    return list(
        dict.fromkeys(n for run in runs_of(part) for n in run.record["dataset"].get("notes", ()))
    )


def _columns(names: Sequence[str], numeric: Iterable[str] = ()) -> list[Column]:
    return [Column(name, numeric=name in set(numeric)) for name in names]


def _code(text: str) -> Cell:
    from markupsafe import Markup

    return Cell(Markup("<code>{}</code>").format(text))


def _listed(names: Sequence[str]) -> Cell:
    if len(names) <= 4:
        return Cell(", ".join(names))
    return Cell(f"{len(names)} systems", title=", ".join(names))
