"""The neighbours' cache: found again, never stale, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmbench.config import Recipe, make_settings
from mmbench.data import cache
from mmbench.data.cache import NeighbourCache, cache_folder, neighbour_cache
from mmbench.ops.knn import cosine_knn
from mmbench.runs.fit import build
from mmbench.runs.inputs import load_inputs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []

    def count(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(k)
        return cosine_knn(vectors, k)

    monkeypatch.setattr(cache, "cosine_knn", count)
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


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", "a")
    assert cache_folder() == Path("a")
    monkeypatch.setenv("MMBENCH_CACHE", "off")
    assert neighbour_cache() is None
    monkeypatch.delenv("MMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "b")
    assert cache_folder() == Path("b/mmbench")


def test_neighbours_are_exact_whatever_the_run_before_was(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--approximate tf32` of one run sets must not decide what is kept for the next, under the same name."""
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path))
    recipe, inputs = load_inputs(
        Recipe(data=str(dataset), model="lattice", settings=make_settings("lattice", {}))
    )
    precisions: list[str] = []

    def spy(vectors: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        precisions.append(torch.get_float32_matmul_precision())
        return cosine_knn(vectors, k)

    monkeypatch.setattr(cache, "cosine_knn", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        build(recipe, inputs.split.training, inputs.features)
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions == ["highest", "highest"]  # visual and textual
