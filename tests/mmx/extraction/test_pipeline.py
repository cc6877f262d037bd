"""The pipeline around the encoders: threads, memory that runs out, encoders that share contents."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from mmbase import gemm
from mmbase.progress import Terminal
from mmstore import FeatureSet, ProvenanceMismatch, Status
from mmx.cli import cli
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, EncoderSpec, compute, create
from mmx.encoders.base import Request, own_work
from mmx.encoders.decoding import remembered, shared_decoding
from mmx.errors import DataError, EncoderError, Interrupted
from mmx.extraction import executors, plan, window
from mmx.extraction.executors import WorkerPool
from mmx.extraction.extract import extract, extract_together, share_contents
from mmx.extraction.loading import busy_and_queued_s
from mmx.extraction.summary import Stages, Summary

SMALL = "shufflenet_v2_x0_5"  # a fortieth of the work of resnet18: convolutions and their norms


class Concurrent(Encoder):
    """The length of each text and the sum of its letters; memory for `room` items."""

    modalities = frozenset({"textual"})
    concurrent = True

    def __init__(
        self, *, room: int = 1000, error: type[BaseException] = MemoryError, pad: bool = False
    ) -> None:
        self.spec = EncoderSpec(
            name="fake", modality="textual", backend="test", model_id="fake", dim=2, layer="only",
            pooling="none", preprocessing={}, weights="none", weights_sha256=None, licence=None,
            precision="fp32",
        )  # fmt: skip
        self.room = room
        self.error = error
        self.batches: list[int] = []
        self.threads: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.fail_at = 0

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        return model == "fake"

    def load(self, content: str | Path) -> str:
        return str(content)

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        if len(batch) > self.room or "huge" in batch:
            raise self.error("can't allocate memory: you tried to allocate 7 bytes")
        with self.lock:
            self.batches.append(len(batch))
            self.threads[threading.current_thread().name] += 1
            if len(self.batches) == self.fail_at:
                raise ZeroDivisionError
        return np.array([[len(text), sum(map(ord, text))] for text in batch], dtype=np.float32)

    def fit(self, contents: Iterable[str | Path]) -> None:
        raise AssertionError

    def sort_key(self, loaded: str) -> int:
        return len(loaded)


def texts(root: Path, n: int = 500, **special: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"i{k:04d}\t{'x' * (k * 7 % 23 + 1)}" for k in range(n)] + [
        f"{k}\t{v}" for k, v in special.items()
    ]
    (root / "items.tsv").write_text("item_id\ttitle\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return root


def go(root: Path, encoder: Encoder, *, batch_size: int = 8, **run: Any) -> Summary:
    config = SetConfig(modality="textual", model="fake", batch_size=batch_size)
    return extract(
        RunConfig(data=root, device="cpu", **run), config, build=lambda model, **options: encoder
    )


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_forward_passes_run_in_the_worker_threads_and_change_nothing(
    tmp_path: Path, workers: int
) -> None:
    root = texts(tmp_path)
    inline = Concurrent()
    inline.concurrent = False
    expected = go(root, inline, out=tmp_path / "inline")
    encoder = Concurrent()
    assert go(root, encoder, out=tmp_path / "threads", workers=workers).digest == expected.digest
    assert set(inline.threads) == {threading.current_thread().name}
    assert 1 <= len(encoder.threads) <= workers
    assert all(name.startswith("mmx-load") for name in encoder.threads)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_goes_on(
    tmp_path: Path, error: type[BaseException]
) -> None:
    root = texts(tmp_path)
    expected = go(root, Concurrent(), out=tmp_path / "a")
    encoder = Concurrent(room=3, error=error)
    summary = go(root, encoder, out=tmp_path / "b")
    assert summary.digest == expected.digest
    assert summary.stages.batch_size == 2
    assert encoder.batch_size == 2
    assert max(encoder.batches) == 2
    assert summary.as_json()["this_run"]["batch_size"] == 2


def test_an_item_that_does_not_fit_alone_is_corrupt_and_the_rest_goes_on(tmp_path: Path) -> None:
    summary = go(texts(tmp_path, 50, giant="huge"), Concurrent())
    assert (summary.counts.ok, summary.counts.corrupt, summary.exit_code) == (50, 1, 3)
    assert summary.errors[0][0] == "giant"
    assert "out of memory with this item alone" in summary.errors[0][1]


class OfOneDevice(Concurrent):
    """Memory for `room` items, which all passes that are under way share."""

    def __init__(self, room: int) -> None:
        super().__init__(error=torch.OutOfMemoryError)
        self.room_left = room

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        with self.lock:
            if len(batch) > self.room_left:
                raise self.error("CUDA out of memory. Tried to allocate 7 bytes")
            self.room_left -= len(batch)
        time.sleep(0.005)
        vectors = super().encode(batch)
        with self.lock:
            self.room_left += len(batch)
        return vectors


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_pass_fails_for_what_others_have_of_the_memory_and_not_for_its_items(
    tmp_path: Path, batch_size: int
) -> None:
    root = texts(tmp_path, 200)
    encoder = OfOneDevice(batch_size)
    summary = go(root, encoder, batch_size=batch_size, workers=2)
    assert (summary.counts.ok, summary.counts.corrupt) == (200, 0)
    assert summary.stages.batch_size == max(1, batch_size // 2)  # two passes of it fit


def test_on_a_gpu_the_threads_that_load_do_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "resolve_device", lambda device: "cuda")
    encoder = Concurrent()
    summary = go(texts(tmp_path), encoder, workers=1)
    assert summary.counts.ok == 500
    assert summary.stages.workers == 1
    assert encoder.threads
    assert all(name.startswith("mmx-encode") for name in encoder.threads)


def test_other_errors_of_a_forward_pass_come_through_and_what_was_done_is_kept(
    tmp_path: Path,
) -> None:
    root = texts(tmp_path)
    encoder = Concurrent()
    encoder.fail_at = 40
    with pytest.raises(ZeroDivisionError):
        go(root, encoder, workers=2)
    again = Concurrent()
    go(root, again)
    assert (
        sum(again.batches) <= 500 - 8 * 37
    )  # two workers: at most two batches beside the one that failed


def test_an_interruption_keeps_the_batches_under_way(tmp_path: Path) -> None:
    root = texts(tmp_path)
    whole = go(root, Concurrent(), out=tmp_path / "whole")

    class Stopped(Concurrent):
        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            if len(self.batches) == 20:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().encode(batch)

    with pytest.raises(Interrupted):
        go(root, Stopped(), out=tmp_path / "parts")
    again = Concurrent()
    assert go(root, again, out=tmp_path / "parts").digest == whole.digest
    assert 0 < sum(again.batches) < 500 - 8 * 15


def test_a_wrong_shape_in_a_worker_is_the_encoders_fault(tmp_path: Path) -> None:
    class Wide(Concurrent):
        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            return np.zeros((len(batch), 3), dtype=np.float32)

    with pytest.raises(EncoderError, match=r"\(expected \(8, 2\)\)"):
        go(texts(tmp_path), Wide())


def test_workers_compute_on_one_thread_each_and_the_callers_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with WorkerPool(2) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_thread_knows_how_long_it_has_computed() -> None:
    busy, queued = busy_and_queued_s()
    np.linalg.svd(np.random.default_rng(0).random((300, 300)))
    busy_now, queued_now = busy_and_queued_s()
    assert busy_now > busy
    assert queued_now >= queued


def test_the_bottleneck_is_what_is_busy_longest() -> None:
    stages = Stages()
    assert stages.bottleneck() == ""
    stages.decode_busy_s, stages.disk_busy_s = 1.0, 2.0
    assert stages.bottleneck() == "disk (67%)"
    stages.decode_busy_s = 10.0
    assert stages.bottleneck() == "decode (83%)"
    stages.device_busy_s = 48.0
    assert stages.bottleneck() == "device (80%)"
    stages.write_s = 60.0
    assert stages.bottleneck() == "disk (52%)"
    assert Stages(decode_busy_s=1.0, disk_busy_s=-0.5).bottleneck() == "decode (100%)"


def test_waits_are_divided_as_the_loading_was() -> None:
    stages = Stages()
    stages.waited(8.0, 1.0, 1.0, own_s=2.0)
    assert (stages.decode_s, stages.encode_s) == (1.0, 2.0)
    assert (stages.decode_wait_s, stages.disk_wait_s, stages.encode_wait_s) == (2.0, 2.0, 4.0)
    stages = Stages()
    stages.waited(8.0, 1.0, -1.0)  # a difference of two measurements
    assert (stages.decode_wait_s, stages.disk_wait_s) == (8.0, 0.0)


@pytest.mark.parametrize("concurrent", [False, True])
def test_what_an_encoder_does_of_its_own_is_not_counted_as_decoding(
    tmp_path: Path, concurrent: bool
) -> None:
    def burn(seconds: float) -> None:
        began = time.thread_time()
        while time.thread_time() - began < seconds:
            pass

    class Describing(Concurrent):
        def load(self, content: str | Path) -> str:
            burn(0.001)
            with own_work():
                burn(0.004)
            return str(content)

        def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
            time.sleep(0.05)  # waiting is no work
            return super().encode(batch)

    encoder = Describing()
    encoder.concurrent = concurrent
    summary = go(texts(tmp_path, 40), encoder, batch_size=20, workers=2)
    stages = summary.stages
    assert 0.04 <= stages.decode_s < 0.12
    assert 0.16 <= stages.encode_s < 0.16 + 2 * 0.05
    assert f"decode {stages.decode_s:.1f} CPU-s, encode {stages.encode_s:.1f} CPU-s;" in (
        summary.as_text()
    )


def test_encoders_without_weights_own_their_work(catalogue: Path, tmp_path: Path) -> None:
    for root, modality, model in (
        (catalogue, "visual", "colour-hog"),
        (texts(tmp_path), "textual", "tfidf-lsa"),
    ):
        run = RunConfig(data=root, out=tmp_path / "out", device="cpu", workers=1)
        stages = extract(run, SetConfig(modality=modality, model=model)).stages
        assert stages.encode_s > stages.decode_s > 0


# ----------------------------------------------------------------------------------------------
# real encoders


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("catalogue")
    (root / "images").mkdir()
    rng = np.random.default_rng(5)
    for k in range(21):
        pixels = rng.integers(0, 256, (40 + k, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 240)).save(root / "images" / f"{k:02d}.jpg")
    (root / "images" / "09.jpg").write_bytes(b"no picture")
    (root / "items.tsv").write_text(
        "item_id\n" + "".join(f"{k:02d}\n" for k in range(22)), encoding="utf-8"
    )
    return root


def pictures(
    root: Path, out: Path, *, batch_size: int | None = 8, model: str = SMALL, **run: Any
) -> Summary:
    config = SetConfig(modality="visual", model=model, weights="random", batch_size=batch_size)
    return extract(RunConfig(data=root, out=out, device="cpu", **run), config)


def features_of(summary: Summary) -> NDArray[np.float32]:
    with FeatureSet(summary.path) as features:
        return features.matrix(features.ids[features.status == Status.OK])[0]


def test_a_network_gives_the_same_bits_whatever_the_number_of_workers(
    catalogue: Path, tmp_path: Path
) -> None:
    digests = {
        pictures(catalogue, tmp_path / str(workers), workers=workers).digest
        for workers in (1, 2, 3)
    }
    assert len(digests) == 1


def test_a_network_agrees_between_batch_sizes(catalogue: Path, tmp_path: Path) -> None:
    expected = features_of(pictures(catalogue, tmp_path / "7", batch_size=7))
    for size in (1, 64):
        found = features_of(pictures(catalogue, tmp_path / str(size), batch_size=size))
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_order_of_the_items_changes_no_vector(catalogue: Path, tmp_path: Path) -> None:
    forward = pictures(catalogue, tmp_path / "a")
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    (shuffled / "images").symlink_to(catalogue / "images")
    ids = [f"{k:02d}" for k in np.random.default_rng(1).permutation(22)]
    (shuffled / "items.tsv").write_text(
        "item_id\timage\n" + "".join(f"{i}\t\n" for i in ids), encoding="utf-8"
    )
    (shuffled / "images").unlink()
    (shuffled / "images").mkdir()
    for path in (catalogue / "images").iterdir():
        (shuffled / "images" / path.name).write_bytes(path.read_bytes())
    other = pictures(shuffled, tmp_path / "b")
    wanted = [f"{k:02d}" for k in range(21) if k != 9]
    with FeatureSet(forward.path) as a, FeatureSet(other.path) as b:
        assert np.array_equal(
            a.matrix(wanted)[0], b.matrix(wanted)[0]
        )  # batches are padded to one size


def test_the_kernel_of_linear_layers_is_part_of_the_plan(catalogue: Path, tmp_path: Path) -> None:
    with FeatureSet(pictures(catalogue, tmp_path).path) as features:
        assert features.provenance["linear"] in ("onednn", "torch")
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu")
    with FeatureSet(
        extract(run, SetConfig(modality="visual", model="colour-hog")).path
    ) as features:
        assert "linear" not in features.provenance


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernel of linear layers that this processor gets: the last one."""
    if not gemm.onednn_is_right():
        pytest.skip("this build of torch has no working oneDNN")
    found = ["torch"]
    monkeypatch.setattr(gemm, "_of_this_processor", lambda: found[-1])
    gemm.use(None)
    yield found
    gemm.use(None)


def stops_at(batch: int) -> Callable[..., Encoder]:
    """Builds encoders that fail at that batch."""

    def build(*arguments: Any, **options: Any) -> Encoder:
        encoder = create(*arguments, **options)
        encode, seen = encoder.encode, Counter[str]()

        def failing(contents: Sequence[Any]) -> Any:
            seen["batches"] += 1
            if seen["batches"] == batch:
                raise ZeroDivisionError
            return encode(contents)

        encoder.encode = failing  # type: ignore[method-assign]
        return encoder

    return build


def test_a_set_goes_on_with_the_kernel_it_was_begun_with(
    catalogue: Path, tmp_path: Path, processors: list[str]
) -> None:
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu", workers=1)
    config = SetConfig(modality="visual", model=SMALL, weights="random", batch_size=8)
    with pytest.raises(ZeroDivisionError):
        extract(run, config, build=stops_at(2))
    processors.append("onednn")
    gemm.use(None)
    with FeatureSet(extract(run, config).path) as features:
        assert features.provenance["linear"] == "torch" == compute.linear_kernel()
    gemm.use(None)
    assert extract(run, config).already_complete  # nothing is computed: nothing to take over
    assert compute.linear_kernel() == "onednn"


def test_a_finished_set_outlives_an_upgrade(
    catalogue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu")
    config = SetConfig(modality="visual", model="colour-hog")
    with pytest.raises(ZeroDivisionError):
        extract(run, config, build=stops_at(1))
    monkeypatch.setattr("mmx.__version__", "99.0")
    with pytest.raises(
        ProvenanceMismatch, match=r"tool\.version"
    ):  # never the vectors of two versions in one set
        extract(run, config)
    digest = extract(run.model_copy(update={"restart": True}), config).digest
    monkeypatch.setattr("mmx.__version__", "100.0")
    again = extract(run, config, progress=Terminal())
    assert (again.digest, again.already_complete) == (digest, True)
    assert "complete, made with another tool.version; --restart computes it again" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(ProvenanceMismatch):
        extract(run.model_copy(update={"retry_failed": True}), config)
    with pytest.raises(ProvenanceMismatch, match="batch_size"):
        extract(run, config.model_copy(update={"batch_size": 7}))
    assert not extract(run.model_copy(update={"restart": True}), config).already_complete


def test_sets_that_are_made_together_have_one_kernel(
    catalogue: Path, tmp_path: Path, processors: list[str]
) -> None:
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu", workers=1)
    begun, new = (
        SetConfig(modality="visual", model=model, weights="random", batch_size=8)
        for model in (SMALL, "shufflenet_v2_x1_0")
    )
    with pytest.raises(ZeroDivisionError):
        extract(run, begun, build=stops_at(2))
    processors.append("onednn")
    gemm.use(None)
    with pytest.raises(ProvenanceMismatch, match=r"provenance\.linear"):
        extract_together(run, (new, begun))
    for config, kernel in ((begun, "torch"), (new, "onednn")):  # one after the other both go on
        with FeatureSet(extract(run, config).path) as features:
            assert features.provenance["linear"] == kernel


def test_both_kernels_of_linear_layers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if not gemm.onednn_is_right():
        pytest.skip("this build of torch has no working oneDNN")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.VisionTransformer(32, 16, 2, 2, 64, 128).train(False)
        pixels = torch.rand(3, 3, 32, 32)
    tokens = {}
    for kernel in ("torch", "onednn"):
        monkeypatch.setattr(compute, "linear_kernel", lambda kernel=kernel: kernel)
        with compute.forward_pass(torch.device("cpu"), "fp32"):
            tokens[kernel] = network(pixels)
    assert (tokens["torch"] - tokens["onednn"]).abs().max() <= 1e-5


def test_linear_layers_of_other_types_keep_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if not gemm.onednn_is_right():
        pytest.skip("this build of torch has no working oneDNN")
    monkeypatch.setattr(compute, "linear_kernel", lambda: "onednn")
    weight = torch.rand(3, 4)
    with compute.forward_pass(torch.device("cpu"), "fp32"):
        double = torch.nn.functional.linear(torch.ones(2, 4).double(), weight.double())
        vector = torch.nn.functional.linear(torch.ones(4), weight)
        named = torch.nn.functional.linear(torch.ones(2, 4), weight, bias=torch.ones(3))
    assert double.dtype == torch.float64
    assert torch.allclose(vector, weight.sum(1))
    assert torch.allclose(named[0], weight.sum(1) + 1)


@pytest.mark.parametrize("products", ["highest", "high"])
def test_arithmetic_stays_exact_until_the_last_thread_is_out(products: str) -> None:
    cudnn, exact = torch.backends.cudnn, compute.exact_arithmetic

    def settings() -> tuple[bool, bool, str, bool]:
        products = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
        return cudnn.deterministic, cudnn.allow_tf32, *products

    torch.set_float32_matmul_precision(products)  # as by a variable that NVIDIA's containers set
    try:
        before = settings()
        with exact:
            with exact:
                assert settings() == (True, False, "highest", False)
            assert settings() == (True, False, "highest", False)
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_folded_batch_norms_change_roundings_only() -> None:
    request = Request("resnet18", "visual", weights="random", layer="layer4")
    model = torchvision.models.resnet18(weights=None)
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    network = torch.fx.symbolic_trace(model.train(False))
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(x)
    compute.prepared(network, torch.device("cpu"), request.precision)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    compute.prepared(network, torch.device("cpu"), "bf16")
    assert not any(
        node.target.endswith("bn1") for node in network.graph.nodes if node.op == "call_module"
    )
    with torch.inference_mode():
        assert (network(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


# ----------------------------------------------------------------------------------------------
# together


def test_sets_of_the_same_pictures_are_made_together_and_equal_those_made_alone(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    original = Image.open

    def counting(path: Path, **more: Any) -> Any:
        decoded[Path(path).name] += 1
        return original(path, **more)

    monkeypatch.setattr(Image, "open", counting)
    run = RunConfig(data=catalogue, out=tmp_path / "together", device="cpu")
    configs = [
        SetConfig(modality="visual", model=SMALL, weights="random", batch_size=8),
        SetConfig(modality="visual", model="colour-hog", batch_size=8),
    ]
    together = extract_together(run, configs)
    assert set(decoded.values()) == {1}
    alone = [
        extract(run.model_copy(update={"out": tmp_path / "alone"}), config) for config in configs
    ]
    assert [s.digest for s in together] == [s.digest for s in alone]
    assert set(decoded.values()) == {3}
    assert [s.name for s in together] == [f"{SMALL}-random", "colour-hog"]
    assert [s.counts.corrupt for s in together] == [1, 1]
    assert [s.already_complete for s in extract_together(run, configs)] == [True, True]


def test_a_set_that_is_complete_does_not_keep_the_other_from_being_made(
    catalogue: Path, tmp_path: Path
) -> None:
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu")
    hog, net = (
        SetConfig(modality="visual", model="colour-hog", batch_size=8),
        SetConfig(modality="visual", model=SMALL, weights="random", batch_size=8),
    )
    first = extract(run, hog)
    both = extract_together(run, [hog, net])
    assert [s.already_complete for s in both] == [True, False]
    assert both[0].digest == first.digest


def test_groups() -> None:
    def config(modality: str, model: str, **more: Any) -> SetConfig:
        return SetConfig(modality=modality, model=model, **more)  # type: ignore[arg-type]

    a, b = config("visual", "a"), config("visual", "b")
    other = config("visual", "c", batch_size=2)
    t1, t2 = config("textual", "t1"), config("textual", "t2")
    run = RunConfig(device="cpu")
    assert share_contents(run, [a, t1, b, t2, other]) == [[a, b], [t1], [t2], [other]]


def test_a_group_that_fails_is_made_one_by_one(catalogue: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {catalogue}\nout: {tmp_path / 'out'}\ndevice: cpu\nsets:\n"
        "  - {modality: visual, model: no-such-model, batch_size: 8}\n"
        "  - {modality: visual, model: colour-hog, batch_size: 8}\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(cli, ["extract", str(recipe), "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [s["name"] for s in document["sets"]] == ["colour-hog"]
    assert document["failed"][0]["model"] == "no-such-model"


def test_decoded_contents_are_remembered_only_while_they_are_shared() -> None:
    calls: list[str] = []

    @remembered
    def decode(content: str) -> str:
        calls.append(content)
        return content.upper()

    assert [decode("a"), decode("a")] == ["A", "A"]
    assert len(calls) == 2
    with shared_decoding():
        assert [decode("a"), decode("a"), decode("b"), decode("b")] == ["A", "A", "B", "B"]
        assert len(calls) == 4
    with shared_decoding(False):
        decode("b"), decode("b")
    assert len(calls) == 6


def test_too_many_failures_stop_all_sets_that_are_made_together(
    catalogue: Path, tmp_path: Path
) -> None:
    run = RunConfig(data=catalogue, out=tmp_path, device="cpu", max_failures="0")
    configs = [
        SetConfig(modality="visual", model="colour-hog", batch_size=8, name="one"),
        SetConfig(modality="visual", model="colour-hog", batch_size=8, name="two"),
    ]
    with pytest.raises(DataError, match="--max-failures 0"):
        extract_together(run, configs)
    assert create("colour-hog", modality="visual").concurrent is False


# ----------------------------------------------------------------------------------------------
# memory


class Bulky(Concurrent):
    """Loads a kilobyte for each letter; the second number is what its batch has in common."""

    modalities = frozenset({"audio"})
    loaded = 0

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, modality="audio")
        self.alive = weakref.WeakSet[Any]()
        self.most = 0

    def load(self, content: str | Path) -> Any:
        array = np.zeros(
            256 * len(Path(content).read_text(encoding="utf-8")), dtype=np.float32
        ).view(Counted)
        with self.lock:
            self.alive.add(array)
            self.most = max(self.most, len(self.alive))
        return array

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        time.sleep(0.002)
        return np.array([[len(item), sum(map(len, batch))] for item in batch], dtype=np.float32)


class Counted(np.ndarray[Any, Any]):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_large_items_are_loaded_a_few_at_a_time_and_give_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio").mkdir()
    for k in range(120):
        (tmp_path / "audio" / f"{k:03d}.wav").write_text("x" * (1 + k * 7 % 19), encoding="utf-8")

    def run(out: str, encoder: Encoder, workers: int = 2) -> Summary:
        config = SetConfig(modality="audio", model="fake", batch_size=4)
        run_config = RunConfig(data=tmp_path, out=tmp_path / out, device="cpu", workers=workers)
        return extract(run_config, config, build=lambda model, **options: encoder)

    free = Bulky()
    run("free", free)
    monkeypatch.setattr(window, "WINDOW_BYTES", 30 * 1024)
    monkeypatch.setattr(executors, "HELD_BYTES", 30 * 1024)
    narrow = Bulky()
    first = run("narrow", narrow)
    assert narrow.most < free.most
    assert run("one", Bulky(), workers=1).digest == first.digest

    class Stopped(Bulky):
        def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
            self.loaded += 1
            if self.loaded == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().encode(batch)

    with pytest.raises(Interrupted):
        run("parts", Stopped())
    assert run("parts", Bulky()).digest == first.digest
