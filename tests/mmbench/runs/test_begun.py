"""The same command gives the same bytes: kernel and threads of a run are those it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmbase import gemm
from mmbase.progress import Silent
from mmbench.config import Recipe, make_settings, write_recipe
from mmbench.core.sampling import UniformUsers
from mmbench.errors import DataError, TrainingError
from mmbench.runs import run as experiment
from mmbench.runs.batch import Batch, InProcess, Job, Train
from mmbench.runs.fit import as_begun, begin, build
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import load_inputs
from mmbench.runs.run import evaluate_run, load_model

needs_both = pytest.mark.skipif(not gemm.onednn_is_right(), reason="no oneDNN")
OTHER: dict[gemm.Kernel, gemm.Kernel] = {"torch": "onednn", "onednn": "torch"}


@pytest.fixture(autouse=True)
def _own_kernel_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    gemm.use(None)
    torch.set_num_threads(threads)


def recipe(data: Path, model: str = "vbpr", **settings: object) -> Recipe:
    small = {"embedding_dim": 8, "batch_size": 64, "epochs": 2, **settings}
    evaluation = {"every": 1, "cutoffs": (5,), "select_by": "Recall@5"}
    return Recipe(
        data=str(data), model=model, settings=make_settings(model, small), evaluation=evaluation
    )


def other_processor(monkeypatch: pytest.MonkeyPatch) -> gemm.Kernel:
    """Let this be a processor that gets the other kernel; return that of this one."""
    own = gemm.chosen()
    monkeypatch.setattr(gemm, "_of_this_processor", lambda: OTHER[own])
    gemm.use(None)
    return own


def test_gradients_are_added_up_in_one_order_whatever_the_threads(dataset: Path) -> None:
    torch.set_num_threads(4)
    wanted, inputs = load_inputs(recipe(dataset, embedding_dim=64))
    model = build(wanted, inputs.setting(wanted.evaluation))
    batch = next(iter(UniformUsers(inputs.split.training.train, 64, 0, "cpu").epoch(1)))
    many = {name: getattr(batch, name).repeat(64) for name in ("users", "pos", "neg")}
    found = set()
    for _ in range(8):
        model.zero_grad()
        torch.stack(list(model.loss(replace(batch, **many)).values())).sum().backward()  # type: ignore[no-untyped-call]
        found.add(model.item_factors.grad.numpy().tobytes())
    assert len(found) == 1


@needs_both
def test_a_run_goes_on_with_the_kernel_and_the_threads_it_began_with(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    inputs = load_inputs(recipe(dataset))
    folder = experiment.run_folder(tmp_path, *inputs)
    folder.path.mkdir(parents=True)
    write_recipe(folder.recipe_path, inputs[0])
    with pytest.raises(KeyboardInterrupt), as_begun(folder):
        raise KeyboardInterrupt
    began = other_processor(monkeypatch)
    torch.set_num_threads(2)
    result = experiment.run(*experiment.resume_inputs(folder.path), progress=Silent())
    record = json.loads((result.path / "run.json").read_text())
    assert record["device"]["products"]["gemm"] == began
    assert record["device"]["threads"] == 1
    assert torch.get_num_threads() == 2
    assert gemm.chosen() == began  # scored with it, too

    gemm.use(None)
    load_model(result.path)
    assert gemm.chosen() == began
    new = Batch(tmp_path, InProcess(Silent()), Silent()).run([recipe(dataset, "bpr-mf")])
    record = json.loads((new[0].path / "run.json").read_text())
    assert record["device"]["products"]["gemm"] == OTHER[began]
    assert record["device"]["threads"] == 2


class Elsewhere:
    """An executor whose workers have chosen no kernel yet, as new processes have not."""

    at_once = 2

    def map(self, train: Train, jobs: Sequence[Job]) -> Iterator[tuple[Job, RunFolder]]:
        for job in jobs:
            gemm.use(None)
            yield job, train(job, Silent())


@needs_both
def test_workers_take_the_kernel_that_the_run_began_with(dataset: Path, tmp_path: Path) -> None:
    recipes = [recipe(dataset, model) for model in ("vbpr", "bpr-mf")]
    for one in recipes:  # begun on another processor
        folder = experiment.run_folder(tmp_path, *load_inputs(one))
        folder.path.mkdir(parents=True)
        folder.write_json("begun.json", {"gemm": OTHER[gemm.chosen()], "threads": 1})
    began = OTHER[gemm.chosen()]
    for run in Batch(tmp_path, Elsewhere(), Silent()).run(recipes):
        assert json.loads((run.path / "trained.json").read_text())["gemm"] == began
        assert (
            json.loads((run.path / "run.json").read_text())["device"]["products"]["gemm"] == began
        )


def test_a_record_that_cannot_be_kept_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("begun.json", {"gemm": "onednn", "threads": 1})
    monkeypatch.setattr(gemm, "onednn_is_right", lambda: False)
    with pytest.raises(TrainingError, match="--restart"):
        begin(folder)
    for damaged in ({"gemm": "fast", "threads": 1}, {"gemm": "torch", "threads": "all"}, {}):
        folder.write_json("begun.json", damaged)
        with pytest.raises(DataError, match=r"begun\.json: gemm = "):
            begin(folder)
    folder.clear()
    monkeypatch.setattr(gemm, "_of_this_processor", lambda: "torch")
    assert begin(folder) == {"gemm": "torch", "threads": torch.get_num_threads()}


def test_a_run_of_an_older_version_is_scored_without_a_kernel_of_its_own(
    dataset: Path, tmp_path: Path
) -> None:
    result = experiment.run(
        *(inputs := load_inputs(recipe(dataset))),
        experiment.run_folder(tmp_path, *inputs),
        progress=Silent(),
    )
    folder = RunFolder(result.path)
    record = folder.read_json("run.json")
    del record["device"]["products"]
    folder.write_json("run.json", record)
    scored = evaluate_run(folder.path, inputs[0].evaluation)
    assert scored.scores["test"].overall == result.test


def test_trials_that_begin_side_by_side_find_one_record(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: begin(RunFolder(run.path)), range(64)))
    assert all(one == found[0] for one in found)
    assert [path.name for path in run.path.iterdir()] == ["begun.json"]


def test_what_a_killed_process_left_is_removed(dataset: Path, tmp_path: Path) -> None:
    loaded, inputs = load_inputs(recipe(dataset))
    folder = experiment.run_folder(tmp_path, loaded, inputs)
    folder.path.mkdir(parents=True)
    (folder.path / "begun.json.7.partial").touch()
    experiment.run(loaded, inputs, folder, progress=Silent())
    assert not list(folder.path.glob("*.partial"))
