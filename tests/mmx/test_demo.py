"""The demonstration catalogue: same seed, same bytes; its flaws; never over somebody's data."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbase.errors import install_extra
from mmbase.progress import Silent
from mmx.demo import write_demo
from mmx.demo.latent import MIN_PICKS, N_FACTORS, Items, controls, draw_items, draw_picks
from mmx.demo.words import STYLES
from mmx.errors import DataError, ToolError, UsageError

N_ITEMS, N_USERS = 60, 40


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def describe(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return described


def item_rows(folder: Path) -> list[list[bytes]]:
    return [line.split(b"\t") for line in (folder / "items.tsv").read_bytes().splitlines()]


def interactions(folder: Path) -> list[list[str]]:
    return [
        line.split("\t")
        for line in (folder / "interactions.tsv").read_text(encoding="utf-8").splitlines()
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "small"
    write_demo(folder, items=N_ITEMS, users=N_USERS, seed=3)
    return folder


def test_the_same_seed_writes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "again", items=N_ITEMS, users=N_USERS, seed=3)
    assert tree(tmp_path / "again") == tree(small)


def test_another_seed_writes_another_catalogue(small: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "other", items=N_ITEMS, users=N_USERS, seed=4)
    assert tree(tmp_path / "other")["interactions.tsv"] != tree(small)["interactions.tsv"]
    assert not set(tree(tmp_path / "other")) & {
        name for name in tree(small) if name.startswith("images")
    }


def test_catalogues_of_one_space_have_other_items_and_users_in_the_same_styles(
    small: Path, tmp_path: Path
) -> None:
    drawn: dict[str, list[Any]] = {"items": [], "knobs": []}

    def watched(n: int, centres: Any, rng: np.random.Generator) -> Items:
        drawn["items"].append(draw_items(n, centres, rng))
        return drawn["items"][-1]

    def also_watched(factors: Any, rotation: Any, rng: Any, *, noise: float) -> Any:
        drawn["knobs"].append(rotation)
        return controls(factors, rotation, rng, noise=noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmx.demo.draw_items", watched)
        patch.setattr("mmx.demo.controls", also_watched)
        for name, seed, space in (("one", 3, None), ("other", 4, 3), ("own", 4, None)):
            write_demo(tmp_path / name, items=N_ITEMS, users=N_USERS, seed=seed, space=space)
    one, other, own = drawn["items"]
    looks, sounds = drawn["knobs"][::2], drawn["knobs"][1::2]
    for kind in (looks, sounds, [items.centres for items in drawn["items"]]):
        assert np.array_equal(kind[0], kind[1]) and not np.array_equal(kind[0], kind[2])
    # All but the space is that of the catalogue's own seed, to the last bit.
    assert np.array_equal(other.popularity, own.popularity)
    assert np.allclose(
        other.factors - other.centres[other.style], own.factors - own.centres[own.style]
    )
    assert not np.array_equal(one.style, other.style)
    assert tree(tmp_path / "one") == tree(small)
    ids = [{row[0] for row in item_rows(tmp_path / name)[1:]} for name in ("one", "other")]
    assert not ids[0] & ids[1]
    assert describe(tmp_path / "other")["generator"]["parameters"]["space"] == 3
    with pytest.raises(UsageError, match="--space must be at least 0"):
        write_demo(tmp_path / "none", items=N_ITEMS, users=N_USERS, seed=3, space=-1)


def test_dataset_json_says_that_the_data_are_synthetic_and_what_they_are(small: Path) -> None:
    described = describe(small)
    assert described["synthetic"] is True
    assert "Synthetic" in described["source"] and "CC0" in described["licence"]
    assert described["generator"]["parameters"] == {"items": N_ITEMS, "users": N_USERS, "seed": 3}
    rows = interactions(small)[1:]
    assert described["counts"]["interactions"] == len(rows)
    assert described["counts"]["items_with_interactions"] == len({row[1] for row in rows})
    assert described["counts"]["density"] == len(rows) / (N_ITEMS * N_USERS)
    for name in ("items.tsv", "interactions.tsv"):
        assert (
            described["files"][name]["sha256"]
            == hashlib.sha256((small / name).read_bytes()).hexdigest()
        )


def test_the_digest_of_a_folder_is_that_of_its_sha256sum_listing(small: Path) -> None:
    paths = sorted((small / "audio").iterdir())
    listing = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  audio/{path.name}\n" for path in paths
    )
    assert describe(small)["files"]["audio"] == {
        "files": len(paths),
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "bytes": sum(path.stat().st_size for path in paths),
    }


def test_every_user_has_at_least_five_different_items_of_the_catalogue(small: Path) -> None:
    header, *rows = interactions(small)
    assert header == ["user_id", "item_id", "rating", "timestamp"]
    ids = {row[0].decode() for row in item_rows(small)[1:]}
    per_user: dict[str, list[str]] = {}
    for user, item, rating, timestamp in rows:
        per_user.setdefault(user, []).append(item)
        assert item in ids
        assert 1 <= int(rating) <= 5
        assert 1_546_300_800 <= int(timestamp) <= 1_704_067_200
    assert len(per_user) == N_USERS
    assert all(len(items) == len(set(items)) >= MIN_PICKS for items in per_user.values())
    times = [(row[0], int(row[3])) for row in rows]
    assert times == sorted(times)


def test_ids_are_strings_that_numbers_would_ruin(small: Path) -> None:
    ids = [row[0].decode() for row in item_rows(small)[1:]]
    assert len(set(ids)) == N_ITEMS
    assert any(item.isdigit() and item.startswith("0") for item in ids)
    assert any(not item.isdigit() for item in ids)
    assert interactions(small)[1][0] == "u0000"


def test_items_without_content_and_the_corrupt_ones_are_different_items(small: Path) -> None:
    described = describe(small)
    rows = {row[0].decode(): row[1:] for row in item_rows(small)[1:]}
    lacking = {
        "image": set(rows) - {path.stem for path in (small / "images").iterdir()},
        "audio": set(rows) - {path.stem for path in (small / "audio").iterdir()},
        "text": {item for item, cells in rows.items() if not any(cells)},
    }
    corrupt = {kind: {described["corrupt"][kind]["item_id"]} for kind in lacking}
    assert (
        {kind: len(items) for kind, items in lacking.items()}
        == described["without"]
        == dict.fromkeys(lacking, 2)
    )
    groups = [*lacking.values(), *corrupt.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_exactly_the_promised_image_is_corrupt(small: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    broken = set()
    for path in (small / "images").iterdir():
        try:
            with image.open(path) as picture:
                assert picture.convert("RGB").size == (96, 96)
        except OSError:
            broken.add(path.stem)
    assert broken == {describe(small)["corrupt"]["image"]["item_id"]}


def test_exactly_the_promised_sound_is_corrupt(small: Path) -> None:
    broken = set()
    for path in (small / "audio").iterdir():
        try:
            with wave.open(io.BytesIO(path.read_bytes())) as sound:
                assert (sound.getframerate(), sound.getnframes(), sound.getnchannels()) == (
                    16_000,
                    6_400,
                    1,
                )
        except (wave.Error, EOFError):
            broken.add(path.stem)
    assert broken == {describe(small)["corrupt"]["audio"]["item_id"]}


def test_exactly_the_promised_text_is_corrupt_and_the_table_stays_a_table(small: Path) -> None:
    rows = item_rows(small)
    assert {len(row) for row in rows} == {5}
    broken = set()
    for row in rows[1:]:
        try:
            b" ".join(row).decode()
        except UnicodeDecodeError:
            broken.add(row[0].decode())
    assert broken == {describe(small)["corrupt"]["text"]["item_id"]}


def some_items(rng: np.random.Generator) -> Items:
    return draw_items(400, rng.standard_normal((len(STYLES), N_FACTORS)), rng)


def test_neighbours_in_style_share_their_interactions() -> None:
    rng = np.random.default_rng(0)
    items = some_items(rng)
    picks = draw_picks(items, 300, rng)
    distance = ((items.factors[:, None] - items.factors[None]) ** 2).sum(axis=2)
    within = [
        distance[np.ix_(mine, mine)][np.triu_indices(len(mine), 1)].min()
        for user in range(300)
        if len(mine := picks.item_idx[picks.user_idx == user]) > 1
    ]
    anyone = [
        distance[np.ix_(mine, mine)][np.triu_indices(5, 1)].min()
        for mine in rng.integers(400, size=(300, 5))
    ]
    assert np.median(within) < 0.5 * np.median(anyone)


def test_popularity_has_a_long_tail() -> None:
    rng = np.random.default_rng(0)
    counts = np.sort(np.bincount(draw_picks(some_items(rng), 800, rng).item_idx, minlength=400))[
        ::-1
    ]
    assert counts[:80].sum() > 0.35 * counts.sum()
    assert counts[0] > 4 * np.median(counts)


def test_what_lies_beside_an_earlier_catalogue_of_the_same_parameters_stays(
    small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data" / "demo"
    write_demo(out, items=N_ITEMS, users=N_USERS, seed=3)
    (out / "features" / "visual").mkdir(parents=True)
    (out / "features" / "visual" / "x.h5").write_bytes(b"kept")
    (out / "items.tsv").unlink()
    write_demo(out, items=N_ITEMS, users=N_USERS, seed=3)
    assert tree(out) == {**tree(small), "features/visual/x.h5": b"kept"}
    with pytest.raises(
        DataError, match=r"features belongs to the catalogue of --items 60 --seed 3 --users 40"
    ):
        write_demo(out, items=N_ITEMS, users=N_USERS, seed=4)


def test_an_earlier_catalogue_without_features_is_replaced(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    write_demo(out, items=30, users=10, seed=1)
    write_demo(out, items=N_ITEMS, users=N_USERS, seed=3)
    assert tree(out) == tree(small)


@pytest.mark.parametrize(
    "content", ["{}", "not json", '{"generator": null}', '{"generator": {"tool": "other"}}']
)
def test_somebody_elses_folder_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"left as it is; choose another place with --out"):
        write_demo(tmp_path, items=30, users=10)
    assert tree(tmp_path) == {"dataset.json": content.encode()}


def test_a_file_is_no_place_for_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(DataError, match="is not a folder"):
        write_demo(tmp_path / "demo", items=30, users=10)
    with pytest.raises(DataError, match="cannot be written"):
        write_demo(tmp_path / "demo" / "below", items=30, users=10)
    assert (tmp_path / "demo").read_text() == "mine"


def test_an_empty_folder_is_a_place_for_a_catalogue(tmp_path: Path) -> None:
    write_demo(tmp_path, items=30, users=10)
    assert (tmp_path / "items.tsv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 23}, "--items must be at least 24 (got 23)"),
        ({"users": 4}, "--users must be at least 5 (got 4)"),
        ({"seed": -1}, "--seed must be at least 0 (got -1)"),
    ],
)
def test_numbers_that_are_too_small(
    tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        write_demo(tmp_path / "demo", **arguments)
    assert message in str(caught.value)
    assert not (tmp_path / "demo").exists()


def test_the_smallest_catalogue(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", items=24, users=5, seed=0)
    assert describe(tmp_path / "demo")["without"] == {"image": 1, "text": 1, "audio": 1}


def test_nothing_is_left_after_an_interruption(tmp_path: Path) -> None:
    class Impatient(Silent):
        done = 0

        def advance(self, steps: int = 1, message: str = "") -> None:
            self.done += steps
            if self.done == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "demo", items=30, users=10, progress=Impatient())
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ToolError, match=re.escape(install_extra("extract"))):
        write_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_the_module_needs_no_heavy_library_to_be_imported() -> None:
    import subprocess

    heavy = ("PIL", "torch", "pandas", "pyarrow", "h5py")
    code = f"import sys, mmx.demo; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
