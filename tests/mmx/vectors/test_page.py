"""The page about a set: what is planted in the vectors is told, and a map keeps neighbours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import mmbase.pages  # noqa: F401 - a test replaces a part of it
from mmstore import FeatureSet, FeatureSetWriter, Pairs
from mmx.cli import cli
from mmx.vectors.page.facts import facts, unit_rows
from mmx.vectors.page.projection import neighbour_map, principal

HOSTILE = "<script>alert(1)</script>"
RNG = np.random.default_rng(3)


def written(
    root: Path, vectors: NDArray[Any], *, missing: int = 0, corrupt: tuple[str, ...] = ()
) -> Path:
    """Write visual/mine: the vectors, then rows without, ids i0, i1, ..."""
    path = root / "features/visual/mine.h5"
    n = len(vectors)
    ids = [f"i{row}" for row in range(n + missing + len(corrupt))]
    with FeatureSetWriter(
        path, modality="visual", dim=vectors.shape[1], ids=ids, provenance={"extractor": HOSTILE}
    ) as writer:
        writer.write(np.arange(n), vectors.astype(np.float32))
        writer.mark_missing(np.arange(n, n + missing))
        writer.mark_corrupt(np.arange(n + missing, len(ids)), list(corrupt))
        writer.finish()
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["store", "info", *(str(one) for one in arguments)])


def page(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_planted_vectors_and_columns_are_found(tmp_path: Path) -> None:
    vectors = RNG.normal(size=(50, 8)).astype(np.float32)
    vectors[:, 2] = 7  # one value throughout
    vectors[:, 5] = 1000 + 1e-3 * RNG.normal(size=50)  # far from zero, and hardly spread
    vectors[[3, 11]] = 0
    vectors[20] = 2.5
    vectors[[30, 31, 40]] = vectors[29]
    vectors[7], vectors[8] = 0.0, -0.0
    with FeatureSet(written(tmp_path, vectors, missing=2)) as features:
        found = facts(features)
    assert found.rows.tolist() == list(range(50)) and found.columns == 8
    assert (found.zero, found.constant) == ([3, 7, 8, 11], [3, 7, 8, 11, 20])
    assert found.duplicates == [[3, 7, 8, 11], [29, 30, 31, 40]]
    np.testing.assert_allclose(found.norms, np.linalg.norm(vectors.astype(float), axis=1))
    assert found.dead == []  # the vectors of zeros differ from 7 there


def test_columns_that_hardly_change(tmp_path: Path) -> None:
    vectors = RNG.normal(size=(50, 8))
    vectors[:, 2] = 7
    vectors[:, 5] = 1000 + 1e-3 * RNG.normal(size=50)
    with FeatureSet(written(tmp_path, vectors)) as features:
        found = facts(features)
    assert (found.dead, found.nearly_dead) == ([2], [5])


def test_mean_cosine_is_that_of_all_pairs(tmp_path: Path) -> None:
    vectors = RNG.normal(size=(12, 4)) + 1
    vectors[5] = 0
    with FeatureSet(written(tmp_path, vectors)) as features:
        found = facts(features).cosine
    unit = unit_rows(vectors.astype(np.float32)).astype(float)
    every = (unit @ unit.T)[~np.eye(12, dtype=bool)]
    assert found == pytest.approx(every.mean(), abs=1e-6)


def test_components_are_those_of_a_decomposition() -> None:
    x = unit_rows((RNG.normal(size=(200, 40)) * np.geomspace(5, 0.1, 40)).astype(np.float32))
    found, share = principal(x, 5)
    centred = x - x.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(5), np.abs(right[:5]).argmax(axis=1)])
    np.testing.assert_allclose(found, (left * sizes)[:, :5] * signs, atol=2e-4)
    assert share == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), abs=1e-5)
    again, _ = principal(x, 5)
    assert np.array_equal(found, again)


def test_the_map_keeps_groups_together() -> None:
    group = np.repeat(np.arange(6), 40)
    x = (RNG.normal(size=(6, 10)) * 3)[group] + RNG.normal(size=(240, 10))
    places = neighbour_map(principal(unit_rows(x.astype(np.float32)), 10)[0])
    assert np.isfinite(places).all() and places.shape == (240, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    near = np.argsort(distances, axis=1)[:, :5]
    assert (group[near] == group[:, None]).mean() > 0.95
    again = neighbour_map(principal(unit_rows(x.astype(np.float32)), 10)[0])
    assert np.array_equal(places, again)


@pytest.mark.parametrize("n", [5, 16, 17])
def test_few_or_equal_vectors_have_a_map(n: int) -> None:
    for x in (RNG.normal(size=(n, 3)), np.ones((n, 3)), np.eye(n, 1) * np.ones((1, 3))):
        components, _ = principal(unit_rows(x.astype(np.float32)), 3)
        assert np.isfinite(neighbour_map(components)).all()


# ----------------------------------------------------------------------------------------------
# the command


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("altair", "jinja2", "vl_convert"):
        pytest.importorskip(name)
    # Putting the charts' library together takes seconds; the browser's tests look at whole pages.
    monkeypatch.setattr(sys.modules["mmbase.pages.rendering"], "_chart_library", str)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Thirty items with pictures, of which the first is hostile and the last have no vector."""
    vectors = RNG.normal(size=(27, 6)) + 1
    vectors[[4, 5]] = vectors[3]
    written(tmp_path, vectors, missing=1, corrupt=("not an image (a.jpg)", f"{HOSTILE}: broken"))
    rows = [f"i{row}\tthing {row}\tc{row % 2}" for row in range(31)]
    rows[0] = f"i0\t{HOSTILE}\tc0"
    (tmp_path / "items.tsv").write_text("\n".join(["item_id\ttitle\tcategory", *rows]) + "\n")
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return tmp_path
    (tmp_path / "images").mkdir()
    for row in range(27):
        Image.new("RGB", (80, 40), (row * 9, 90, 90)).save(tmp_path / f"images/i{row}.png")
    return tmp_path


@pytest.mark.usefixtures("extra")
def test_the_page_tells_what_is_there(dataset: Path) -> None:
    out = dataset / "page.html"
    made = page("visual/mine", "--data", dataset, "--html", out)
    text = out.read_text(encoding="utf-8")
    assert made["bytes"] == out.stat().st_size < 3_000_000
    assert (made["map"], made["points"]) == ("neighbours", 27)
    assert "27 of 30" in text and "30 of 31" in text  # of the set, and of the dataset
    assert HOSTILE not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Corrupt, not an image: 1 item" in text and "3 equal vectors" in text
    assert any("3 of 27 vectors equal another one" in one for one in made["warnings"])
    points = json.loads(text.split('<script type="application/json">')[1].partition("<")[0])
    values = points["data"]["values"]
    assert [one["n"] for one in values][:2] == [HOSTILE, "thing 1"]
    if (dataset / "images").exists():
        assert all(one["i"].startswith("data:image/webp;base64,") for one in values)
    again = dataset / "again.html"
    page("visual/mine", "--data", dataset, "--html", again)
    # The command line is all that differs.
    differing = zip(text.splitlines(), again.read_text("utf-8").splitlines(), strict=True)
    assert sum(one != other for one, other in differing) <= 1


@pytest.mark.usefixtures("extra")
def test_pictures_are_bounded(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    from mmx.vectors.page import write

    monkeypatch.setattr(write, "MOST_BYTES", write._LIBRARY + 100_000 + 4_500)
    made = page("visual/mine", "--data", dataset, "--html", dataset / "page.html")
    assert 0 < made["pictures"] < 27
    assert "27 pictures fit in a page of 3 MB" in (dataset / "page.html").read_text("utf-8")


@pytest.mark.usefixtures("extra")
def test_without_pillow_points_have_titles(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmx.vectors.page import write

    monkeypatch.setattr(write, "can_draw", lambda: False)
    made = page("visual/mine", "--data", dataset, "--html", dataset / "page.html")
    assert (made["points"], made["pictures"]) == (27, 0)
    if (dataset / "images").exists():
        assert any("Pillow" in one and "[extract]" in one for one in made["warnings"])


@pytest.mark.usefixtures("extra")
def test_a_set_that_is_elsewhere_has_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "x", RNG.normal(size=(9, 3)))
    alone = path.rename(tmp_path / "mine.h5")
    made = page(alone, "--html", tmp_path / "page.html")
    assert made["points"] == 9 and any("ids alone" in one for one in made["warnings"])


@pytest.mark.usefixtures("extra")
def test_few_vectors_have_no_map(tmp_path: Path) -> None:
    path = written(tmp_path, RNG.normal(size=(3, 2)), missing=2)
    made = page(path, "--html", tmp_path / "page.html")
    assert (made["map"], made["points"]) == (None, 0)
    path.unlink()
    made = page(written(tmp_path, np.empty((0, 2)), missing=4), "--html", tmp_path / "page.html")
    assert made["points"] == 0


@pytest.mark.usefixtures("extra")
def test_vectors_of_interactions_have_no_map(tmp_path: Path) -> None:
    path = tmp_path / "features/textual/reviews.h5"
    users, items = [f"u{n}" for n in range(9)], [f"i{n}" for n in range(9)]
    with FeatureSetWriter(
        path, modality="textual", dim=3, ids=Pairs(users, items), provenance={"extractor": "x"}
    ) as writer:
        writer.write(np.arange(9), RNG.normal(size=(9, 3)).astype(np.float32))
        writer.finish()
    made = page(path, "--html", tmp_path / "page.html")
    assert made["map"] is None
    assert "for each interaction" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.usefixtures("extra")
def test_what_cant_be_shown_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "features/visual/ragged.h5"
    with FeatureSetWriter(
        path, modality="visual", dim=2, ids=["a"], layout="ragged", provenance={"extractor": "x"}
    ) as writer:
        writer.write_ragged([0], [np.ones((2, 2), np.float32)])
        writer.finish()
    done = invoke(path, "--html", tmp_path / "page.html")
    assert done.exit_code == 1 and "ragged set" in done.stderr
    assert not (tmp_path / "page.html").exists()
    done = invoke("visual/none", "--data", tmp_path, "--html", tmp_path / "page.html")
    assert done.exit_code == 1 and "Traceback" not in done.output


def test_a_set_is_not_lost_to_its_page(tmp_path: Path) -> None:
    path = written(tmp_path, RNG.normal(size=(8, 4)))
    before = path.read_bytes()
    done = invoke(path, "--html", path)
    assert done.exit_code == 1
    assert "is there already, and is no HTML page" in done.output
    assert path.read_bytes() == before
