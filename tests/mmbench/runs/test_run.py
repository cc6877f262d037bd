"""From a recipe to a run folder: selection, resume at any epoch, grids, records, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmbase.process import peak_memory_bytes
from mmbase.progress import Silent
from mmbench.analysis.recommend import load_run
from mmbench.commands.train import parse_approximations
from mmbench.config import Recipe, for_model, make_settings, read_recipe
from mmbench.data.dataset import TestData
from mmbench.errors import DataError, Diverged, TrainingError, UsageError
from mmbench.evaluation import protocol
from mmbench.evaluation.protocol import evaluate_lists, rank_all
from mmbench.models import MODELS, model_class
from mmbench.models.base import Known, Score
from mmbench.runs import fit, search
from mmbench.runs import record as run_record
from mmbench.runs import run as experiment
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import Inputs, load_inputs
from mmbench.runs.run import run, run_folder
from mmbench.trainer import Adam, EpochRecord, Trainer

SETTINGS = {"embedding_dim": 8, "batch_size": 64, "lr": 0.02, "epochs": 12}


def prepare(
    dataset: Path, out: Path, model: str = "vbpr", **changes: object
) -> tuple[Recipe, Inputs, RunFolder]:
    settings = {**SETTINGS, **changes.pop("settings", {})} if model in ("vbpr", "bpr-mf") else {}  # type: ignore[dict-item]
    recipe = Recipe(
        data=str(dataset),
        model=model,
        settings=make_settings(model, settings),
        **{"evaluation": {"every": 2, "cutoffs": (5, 10), "select_by": "Recall@10"}, **changes},  # type: ignore[arg-type]
    )
    recipe, inputs = load_inputs(recipe)
    return recipe, inputs, run_folder(out, recipe, inputs)


def train(dataset: Path, out: Path, model: str = "vbpr", **changes: object) -> experiment.Result:
    return run(*prepare(dataset, out, model, **changes), progress=Silent())


def test_a_run_folder_has_all_that_was_promised(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "runs")
    folder = result.path
    assert folder.name.startswith("toy-vbpr-")
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "recipe.yaml",
        "begun.json",
        "run.json",
        "metrics.json",
        "trained.json",
        "history.jsonl",
        "per_user.parquet",
        "checkpoint.safetensors",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["test"]) == {
        f"{name}@{k}" for name in ("Recall", "nDCG", "EFD", "Gini", "APLT", "iCov") for k in (5, 10)
    }
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == list(range(1, 13))
    validated = {line["epoch"]: line["valid"]["Recall@10"] for line in history if line["valid"]}
    assert list(validated) == [2, 4, 6, 8, 10, 12]
    # the first of the best epochs is chosen, and its numbers are those reported
    best = max(validated, key=lambda epoch: (validated[epoch], -epoch))
    assert metrics["best_epoch"] == best
    assert metrics["valid"]["Recall@10"] == validated[best] == metrics["selected_by"]["value"]
    record = json.loads((folder / "run.json").read_text())
    assert record["features"]["visual"]["missing"] == 1
    assert record["features"]["visual"]["missing_policy"] == "mean"
    assert record["protocol"]["test_scored"] == "once, after selection"
    assert record["settings"]["lr"] == 0.02
    per_user = pd.read_parquet(folder / "per_user.parquet")
    for split in ("valid", "test"):
        mean = per_user[per_user.split == split]["Recall@10"].mean()
        assert mean == pytest.approx(metrics[split]["Recall@10"], rel=1e-12)
    assert read_recipe(folder / "recipe.yaml").settings.lr == 0.02


def test_the_same_recipe_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    first, again = (train(dataset, tmp_path / name).path for name in ("a", "b"))
    assert first.name == again.name
    assert (first / "metrics.json").read_bytes() == (again / "metrics.json").read_bytes()
    assert (first / "per_user.parquet").read_bytes() == (again / "per_user.parquet").read_bytes()


def test_a_finished_run_is_read_and_not_repeated(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(dataset, tmp_path / "runs")
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained again"))
    again = train(dataset, tmp_path / "runs")
    assert again == first or (again.path, again.test) == (first.path, first.test)
    with experiment.locked(RunFolder(first.path)):  # nor is anything written
        assert train(dataset, tmp_path / "runs").test == first.test


@pytest.mark.parametrize("model", ["vbpr", "bpr-mf"])
@pytest.mark.parametrize("killed_after", [1, 2, 5, 11])
def test_interrupted_and_resumed_equals_uninterrupted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, killed_after: int
) -> None:
    whole = train(dataset, tmp_path / "whole", model)
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    append = RunFolder.append_history

    def die(self: RunFolder, record: EpochRecord) -> None:
        append(self, record)
        if record.epoch == killed_after + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_history", die)
    recipe, inputs, folder = prepare(dataset, tmp_path / "parts", model)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, inputs, folder, progress=Silent())
    assert not folder.complete
    monkeypatch.setattr(RunFolder, "append_history", append)
    resumed = run(*experiment.resume_inputs(folder.path), progress=Silent())
    assert (whole.path / "metrics.json").read_bytes() == (
        resumed.path / "metrics.json"
    ).read_bytes()
    strip = [{**line, "seconds": 0} for line in RunFolder(whole.path).history()]
    assert strip == [{**line, "seconds": 0} for line in RunFolder(resumed.path).history()]


@pytest.mark.parametrize(
    ("values", "best"), [({4: 0.5, 6: 0.4, 8: 0.3}, 2), ({4: 0.5, 6: 3.0, 8: 2.0}, 6)]
)
def test_what_is_computed_again_need_not_be_better_again(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[int, float],
    best: int,
) -> None:
    """Epochs repeated after a kill may differ, on a GPU, from those of the checkpoint."""
    validated, save = Trainer._validated, RunFolder.save_state

    def scripted(values: dict[int, float]) -> None:
        def validate(self: Trainer, record: EpochRecord) -> EpochRecord:
            if record.epoch not in values:
                raise KeyboardInterrupt
            self.validate = lambda model: {self.metric: values[record.epoch]}
            return validated(self, record)

        monkeypatch.setattr(Trainer, "_validated", validate)

    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    monkeypatch.setattr(
        RunFolder,
        "save_state",
        lambda self, tensors, at: save(self, tensors, at) if at.epoch < 4 else None,
    )
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", "bpr-mf", settings={"epochs": 8})
    scripted({2: 1.0, 4: 5.0, 6: 6.0})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, inputs, folder, progress=Silent())
    scripted(values)
    result = run(*experiment.resume_inputs(folder.path), progress=Silent())
    assert result.best_epoch == best
    assert folder.load_checkpoint(best)
    assert not folder.checkpoint_of_state_path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        name
        for name in MODELS
        if model_class(name).trained and not model_class(name).uses_categories
    ],
)
def test_killed_within_any_step_every_model_ends_with_the_same_bytes(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    settings = {"epochs": 6, "batch_size": 64, "lr": 0.02}

    def ready(out: str) -> tuple[Recipe, Inputs, RunFolder]:
        recipe = Recipe(
            data=str(dataset),
            model=model,
            settings=make_settings(model, settings),
            evaluation={"every": 2, "cutoffs": (10,), "select_by": "Recall@10"},  # type: ignore[arg-type]
        )
        recipe, inputs = load_inputs(recipe)
        return recipe, inputs, run_folder(tmp_path / out, recipe, inputs)

    whole = run(*ready("whole"), progress=Silent()).path
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    steps = 0
    adam_step = Adam.step

    def die(self: Adam) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            raise KeyboardInterrupt
        adam_step(self)

    monkeypatch.setattr(Adam, "step", die)
    for number, kill in enumerate(
        np.random.default_rng(0).choice(np.arange(1, 24), 10, replace=False)
    ):
        steps = int(kill)
        recipe, inputs, folder = ready(f"killed{number}")
        with pytest.raises(KeyboardInterrupt):
            run(recipe, inputs, folder, progress=Silent())
        resumed = run(*experiment.resume_inputs(folder.path), progress=Silent()).path
        assert (resumed / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes(), (
            kill
        )


def test_another_feature_file_is_another_run(dataset: Path, tmp_path: Path) -> None:
    from mmstore import FeatureSet, FeatureSetWriter

    _, _, before = prepare(dataset, tmp_path)
    path = dataset / "features" / "visual" / "toy.h5"
    with FeatureSet(path) as features:
        ids, matrix = features.ids, features.matrix(features.ids)[0]
    path.unlink()
    matrix[1] += 0.5
    with FeatureSetWriter(
        path, modality="visual", dim=6, ids=ids, provenance={"extractor": "test"}
    ) as writer:
        writer.write(np.arange(1, 30), matrix[1:])
        writer.mark_missing(np.array([0]))
        writer.finish()
    _, _, after = prepare(dataset, tmp_path)
    assert before.path != after.path
    assert (
        prepare(dataset, tmp_path, "bpr-mf")[2].path == prepare(dataset, tmp_path, "bpr-mf")[2].path
    )


@pytest.mark.parametrize("model", ["mmgcn", "vbpr"])
def test_the_order_in_which_feature_sets_are_given_decides_nothing(
    dataset: Path, tmp_path: Path, model: str
) -> None:
    # The folder's name knows no order; MMGCN projects its first modality and keeps the second one's
    # width.
    results = []
    for number, features in enumerate(
        ({}, {"visual": "toy", "textual": "words"}, {"textual": "words", "visual": "toy"})
    ):
        recipe = Recipe(
            data=str(dataset),
            model=model,
            features=features,
            settings=make_settings(model, {"embedding_dim": 8, "batch_size": 64, "epochs": 2}),
        )
        resolved, inputs = load_inputs(recipe)
        assert list(inputs.features) == ["visual", "textual"]
        folder = run_folder(tmp_path / str(number), resolved, inputs)
        results.append(run(resolved, inputs, folder, progress=Silent()))
    assert len({result.path.name for result in results}) == 1
    assert len({(result.path / "metrics.json").read_bytes() for result in results}) == 1


def test_resuming_on_changed_data_is_refused(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "runs", "bpr-mf")
    with (dataset / "interactions.tsv").open("a") as rows:
        rows.write("u0\tnew\t5\t1\n" * 8)
    with pytest.raises(DataError, match="differ from those the run began with"):
        experiment.resume_inputs(result.path)


def test_a_finished_run_may_be_renamed_and_an_unfinished_one_may_not(
    dataset: Path, tmp_path: Path
) -> None:
    for model in ("vbpr", "most-popular"):
        result = train(dataset, tmp_path / "runs", model)
        renamed = result.path.rename(tmp_path / f"my best {model}")
        assert (
            experiment.evaluate_run(renamed, result.recipe.evaluation).scores["test"].overall
            == result.test
        )
    (renamed / "metrics.json").unlink()
    with pytest.raises(DataError, match="if it was renamed"):
        experiment.resume_inputs(renamed)


def test_a_grid_is_chosen_on_validation_and_scored_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    score_test = protocol._score_test

    def count(*arguments: object) -> object:
        scored.append(arguments)
        return score_test(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(protocol, "_score_test", count)
    recipe, inputs, folder = prepare(
        dataset, tmp_path / "runs", grid={"lr": (0.001, 0.02), "reg_weight": (0.0, 0.1)}
    )
    result = run(recipe, inputs, folder, progress=Silent())
    assert len(scored) == 1
    assert result.tried == ("lr", "reg_weight")
    trials = sorted((folder.path / "trials").iterdir())
    values = [json.loads((trial / "trained.json").read_text())["value"] for trial in trials]
    assert len(values) == 4
    chosen = json.loads((folder.path / "run.json").read_text())["chosen_trial"]
    assert chosen == int(np.argmax(values))
    assert not any((trial / "metrics.json").exists() for trial in trials)
    # alone, the chosen configuration gives the same numbers
    alone = train(
        dataset,
        tmp_path / "alone",
        settings={
            "lr": result.recipe.settings.lr,
            **{"reg_weight": recipe.trials()[chosen].settings.reg_weight},
        },
    )  # type: ignore[attr-defined]
    assert alone.test == result.test


def test_the_memory_of_a_gpu_is_that_of_the_training_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training may have been done by another process, or before this one was started."""
    monkeypatch.setattr(fit, "peak_gpu_memory_bytes", lambda device: 3 * 2**30)
    monkeypatch.setattr(run_record, "peak_gpu_memory_bytes", lambda device: 2**30)
    assert train(dataset, tmp_path / "runs", "bpr-mf").cost["GPU GiB"] == 3
    monkeypatch.undo()
    assert train(dataset, tmp_path / "others", "bpr-mf").cost["GPU GiB"] is None


def test_selection_cannot_reach_test_rows() -> None:
    import inspect

    for function in (
        experiment.fit, search.fit_trials, search.fit_trial, fit.fit_one, fit.build,
        Trainer.__init__,
    ):  # fmt: skip
        annotations = " ".join(
            str(parameter.annotation)
            for parameter in inspect.signature(function).parameters.values()
        )
        assert "Split" not in annotations
        assert TestData.__name__ not in annotations
    for module in (fit, search):
        assert not {"Split", "TestData", "load_split"} & set(vars(module)), (
            "selection knows the type of test data"
        )


def test_patience_stops(dataset: Path, tmp_path: Path) -> None:
    recipe, inputs, folder = prepare(
        dataset, tmp_path / "runs", "bpr-mf", settings={"lr": 1e-12, "epochs": 50}
    )
    patient = recipe.model_copy(
        update={"evaluation": recipe.evaluation.model_copy(update={"patience": 2})}
    )
    result = run(patient, inputs, folder, progress=Silent())
    assert len(RunFolder(result.path).history()) == 6
    assert result.best_epoch == 2


def test_a_resume_keeps_the_patience_counter(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a validation without improvement and the limit, it stops where it would."""
    append = RunFolder.append_history

    def die(self: RunFolder, record: EpochRecord) -> None:
        append(self, record)
        if record.epoch == 5:  # validated at 2, the best, and at 4; the limit is at 6
            raise KeyboardInterrupt

    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    monkeypatch.setattr(RunFolder, "append_history", die)
    evaluation = {"every": 2, "cutoffs": (5, 10), "select_by": "Recall@10", "patience": 2}
    settings = {"lr": 1e-12, "epochs": 20}
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path, "bpr-mf", settings=settings, evaluation=evaluation)
    monkeypatch.setattr(RunFolder, "append_history", append)
    result = train(dataset, tmp_path, "bpr-mf", settings=settings, evaluation=evaluation)
    assert [line["epoch"] for line in RunFolder(result.path).history()] == [1, 2, 3, 4, 5, 6]
    assert result.best_epoch == 2


def test_a_diverging_training_says_where(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"epoch \d+, step \d+: loss term '(bpr|l2)' is (nan|inf).*lower lr"
    ):
        train(dataset, tmp_path / "runs", "bpr-mf", settings={"lr": 1e20, "epochs": 4})


def test_scores_that_are_no_numbers_are_a_divergence_too(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_class("bpr-mf"), "scorer", lambda self, known: _no_numbers(known))
    with pytest.raises(Diverged, match=r"epoch 2: scores of user row 0: NaN"):
        train(dataset, tmp_path / "runs", "bpr-mf")


def _no_numbers(known: Known) -> Score:
    return lambda users: torch.full((len(users), known.n_items), torch.nan)


def test_two_processes_cannot_write_one_run(dataset: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", "bpr-mf")
    folder.path.mkdir(parents=True)
    with (
        FileLock(folder.path / ".lock"),
        pytest.raises(TrainingError, match="another process is writing this run"),
    ):
        run(recipe, inputs, folder, progress=Silent())


def test_a_checkpoint_of_another_epoch_is_refused(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "runs", "bpr-mf")
    folder = RunFolder(result.path)
    with pytest.raises(TrainingError, match="holds epoch"):
        folder.load_checkpoint(result.best_epoch + 1)
    folder.checkpoint_path.write_bytes(b"not safetensors")
    with pytest.raises(TrainingError, match="cannot be read"):
        folder.load_checkpoint(result.best_epoch)


def test_an_evaluation_of_a_run_gives_its_own_numbers(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "runs")
    scores = experiment.evaluate_run(result.path, result.recipe.evaluation).scores
    assert scores["test"].overall == result.test
    assert scores["valid"].overall == result.valid


def test_lists_from_elsewhere_are_scored_by_the_same_code(dataset: Path, tmp_path: Path) -> None:
    paper = {
        "evaluation": {
            "protocol": "paper",
            "every": 2,
            "cutoffs": (5, 10),
            "select_by": "Recall@10",
        }
    }
    result = train(dataset, tmp_path / "runs", **paper)
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", **paper)
    setting = inputs.setting(recipe.evaluation)
    model = fit.build(recipe, setting)
    model.load_weights(folder.load_checkpoint(result.best_epoch))
    (lists,) = rank_all(model, setting)
    training = inputs.split.training
    rows = [
        (training.user_ids[user], training.item_ids[item], -place)
        for user, items in zip(lists.users, lists.items, strict=True)
        for place, item in enumerate(items)
    ]
    path = tmp_path / "lists.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", header=False, index=False)
    scores = evaluate_lists(path, dataset, None, recipe.evaluation).scores
    assert scores["test"].overall == result.test
    shuffled = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).assign(
        rank=lambda frame: -frame["rank"]
    )
    shuffled.sample(frac=1, random_state=0).to_parquet(tmp_path / "lists.parquet")
    scores = evaluate_lists(tmp_path / "lists.parquet", dataset, None, recipe.evaluation).scores
    assert scores["test"].overall == result.test


def test_lists_of_strangers_are_refused_and_unknown_items_are_said(
    dataset: Path, tmp_path: Path
) -> None:
    recipe, _, _ = prepare(dataset, tmp_path)
    path = tmp_path / "lists.tsv"
    path.write_text("somebody\tB001X\n")
    with pytest.raises(
        DataError, match="1 user does not occur in the training data, e.g. 'somebody'"
    ):
        evaluate_lists(path, dataset, None, recipe.evaluation)
    path.write_text("u1\tB001X\nu1\tnowhere\n")
    scored = evaluate_lists(path, dataset, None, recipe.evaluation)
    assert scored.scores["test"].n_evaluated > 1  # the others score 0
    paper = recipe.evaluation.model_copy(update={"protocol": "paper"})
    assert evaluate_lists(path, dataset, None, paper).scores["test"].n_evaluated == 1
    assert any("1 recommended item does not occur in the data" in note for note in scored.notes)
    path.write_text("u1\t0\nu1\t1\n")
    with pytest.raises(
        DataError, match=r"none of the 2 recommended items occurs in the data, e.g. '0' .there: '"
    ):
        evaluate_lists(path, dataset, None, recipe.evaluation)
    path.write_text("u1\tB001X\nu1\tB001X\n")
    with pytest.raises(DataError, match="item 'B001X' occurs twice in the list of user 'u1'"):
        evaluate_lists(path, dataset, None, recipe.evaluation)
    path.write_text("user\titem\n")
    with pytest.raises(DataError, match="no lists"):
        evaluate_lists(path, dataset, None, recipe.evaluation)


def test_scores_that_contradict_the_order_of_the_rows_are_said(
    dataset: Path, tmp_path: Path
) -> None:
    recipe, inputs, _ = prepare(dataset, tmp_path)
    a, b, c = inputs.split.training.item_ids[:3]
    path = tmp_path / "lists.tsv"
    path.write_text(f"u1\t{a}\t0.5\nu1\t{b}\t0.7\nu2\t{b}\t0.9\nu2\t{c}\t0.9\n")
    notes = evaluate_lists(path, dataset, None, recipe.evaluation).notes
    assert any("1 list has a score that is larger than the one before it" in note for note in notes)
    path.write_text(f"u1\t{b}\t0.7\nu2\t{b}\t0.9\nu1\t{a}\t0.5\n")  # the next user's may be larger
    notes = evaluate_lists(path, dataset, None, recipe.evaluation).notes
    assert not any("larger" in note for note in notes)
    (tmp_path / "wide.tsv").write_text("id\ttop_0\ttop_1\ttop_2\nu1\ta\tb\tc\n")
    with pytest.raises(DataError, match="id, top_0.*one row per user and item"):
        evaluate_lists(tmp_path / "wide.tsv", dataset, None, recipe.evaluation)


def test_settings_are_typed_and_unknown_ones_get_the_closest_match() -> None:
    assert (
        make_settings("vbpr", {"learning_rate": 0.1, "factors": 16, "l_w": 0.5}).model_dump()[
            "reg_weight"
        ]
        == 0.5
    )
    with pytest.raises(UsageError, match="Did you mean 'reg_weight'"):
        make_settings("vbpr", {"reg_wieght": 1})
    with pytest.raises(UsageError, match="vbpr: lr = -1"):
        make_settings("vbpr", {"lr": -1})
    with pytest.raises(UsageError, match="vbpr: lr = nan"):
        make_settings("vbpr", {"lr": float("nan")})


def test_settings_of_several_models_find_their_owners() -> None:
    models = ["item-knn", "bpr-mf", "freedom"]
    values = {"lr": 0.1, "freedom.lr": 0.2, "neighbours": 7, "freedom.reg_weight": 0.3}
    assert for_model("bpr-mf", values, models) == {"lr": 0.1}
    assert for_model("freedom", values, models) == {
        "lr": 0.2,
        "neighbours": 7,
        "content_loss_weight": 0.3,
    }
    assert for_model("item-knn", values, models) == {"neighbours": 7}
    with pytest.raises(UsageError, match="unknown model in a setting 'vbpr'"):
        for_model("bpr-mf", {"vbpr.lr": 1}, models)
    with pytest.raises(UsageError, match="unknown setting of item-knn 'epochs'"):
        for_model("item-knn", {"epochs": 1}, ["item-knn"])


def test_a_grid_may_use_the_names_of_other_frameworks(dataset: Path, tmp_path: Path) -> None:
    recipe, _, _ = prepare(dataset, tmp_path, "bpr-mf", grid={"l_w": (0.1, 0.2)})
    assert [trial.settings.model_dump()["reg_weight"] for trial in recipe.trials()] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("names", "moves"), [((), True), (("lazy-adam",), True), (("frozen-features",), False)]
)
def test_approximations_are_asked_for_and_recorded(
    dataset: Path, tmp_path: Path, names: tuple[str, ...], moves: bool
) -> None:
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", "freedom", approximate=names)
    result = run(recipe, inputs, folder, progress=Silent())
    assert json.loads((result.path / "run.json").read_text())["approximate"] == list(names)
    weights = folder.load_checkpoint(result.best_epoch)
    stored = inputs.features["visual"].first(inputs.split.training.n_trained).vectors
    assert torch.equal(weights["features.visual.values"], stored) is not moves


@pytest.mark.parametrize("name", ["vbpr", "freedom"])
def test_a_run_on_vectors_in_half_precision_is_recorded_and_loads(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    asked = ("half-features",)
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", name, approximate=asked)
    result = run(recipe, inputs, folder, progress=Silent())
    assert json.loads((result.path / "run.json").read_text())["approximate"] == list(asked)
    assert "features.visual.values" not in folder.load_checkpoint(result.best_epoch)
    model = experiment.load_model(result.path)[0]
    assert any(one.dtype is torch.float16 for one in model.buffers())
    scores = experiment.evaluate_run(result.path, result.recipe.evaluation).scores
    assert scores["test"].overall == result.test


@pytest.mark.parametrize(
    ("names", "update"), [((), "exact"), (("frozen-features",), "exact"), (("lazy-adam",), "lazy")]
)
def test_large_tables_of_ids_are_deferred_and_recorded(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    update: str,
) -> None:
    monkeypatch.setattr("mmbench.ops.id_table.LARGE", 1)
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", "bpr-mf", approximate=names)
    model = fit.build(recipe, inputs.setting_of(recipe))
    deferred = ["user_factors", "item_factors"]
    assert [model.get_submodule(name).update for name in deferred] == [update, update]
    result = run(recipe, inputs, folder, progress=Silent())
    assert json.loads((result.path / "run.json").read_text())["deferred"] == deferred
    again = experiment.load_model(result.path)[0]
    assert torch.isfinite(torch.cat(again.embeddings())).all()


@pytest.mark.parametrize("name", ["freedom", "lattice"])
def test_approximate_neighbours_are_recorded_with_their_recall(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("faiss")
    recipe, inputs, folder = prepare(dataset, tmp_path / "runs", name, approximate=("ann",))
    result = run(recipe, inputs, folder, progress=Silent())
    record = json.loads((result.path / "run.json").read_text())
    assert record["approximate"] == ["ann"]
    found = {"visual", "textual"} & record["ann"].keys()
    assert found == inputs.features.keys()
    assert ("visual, learned" in record["ann"]) is (name == "lattice")
    for one in record["ann"].values():
        assert one["recall"] > 0.9 and one["cells"] == 0  # so few items are searched exactly
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"--approximate ann: faiss is not installed; pip .*ann\]"):
        run(recipe, inputs, RunFolder(tmp_path / "other"), progress=Silent())
    assert not (tmp_path / "other" / "run.json").exists()


@pytest.mark.parametrize("given", ["x", "-1", "nan", ""])
def test_a_pause_between_saves_that_is_none_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", given)
    with pytest.raises(UsageError, match=f"MMBENCH_SAVE_EVERY_S={given}: expected seconds"):
        train(dataset, tmp_path)


def test_an_unknown_approximation_is_refused() -> None:
    assert parse_approximations(" tf32,frozen-features") == ("frozen-features", "tf32")
    with pytest.raises(UsageError, match="lazy-adam"):
        parse_approximations("lazyadam")


def test_no_device(dataset: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match="--device cuda: not on this machine"):
        train(dataset, tmp_path, device="cuda")


def test_a_finished_run_is_of_use_where_its_device_is_not(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path, "bpr-mf", device="cpu")
    recipe = result.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("device: cpu", "device: cuda:64"))
    assert experiment.read_result(result.path).recipe.device == "cuda:64"
    assert (
        experiment.evaluate_run(result.path, result.recipe.evaluation).scores["test"].overall
        == result.test
    )
    assert load_run(result.path).model.weights()


def test_runs_on_columns_of_other_names_can_be_used_afterwards(
    dataset: Path, tmp_path: Path
) -> None:
    expected = train(dataset, tmp_path / "a", "most-popular")
    rows = pd.read_csv(dataset / "interactions.tsv", sep="\t")
    rows = rows.rename(
        columns={
            "user_id": "customer",
            "item_id": "product",
            "rating": "grade",
            "timestamp": "when",
        }
    )
    rows.to_csv(dataset / "interactions.tsv", sep="\t", index=False)
    columns = {"user_id": "customer", "item_id": "product", "rating": "grade", "timestamp": "when"}
    result = train(dataset, tmp_path / "b", "most-popular", columns=columns)
    assert result.path.name == expected.path.name
    scored = experiment.evaluate_run(result.path, result.recipe.evaluation)
    assert scored.scores["test"].overall == expected.test


def test_every_model_of_a_command_spells_out_what_distances_are_measured_with(
    dataset: Path, tmp_path: Path
) -> None:
    evaluation = {"metrics": ("Recall", "ILD"), "diversity_features": "visual"}
    inputs: Inputs | None = None
    for model in ("most-popular", "item-knn"):
        recipe = Recipe(
            data=str(dataset), model=model, settings=make_settings(model, {}), evaluation=evaluation
        )  # type: ignore[arg-type]
        resolved, inputs = load_inputs(recipe, inputs)
        assert resolved.evaluation.diversity_features == "visual=toy"
        path = run(resolved, inputs, run_folder(tmp_path, resolved, inputs), progress=Silent()).path
        assert experiment.resume_inputs(path)[0] == resolved


def test_a_restart_that_is_killed_leaves_no_half_of_a_finished_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(dataset, tmp_path, "most-popular")
    unlink, left = Path.unlink, [1]

    def die(self: Path, missing_ok: bool = False) -> None:
        if self.parent == result.path:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        run(*prepare(dataset, tmp_path, "most-popular"), progress=Silent(), restart=True)
    monkeypatch.undo()
    assert train(dataset, tmp_path, "most-popular").test == result.test


def test_a_recipe_is_whole_or_absent(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def die(self: Path, text: str, *arguments: object, **options: object) -> int:
        write(self, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path, "most-popular")
    assert not list(tmp_path.rglob("recipe.yaml"))


def test_what_an_interrupted_training_cost_is_counted_whole_or_not_at_all(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(fit, "cpu_seconds", lambda: float(next(clock)))
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    whole = RunFolder(train(dataset, tmp_path / "whole").path).read_json("trained.json")
    append = RunFolder.append_history

    def die(self: RunFolder, record: EpochRecord) -> None:
        append(self, record)
        if record.epoch == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append_history", die)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "parts")
    monkeypatch.setattr(RunFolder, "append_history", append)
    parts = RunFolder(train(dataset, tmp_path / "parts").path).read_json("trained.json")
    assert parts["cpu_s"] == pytest.approx(whole["cpu_s"], abs=1)
    assert parts["energy_j"] == "not known: the training was interrupted"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's peak cannot be reset")
def test_a_runs_peak_of_memory_is_its_own(dataset: Path, tmp_path: Path) -> None:
    hog = np.ones(1 << 27)  # 1 GiB
    before = peak_memory_bytes()
    assert before is not None
    assert before > hog.nbytes
    del hog
    record = RunFolder(train(dataset, tmp_path, "most-popular").path).read_json("run.json")
    assert record["peak_memory_bytes"] < before - (1 << 29)


def test_lists_that_hold_training_items_are_said(dataset: Path, tmp_path: Path) -> None:
    recipe, inputs, _ = prepare(dataset, tmp_path, "most-popular")
    training = inputs.split.training
    user, item = training.train.users[0], training.train.items[0]
    (tmp_path / "lists.tsv").write_text(f"{training.user_ids[user]}\t{training.item_ids[item]}\n")
    scored = evaluate_lists(tmp_path / "lists.tsv", dataset, None, recipe.evaluation)
    assert (
        "1 listed items are training positives of their user; no model here lists such"
        in scored.notes
    )
