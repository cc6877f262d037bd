"""`mmbench data validate`: planted mistakes are named with their fix, sound data has none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.conftest import REPOSITORY

from mmbase.checks import kit
from mmbench.commands.data import data
from mmbench.data.checks import CHECKS
from mmbench.data.checks.reading import read_interactions_of
from mmstore import FeatureSetWriter

ITEMS, USERS, STYLES = 320, 440, 8
RNG = np.random.default_rng(5)
STYLE = RNG.integers(0, STYLES, ITEMS)
IDS = [f"{item:04d}" for item in range(7, 7 + ITEMS)]
"""Leading zeros, from 0007 on."""
VECTORS = np.eye(STYLES)[STYLE] @ RNG.standard_normal((STYLES, 12)) + RNG.normal(
    0, 0.3, (ITEMS, 12)
)
TITLES = [f"Title{style}x{item % 5} étagère {item}" for item, style in enumerate(STYLE)]


def write_set(
    folder: Path,
    vectors: np.ndarray = VECTORS,
    ids: list[str] | None = None,
    name: str = "visual/toy",
) -> None:
    modality = name.partition("/")[0]
    path = folder / "features" / f"{name}.h5"
    path.unlink(missing_ok=True)
    vectors = np.asarray(vectors, np.float32)
    with FeatureSetWriter(
        path,
        modality=modality,
        dim=vectors.shape[1],
        ids=ids or IDS,
        provenance={"extractor": "test"},
    ) as writer:
        writer.write(np.arange(len(vectors)), vectors)
        writer.finish()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with all parts of one, and no mistake."""
    folder = tmp_path_factory.mktemp("sound") / "shop"
    (folder / "images").mkdir(parents=True)
    (folder / "splits/mine").mkdir(parents=True)
    rows = ["item_id\ttitle\timage"]
    rows += [f"{one}\t{title}\timages/{one}.jpg" for one, title in zip(IDS, TITLES, strict=True)]
    (folder / "items.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for one in IDS:
        (folder / "images" / f"{one}.jpg").write_bytes(b"a picture, for all that is looked at")
    draws = np.random.default_rng(6)
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        likes = np.where(user % STYLES == STYLE, 1.0, 0.02)
        chosen = draws.choice(ITEMS, 12, replace=False, p=likes / likes.sum())
        for place, item in enumerate(chosen.tolist()):
            part = "test" if place >= 10 else "valid" if place == 9 else "train"
            time = 1_600_000_000 + 1000 * user + place
            lines[part].append(f"u{user}\t{IDS[item]}\t{draws.integers(1, 6)}\t{time}")
    head = "user_id\titem_id\trating\ttimestamp\n"
    for part, own in lines.items():
        (folder / f"splits/mine/{part}.tsv").write_text(head + "\n".join(own) + "\n")
    every = sorted(row for own in lines.values() for row in own)
    (folder / "interactions.tsv").write_text(head + "\n".join(every) + "\n")
    write_set(folder)
    write_set(folder, VECTORS @ RNG.standard_normal((12, 6)), name="textual/words")
    return folder


def edit(path: Path, change: Callable[[list[str]], list[str]], **written: str) -> None:
    """Change the lines of a file, the first of which is the header."""
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(change(lines)) + "\n", **{"encoding": "utf-8", **written})


def cells(path: Path, column: int, change: Callable[[str, int], str]) -> None:
    """Change the cells of one column of a table, given the cell and its row."""

    def rows(lines: list[str]) -> list[str]:
        out = lines[:1]
        for number, line in enumerate(lines[1:]):
            parts = line.split("\t")
            parts[column] = change(parts[column], number)
            out.append("\t".join(parts))
        return out

    edit(path, rows)


def log(folder: Path) -> Path:
    return folder / "interactions.tsv"


def half_latin(folder: Path) -> None:
    lines = (folder / "items.tsv").read_text(encoding="utf-8").splitlines()
    encoded = [
        line.encode("cp1252" if number % 2 else "utf-8") for number, line in enumerate(lines)
    ]
    (folder / "items.tsv").write_bytes(b"\n".join(encoded) + b"\n")


def rename_pictures(folder: Path, name: Callable[[str], str]) -> None:
    edit(folder / "items.tsv", lambda lines: [line.rpartition("\t")[0] for line in lines])
    for one in IDS:
        (folder / f"images/{one}.jpg").rename(folder / f"images/{name(one)}.jpg")


def leak(folder: Path) -> None:
    train = (folder / "splits/mine/train.tsv").read_text().splitlines()
    with (folder / "splits/mine/test.tsv").open("a") as file:
        file.write("\n".join(train[1:60]) + "\n")


def swap(path: Path) -> None:
    def swapped(lines: list[str]) -> list[str]:
        rows = [line.split("\t") for line in lines[1:]]
        return lines[:1] + ["\t".join([row[1], row[0], *row[2:]]) for row in rows]

    edit(path, swapped)


def parts(folder: Path) -> list[Path]:
    return [folder / f"splits/mine/{part}.tsv" for part in ("train", "valid", "test")]


def numbered(folder: Path) -> None:
    """Items 1 to n; features 0 to n - 1."""
    place = {one: str(row) for row, one in enumerate(IDS, 1)}
    for path in [log(folder), *parts(folder)]:
        cells(path, 1, lambda cell, _: place[cell])
    cells(folder / "items.tsv", 0, lambda cell, _: place[cell])
    shutil.rmtree(folder / "features/textual")
    write_set(folder, ids=[str(row) for row in range(ITEMS)])


def with_row(vectors: np.ndarray, rows: slice, value: object) -> np.ndarray:
    out = vectors.copy()
    out[rows] = value
    return out


PLANTED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    # what was done: (what must be named, how to do it, words of the fix)
    "shuffled ids": (
        "shuffled-rows",
        lambda f: write_set(f, VECTORS[np.random.default_rng(1).permutation(ITEMS)]),
        "joins them by id",
    ),
    "off-by-one rows": (
        "shifted-rows",
        lambda f: write_set(f, np.roll(VECTORS, 1, 0)),
        "same order",
    ),
    "features numbered from 0": ("renumbered-ids", numbered, "number both from the same place"),
    "items without a header": (
        "missing-header",
        lambda f: edit(f / "items.tsv", lambda lines: lines[1:]),
        "names of the columns on top",
    ),
    "interactions without a header": (
        "unnamed-columns",
        lambda f: edit(log(f), lambda lines: lines[1:]),
        "--columns user_id=1,item_id=2",
    ),
    "header in the middle": (
        "repeated-header",
        lambda f: edit(log(f), lambda lines: lines[:50] + lines[:1] + lines[50:]),
        "remove the line",
    ),
    "duplicate interactions": (
        "duplicate-rows",
        lambda f: edit(log(f), lambda lines: lines + lines[1:80]),
        "--filter dedup:last",
    ),
    "test leaks into train": ("test-in-train", leak, "mmbench data split"),
    "constant vectors": (
        "constant-vectors",
        lambda f: write_set(f, np.ones((ITEMS, 12))),
        "nothing in it tells items apart",
    ),
    "one vector for many items": (
        "repeated-vectors",
        lambda f: write_set(f, with_row(VECTORS, slice(0, 120), 2.0)),
        "placeholder",
    ),
    "NaN vectors": (
        "nan-vectors",
        lambda f: write_set(f, with_row(VECTORS, slice(3, 9), np.nan)),
        "import them again",
    ),
    "zero vectors": (
        "zero-vectors",
        lambda f: write_set(f, with_row(VECTORS, slice(3, 9), 0.0)),
        "count as missing",
    ),
    "damaged set": (
        "damaged-set",
        lambda f: (f / "features/visual/toy.h5").write_bytes(b"\x89HDF, not quite"),
        "mmx store import",
    ),
    "mixed encodings": ("mixed-encodings", half_latin, "UTF-8"),
    "files joined with their marks": (
        "mixed-encodings",
        lambda f: cells(f / "items.tsv", 0, lambda c, row: c if row != 9 else "\ufeff" + c),
        "U+FEFF",
    ),
    "letters of a wrong encoding": (
        "mojibake",
        lambda f: cells(f / "items.tsv", 1, lambda c, _: c.encode().decode("latin-1")),
        "save items.tsv from its source",
    ),
    "vectors without ids": (
        "unimported-vectors",
        lambda f: [
            shutil.rmtree(f / "features"),
            np.save(f / "image_feat.npy", VECTORS, allow_pickle=False),
        ],
        "image_feat.npy --ids",
    ),
    "decimal commas": (
        "decimal-commas",
        lambda f: cells(log(f), 2, lambda cell, row: "4,5" if row % 3 else cell),
        "with a point",
    ),
    "ratings that are words": (
        "bad-ratings",
        lambda f: cells(log(f), 2, lambda cell, row: cell if row % 3 else "good"),
        "write numbers",
    ),
    "ratings outside the scale": (
        "rating-scale",
        lambda f: cells(log(f), 2, lambda cell, row: cell if row % 200 else "55"),
        "correct these rows",
    ),
    "milliseconds": (
        "milliseconds",
        lambda f: cells(log(f), 3, lambda cell, row: cell + "000"),
        "kept as seconds",
    ),
    "milliseconds in some rows": (
        "mixed-time-units",
        lambda f: cells(log(f), 3, lambda cell, row: cell + "000" * (row % 2)),
        "divide milliseconds by 1000",
    ),
    "no time in some rows": (
        "bad-times",
        lambda f: cells(log(f), 3, lambda cell, row: cell if row % 5 else ""),
        "Unix seconds or dates",
    ),
    "blanks around ids": (
        "id-blanks",
        lambda f: cells(log(f), 0, lambda cell, row: cell if row % 7 else cell + " "),
        "remove the blanks",
    ),
    "users as decimal numbers": (
        "number-ids",
        lambda f: [
            cells(path, 0, lambda cell, _: cell.removeprefix("u") + ".0")
            for path in (log(f), *parts(f))
        ],
        "dtype=str",
    ),
    "leading zeros lost in interactions": (
        "altered-item-ids",
        lambda f: cells(log(f), 1, lambda cell, _: cell.lstrip("0")),
        "as text",
    ),
    "leading zeros lost in one part": (
        "altered-part-ids",
        lambda f: [
            (f / "items.tsv").unlink(),
            cells(f / "splits/mine/test.tsv", 1, lambda cell, _: cell.lstrip("0")),
        ],
        "mmbench data split",
    ),
    "leading zeros lost in features": (
        "altered-ids",
        lambda f: write_set(f, ids=[one.lstrip("0") for one in IDS]),
        "as items.* has them",
    ),
    "features of another dataset": (
        "other-catalogue",
        lambda f: write_set(f, ids=[f"B{one}X" for one in IDS]),
        "features of this catalogue",
    ),
    "features of an older catalogue": (
        "older-catalogue",
        lambda f: write_set(f, VECTORS[:250], IDS[:250]),
        "--extend",
    ),
    "users and items swapped": ("swapped-columns", lambda f: swap(log(f)), "swap the names"),
    "items that the catalogue lacks": (
        "unknown-items",
        lambda f: [
            edit(f / "items.tsv", lambda lines: lines[:-20]),
            *((f / f"images/{one}.jpg").unlink() for one in IDS[-20:]),
        ],
        "add them to items",
    ),
    "an item twice": (
        "repeated-items",
        lambda f: edit(f / "items.tsv", lambda lines: [*lines, lines[5]]),
        "one row per item",
    ),
    "a user who did everything": (
        "dominant-id",
        lambda f: edit(
            log(f),
            lambda lines: lines + [f"guest\t{IDS[n % ITEMS]}\t3\t{10**9 + n}" for n in range(3000)],
        ),
        "leave its rows out",
    ),
    "users in test only": (
        "unseen-users",
        lambda f: cells(
            f / "splits/mine/test.tsv", 0, lambda cell, row: cell + "x" * (row % 5 == 0)
        ),
        "leaves rows of every user in train",
    ),
    "an empty file": (
        "empty-file",
        lambda f: (f / "splits/mine/valid.tsv").write_text(""),
        "write splits/mine/valid.tsv again",
    ),
    "an empty picture": (
        "empty-file",
        lambda f: (f / f"images/{IDS[3]}.jpg").write_bytes(b""),
        "copy these files again",
    ),
    "a header and no rows": (
        "empty-file",
        lambda f: edit(log(f), lambda lines: lines[:1]),
        "write interactions.tsv again",
    ),
    "pictures named after nothing": (
        "picture-names",
        lambda f: rename_pictures(f, lambda one: f"IMG_{one}"),
        "<item_id>.<extension>",
    ),
    "pictures named in a column of another name": (
        "picture-names",
        lambda f: [
            edit(f / "items.tsv", lambda lines: [lines[0] + "s", *lines[1:]]),
            [path.rename(path.with_name(f"p{path.name}")) for path in (f / "images").iterdir()],
            cells(f / "items.tsv", 2, lambda cell, _: cell.replace("/", "/p")),
        ],
        "--path-column images",
    ),
    "paths of Windows": (
        "picture-paths",
        lambda f: cells(f / "items.tsv", 2, lambda cell, _: cell.replace("/", "\\")),
        "with /",
    ),
    "capitals in names of pictures": (
        "picture-case",
        lambda f: cells(f / "items.tsv", 2, lambda cell, _: cell.replace("jpg", "JPG")),
        "capitals",
    ),
    "an empty cell for an id": (
        "unusable-ids",
        lambda f: cells(log(f), 0, lambda cell, row: cell if row % 50 else ""),
        "every row needs",
    ),
    "a quotation mark that is not closed": (
        "unreadable",
        lambda f: [
            log(f).unlink(),
            (f / "interactions.csv").write_text('user_id,item_id\nu1,"0007\nu2,0008\n'),
        ],
        'write "" for a quotation mark',
    ),
}


def examine(folder: Path) -> list[kit.Finding]:
    return kit.examine(CHECKS, read_interactions_of(folder))


def test_sound_data_have_no_finding(sound: Path) -> None:
    assert examine(sound) == []
    done = CliRunner().invoke(data, ["validate", str(sound)], standalone_mode=False)
    assert done.return_value == 0
    assert "0 errors, 0 warnings, 0 notes" in done.output


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_mistake_is_named_with_its_fix(planted: str, sound: Path, tmp_path: Path) -> None:
    name, plant, fix = PLANTED[planted]
    folder = tmp_path / "shop"
    shutil.copytree(sound, folder)
    plant(folder)
    found = examine(folder)
    assert {one.name for one in found} == {name}, [(one.name, one.what) for one in found]
    assert fix in found[0].fix
    done = CliRunner().invoke(data, ["validate", str(folder)], standalone_mode=False)
    code = {"error": 1, "warning": 3, "note": 0}[found[0].severity]
    assert done.exception is None and done.return_value == code, done.exception
    assert f"{found[0].severity}: {name} (" in done.output
    # At 80 columns, unless a single word is longer.
    assert all(len(line) <= 80 or len(line.split()) < 3 for line in done.output.splitlines())


@pytest.mark.parametrize(
    ("given", "fix"), [("", "shop"), ("shop/features", "shop"), ("shop/splits", "shop"),
                       ("shop/images", "shop"), ("shop/interactions.tsv", "shop")],
)  # fmt: skip
def test_a_wrong_folder_leads_to_the_right_one(given: str, fix: str, sound: Path) -> None:
    folder = sound.parent / given
    found = examine(folder)
    assert [one.name for one in found] == ["wrong-folder"]
    assert found[0].fix == f"take {sound.as_posix()}"
    done = CliRunner().invoke(data, ["validate", str(folder)], standalone_mode=False)
    assert done.return_value == 1


def test_json_has_names_and_fixes(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(sound, folder)
    PLANTED["duplicate interactions"][1](folder)
    done = CliRunner().invoke(data, ["validate", str(folder), "--json"], standalone_mode=False)
    (problem,) = json.loads(done.output)["problems"]
    assert problem["name"] == "duplicate-rows" and problem["where"] == "interactions.tsv"
    assert problem["severity"] == "warning" and "79 rows" in problem["what"]
    strict = CliRunner().invoke(data, ["validate", str(folder), "--strict"], standalone_mode=False)
    assert strict.return_value == 1


def test_every_check_has_a_planted_mistake_and_a_line_in_the_docs() -> None:
    planted = {name for name, _, _ in PLANTED.values()} | {"wrong-folder"}
    ours = {check.name for check in CHECKS}
    elsewhere = {"held-out-content", "other-split"}  # tests/mmbench/data/test_leakage.py
    assert ours == planted | elsewhere
    page = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    page = page.partition("## Mistakes, before a long run")[2].partition("\n## ")[0]
    assert ours == set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))


def test_tables_of_others_are_for_the_import(tmp_path: Path) -> None:
    for name in ("ml.inter", "ml.item"):
        (tmp_path / name).write_text("user_id:token\titem_id:token\nu\ti\n")
    (found,) = examine(tmp_path)
    assert found.name == "wrong-folder" and "mmbench data import" in found.fix


def test_items_alone_are_examined(sound: Path, tmp_path: Path) -> None:
    shutil.copy(sound / "items.tsv", tmp_path / "items.tsv")
    done = CliRunner().invoke(data, ["validate", str(tmp_path)], standalone_mode=False)
    assert done.exception is None and done.return_value == 0
    assert "0 errors" in done.output and "split" not in done.output
