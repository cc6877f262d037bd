"""`mmbench reproduce`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmbase import cli
from mmbase.cli import FOLDER, PATH, CommaList, Command
from mmbase.layout import hanging
from mmbench.commands.common import command_line, engine_options, executor_of, out_option
from mmbench.commands.run import RECIPES
from mmbench.commands.train import parse_grid
from mmbench.config import Recipe, setting_name
from mmbench.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmbench.analysis.report.results import Line, Reproduction
    from mmbench.analysis.study import Protocol, Study
    from mmbench.data.splits import SplitTables
    from mmbench.runs.run import Result

_PROTOCOLS = click.Choice(["best", "grid"])
STAND_IN = "stand-in"
WIDTHS = {"visual": 4096, "textual": 1024}
_EARLY_S = 10.0  # after which a report is written anew in between, to be read early


@click.command(cls=Command)
@click.argument("recipes", nargs=-1, required=True, type=RECIPES)
@click.option(
    "--protocol", type=_PROTOCOLS, default="best", help="Published settings, or the published grid."
)
@click.option("--models", type=CommaList(), help="Some of the study's models.  [default: all]")
@click.option(
    "--data", type=PATH, help="Dataset folder, for one study.  [default: DATA_ROOT/DATASET]"
)
@click.option("--data-root", type=PATH, default=Path("data"), help="Parent of dataset folders.")
@click.option("--split-dir", type=FOLDER, help="Folder of split files to use.")
@cli.options_of(
    Recipe,
    only=("split", "features", "seed", "device"),
    split={"help": "Another split of the dataset than the study's."},
    features={"metavar": "MODALITY=NAME", "help": "Other feature sets than the study's."},
    seed={
        "flags": ("--seed", "seeds"),
        "type": CommaList(int),
        "help": "Seeds, comma-separated; a grid is searched with the first.",
    },
)
@click.option(
    "--grid",
    multiple=True,
    metavar="MODEL.NAME=V1,V2,…",
    help="Other values than the published grid's, with the protocol grid.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of a published value by which ours may differ and count as equal.  "
    "[default: the study's, if it has verdicts]",
)
@click.option("--stand-in", is_flag=True, help="Synthetic vectors for absent ones; see the report.")
@click.option("--epochs", type=click.IntRange(min=1), help="Fewer epochs, for a quick look.")
@out_option
@click.option("--report", type=PATH, default=Path("report"), help="Folder of the report.")
@engine_options
@cli.json_option
@cli.quiet_option
def reproduce(
    *, recipes: tuple[Path, ...], protocol: Protocol, as_json: bool, report: Path, **options: Any
) -> None:
    """Repeat published studies and report our values beside the published ones.

    With the protocol best each model trains with its published settings for exactly the published
    number of epochs; with grid the published grid is tried and validation chooses. Finished runs
    are read, not repeated: after an interruption the same command goes on.

    \b
    Examples:
      mmbench reproduce recipes/amazon/office.yaml
      mmbench reproduce recipes/amazon/*.yaml --protocol grid --models vbpr,freedom
      mmbench reproduce recipes/amazon/office.yaml --protocol grid --engine ray --address head
      mmbench reproduce recipes/amazon/office.yaml --split-dir office-split --stand-in --epochs 5
      mmbench reproduce recipes/tiktok.yaml --protocol grid --seed 123,124,125
      mmbench reproduce recipes/common/baby.yaml --models bpr-mf,lightgcn --seed 1,2,3 --margin 0.03
      mmbench reproduce study.yaml --protocol grid --models lightgcn --grid n_layers=2,3
    """
    from mmbench.analysis.report.reproduction import write
    from mmbench.analysis.report.results import Reproduction, line_of
    from mmbench.analysis.study import read_study, run_study, with_grid
    from mmbench.models import model_class
    from mmbench.runs.batch import Batch

    data, split, epochs = options["data"], options["split"], options["epochs"]
    if (data or options["split_dir"]) and len(recipes) > 1:
        raise UsageError("--data and --split-dir: belong to one study; give one recipe")
    seeds = tuple(dict.fromkeys(options["seeds"] or (Recipe.model_fields["seed"].default,)))
    grid = parse_grid(options["grid"])
    if grid and protocol != "grid":
        raise UsageError("--grid: belongs to --protocol grid; the protocol best tries no values")
    studies = [with_grid(read_study(recipe), grid, options["models"]) for recipe in recipes]
    datasets = [study.dataset for study in studies]
    for dataset, recipe in zip(datasets, recipes, strict=True):
        if datasets.count(dataset) > 1:
            told = "the report has one page for it, so do one at a time"
            raise UsageError(f"{recipe}: not the only study of {dataset}; {told}")
    reporter = cli.progress(quiet=options["quiet"])
    batch = Batch(options["out"], executor_of(options, reporter), reporter)
    parts: list[Reproduction] = []
    documents = []
    written_s = time.monotonic()
    for study in studies:
        folder = data or options["data_root"] / study.dataset
        wanted = _prepare(study, folder, options)
        names = options["models"] or list(study.models)
        facts = [f"protocol `{protocol}`, seeds {','.join(map(str, seeds))}"]
        warnings, unlike = _warnings(study, wanted, options), _unlike(study, wanted, options)
        margin = options["margin"] or study.margin
        lines: list[Line] = []
        results: dict[str, list[Result]] = {}
        device = options["device"] or Recipe.model_fields["device"].default
        choices = {"split": split, "features": wanted, "epochs": epochs, "device": device}
        for model, runs in run_study(study, protocol, batch, names, seeds, data=folder, **choices):
            plan, results[model] = study.models[model], runs
            settings = _settings(runs[0], [*plan.grid, *plan.best])
            why = unlike["content" if model_class(model).uses_features else "ids"]
            paths = [run.path for run in runs]
            lines.append(line_of(model, paths, plan.values, settings, why))
            facts += [fact for fact in _facts(runs[0].path) if fact not in facts]
            part = Reproduction(
                study.dataset, protocol, command_line(), facts, warnings, lines, margin=margin
            )
            if time.monotonic() - written_s > _EARLY_S:
                write([*parts, part], report)
                written_s = time.monotonic()
        parts.append(part)
        write(parts, report)
        tests = {
            name: [{"run": str(run.path), "test": run.test} for run in own]
            for name, own in results.items()
        }
        published = {name: study.models[name].values for name in names}
        document = {"dataset": study.dataset, "models": tests, "published": published}
        if part.judged:
            document["verdicts"] = {
                line.model: {metric: asdict(one) for metric, one in part.verdicts(line).items()}
                for line in lines
            }
        documents.append({**document, "warnings": warnings})
        if not as_json:
            _print(study, results)
            _print_verdicts(part)
            for text in warnings:
                click.echo(hanging(text, "note: ", "  ") + "\n")
    if as_json:
        cli.echo_json({"report": str(report), "studies": documents}, "mmbench.reproduction 1.0")
    else:
        click.echo(f"report: {report / 'index.md'}")
    batch.raise_failures()


def _prepare(study: Study, folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Put given splits and synthetic vectors into the dataset folder; return the feature sets."""
    from mmbench.data import files
    from mmbench.data.features import parse_wanted

    name, split_dir = options["split"] or study.split, options["split_dir"]
    if split_dir is not None and name is None:
        told = f"the study of {study.dataset} names no split to put it under"
        raise UsageError(f"--split-dir: {told}; give --split NAME, too")
    if split_dir is not None and name is not None:
        given = files.read_split(split_dir, None)
        if name not in files.available_splits(folder):
            _write_split(folder, name, given)
        elif _digest(folder, name) != _digest(split_dir, None):
            told = f"has another split {name!r} than {split_dir}"
            raise DataError(f"{folder}: {told}; use another --data folder")
    if not folder.is_dir():
        fetch = f"`mmx fetch {study.fetch} --out {folder}`"
        how = fetch if study.fetch else "see docs/reproducing.md"
        told = f"get it with {how}, or give --data or --split-dir"
        raise DataError(f"{folder}: no such dataset folder; {told}")
    if name and study.split_rule and name not in files.available_splits(folder):
        kind, _, numbers = study.split_rule.partition(":")
        if kind == "random":
            test, valid, seed = numbers.split(",")
            tables = files.make_random_split(folder, float(test), float(valid), int(seed))
        else:
            tables = files.make_eighths_split(folder, int(numbers))
        _write_split(folder, name, tables)
    wanted = {**study.features, **parse_wanted(options["features"])}
    if options["stand_in"]:
        for modality in wanted:
            wanted[modality] = STAND_IN
        _make_up(folder, name, list(wanted))
    return wanted


def _write_split(folder: Path, name: str, tables: SplitTables) -> None:
    from mmbase.outputs import new_folder
    from mmbench.data.splits import write_split

    with new_folder(folder / "splits" / name) as partial:  # a kill leaves no half of it
        write_split(partial, tables)


def _digest(folder: Path, split: str | None) -> str:
    from mmbench.data.dataset import load_split

    return load_split(folder, split).training.digest


def _make_up(folder: Path, split: str | None, modalities: Sequence[str]) -> None:
    """Write synthetic vectors of each modality into the store, unless they are there."""
    import numpy as np

    from mmbench.data.dataset import load_split
    from mmbench.data.exchange.bundle import Bundle, Vectors
    from mmbench.data.exchange.folder import write_features
    from mmbench.data.synthetic_vectors import standin_vectors

    absent = [m for m in modalities if not (folder / "features" / m / f"{STAND_IN}.h5").is_file()]
    if not absent:
        return
    training = load_split(folder, split).training
    ids = training.item_ids[: training.n_trained].tolist()
    vectors = []
    for modality in absent:
        seed = modalities.index(modality)
        matrix = standin_vectors(training.train, WIDTHS.get(modality, 128), seed)
        told = {
            "extractor": STAND_IN,
            "made_from": "training interactions and noise",
            "training": training.digest,
            "seed": seed,
        }
        vectors.append(Vectors(modality, STAND_IN, ids, matrix, np.ones(len(ids), bool), told))
    write_features(Bundle(training.name, {}, vectors=tuple(vectors)), folder)


def _warnings(study: Study, wanted: Mapping[str, str], options: Mapping[str, Any]) -> list[str]:
    warnings, split, epochs = [], options["split"], options["epochs"]
    if split not in (None, study.split):
        instead = f"{split} instead of {study.split or 'the only one'}"
        warnings.append(f"Another split than the study's: {instead}.")
    if options["stand_in"]:
        warnings.append(
            "The content vectors are made up from training interactions and noise, for the real "
            "ones were not at hand. What rests on content cannot be compared with the published "
            "values; that everything runs, and its cost, can."
        )
    elif dict(wanted) != study.features:
        sets = ", ".join(f"{modality}={name}" for modality, name in wanted.items())
        warnings.append(f"Other feature sets than the study's: {sets}.")
    if epochs is not None:
        instead = f"{epochs} epochs instead of the study's"
        warnings.append(f"Trained for {instead}: a quick look, no reproduction.")
    return warnings


def _unlike(study: Study, wanted: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    """Why models of ids, and of content, were measured on other things than the published ones."""
    why = ""
    if options["split"] not in (None, study.split):
        why = "another split"
    elif options["epochs"] is not None:
        why = "fewer epochs"
    other = "made-up vectors" if options["stand_in"] else "other vectors"
    same = not options["stand_in"] and dict(wanted) == study.features
    return {"ids": why, "content": why or ("" if same else other)}


def _print_verdicts(part: Reproduction) -> None:
    """Print a line for each published value."""
    for line in part.lines:
        for metric, one in part.verdicts(line).items():
            found = "" if one.interval is None else " [{:.4f}, {:.4f}]".format(*one.interval)
            told = f"{one.mean:.4f}{found}, published {one.published:.4f} ± {one.margin:.4f}"
            why = f" ({one.reason})" if one.reason else ""
            click.echo(hanging(f"{one.outcome}{why}: {told}", f"{line.model} {metric}: "))


def _facts(run: Path) -> list[str]:
    """Data and features of a run, one line each."""
    from mmbench.analysis.report.results import data_fact, feature_facts
    from mmbench.runs.folder import RunFolder

    record = RunFolder(run).read_json("run.json")
    return [data_fact(record), *feature_facts(record)]


def _settings(result: Result, names: Sequence[str]) -> str:
    from mmbench.runs.fit import in_words

    known = result.recipe.settings.model_dump()
    own = dict.fromkeys(setting_name(result.recipe.model, name) for name in names)
    return ", ".join(f"{name}={in_words(known[name], 6)}" for name in own)


def _print(study: Study, results: Mapping[str, Sequence[Result]]) -> None:
    from mmbench.analysis.report.tables import Row, print_results

    rows = []
    for model, runs in results.items():
        rows.append(Row(model, [run.test for run in runs]))
        published = study.models[model].values
        if published:
            rows.append(Row("  published", [{name: published.get(name) for name in runs[0].test}]))
    print_results(f"{study.dataset}, test", rows)
