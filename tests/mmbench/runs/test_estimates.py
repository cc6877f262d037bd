"""`mmbench estimate`: memory, device and seconds of a trial, before it is started."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mmbench.conftest import write_dataset

from mmbench.cli import run as mmbench
from mmbench.config import Range, Recipe, Search, make_settings
from mmbench.runs.costs import work_of
from mmbench.runs.estimates import (
    CONTEXT_BYTES,
    INTERACTION_BYTES,
    PROCESS_BYTES,
    TRAINS_BYTES,
    estimate_trial,
    gpu_bytes,
    trials_to_estimate,
)
from mmbench.runs.inputs import load_inputs
from mmbench.runs.miniature import cost_of

FACTOR = 1.5
"""Within which the memory of whole commands was of what was estimated (docs/scaling.md)."""


def recipe_of(dataset: Path, model: str = "bpr-mf", **settings: Any) -> Recipe:
    return Recipe(data=str(dataset), model=model, settings=make_settings(model, settings))


def train(dataset: Path, out: Path, *options: str) -> dict[str, Any]:
    command = ["train", "--data", str(dataset), "--out", str(out), "-q", *options]
    assert mmbench([*command, "--every", "2"]) == 0
    (path,) = out.iterdir()
    record: dict[str, Any] = json.loads((path / "run.json").read_text())
    return record


def test_seconds_follow_from_finished_runs_of_the_same_model_on_such_a_device(
    dataset: Path, tmp_path: Path
) -> None:
    small = ("--set", "epochs=2", "--set", "embedding_dim=8", "--set", "batch_size=64")
    record = train(dataset, tmp_path / "runs", "--model", "bpr-mf", *small)
    seconds = record["timings"]["train_s_per_epoch"]
    (path,) = past = list((tmp_path / "runs").iterdir())

    def estimated(recipe: Recipe) -> tuple[float | None, str]:
        recipe, inputs = load_inputs(recipe)
        found = estimate_trial(recipe, inputs.setting_of(recipe), past)
        return found.epoch_s, found.by

    same = recipe_of(dataset, epochs=7, embedding_dim=8, batch_size=64, lr=0.5)
    assert estimated(same) == (seconds, f"{path.name}, whose epoch is 1 times as large")
    wide = recipe_of(dataset, embedding_dim=16, batch_size=64)
    assert estimated(wide)[0] == pytest.approx(2 * seconds)
    assert estimated(wide)[1] == f"{path.name}, whose epoch is 0.5 times as large"
    unknown, why = estimated(recipe_of(dataset, "vbpr"))
    assert unknown is None
    assert why == f"no finished run of vbpr on this kind of device ({platform.machine()})"
    assert estimated(recipe_of(dataset, "most-popular")) == (None, "nothing is trained")
    # On another kind of device, or with other threads, an epoch takes another time.
    for key, value in (("name", "another processor"), ("threads", torch.get_num_threads() + 1)):
        device = {**record["device"], key: value}
        (path / "run.json").write_text(json.dumps({**record, "device": device}))
        assert estimated(same)[0] is None
    (path / "run.json").write_text("damaged")
    assert estimated(same)[0] is None


def test_memory_is_that_of_the_process_the_data_and_the_model(dataset: Path) -> None:
    trains = PROCESS_BYTES + TRAINS_BYTES
    for model, process in (("most-popular", PROCESS_BYTES), ("vbpr", trains), ("grcn", trains)):
        recipe, inputs = load_inputs(recipe_of(dataset, model))
        setting, training = inputs.setting_of(recipe), inputs.split.training
        cost, found = cost_of(recipe, setting), estimate_trial(recipe, setting)
        rows = training.interactions.users.size + training.valid.users.size
        content = sum(one.vectors.nbytes for one in inputs.features.values())
        held = process + INTERACTION_BYTES * rows + content  # of which a model may keep some
        assert found.host_bytes == held + cost.peak_bytes - cost.kept_bytes
        assert bool(cost.kept_bytes) == (model == "grcn")
        assert found.gpu_bytes == gpu_bytes(cost) == CONTEXT_BYTES + cost.peak_bytes
        assert found.cost.steps == work_of(recipe, setting).steps


def test_the_trials_of_a_search_are_bounded_by_the_largest(dataset: Path) -> None:
    space = {"lr": Range(low=0.1, high=0.2), "embedding_dim": (8, 32, 16)}
    recipe = recipe_of(dataset).model_copy(update={"search": Search(space=space, budget=4)})
    ((label, trial),) = trials_to_estimate(recipe)
    assert label == "at most lr=0.2, embedding_dim=32"
    assert trial.settings.embedding_dim == 32
    grid = recipe_of(dataset).model_copy(update={"grid": {"lr": (0.1, 0.2)}})
    assert [label for label, _ in trials_to_estimate(grid)] == ["lr=0.1", "lr=0.2"]


def test_the_command_prints_a_row_per_trial_and_one_document(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["estimate", "--data", str(dataset), "--model", "vbpr,bpr-mf", "--seed", "1,2"]
    command += ["--grid", "embedding_dim=4,8", "--out", str(tmp_path / "runs")]
    assert mmbench(command) == 0
    out = capsys.readouterr().out
    assert out.count("embedding_dim=4") == 2  # seeds cost the same
    assert "cpu: no CUDA device here" in out or torch.cuda.is_available()
    assert "s/epoch: no finished run of vbpr" in out
    assert mmbench([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "mmbench.estimate 1.0"
    assert [one["settings"]["embedding_dim"] for one in document["trials"]] == [4, 8, 4, 8]
    assert all(one["memory_bytes"] > PROCESS_BYTES for one in document["trials"])
    assert not (tmp_path / "runs").exists()  # nothing is left
    study = tmp_path / "study.yaml"
    study.write_text(f"data: {dataset}\nmodel: bpr-mf\nsettings: {{embedding_dim: 8}}\n")
    assert mmbench(["estimate", str(study), "--json"]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert trial["parameters"] == document["trials"][3]["parameters"]
    assert mmbench(["estimate", str(study), "--model", "vbpr"]) == 2
    assert "--model: the recipes say it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["most-popular", "bpr-mf", "vbpr", "freedom", "sasrec"])
def test_commands_need_about_as_much_memory_as_estimated(model: str, tmp_path: Path) -> None:
    from tests.processes import Forked

    data = write_dataset(tmp_path / "data", users=3_000, items=2_000)
    epochs = [] if model == "most-popular" else ["--set", "epochs=2", "--every", "2"]
    process = Forked(
        "mmbench", "train", "--model", model, "--data", data, "--out", tmp_path / "runs", "-q",
        *epochs, cwd=tmp_path,
    )  # fmt: skip
    assert process.wait() == 0, process.stderr
    (path,) = (tmp_path / "runs").iterdir()
    peak = json.loads((path / "run.json").read_text())["peak_memory_bytes"]
    recipe, inputs = load_inputs(recipe_of(data, model))
    estimated = estimate_trial(recipe, inputs.setting_of(recipe)).host_bytes
    assert peak / FACTOR <= estimated <= peak * FACTOR
