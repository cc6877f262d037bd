"""Several feature sets as one: aligned by id, computed as by hand, no vector that a set lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmstore import FeatureSet, FeatureSetWriter, Pairs, Status
from mmx.cli import cli
from mmx.errors import DataError, UsageError
from mmx.vectors.fusion import How, fuse, fuse_vectors

RNG = np.random.default_rng(4)


def made(root: Path, modality: str, name: str, rows: dict[str, Any], dim: int = 3) -> Path:
    path = root / modality / f"{name}.h5"
    with FeatureSetWriter(
        path, modality=modality, dim=dim, ids=list(rows), provenance={"extractor": name}
    ) as writer:
        for row, vector in enumerate(rows.values()):
            if vector is None:
                writer.mark_missing([row])
            elif isinstance(vector, str):
                writer.mark_corrupt([row], [vector])
            else:
                writer.write([row], [vector])
        writer.finish()
    return path


VECTORS: dict[str, NDArray[np.float32]] = {
    key: RNG.normal(size=3).astype(np.float32) for key in "abcdefgh"
}


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    first = {
        "1": VECTORS["a"],
        "2": VECTORS["b"],
        "3": None,
        "4": "broken",
        "5": VECTORS["c"],
        "6": VECTORS["d"],
    }
    second = {
        "6": VECTORS["e"],
        "4": VECTORS["f"],
        "2": VECTORS["g"],
        "1": VECTORS["h"],
        "5": "cut",
        "7": VECTORS["a"],
    }
    return [made(tmp_path, "visual", "one", first), made(tmp_path, "textual", "two", second)]


EXPECTED = {
    "concat": lambda a, b: np.concatenate([a, b]),
    "sum": lambda a, b: a + b,
    "mean": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


@pytest.mark.parametrize("how", get_args(How))
def test_vectors_are_matched_by_id(pair: list[Path], tmp_path: Path, how: How) -> None:
    done = fuse(pair, tmp_path, how=how, name="both", modality="fused")
    assert (done.ok, done.missing, done.corrupt) == (3, 1, 2)
    with FeatureSet(done.path) as features:
        assert features.ids.tolist() == ["1", "2", "3", "4", "5", "6"]
        ok, missing, corrupt = Status.OK, Status.MISSING, Status.CORRUPT
        assert features.status.tolist() == [ok, ok, missing, corrupt, corrupt, ok]
        assert features.errors() == [(3, "visual/one: broken"), (4, "textual/two: cut")]
        found = features.matrix(["1", "2", "6"])[0]
        assert features.provenance["of"][1]["provenance"]["extractor"] == "two"
        assert features.verify() == []
    for row, (a, b) in enumerate((("a", "h"), ("b", "g"), ("d", "e"))):
        assert found[row] == pytest.approx(EXPECTED[how](VECTORS[a], VECTORS[b]), abs=1e-6)
    again = fuse(pair, tmp_path, how=how, name="both", modality="fused")
    assert (again.already, again.digest) == (True, done.digest)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans())
def test_widths_and_lengths(widths: list[int], unit: bool) -> None:
    parts = [RNG.normal(size=(2, width)) for width in widths]
    fused = fuse_vectors(parts, "concat", unit=unit)
    assert fused.shape == (2, sum(widths))
    if unit:
        assert np.linalg.norm(fused, axis=1) == pytest.approx(len(widths) ** 0.5)


def test_a_vector_of_zeros_stays_one() -> None:
    assert np.array_equal(
        fuse_vectors([np.zeros((1, 2)), np.ones((1, 2))], "mul", unit=True), np.zeros((1, 2))
    )


def test_widths_that_differ(pair: list[Path], tmp_path: Path) -> None:
    narrow = made(tmp_path, "audio", "narrow", {"1": np.ones(2)}, dim=2)
    with pytest.raises(DataError, match=r"--how mean needs vectors of one length \(got 3, 2\)"):
        fuse([pair[0], narrow], tmp_path, how="mean", name="x", modality="fused")
    assert fuse([pair[0], narrow], tmp_path, how="concat", name="x", modality="fused").dim == 5


def test_several_vectors_per_item_or_another_source(pair: list[Path], tmp_path: Path) -> None:
    ragged, reviews = tmp_path / "visual" / "patches.h5", tmp_path / "textual" / "reviews.h5"
    with FeatureSetWriter(
        ragged, modality="visual", dim=3, ids=["1"], layout="ragged", provenance={}
    ) as writer:
        writer.write_ragged([0], [np.ones((2, 3))])
        writer.finish()
    with FeatureSetWriter(
        reviews, modality="textual", dim=3, ids=Pairs(["u"], ["1"]), provenance={}
    ) as writer:
        writer.write([0], np.ones((1, 3)))
        writer.finish()
    with pytest.raises(DataError, match="several vectors per item"):
        fuse([pair[0], ragged], tmp_path, how="sum", name="x", modality="fused")
    with pytest.raises(DataError, match="of source interaction"):
        fuse([pair[0], reviews], tmp_path, how="sum", name="x", modality="fused")
    assert fuse([reviews, reviews], tmp_path, how="sum", name="x", modality="textual").ok == 1


def test_the_command(pair: list[Path], tmp_path: Path) -> None:
    line = ["fuse", "visual/one", "textual/two", "--store", str(tmp_path)]
    result = CliRunner().invoke(cli, [*line, "--how", "mean", "--scaling", "l2"])
    assert result.exit_code == 3  # two items are corrupt in one of them
    assert result.stdout.strip() == (tmp_path / "fused" / "one-two-mean.h5").as_posix()
    document = json.loads(CliRunner().invoke(cli, [*line, "--json"]).stdout)
    assert (document["dim"], document["ok"], document["corrupt"]) == (6, 3, 2)
    assert CliRunner().invoke(cli, ["fuse", "visual/one", "--store", str(tmp_path)]).exit_code == 2
    assert "Did you mean" in CliRunner().invoke(cli, ["fuze"]).stderr
    assert CliRunner().invoke(cli, [*line, "--name", "../x"]).exit_code == 2


def test_a_set_is_not_replaced_by_what_is_made_of_it(pair: list[Path], tmp_path: Path) -> None:
    before = pair[0].read_bytes()
    with pytest.raises(UsageError, match="another --name"):
        fuse(pair, tmp_path, how="sum", name="one", modality="visual", restart=True)
    assert pair[0].read_bytes() == before


def test_a_product_that_float32_cannot_hold_is_corrupt(tmp_path: Path) -> None:
    rows = {"1": np.full(3, 1e30, np.float32), "2": VECTORS["a"]}
    done = fuse(
        [made(tmp_path, "visual", name, rows) for name in "ab"],
        tmp_path,
        how="mul",
        name="m",
        modality="visual",
    )
    assert (done.ok, done.corrupt) == (1, 1)


def test_the_modality_is_that_of_the_sets_wherever_their_files_lie(
    pair: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    copies = [str(path.rename(tmp_path / "elsewhere" / path.name)) for path in pair]
    for sets, expected in ((copies, "fused"), ([copies[0], copies[0]], "visual")):
        done = CliRunner().invoke(
            cli, ["fuse", *sets, "--store", str(tmp_path), "--name", "new", "-q"]
        )
        assert done.stdout.split() == [(tmp_path / expected / "new.h5").as_posix()]


def test_the_dataset_folder_stands_for_its_store(tmp_path: Path) -> None:
    store = tmp_path / "mine" / "features"
    for name in ("one", "two"):
        made(store, "visual", name, {"1": VECTORS["a"]})
    line = ["fuse", "visual/one", "visual/two", "--data", str(tmp_path / "mine"), "--name", "both"]
    done = CliRunner().invoke(cli, line)
    assert done.stdout.split() == [(store / "visual" / "both.h5").as_posix()]
