"""Content joined by id, scaled and filled; the neighbours' cache: never stale, never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.elsewhere import elsewhere

from mmbench.config import Recipe, make_settings
from mmbench.data import caches, mapped
from mmbench.data.caches import NeighbourCache, cache_folder, neighbour_cache
from mmbench.data.features import (
    ItemFeatures,
    choose_sets,
    load_features,
    parse_wanted,
    remember_features,
)
from mmbench.data.treatment import Treatment
from mmbench.errors import DataError, UsageError
from mmbench.ops.knn import cosine_knn
from mmbench.runs.fit import build
from mmbench.runs.inputs import load_inputs
from mmstore import FeatureSetWriter, UnknownFeatureSet

IDS = ["a", "b", "gone", "c", "new", "absent"]  # the first four are items of training
STORED = {
    "a": [3.0, 0.0, 7.0],
    "b": [0.0, 4.0, 7.0],
    "c": [-6.0, 8.0, 7.0],  # the last dimension is constant over training items
    "new": [1.0, 2.0, 9.0],
    "elsewhere": [1.0, 1.0, 1.0],
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A set that lacks one training item (corrupt) and one unseen one, and knows a stranger."""
    ids = [*STORED, "gone"]
    with FeatureSetWriter(
        tmp_path / "features/visual/toy.h5",
        modality="visual",
        dim=3,
        ids=ids,
        provenance={"extractor": "test"},
    ) as writer:
        writer.write(np.arange(5), np.array(list(STORED.values()), np.float32))
        writer.mark_corrupt(np.array([5]), ["cut off"])
        writer.finish()
    return tmp_path / "features"


def load(store: Path, **options: object) -> ItemFeatures:
    treatment = Treatment(**options)  # type: ignore[arg-type]
    (one,) = load_features(store, IDS, n_trained=4, treatment=treatment).values()
    return one


def test_rows_follow_the_ids_and_absence_is_kept(store: Path) -> None:
    one = load(store, missing="zero")
    assert one.present.tolist() == [True, True, False, True, True, False]
    expected = [STORED.get(item, [0.0, 0.0, 0.0]) for item in IDS]
    np.testing.assert_array_equal(one.vectors, np.array(expected, np.float32))
    assert (one.n_stored, one.corrupt) == (5, 1)
    content = one.first(4)
    assert content.present.tolist() == [True, True, False, True]
    assert content.vectors.shape == (4, 3)
    assert content.vectors.data_ptr() == one.vectors.ctypes.data  # no copy


@pytest.mark.parametrize("scaling", ["none", "l2", "standard"])
def test_large_vectors_are_mapped_from_a_file_and_are_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: str
) -> None:
    in_memory = load(store, scaling=scaling)
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 1)
    monkeypatch.setattr("mmbench.data.features._SCALED_ROWS", 2)
    taken: list[tuple[int, ...]] = []
    memmap = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda *a, shape, **k: taken.append(shape) or memmap(*a, shape=shape, **k)
    )
    for folder in ("off", str(tmp_path / "cache"), str(store / "visual/toy.h5")):
        monkeypatch.setenv("MMBENCH_CACHE", folder)
        one = load(store, scaling=scaling)
        np.testing.assert_array_equal(one.vectors, in_memory.vectors)
        one.vectors[0] = 9  # writable, and nobody else's
    # Without a cache, and where it can't be, they are in memory; the file has no name.
    assert taken == [(6, 3)] and not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr("os.posix_fallocate", _full, raising=False)
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    np.testing.assert_array_equal(load(store, scaling=scaling).vectors, in_memory.vectors)
    assert len(taken) == 1


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("scaling", ["none", "l2", "standard"])
def test_vectors_whose_length_overflows_are_no_zeros(tmp_path: Path, scaling: str) -> None:
    path = tmp_path / "features/visual/huge.h5"
    with FeatureSetWriter(path, modality="visual", dim=2, ids=IDS[:4], provenance={}) as writer:
        writer.write(np.arange(3), np.array([[1, 2], [3, -1e20], [1e18, 1]], np.float32))
        writer.mark_missing(np.array([3]))
        writer.finish()
    with pytest.raises(DataError, match=r"up to 1e\+20 in the vectors of 1 item, e.g. 'b'"):
        load(tmp_path / "features", scaling=scaling)


def test_l2_gives_each_vector_unit_length(store: Path) -> None:
    one = load(store, scaling="l2", missing="zero")
    for item, found in zip(IDS, one.vectors.tolist(), strict=True):
        stored = STORED.get(item, [0.0, 0.0, 0.0])
        length = sum(x * x for x in stored) ** 0.5 or 1.0
        assert found == pytest.approx([x / length for x in stored], rel=1e-6)


def test_standard_uses_mean_and_deviation_of_training_items(store: Path) -> None:
    one = load(store, scaling="standard", missing="zero")
    trained = [STORED[item] for item in ("a", "b", "c")]
    for dim, column in enumerate(zip(*trained, strict=True)):
        mean = sum(column) / 3
        deviation = (sum((x - mean) ** 2 for x in column) / 3) ** 0.5 or 1.0
        expected = [
            (STORED[item][dim] - mean) / (deviation * 3**0.5) if item in STORED else 0.0
            for item in IDS
        ]
        assert one.vectors[:, dim].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    own = one.vectors[:4][one.present[:4]].astype(np.float64)
    assert (own**2).sum(1).mean() == pytest.approx(2 / 3)  # 1, but for the constant dimension


@pytest.mark.parametrize("scaling", ["none", "l2", "standard"])
def test_the_mean_of_training_items_stands_in(store: Path, scaling: str) -> None:
    one, zeros = (load(store, scaling=scaling, missing=name) for name in ("mean", "zero"))
    mean = zeros.vectors[[0, 1, 3]].astype(np.float64).mean(0)
    np.testing.assert_allclose(one.vectors[~one.present], [mean, mean], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(one.vectors[one.present], zeros.vectors[one.present])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []

    def count(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(k)
        return cosine_knn(vectors, k)

    monkeypatch.setattr(caches, "cosine_knn", count)
    return made


def test_computed_once_and_equal(tmp_path: Path, calls: list[int]) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    find = NeighbourCache(tmp_path)
    first, again = find("visual", x, 5), find("textual", x.clone(), 5)
    assert calls == [5]
    for ours, theirs, plain in zip(first, again, cosine_knn(x, 5), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, plain)


def test_anything_else_is_computed_anew(tmp_path: Path, calls: list[int]) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    find = NeighbourCache(tmp_path)
    find("visual", x, 5)
    find("visual", x, 6)
    changed = x.clone()
    changed[3, 2] += 1e-3
    find("visual", changed, 5)
    find("visual", x.double(), 5)
    find("visual", x.view(80, 4), 5)
    assert calls == [5, 6, 5, 5, 5]


def test_damaged_files_and_impossible_folders_do_not_matter(
    tmp_path: Path, calls: list[int]
) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    find = NeighbourCache(tmp_path)
    expected = find("visual", x, 3)
    (file,) = (tmp_path / "neighbours").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(find("visual", x, 3)[0], expected[0])
    (tmp_path / "file").write_text("")
    assert torch.equal(NeighbourCache(tmp_path / "file")("visual", x, 3)[0], expected[0])
    assert len(calls) == 3
    assert not list(tmp_path.rglob("*.partial"))


def test_a_list_found_on_one_device_serves_on_every_one(tmp_path: Path, calls: list[int]) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    plain = cosine_knn(x, 5)
    with elsewhere() as device:
        # Vectors are here, the search is there: the lists come back.
        found = NeighbourCache(tmp_path, device)("visual", x, 5)
        off = NeighbourCache(None, device)("visual", x, 5)
    assert calls == [5, 5]
    again = NeighbourCache(tmp_path)("visual", x, 5)
    assert calls == [5, 5]
    for one in (found, off, again):
        assert {part.device.type for part in one} == {"cpu"}
        assert torch.equal(one[0], plain[0])
        torch.testing.assert_close(one[1], plain[1], rtol=0, atol=1e-7)
    with elsewhere() as device:  # nor does it matter where the vectors are
        assert NeighbourCache._digest(x.to(device), 5) == NeighbourCache._digest(x, 5)


def test_neighbours_are_searched_where_training_will_be(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mmbench.runs.devices.resolve_device", lambda name, automatic: name)
    searched: list[torch.device] = []

    def spy(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        searched.append(vectors.device)
        return cosine_knn(vectors, k)

    monkeypatch.setattr(caches, "cosine_knn", spy)
    for cache in (str(tmp_path), "off"):
        monkeypatch.setenv("MMBENCH_CACHE", cache)
        with elsewhere() as device:
            recipe, inputs = load_inputs(
                Recipe(
                    data=str(dataset),
                    model="freedom",
                    device=str(device),
                    settings=make_settings("freedom", {}),
                )
            )
            build(recipe, inputs.setting(recipe.evaluation))
            assert set(searched) == {device}
        searched.clear()
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path))
    recipe = recipe.model_copy(update={"device": "cpu"})
    build(recipe, inputs.setting(recipe.evaluation))
    assert searched == []  # what was found there serves here


def test_the_digest_sees_every_number_and_no_threads() -> None:
    x = torch.randn(2_500, 3, generator=torch.Generator().manual_seed(0))
    digests = {NeighbourCache._digest(x, 5)}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 2)
        digests.add(NeighbourCache._digest(x, 5))
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1
    for row in (0, 1_024, 2_499):
        changed = x.clone()
        changed[row, 2] += 1
        digests.add(NeighbourCache._digest(changed, 5))
    digests.add(NeighbourCache._digest(torch.cat([x[1_024:2_048], x[:1_024], x[2_048:]]), 5))
    assert len(digests) == 5


@pytest.mark.gpu
def test_the_gpu_fills_the_cache_of_the_cpu(tmp_path: Path, calls: list[int]) -> None:
    x = torch.randn(2_000, 256, generator=torch.Generator().manual_seed(0))
    found = NeighbourCache(tmp_path, torch.device("cuda"))("visual", x, 10)
    here, there = NeighbourCache(tmp_path)("visual", x, 10), cosine_knn(x, 10)
    assert calls == [10]
    for one in (found, here):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, there, strict=True))


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", "a")
    assert cache_folder() == Path("a")
    monkeypatch.setenv("MMBENCH_CACHE", "off")
    assert neighbour_cache().folder is None
    monkeypatch.delenv("MMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "b")
    assert cache_folder() == Path("b/mmbench")


def test_neighbours_are_exact_whatever_the_run_before_was(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--approximate tf32` of one run must not decide what is cached for the next."""
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path))
    recipe, inputs = load_inputs(
        Recipe(data=str(dataset), model="lattice", settings=make_settings("lattice", {}))
    )
    precisions: list[str] = []

    def spy(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        precisions.append(torch.get_float32_matmul_precision())
        return cosine_knn(vectors, k)

    monkeypatch.setattr(caches, "cosine_knn", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        build(recipe, inputs.setting(recipe.evaluation))
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions == ["highest", "highest"]  # visual and textual


def test_a_model_takes_several_sets_of_a_modality_under_labels(store: Path) -> None:
    found = load_features(store, IDS, {"shape": "visual/toy", "visual": "toy"}, n_trained=4)
    assert list(found) == ["visual", "shape"]
    assert [(one.modality, one.name) for one in found.values()] == [
        ("visual", "toy"),
        ("shape", "visual/toy"),
    ]
    np.testing.assert_array_equal(found["shape"].vectors, found["visual"].vectors)
    with pytest.raises(UnknownFeatureSet, match="no visual set 'tyo'"):
        load_features(store, IDS, {"shape": "visual/tyo"}, n_trained=4)


def test_labels_are_no_default(store: Path) -> None:
    remember_features(store, {"shape": "visual/toy"}, named=True)
    assert choose_sets(store)[0] == {"visual": "toy"}
    assert not (store.parent / "dataset.json").exists()


def test_a_modality_is_named_once() -> None:
    assert parse_wanted(["shape=visual/edge-map"]) == {"shape": "visual/edge-map"}
    with pytest.raises(UsageError, match="more=visual/b"):
        parse_wanted(["visual=a", "visual=b"])
