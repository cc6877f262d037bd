"""Searches: proposals that a resume repeats, equal budgets, and kills that change nothing."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.mmbench.conftest import write_dataset
from tests.processes import Forked, ended

from mmbase.progress import Silent
from mmbench.commands.train import parse_search
from mmbench.commands.tune import tune
from mmbench.config import (
    Evaluation,
    Range,
    Recipe,
    Search,
    make_settings,
    read_recipe,
    write_recipe,
)
from mmbench.errors import UsageError
from mmbench.runs.finished_runs import find_runs
from mmbench.runs.fit import fit_one
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import load_inputs
from mmbench.runs.run import read_result
from mmbench.runs.search import Trial, propose, pruning, size, typed
from mmbench.trainer import TrainingProgress

SPACE: dict[str, Any] = {
    "lr": Range(low=1e-4, high=1e-1, log=True),
    "reg_weight": Range(low=0.0, high=0.5),
    "n_layers": Range(low=1, high=3, integer=True),
    "preset": ("paper", "original"),
}


def outcome(values: dict[str, Any]) -> float:
    """Best at lr = 0.01 with two layers."""
    return -abs(math.log10(values["lr"]) + 2) - abs(values["n_layers"] - 2) - values["reg_weight"]


def run_search(search: Search, n: int, seed: int = 1) -> list[Trial]:
    past: list[Trial] = []
    for _ in range(n):
        values = propose(search, seed, past)
        past.append(Trial(values, outcome(values)))
    return past


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_follow_from_the_past_alone(sampler: str) -> None:
    if sampler == "tpe":
        pytest.importorskip("optuna")
    search = Search(sampler=sampler, budget=12, space=SPACE)  # type: ignore[arg-type]
    past = run_search(search, 12)
    assert past == run_search(search, 12)
    assert propose(search, 1, past[:7]) == past[7].values
    assert propose(search, 2, past[:7]) != past[7].values
    for values in (trial.values for trial in past):
        assert 1e-4 <= values["lr"] <= 1e-1
        assert 0 <= values["reg_weight"] <= 0.5
        assert values["n_layers"] in (1, 2, 3)
        assert isinstance(values["n_layers"], int)
        assert values["preset"] in ("paper", "original")


def test_tpe_learns() -> None:
    pytest.importorskip("optuna")
    best = {}
    for sampler in ("tpe", "random"):
        search = Search(sampler=sampler, budget=25, space=SPACE)  # type: ignore[arg-type]
        best[sampler] = sum(
            max(outcome(dict(trial.values)) for trial in run_search(search, 25, seed))
            for seed in range(4)
        )
    assert best["tpe"] > best["random"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_exhausted_before_anything_is_repeated(sampler: str) -> None:
    if sampler == "tpe":
        pytest.importorskip("optuna")
    space = {"a": tuple(range(20)), "b": ("x", "y"), "c": Range(low=1, high=2, integer=True)}
    search = Search(sampler=sampler, budget=99, space=space)  # type: ignore[arg-type]
    assert size(search) == 80
    for seed in range(3):
        past = [
            Trial({"a": a, "b": b, "c": c}, 0.0)
            for a in range(20)
            for b in "xy"
            for c in (1, 2)
            if (a, b, c) != (7, "y", 2)
        ]
        past.append(Trial(propose(search, seed, past), 0.0))
        assert past[-1].values == {"a": 7, "b": "y", "c": 2}
        assert propose(search, seed, past)  # nothing new is left


def test_a_search_ends_with_its_space(toy: Path, tmp_path: Path) -> None:
    options = [
        "--model",
        "bpr-mf",
        "--data",
        str(toy),
        "--out",
        str(tmp_path),
        "--sampler",
        "random",
        *ARGUMENTS,
    ]
    done = CliRunner().invoke(
        tune, [*options, "--search", "lr=1e-2,1e-1,0.1"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert len(list(tmp_path.rglob("trained.json"))) == 2  # of a budget of 7


@pytest.mark.parametrize(
    ("model", "name", "choices", "held"),
    [
        ("mmgcn", "content_dims", "[64],[128]", ((64,), (128,))),
        ("vbpr", "lr", "1,'0.01'", (1.0, 0.01)),
        ("mmgcn", "concatenate", "1,0", (True, False)),
    ],
)
def test_values_to_choose_from_are_found_again_among_settings(
    model: str, name: str, choices: str, held: tuple[Any, ...]
) -> None:
    """After five trials TPE looks up what was tried; a list in a space is a tuple in settings."""
    pytest.importorskip("optuna")
    space = {**parse_search([f"{name}={choices}"]), "reg_weight": Range(low=0.1, high=0.5)}
    recipe = Recipe(
        model=model, settings=make_settings(model, {}), search=Search(budget=8, space=space)
    )
    search = typed(recipe)
    assert search is not None
    assert search.space[name] == held
    past: list[Trial] = []
    for number in range(8):
        settings = recipe.trial(propose(search, 1, past)).settings
        past.append(Trial({key: getattr(settings, key) for key in recipe.searched}, float(number)))


def test_spaces_from_the_command_line() -> None:
    options = [
        "lr=log:1e-4..1e-2",
        "n=int:1..3",
        "dropout=0.1..0.5",
        "reg=1e-5,1e-2",
        "preset=paper,original",
    ]
    assert parse_search(options) == {
        "lr": Range(low=1e-4, high=1e-2, log=True),
        "n": Range(low=1, high=3, integer=True),
        "dropout": Range(low=0.1, high=0.5),
        "reg": (1e-5, 1e-2),
        "preset": ("paper", "original"),
    }
    for wrong in ("lr=log:0..1", "n=int:1.5..3", "lr=2..1", "lr=lin:1..2", "lr=a..b"):
        with pytest.raises(UsageError, match="--search"):
            parse_search([wrong])


def test_grid_or_search() -> None:
    values: dict[str, Any] = {"model": "vbpr", "settings": make_settings("vbpr", {})}
    search = Search(budget=2, space={"lr": (0.1, 0.2)})
    with pytest.raises(ValueError, match="one of them"):
        Recipe(**values, grid={"lr": (0.1,)}, search=search)
    with pytest.raises(ValueError, match="no setting"):
        Recipe(**values, search=Search(budget=2, space={"rate": (0.1,)}))


@pytest.mark.parametrize(
    "space", [["lr=-0.001..0.1"], ["lr=0.1,-1"], ["n_layers=1..3"], ["n_layers=int:0..2", "lr=x,1"]]
)
def test_a_space_that_leaves_what_is_allowed_is_refused_before_anything_is_trained(
    space: list[str],
) -> None:
    values: dict[str, Any] = {"model": "lightgcn", "settings": make_settings("lightgcn", {})}
    with pytest.raises(UsageError, match="lightgcn: (lr|n_layers) = "):
        Recipe(**values, search=Search(budget=2, space=parse_search(space)))


ARGUMENTS = [
    "--set",
    "epochs=4",
    "--every",
    "2",
    "--set",
    "embedding_dim=8",
    "--budget",
    "7",
    "--seed",
    "3",
    "-q",
]
SPACES = ["--search", "lr=log:1e-3..1e-1", "--search", "reg_weight=1e-4,1e-2,1e-1"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("search") / "toy")


def test_a_search_is_a_run_like_any_other(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "runs"
    options = ["--model", "bpr-mf,vbpr", "--data", str(toy), "--out", str(out), *ARGUMENTS, *SPACES]
    done = CliRunner().invoke(tune, [*options, "--json"], catch_exceptions=False)
    documents = json.loads(done.stdout)["runs"]
    assert [one["model"] for one in documents] == ["bpr-mf", "vbpr"]
    for run in (Path(one["run"]) for one in documents):
        trials = sorted((run / "trials").iterdir())
        assert len(trials) == 7
        values = [json.loads((trial / "trained.json").read_text())["value"] for trial in trials]
        record = json.loads((run / "run.json").read_text())
        assert record["chosen_trial"] == values.index(max(values))
        chosen = yaml.safe_load((trials[record["chosen_trial"]] / "recipe.yaml").read_text())
        settings = read_result(run).recipe.settings
        assert settings.model_dump().items() >= chosen["settings"].items()
        assert find_runs([run])[0].recipe.settings == settings
        settings = [
            yaml.safe_load((trial / "recipe.yaml").read_text())["settings"] for trial in trials
        ]
        assert len({(one["lr"], one["reg_weight"]) for one in settings}) == 7
    assert "lr=" in CliRunner().invoke(tune, options, catch_exceptions=False).output


def test_an_absent_optuna_is_said_before_anything_is_trained(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    options = [
        "--model",
        "bpr-mf",
        "--data",
        str(toy),
        "--out",
        str(tmp_path / "runs"),
        *ARGUMENTS,
        *SPACES,
    ]
    done = CliRunner().invoke(tune, options)
    assert isinstance(done.exception, UsageError)
    assert "[tune]" in str(done.exception)
    assert not (tmp_path / "runs").exists()
    assert (
        CliRunner()
        .invoke(tune, [*options, "--sampler", "random"], catch_exceptions=False)
        .exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("sampler", "kills"),
    [
        ("tpe", 1),
        *(pytest.param(name, 10, marks=pytest.mark.slow) for name in ("tpe", "random", "grid")),
    ],
)
def test_killed_at_any_instant_it_ends_as_it_would_have(
    toy: Path, tmp_path: Path, sampler: str, kills: int
) -> None:
    if sampler == "tpe":
        pytest.importorskip("optuna")
    budget = 12 if kills == 10 else 7
    common = [
        "--model",
        "vbpr",
        "--data",
        str(toy),
        "-q",
        "--json",
        "--set",
        "epochs=30",
        "--every",
        "5",
    ]
    if sampler == "grid":
        command = [
            "train",
            *common,
            "--grid",
            "lr=0.001,0.01,0.02,0.05",
            "--grid",
            "reg_weight=1e-4,1e-2,1e-1",
        ]
    else:
        command = ["tune", *common, *SPACES, "--budget", str(budget), "--sampler", sampler]
    how: dict[str, Any] = {"cwd": tmp_path, "environment": {"MMBENCH_SAVE_EVERY_S": "0.2"}}
    start = time.monotonic()
    whole = json.loads(ended("mmbench", *command, "--out", tmp_path / "whole", **how).stdout)
    took = time.monotonic() - start
    rng = random.Random(kills)
    finished: dict[Path, int] = {}
    for _ in range(kills):
        process = Forked("mmbench", *command, "--out", tmp_path / "killed", **how)
        time.sleep(rng.uniform(0.2, 1.0) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {
            path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("trained.json")
        }
        assert finished.items() <= now.items()  # no finished trial is done again
        finished = now
    killed = json.loads(ended("mmbench", *command, "--out", tmp_path / "killed", **how).stdout)
    assert killed["settings"] == whole["settings"]
    assert killed["test"] == whole["test"]
    ours, theirs = (Path(one["run"]) / "metrics.json" for one in (killed, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(list((tmp_path / "killed").rglob("trained.json"))) == len(
        list((tmp_path / "whole").rglob("trained.json"))
    )
    shutil.rmtree(tmp_path / "killed")


def test_a_trial_that_was_begun_keeps_its_settings_whatever_a_newer_sampler_proposes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--model",
        "bpr-mf",
        "--data",
        str(toy),
        "--out",
        str(tmp_path),
        *ARGUMENTS,
        *SPACES,
        "--json",
    ]
    options += ["--sampler", "random", "--budget", "3"]
    whole = json.loads(CliRunner().invoke(tune, options, catch_exceptions=False).stdout)
    run = Path(whole["run"])
    for name in ("metrics.json", "run.json", "trials/002/trained.json"):
        (run / name).unlink()
    monkeypatch.setattr("mmbench.runs.search.propose", lambda *_: {"lr": 0.5, "reg_weight": 0.1})
    again = json.loads(CliRunner().invoke(tune, options, catch_exceptions=False).stdout)
    assert (again["settings"], again["test"]) == (whole["settings"], whole["test"])
    for trial in (run / "trials").iterdir():
        assert yaml.safe_load((trial / "recipe.yaml").read_text())["settings"]["lr"] != 0.5


# ------------------------------------------------------------------------------------------------
# pruners

PRUNERS = ("median", "halving", "hyperband")
EPOCHS = 18


def curves(seed: int, n: int = 20) -> list[list[float]]:
    """Validation values of `n` trials after each epoch; they rise and fall."""
    rng = random.Random(seed)
    return [
        [rng.uniform(0, 1) + level * epoch / EPOCHS for epoch in range(EPOCHS)]
        for level in (rng.uniform(0, 3) for _ in range(n))
    ]


def best_so_far(curve: list[float]) -> list[float]:
    return [max(curve[: place + 1]) for place in range(len(curve))]


def searched(pruner: str, curves: list[list[float]], failing: int = -1) -> list[Trial]:
    """The trials of a search; one fails after some epochs."""
    named: Any = pruner
    search = Search(budget=len(curves), space={"lr": (0.1, 0.2)}, pruner=named)
    past: list[Trial] = []
    for number, curve in enumerate(curves):
        hopeless, course, pruned = pruning(search, EPOCHS, 1, past), [], False
        assert hopeless is not None
        for value in best_so_far(curve)[: EPOCHS // 2 if number == failing else None]:
            course.append(value)
            if len(course) < EPOCHS and (pruned := hopeless(value)):
                break
        past.append(Trial({}, None if number == failing else course[-1], course, pruned))
    return past


@pytest.mark.parametrize("pruner", PRUNERS)
def test_decisions_are_those_of_optuna_in_one_study(pruner: str) -> None:
    """Each trial of ours gets a new study, made of what is on disk."""
    optuna = pytest.importorskip("optuna")
    theirs = {
        "median": optuna.pruners.MedianPruner(),
        "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        "hyperband": optuna.pruners.HyperbandPruner(max_resource=EPOCHS),
    }
    study = optuna.create_study(direction="maximize", pruner=theirs[pruner], study_name="search")
    found = []
    for curve in curves(3):
        trial, values = study.ask(), best_so_far(curve)
        for step, value in enumerate(values, 1):
            trial.report(value, step)
            if trial.should_prune() and step < EPOCHS:
                found.append((step, True))
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            found.append((EPOCHS, False))
            study.tell(trial, values[-1])
    ours = searched(pruner, curves(3))
    assert [(len(trial.course), trial.pruned) for trial in ours] == found
    assert 3 < sum(pruned for _, pruned in found) < 20


@pytest.mark.parametrize("pruner", PRUNERS)
def test_the_best_trial_is_never_one_that_was_ended(pruner: str) -> None:
    pytest.importorskip("optuna")
    for seed in range(10):
        past = searched(pruner, curves(seed))
        best = max(past, key=lambda trial: trial.value or 0.0)
        assert not best.pruned
        assert len(best.course) == EPOCHS


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_trial_that_failed_is_no_rival(pruner: str) -> None:
    pytest.importorskip("optuna")
    some = curves(0)
    some.insert(0, [9.0] * EPOCHS)
    assert searched(pruner, some, failing=0)[1:] == searched(pruner, some[1:])


def test_median_needs_five_complete_trials() -> None:
    pytest.importorskip("optuna")
    rising = [[float(number)] * EPOCHS for number in (5, 4, 3, 2, 1, 0)]
    past = searched("median", rising)
    assert [len(trial.course) for trial in past] == [EPOCHS] * 5 + [1]


PRUNED = [
    *("--model", "bpr-mf", "--set", "epochs=8", "--set", "embedding_dim=4", "--every", "1"),
    *("--search", "lr=log:1e-4..1e-1", "--budget", "6", "--seed", "3", "--sampler", "random"),
    *("-q", "--pruner", "halving"),
]


def outcomes(run: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["trials"]
    return trials


def test_trials_that_are_ended_early_are_recorded_and_shown(toy: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    options = ["--data", str(toy), "--out", str(tmp_path), *PRUNED]
    document = json.loads(
        CliRunner().invoke(tune, [*options, "--json"], catch_exceptions=False).stdout
    )
    run = Path(document["run"])
    trials = outcomes(run)
    assert document["trials"] == trials
    ended = [number for number, trial in enumerate(trials) if "pruned" in trial]
    assert 0 < len(ended) < len(trials)
    for number, trial in enumerate(trials):
        folder = run / "trials" / f"{number:03d}"
        epochs = len((folder / "history.jsonl").read_text().splitlines())
        trained = json.loads((folder / "trained.json").read_text())
        assert trained.get("pruned", False) == (number in ended)
        assert epochs == trained["epochs"] == trial.get("pruned", 8)
        assert (epochs < 8) == (number in ended)
    assert json.loads((run / "run.json").read_text())["chosen_trial"] not in ended
    assert read_recipe(run / "recipe.yaml").search.pruner == "halving"  # type: ignore[union-attr]
    shown = CliRunner().invoke(tune, options, catch_exceptions=False).output
    assert shown.count("pruned at ") == len(ended)
    assert shown.count("chosen") == 1


def test_without_a_pruner_a_run_has_the_name_it_ever_had(tmp_path: Path) -> None:
    search = Search(sampler="random", budget=2, space={"lr": (0.1, 0.2)})
    recipe = Recipe(model="vbpr", settings=make_settings("vbpr", {}), search=search)
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert "pruner" not in (tmp_path / "recipe.yaml").read_text()
    plain = {"sampler": "random", "budget": 2, "space": {"lr": [0.1, 0.2]}}
    assert recipe.dump()["search"] == plain
    other = recipe.model_copy(update={"search": search.model_copy(update={"pruner": "median"})})
    write_recipe(tmp_path / "recipe.yaml", other)
    assert read_recipe(tmp_path / "recipe.yaml") == other
    assert other.digest() != recipe.digest()


def test_killed_after_any_validation_a_pruner_sees_what_it_would_have_seen(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All validations, from the first one on; and a trial that it ended is not trained on."""
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    settings = make_settings("bpr-mf", {"epochs": 5, "embedding_dim": 4, "lr": 0.01})
    how = Evaluation(every=1, cutoffs=(10,), select_by="Recall@10", metrics=("Recall",))
    recipe = Recipe(data=str(toy), model="bpr-mf", settings=settings, evaluation=how)
    recipe, inputs = load_inputs(recipe)
    setting = inputs.setting_of(recipe)
    write = RunFolder.save_state

    def trained(folder: RunFolder, end: int, kill: int = 0) -> tuple[list[float], dict[str, Any]]:
        def die(self: RunFolder, tensors: Any, at: TrainingProgress) -> None:
            write(self, tensors, at)
            if at.epoch == kill:
                raise KeyboardInterrupt

        def hopeless(value: float) -> bool:
            seen.append(value)
            return len(seen) == end

        seen: list[float] = []
        folder.path.mkdir(exist_ok=True)
        monkeypatch.setattr(RunFolder, "save_state", die)
        if kill:
            with pytest.raises(KeyboardInterrupt):
                fit_one(recipe, setting, folder, Silent(), hopeless=hopeless)
            return trained(folder, end)
        fit_one(recipe, setting, folder, Silent(), hopeless=hopeless)
        told = folder.read_json("trained.json")
        names = ("best_epoch", "epochs", "value", "pruned")
        return seen, {name: told.get(name) for name in names}

    for end, last in ((3, 3), (9, 4)):  # the validation after the last epoch ends no trial
        whole = trained(RunFolder(tmp_path / f"{end}"), end)
        assert whole[1]["epochs"] == (3 if end == 3 else 5)
        assert whole[1]["pruned"] == (True if end == 3 else None)
        assert len(whole[0]) == last
        for kill in range(1, last + 1):
            assert trained(RunFolder(tmp_path / f"{end}-{kill}"), end, kill) == whole


def test_killed_in_a_trial_the_search_ends_the_same_trials(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    options = ["--data", str(toy), *PRUNED, "--budget", "5", "--json"]

    def call(out: Path) -> Result:
        return CliRunner().invoke(tune, [*options, "--out", str(out)])

    whole = Path(json.loads(call(tmp_path / "whole").stdout)["run"])
    ended = [number for number, trial in enumerate(outcomes(whole)) if "pruned" in trial]
    write, doomed = RunFolder.save_state, f"{ended[-1]:03d}"

    def die(self: RunFolder, *state: Any) -> None:
        write(self, *state)
        if self.path.name == doomed:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_state", die)
    assert call(tmp_path / "killed").exit_code
    monkeypatch.setattr(RunFolder, "save_state", write)
    killed = Path(json.loads(call(tmp_path / "killed").stdout)["run"])
    assert outcomes(killed) == outcomes(whole)
    assert (killed / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_an_absent_optuna_is_said_for_a_pruner_too(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = CliRunner().invoke(tune, ["--data", str(toy), "--out", str(tmp_path / "out"), *PRUNED])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith("--pruner halving: needs the package optuna")
    assert str(done.exception).endswith("or use --pruner none")
    assert not (tmp_path / "out").exists()
