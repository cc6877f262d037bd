"""The device of a training: what is asked for, what `auto` takes, and what several share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbase.process import out_of_memory
from mmbase.progress import Silent
from mmbench.config import Recipe, make_settings
from mmbench.errors import UsageError
from mmbench.ops import memory
from mmbench.runs import devices
from mmbench.runs.devices import Work, choose, gpu_pays, share_device, work_of
from mmbench.runs.inputs import load_inputs
from mmbench.runs.run import run, run_folder

SMALL, LARGE = Work(2_400_000, 2_000_000_000), Work(12_800_000, 79_000_000_000)


def no_work() -> Work:
    raise AssertionError("nothing depends on the size here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a CUDA device; the list has what was looked up on it."""
    looked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def resolve(name: str, automatic: tuple[str, ...]) -> str:
        looked.append(name)
        return "cuda" if name == "auto" else name

    monkeypatch.setattr(devices, "resolve_device", resolve)
    return looked


@pytest.mark.parametrize(
    ("training", "per_step", "in_all", "pays"),
    [
        ("the demo's FREEDOM", 2_338_352, 900, False),
        ("Office, BPR-MF: steps too small however long", 468_416, 10**6, False),
        ("Office, VBPR", 12_828_096, 6_200, True),
        ("Office, VBPR, a quick look of 5 epochs", 12_828_096, 155, False),
        ("TikTok, VBPR", 2_593_472, 11_800, True),
        ("Clothing, FREEDOM, one epoch", 172_354_240, 193, True),
    ],
)
def test_a_gpu_takes_what_is_large(training: str, per_step: int, in_all: int, pays: bool) -> None:
    found, reason = gpu_pays(Work(per_step, per_step * in_all))
    assert found is pays
    assert ("at least" if pays else "less than") in reason


def test_the_thresholds_belong_to_the_gpu() -> None:
    least = Work(devices.SMALLEST_STEP, devices.SMALLEST_TRAINING)
    assert gpu_pays(least)[0]
    assert not gpu_pays(Work(least.per_step - 1, least.in_all))[0]
    assert not gpu_pays(Work(least.per_step, least.in_all - 1))[0]
    assert gpu_pays(Work(0, least.in_all)) == (
        True,
        "nothing to train, and 10 billion numbers' worth of comparisons, at least the 10 billion "
        "from which on a GPU is faster",
    )
    assert not gpu_pays(Work(0, 0))[0]


def test_auto_on_a_machine_with_a_gpu(gpu: list[str]) -> None:
    small = choose("auto", lambda: SMALL)
    assert small.device == torch.device("cpu")
    assert small.reason == (
        "the training goes over 2 billion numbers, less than the 10 billion from which on a GPU is "
        "faster"
    )
    assert gpu == []  # not even started
    large = choose("auto", lambda: LARGE)
    assert large.device == torch.device("cuda")
    assert "79 billion numbers, at least" in large.reason
    assert gpu == ["auto"]


def test_who_asks_for_a_device_gets_it(gpu: list[str]) -> None:
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        chosen = choose(name, no_work)
        assert (chosen.device, chosen.reason) == (torch.device(name), "asked for")
    assert gpu == ["cpu", "cuda", "cuda:1", "mps"]


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen = choose("auto", no_work)
    assert (chosen.device, chosen.reason) == (torch.device("cpu"), "no CUDA device here")


def test_auto_never_takes_a_device_without_sparse_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose("auto", no_work).device == torch.device("cpu")


def test_auto_with_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "resolve_device", lambda name, automatic: "cpu")
    chosen = choose("auto", lambda: LARGE)
    assert chosen.device == torch.device("cpu")
    assert "no code" in chosen.reason


def work(dataset: Path, model: str, **settings: Any) -> Work:
    recipe, inputs = load_inputs(
        Recipe(data=str(dataset), model=model, settings=make_settings(model, settings))
    )
    return work_of(recipe, inputs.setting_of(recipe))


def test_the_size_of_a_training(dataset: Path) -> None:
    _, inputs = load_inputs(
        Recipe(data=str(dataset), model="vbpr", settings=make_settings("vbpr", {}))
    )
    train = inputs.split.training.train
    nodes, edges = train.n_users + train.n_items, train.n_edges
    width = sum(one.vectors.shape[1] for one in inputs.features.values())
    assert width
    settings = {"embedding_dim": 8, "batch_size": 64, "epochs": 4}
    steps = 4 * -(-edges // 64)
    for model, per_step in (
        ("bpr-mf", 8 * nodes),
        ("vbpr", 8 * nodes + width * train.n_items),
        ("lightgcn", 8 * nodes + 3 * 2 * 8 * edges),
        ("freedom", 8 * nodes + width * train.n_items + 2 * 2 * 8 * edges),
        ("lattice", 8 * nodes + width * train.n_items + 2 * 2 * 8 * edges),
    ):
        assert work(dataset, model, **settings) == Work(per_step, per_step * steps), model
    assert (
        work(dataset, "bm3", **settings, n_layers=2).per_step
        == work(dataset, "freedom", **settings).per_step
    )
    freedom, mmgcn = work(dataset, "freedom", **settings), work(dataset, "mmgcn", **settings)
    assert work(dataset, "grcn", **settings).per_step == 3 * freedom.per_step
    assert mmgcn.per_step == 20 * (8 * nodes + width * train.n_items)
    # Of histories in order a step has some users' predictions; bce compares each with one item,
    # softmax with all.
    predictions, batches = edges - train.n_users, -(-train.n_users // 16)
    few = {"embedding_dim": 8, "batch_size": 16, "epochs": 4}
    step = 8 * train.n_items + predictions * 6 * 64 // batches
    assert work(dataset, "sasrec", **few) == Work(step, step * 4 * batches)
    step += 3 * predictions * train.n_items * 8 // (batches * 20)
    for model in ("sasrec", "gru4rec"):
        assert work(dataset, model, **few, loss="softmax") == Work(step, step * 4 * batches)
    assert work(dataset, "item-knn") == Work(0, 0)
    assert work(dataset, "content-knn") == Work(0, train.n_items**2 * width // 50)


def test_a_run_says_what_was_chosen_and_why(dataset: Path, tmp_path: Path) -> None:
    settings = make_settings("bpr-mf", {"epochs": 1})
    said = {}
    for asked in ("auto", "cpu"):
        recipe, inputs = load_inputs(
            Recipe(data=str(dataset), model="bpr-mf", settings=settings, device=asked)
        )
        result = run(
            recipe, inputs, run_folder(tmp_path / asked, recipe, inputs), progress=Silent()
        )
        said[asked] = json.loads((result.path / "run.json").read_text())["device"]
    assert {one["chosen"] for one in said.values()} == {"cpu"}
    assert [one["asked"] for one in said.values()] == ["auto", "cpu"]
    assert said["cpu"]["reason"] == "asked for"
    expected = "less than" if torch.cuda.is_available() else "no CUDA device here"
    assert expected in said["auto"]["reason"]


def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="no such device"):
        choose("tpu", no_work)


def test_several_trainings_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[float, int | None]] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda *told: shares.append(told)
    )
    share_device(torch.device("cpu"), 4)
    share_device(torch.device("cuda"), 1)
    assert shares == []
    share_device(torch.device("cuda:1"), 3)
    share_device(torch.device("cuda"), 2)
    assert shares == [(pytest.approx(0.3), 1), (pytest.approx(0.45), None)]


@pytest.mark.gpu
def test_a_card_is_shared_for_good() -> None:
    gpu = torch.device("cuda")
    total = torch.cuda.mem_get_info(gpu)[1]
    try:
        share_device(gpu, 4)
        assert 0 < memory.free_bytes(gpu) <= 0.225 * total
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(int(0.25 * total), dtype=torch.uint8, device=gpu)
        assert out_of_memory(caught.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, None)
    free = memory.free_bytes(gpu)
    held = torch.empty(256 << 20, dtype=torch.uint8, device=gpu)
    assert memory.free_bytes(gpu) <= free - (200 << 20)
    del held
    assert memory.block_bytes(gpu, 1) == min(memory.LARGEST, memory.free_bytes(gpu) // 16)
