"""`mmbench train`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import yaml
from pydantic import ValidationError

from mmbase import cli, layout
from mmbase.cli import FOLDER, PATH, CommaList, Command, Function, given
from mmbase.completion import Complete
from mmbench.commands import common
from mmbench.config import Approximation, Evaluation, Range, Recipe, Search
from mmbench.errors import SomeFailed, UsageError, unknown_name

if TYPE_CHECKING:
    from mmbase.progress import Progress
    from mmbench.runs.run import Result

_MODELS_HELP = "Model names, comma-separated or repeated; see `mmbench models`."
_SEEDS_HELP = "Seeds, comma-separated: one run each."
_SEVERAL = {"multiple": True, "default": ()}


def _names(complete: Complete) -> dict[str, Any]:
    return {"shell_complete": complete}


def recipe_options(*exclude: str, running: bool = True) -> Callable[[Function], Function]:
    """Add the options of `Recipe` and `Evaluation`, and with `running` those of doing the runs."""

    def decorate(function: Function) -> Function:
        own = [
            common.engine_options,
            common.track_option,
            common.restart_option,
            common.out_option,
            common.slices_option,
        ]
        for option in (cli.json_option, *(own if running else [common.out_option])):
            function = option(function)
        return cli.options_of(
            Recipe,
            Evaluation,
            exclude=("search", "evaluation", *exclude),
            data={"type": PATH},
            columns={"metavar": "ROLE=NAME", "callback": cli.parse_pairs},
            model={
                "flags": ("--model", "models"),
                "help": _MODELS_HELP,
                **_SEVERAL,
                **_names(common.model_names),
            },
            features={"metavar": "MODALITY=NAME"},
            split=_names(common.split_names),
            missing={"metavar": "POLICY", **_names(common.policy_names)},
            mask={"metavar": "MODALITY=SHARE", "callback": cli.parse_pairs},
            control={
                "metavar": "MODALITY=CONTROL",
                "callback": cli.parse_pairs,
                **_names(common.control_names),
            },
            start_from={"type": FOLDER, "metavar": "RUN"},
            seed={"flags": ("--seed", "seeds"), "type": CommaList(int), "help": _SEEDS_HELP},
            approximate={"metavar": "NAME,…", "type": str, "shown": "none"},
            settings={"flags": ("--set", "settings"), "metavar": "NAME=VALUE", **_SEVERAL},
            **({} if "grid" in exclude else {"grid": {"metavar": "NAME=V1,V2,…"}}),
            diversity_features={"metavar": "MODALITY[=NAME]"},
            categories={"metavar": "COLUMN"},
            metrics={"shown": "paper", **_names(common.metric_names)},
            select_by=_names(common.metrics_at_cutoffs),
        )(function)

    return decorate


@click.command(cls=Command)
@recipe_options()
@click.option("--resume", type=FOLDER, help="Continue this run folder.")
@cli.quiet_option
def train(*, resume: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train models and print their validation and test metrics.

    A run is a folder under --out, named after everything that decides its numbers: the same command
    again shows a finished run, and continues an unfinished one. Settings and grids apply to the
    models that have them.

    \b
    Examples:
      mmbench train --model vbpr
      mmbench train --model vbpr --data my/catalogue --features visual=resnet50
      mmbench train --model vbpr,bpr-mf,item-knn,most-popular --grid lr=0.0005,0.001,0.005,0.01
      mmbench train --model vbpr --set lr=0.005 --set reg_weight=0.01 --seed 1,2,3,4,5
      mmbench train --model vbpr,freedom --grid lr=0.0005,0.001,0.005 --jobs 4
      mmbench train --model vbpr,freedom --grid lr=0.0005,0.001,0.005 --engine ray --address auto
      mmbench train --model vbpr,freedom --missing pagerank:alpha=0.2 --mask visual=0.5,textual=0.5
      mmbench train --model vbpr --control visual=shuffled --seed 1,2,3
      mmbench train --model vbpr --track tensorboard
      mmbench train --model vbpr --data my/catalogue --start-from runs/demo-vbpr-0123456789
      mmbench train --resume runs/demo-vbpr-0123456789
    """
    reporter = cli.progress(quiet=quiet)
    if resume is None:
        train_all(options, reporter, as_json=as_json)
        return
    from mmbench.runs.batch import raise_failures
    from mmbench.runs.run import resume_inputs, run
    from mmbench.runs.trackers import tracking

    why = "has no meaning beside --resume, which goes on with the run's own recipe"
    cli.refuse_options({*options} - {"data", "slices", "restart", "track"}, why)
    inputs = resume_inputs(resume, options["data"])
    with tracking(options["track"], reporter):
        result = run(*inputs, progress=reporter, restart=options["restart"])
    show([result], as_json, slices=options["slices"])
    raise_failures(result.failed)


def train_all(options: Mapping[str, Any], progress: Progress, *, as_json: bool) -> None:
    """Train the recipes that the options of `recipe_options` describe, and print the results."""
    train_and_show(recipes_from(options, progress), options, progress, as_json=as_json)


def train_and_show(
    recipes: Sequence[Recipe], options: Mapping[str, Any], progress: Progress, *, as_json: bool
) -> None:
    """Train recipes where and how `engine_options` and others say, and print the results."""
    from mmbench.interface.training import train as trained

    how = {name: options[name] for name in ("out", "restart", "track")}
    try:
        runs: Sequence[Result] = trained(
            recipes, executor=common.executor_of(options, progress), progress=progress, **how
        )
    except SomeFailed as error:
        show(error.finished, as_json, slices=options["slices"])
        raise
    show(runs, as_json, slices=options["slices"])


def recipes_from(options: Mapping[str, Any], progress: Progress) -> list[Recipe]:
    """Return one recipe for each model and seed of a command line; see `recipes`.

    Raises:
        UsageError: A value is not allowed; all are checked before anything is trained.
    """
    from mmbench.data.features import parse_wanted
    from mmbench.interface.training import recipes

    typed = given(Recipe, options) | given(Evaluation, options)
    parsed = ("data", "features", "approximate", "settings", "grid", "search")
    return recipes(
        options["models"],
        options["data"],
        seed=options["seeds"],
        settings=parse_settings(options["settings"]),
        grid=parse_grid(options.get("grid", ())),
        search=parse_search(options.get("search", ())),
        how=given(Search, options),
        progress=progress,
        features=parse_wanted(options["features"]),
        approximate=parse_approximations(options["approximate"] or ""),
        **{name: value for name, value in typed.items() if name not in parsed},
    )


def show(results: Sequence[Result], as_json: bool, *, slices: bool) -> None:
    """Print validation, test and cost of runs: a table per dataset and scaling, or one document."""
    from mmbench.analysis.report.tables import print_slices
    from mmbench.evaluation.protocol import NO_HITS
    from mmbench.runs.fit import in_words
    from mmbench.runs.run import summarise

    if as_json:
        documents = summarise(results)
        if slices:
            for one, run in zip(documents, results, strict=True):
                one["slices"] = dict(run.slices)
        one_or_all = documents[0] if len(documents) == 1 else {"runs": documents}
        cli.echo_json(one_or_all, "mmbench.runs 1.0")
        return
    for about, runs in _by_data(results).items():
        recipe = runs[0].recipe
        name, protocol = Path(recipe.data).resolve().name, recipe.evaluation.protocol
        click.echo(f"{name}, split {recipe.split}, protocol {protocol}\n")
        _tables(about, runs)
    for run in results:
        trained = f", best epoch {run.best_epoch}" if run.best_epoch else ""
        chosen = "".join(
            f", {name}={in_words(getattr(run.recipe.settings, name))}" for name in run.tried
        )
        if run.trials:
            _print_trials(run)
        click.echo(f"{run.recipe.model}, seed {run.recipe.seed}{chosen}{trained}: {run.path}")
        if run.unfinished:
            click.echo(
                f"{run.recipe.model}: the best epoch is the last one validated, so more may be "
                f"better: --set epochs={2 * run.recipe.settings.epochs}"
            )
        for split in run.no_hits:
            click.echo(f"{run.recipe.model}: metrics of hits on {split} are n/a: {NO_HITS}")
        if slices:
            print_slices("test", run.slices["test"])


def _print_trials(run: Result) -> None:
    """Print the outcome of each trial, the chosen one marked."""
    from mmbench.analysis.report.tables import number
    from mmbench.runs.fit import in_words

    recipe = run.recipe
    settings = recipe.settings.model_dump(mode="json")
    chosen = {name: settings[name] for name in run.tried}
    cells: dict[str, list[str]] = {
        name: [in_words(one["settings"].get(name)) for one in run.trials] for name in run.tried
    }
    outcome = f"valid {recipe.evaluation.select_by}"
    cells |= {outcome: [], "epoch": [], "": []}
    for one in run.trials:
        failed, value = one.get("failed"), one.get("value")
        cells[outcome].append("-" if value is None else number(value))
        cells["epoch"].append("-" if failed else str(one.get("best_epoch", "-")))
        mark = "failed" if failed else "chosen" if one["settings"] == chosen else ""
        if (ended := one.get("pruned")) is not None:
            mark = f"pruned at {ended}"
        cells[""].append(mark)
    cli.echo_table(
        [layout.Column("trial", [str(place) for place in range(1, len(run.trials) + 1)])],
        [layout.Column(name, values, left=not name) for name, values in cells.items()],
        title=f"trials of {recipe.model}, seed {recipe.seed}",
    )


def _by_data(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group runs by the facts about their data that differ; one empty key if none does."""
    from mmbench.runs.kinds import in_short, treatment_of

    def facts(run: Result) -> dict[str, str]:
        recipe = run.recipe
        policy, told = recipe.treatment.policy, treatment_of(recipe)
        left_out = f", mask {in_short(told['mask'])}" if policy.DROPS and "mask" in told else ""
        return {
            "data": Path(recipe.data).name,
            "split": str(recipe.split),
            "protocol": recipe.evaluation.protocol,
            "missing": f"missing {policy.short}{left_out}",
            "scaling": f"scaling {recipe.scaling}",
        }

    told = [facts(run) for run in results]
    differ = [name for name in told[0] if len({one[name] for one in told}) > 1]
    groups: dict[str, list[Result]] = {}
    for run, one in zip(results, told, strict=True):
        groups.setdefault(", ".join(one[name] for name in differ), []).append(run)
    return groups


def _tables(about: str, runs: Sequence[Result]) -> None:
    from mmbench.analysis.report.tables import Row, print_costs, print_results
    from mmbench.interface.results import Runs

    rows: dict[str, list[Result]] = {}
    for run, label in zip(runs, Runs(tuple(runs)).labels, strict=True):
        rows.setdefault(label, []).append(run)
    for split in ("valid", "test"):
        values = [Row(label, [getattr(run, split) for run in own]) for label, own in rows.items()]
        print_results(f"{about}, {split}" if about else split, values)
    print_costs([Row(label, [run.cost for run in own]) for label, own in rows.items()])


def parse_value(text: str) -> Any:
    """Parse a command-line value as YAML, and 1e-5 as a number."""
    if "e" in text.casefold():
        with contextlib.suppress(ValueError):
            return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is not a value: {str(error).splitlines()[0]}") from error


def parse_settings(options: Sequence[str]) -> dict[str, Any]:
    """Parse `lr=0.001` and the like.

    Raises:
        UsageError: An option has no `=` or no value.
    """
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not (key and equals and text):
            raise UsageError(f"--set {option}: expected NAME=VALUE, e.g. lr=0.001")
        values[key] = parse_value(text)
    return values


def parse_approximations(text: str) -> tuple[Approximation, ...]:
    """Parse `frozen-features,tf32` and the like; return them sorted.

    Raises:
        UsageError: There is no such approximation.
    """
    known: dict[str, Approximation] = {name: name for name in get_args(Approximation)}
    names = sorted({part.strip() for part in text.split(",") if part.strip()})
    for name in names:
        if name not in known:
            raise unknown_name("approximation", name, known)
    return tuple(known[name] for name in names)


def parse_grid(options: Sequence[str], flag: str = "--grid") -> dict[str, tuple[Any, ...]]:
    """Parse `lr=0.001,0.01` and the like as a mapping from name to the values to try.

    Raises:
        UsageError: An option has no `=` or lacks a value, or a name is given twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for option in options:
        name, _, text = option.partition("=")
        if not (name and all(text.split(","))):
            raise UsageError(f"{flag} {option}: expected NAME=V1,V2,…, e.g. lr=0.001,0.01")
        if name in grid:
            raise UsageError(
                f"{flag} {option}: {name} is given twice; list all of its values at once"
            )
        grid[name] = tuple(parse_value(value) for value in text.split(","))
    return grid


def parse_search(options: Sequence[str]) -> dict[str, Range | tuple[Any, ...]]:
    """Parse `lr=log:1e-4..1e-2`, `n_layers=int:1..3`, `dropout=0.1..0.5`, `reg_weight=1e-5,1e-2`.

    Raises:
        UsageError: An option is none of these.
    """
    space: dict[str, Range | tuple[Any, ...]] = {}
    for option in options:
        name, _, text = option.partition("=")
        if name in space:
            raise UsageError(f"--search {option}: {name} is given twice")
        kind, colon, bounds = text.partition(":")
        low, dots, high = (bounds if colon else text).partition("..")
        if not dots:
            space |= parse_grid([option], "--search")
            continue
        try:
            if kind not in ("log", "int") and colon:
                raise ValueError(f"{kind!r} is neither log nor int")
            space[name] = Range(
                low=float(low), high=float(high), log=kind == "log", integer=kind == "int"
            )
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise UsageError(
                f"--search {option}: {reason}; e.g. lr=log:1e-4..1e-2, n_layers=int:1..3, "
                "reg_weight=1e-5,1e-2"
            ) from error
    return space
