"""Every model on another device than the CPU: the same training and the same lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch
from tests.elsewhere import elsewhere
from tests.mmbench.conftest import known
from tests.mmbench.models.test_conformance import TRAINED, kind, presets

from mmbase.progress import Silent
from mmbench.analysis.recommend import load_run, recommendations, trained_users, user_rows
from mmbench.config import Recipe, make_settings
from mmbench.core.interactions import TrainSet
from mmbench.core.sampling import Init
from mmbench.models import MODELS
from mmbench.models.base import Content, Recommender, TrainsContent
from mmbench.ops.row_table import RowTable
from mmbench.runs.folder import RunFolder
from mmbench.runs.inputs import load_inputs
from mmbench.runs.run import evaluate_run, resume_inputs, run, run_folder
from mmbench.trainer import EpochRecord, Trainer

STEADY = {"grcn": {"weight_mode": "mean"}}
"""Confidences of GRCN get gradients that cancel; Adam moves them by what rounding leaves."""


def trained(
    name: str,
    train: TrainSet,
    features: Content,
    settings: dict[str, object],
    device: torch.device | str,
    update: Literal["exact", "lazy", "frozen"] = "exact",
) -> Recommender:
    config = kind(name).Config(**{"embedding_dim": 8, "batch_size": 32, "epochs": 2, **settings})
    model = kind(name)(train, features, config, Init(3)).to(device)  # type: ignore[call-arg]
    for table in (module for module in model.modules() if isinstance(module, RowTable)):
        table.update = update
    trainer = Trainer(
        model, train, config, lambda _: {"x": 0.0}, metric="x", every=9, patience=None, seed=3
    )
    list(trainer.run())
    return model


@pytest.mark.parametrize(("name", "preset"), TRAINED)
def test_training_gives_the_same_model(
    name: str, preset: dict[str, object], block_train: TrainSet, block_features: Content
) -> None:
    settings = {**preset, **STEADY.get(name, {})}
    here = trained(name, block_train, block_features, settings, "cpu")
    with elsewhere() as device, torch.no_grad():
        with torch.enable_grad():
            there = trained(name, block_train, block_features, settings, device)
        assert {parameter.device for parameter in there.parameters()} == {device}
        weights = {key: value.cpu() for key, value in there.weights().items()}
        users = torch.arange(block_train.n_users, device=device)
        scores = there.train(False).scorer(known(block_train))(users).cpu()
    for key, value in here.weights().items():
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    with torch.no_grad():
        expected = here.train(False).scorer(known(block_train))(torch.arange(block_train.n_users))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "preset"), TRAINED)
def test_the_gpu_trains_the_same_model(
    name: str, preset: dict[str, object], block_train: TrainSet, block_features: Content
) -> None:
    settings = {**preset, **STEADY.get(name, {})}
    here, there = (
        trained(name, block_train, block_features, settings, device) for device in ("cpu", "cuda")
    )
    for key, value in here.weights().items():
        found = there.weights()[key]
        assert found.device.type == "cuda"
        torch.testing.assert_close(
            found.cpu(), value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("update", ["lazy", "frozen"])
@pytest.mark.parametrize(
    "name", [name for name in dict(TRAINED) if issubclass(kind(name), TrainsContent)]
)
def test_approximations_give_the_same_model(
    name: str, update: Literal["lazy", "frozen"], block_train: TrainSet, block_features: Content
) -> None:
    here = trained(name, block_train, block_features, {}, "cpu", update)
    with elsewhere() as device:
        there = trained(name, block_train, block_features, {}, device, update)
        weights = {key: value.cpu() for key, value in there.weights().items()}
    for key, value in here.weights().items():
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("preset", presets("grcn"))
def test_gradients_of_confidences_are_the_same(
    preset: dict[str, object], block_train: TrainSet, block_features: Content
) -> None:
    def gradients(device: torch.device | str) -> dict[str, torch.Tensor]:
        config = kind("grcn").Config(**{"embedding_dim": 8, "batch_size": 32, **preset})
        model = kind("grcn")(block_train, block_features, config, Init(3)).to(device)  # type: ignore[call-arg]
        trainer = Trainer(
            model, block_train, config, lambda _: {}, metric="x", every=9, patience=None, seed=3
        )
        torch.stack(
            list(model.loss(next(iter(trainer.sampler.epoch(1)))).values())
        ).sum().backward()
        return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients("cpu")
    with elsewhere() as device:
        found = gradients(device)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # these have values
@pytest.mark.parametrize(
    ("name", "protocol"),
    [*((name, "strict") for name in MODELS if name != "deepstyle"), ("vbpr", "paper")],
)
def test_a_run_is_validated_saved_resumed_and_ranked_there(
    name: str, protocol: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_trained = kind(name).trained
    settings = (
        {"embedding_dim": 8, "batch_size": 64, "epochs": 4, **STEADY.get(name, {})}
        if is_trained
        else {}
    )
    monkeypatch.setenv("MMBENCH_SAVE_EVERY_S", "0")
    append = RunFolder.append_history

    def stop(self: RunFolder, record: EpochRecord) -> None:
        append(self, record)
        if record.epoch == 3:
            raise KeyboardInterrupt

    def recipe(device: str) -> Recipe:
        return Recipe(
            data=str(dataset),
            model=name,
            device=device,
            settings=make_settings(name, settings),
            evaluation={"every": 2, "cutoffs": (5,), "select_by": "Recall@5", "protocol": protocol},
        )

    resolved, inputs = load_inputs(recipe("cpu"))
    here = run(resolved, inputs, run_folder(tmp_path, resolved, inputs), progress=Silent())
    monkeypatch.setattr("mmbench.runs.devices.resolve_device", lambda name, automatic: name)
    with elsewhere() as device:
        resolved, inputs = load_inputs(recipe(str(device)))
        folder = run_folder(tmp_path, resolved, inputs)
        if is_trained:
            monkeypatch.setattr(RunFolder, "append_history", stop)
            with pytest.raises(KeyboardInterrupt):
                run(resolved, inputs, folder, progress=Silent())
            monkeypatch.setattr(RunFolder, "append_history", append)
            resolved, inputs, folder = resume_inputs(folder.path)
        result = run(resolved, inputs, folder, progress=Silent())
        model = load_run(folder.path)
        everyone = trained_users(model)
        rows, _ = user_rows(everyone, None)
        how = {"include_seen": False, "progress": Silent()}
        lists = pd.concat(recommendations(model, everyone, rows, 5, **how))
        again = evaluate_run(folder.path, resolved.evaluation).scores["test"].overall
    assert again == result.test
    assert lists["score"].notna().all()
    assert json.loads((folder.path / "run.json").read_text())["device"]["type"] == str(device)
    for split in ("valid", "test"):
        assert getattr(result, split) == pytest.approx(getattr(here, split), abs=0.02)
