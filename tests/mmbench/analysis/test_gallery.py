"""The gallery shows the lists that the run has, marks hits, and says what it leaves out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.mmbench.conftest import write_dataset

from mmbench.analysis.gallery import make, media, page, views
from mmbench.cli import cli
from mmbench.data.dataset import load_split
from mmstore import FeatureSet, FeatureSetWriter

HOSTILE = "<script>alert(1)</script>"
PILLOW_SIZE = (40, 40)


@pytest.fixture(autouse=True)
def _report_extra() -> None:
    for name in ("altair", "jinja2", "vl_convert"):
        pytest.importorskip(name)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def gallery(*arguments: object) -> dict[str, Any]:
    done = invoke("gallery", *arguments, "--json", "-q")
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one dataset, one of another; pictures and a sound where Pillow is installed."""
    folder = tmp_path_factory.mktemp("gallery")
    for name, seed in (("toy", 0), ("other", 1)):
        data = write_dataset(folder / name, seed=seed, users=60, reviews=False)
        rows = [f"B{item:03d}X\ta thing no{item}\timages/{item}.png" for item in range(30)]
        rows[4] = f"B004X\t{HOSTILE}\timages/4.png"
        (data / "items.tsv").write_text("\n".join(["item_id\ttitle\timage", *rows]) + "\n")
        draw(data)
        options = ["--data", data, "--out", folder / f"runs-{name}", "--split", "random", "-q"]
        options += ["--protocol", "paper"]  # which lists validation items; they are no hits
        models = "most-popular,content-knn" if name == "toy" else "most-popular"
        done = invoke("train", "--model", models, *options)
        assert done.exit_code == 0, done.output
    return folder


def draw(data: Path) -> None:
    """Draw a picture for each item but three: 7 has none, 8 a damaged one, 9 none that it names."""
    (data / "images").mkdir()
    (data / "audio").mkdir()
    (data / "audio/B005X.wav").write_bytes(b"RIFF")
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return
    for item in range(30):
        if item not in (7, 9):
            Image.new("RGB", PILLOW_SIZE, (item * 8, 80, 80)).save(data / f"images/{item}.png")
    (data / "images/8.png").write_bytes((data / "images/8.png").read_bytes()[:40])


class Cards(HTMLParser):
    """The texts of cards, by the heading of their row, user by user."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, list[tuple[str, bool]]]] = {}
        self._user = self._row = self._tag = ""
        self._hit = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._tag = tag if tag in ("h2", "h3", "h4") else self._tag
        if tag == "li":
            self._hit = "hit" in (found.get("class") or "").split()
        if tag == "span" and found.get("class") == "name" and self._user:
            rows = self.rows.setdefault(self._user, {})
            rows.setdefault(self._row, []).append((found["title"] or "", self._hit))

    def handle_data(self, data: str) -> None:
        if self._tag == "h3":
            self._user = data.strip()
        elif self._tag == "h4":
            self._row = data.strip()
        elif self._tag == "h2":
            self._user = ""
        self._tag = ""


def test_lists_are_those_of_recommend(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    made = gallery(place / "runs-toy", "--out", out, "-k", 5, "--users", "u3,u1")
    assert made["users"] == 2 and made["bytes"] == out.stat().st_size
    shown = Cards(out.read_text(encoding="utf-8")).rows
    split = load_split(place / "toy", "random")
    test: dict[str, set[str]] = {}
    for user, item in zip(split.test.rows.users, split.test.rows.items, strict=True):
        name = str(split.training.user_ids[user])
        test.setdefault(name, set()).add(str(split.training.item_ids[item]))
    n_hits = 0
    for run in made["runs"]:
        recs = tmp_path / "recs.jsonl"
        done = invoke("recommend", run, "--users", "u3,u1", "-k", 5, "--out", recs, "-q")
        assert done.exit_code == 0, done.output
        label = "content-knn" if "content-knn" in run else "most-popular"
        for line in recs.read_text().splitlines():
            own = json.loads(line)
            user = own["user_id"]
            expected = [(item, item in test[user]) for item in own["item_ids"]]
            assert shown[user][label] == expected
            n_hits += sum(hit for _, hit in expected)
    assert n_hits  # or the marks were not tested
    assert {item for item, _ in shown["u3"]["Held out"]} >= test["u3"]


def test_the_same_runs_give_the_same_bytes(place: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        out = tmp_path / name / "page.html"
        made = make.make(
            [place / "runs-toy"], (), make.Wish(n_users=4), out, None, "mmbench gallery", Quiet()
        )
        assert made["users"] == 4
        pages.append(out.read_bytes().replace(name.encode() + b"/page", b""))
    assert pages[0] == pages[1]
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["page.html"]


class Quiet:
    """Progress that nobody sees."""

    def __getattr__(self, name: str) -> Any:
        from mmbase.progress import Terminal

        return getattr(Terminal(-1), name)


def test_titles_are_text(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    gallery(place / "runs-toy", "--out", out, "--items", "B004X,B000X,B005X")
    text = out.read_text(encoding="utf-8")
    assert HOSTILE not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    # Item 0 has no vector in either set, and says why.
    article = text[text.index("B000X</span>") :].partition("</article>")[0]
    assert article.count("no vector: missing") == 2
    sounds = json.loads(re.findall(r'id="sounds">(.*?)</script>', text)[0])
    assert list(sounds.values()) == ["data:audio/x-wav;base64,UklGRg=="]


def test_pictures_that_cant_be_shown_are_told(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    made = gallery(place / "runs-toy", "--out", tmp_path / "page.html", "--n-users", 60)
    assert made["pictures"] == 27  # of 30: one is damaged, two are not there
    assert any("8.png" in note and "can’t be shown" in note for note in made["notes"])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "picture is missing" in text and "content:&#34;can’t be shown&#34;" not in text
    assert '::after{content:"can’t be shown"}' in text


def test_without_pillow_the_page_is_text(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (page, media):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    made = gallery(place / "runs-toy", "--out", tmp_path / "page.html")
    if (place / "toy/images/1.png").exists():
        assert any("Pillow" in note and "[extract]" in note for note in made["notes"])
    assert made["pictures"] == 0 and "data:image/webp" not in (tmp_path / "page.html").read_text()


def test_a_page_has_a_size(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_FOR_USERS", 60_000)
    monkeypatch.setattr(page, "_FOR_ITEMS", 20_000)
    made = gallery(place / "runs-toy", "--out", tmp_path / "page.html", "--n-users", 60)
    assert 1 < made["users"] < 60
    assert any(f"first {made['users']} of 60 users" in note for note in made["notes"])
    assert any("of 24 items are shown" in note for note in made["notes"])
    if made["pictures"]:
        # Less room than all pictures take: some are left out, and their places say so.
        limit = made["bytes"] - 2_000
        monkeypatch.setattr(page, "MOST_BYTES", limit)
        fewer = gallery(place / "runs-toy", "--out", tmp_path / "page.html", "--n-users", 60)
        assert fewer["bytes"] <= limit and fewer["pictures"] < made["pictures"]
        assert 'after{content:"left out"}' in (tmp_path / "page.html").read_text("utf-8")


def moved(data: Path, target: Path, shift: int) -> Path:
    """Copy a dataset, with the vectors of visual/toy rolled down by rows of the file."""
    shutil.copytree(data, target)
    path = target / "features/visual/toy.h5"
    with FeatureSet(path) as features:
        ids = features.ids.tolist()
        vectors, present = features.matrix(ids)
    path.unlink()
    rows = np.flatnonzero(present)
    with FeatureSetWriter(
        path, modality="visual", dim=6, ids=ids, provenance={"extractor": "test"}
    ) as writer:
        writer.write(rows, np.roll(vectors[rows], shift, axis=0))
        writer.mark_missing(np.flatnonzero(~present))
        writer.finish()
    return target


def test_a_page_takes_the_place_of_a_page_alone(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    for _ in range(2):
        gallery(place / "runs-toy", "--out", out, "--n-users", 1)
    kept = tmp_path / "items.tsv"
    kept.write_text("item_id")
    for path, why in ((kept, "is no HTML page"), (tmp_path, "is a folder")):
        done = invoke("gallery", place / "runs-toy", "--out", path)
        assert done.exit_code == 1
        assert why in done.output
    assert kept.read_text() == "item_id"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "items.tsv"}


@pytest.mark.parametrize("shift", [0, 1, -1])
def test_vectors_that_are_one_row_off(tmp_path: Path, shift: int) -> None:
    # Items in pairs of the same users and near vectors, which no row beside them shares.
    data = write_dataset(tmp_path / "right", items=80, users=300, reviews=False)
    pairs(data)
    data = moved(data, tmp_path / "moved", shift)
    done = invoke("train", "--model", "most-popular", "--data", data, "--out", tmp_path / "r", "-q")
    assert done.exit_code == 0, done.output
    made = gallery(tmp_path / "r", "--features", "visual/toy", "--out", tmp_path / "page.html")
    assert [one["verdict"] for one in made["sets"]] == ["fits" if shift == 0 else "shifted"]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ("one row off their ids" in text) == (shift != 0)
    where = {0: "", 1: "previous", -1: "next"}[shift]
    assert f"fit the {where} item of the file" in text or not shift


def pairs(data: Path) -> None:
    rng = np.random.default_rng(2)
    twin = rng.permutation(80) // 2  # the pair of each item
    ids = [f"B{item:03d}X" for item in range(80)]
    lines = ["user_id\titem_id"]
    for user in range(300):
        for pair in rng.choice(40, 5, replace=False):
            lines += [f"u{user}\t{ids[item]}" for item in np.flatnonzero(twin == pair)]
    (data / "interactions.tsv").write_text("\n".join(lines) + "\n")
    vectors = rng.normal(size=(40, 6))[twin] + 0.1 * rng.normal(size=(80, 6))
    path = data / "features/visual/toy.h5"
    path.unlink()
    with FeatureSetWriter(
        path, modality="visual", dim=6, ids=ids, provenance={"extractor": "test"}
    ) as writer:
        writer.write(np.arange(80), vectors.astype(np.float32))
        writer.finish()


def test_runs_of_two_datasets_are_refused(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = invoke("gallery", place / "runs-toy", place / "runs-other", "--out", out)
    assert done.exit_code == 1 and not out.exists()
    error = done.stderr.splitlines()[-1]
    assert "dataset differs" in error and "--only dataset=" in error
    made = gallery(place / "runs-toy", place / "runs-other", "--only", "dataset=toy", "--out", out)
    assert len(made["runs"]) == 2


def test_too_many_runs_are_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOST_RUNS", 1)
    done = invoke("gallery", place / "runs-toy", "--out", tmp_path / "page.html")
    assert done.exit_code == 2 and "at most 1 stand side by side" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--users", "nobody"], 1, "no training rows"),
        (["--items", "B00"], 2, "unknown item"),
        (["--features", "visual/toys"], 2, "Did you mean 'visual/toy'"),
        (["--users", "u1", "--n-users", "3"], 2, "--n-users"),
        (["--items", "B001X", "--n-items", "3"], 2, "--n-items"),
        (["-k", "0"], 2, "-k"),
    ],
)
def test_wrong_options_are_one_line(
    place: Path, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    done = invoke("gallery", place / "runs-toy", "--out", tmp_path / "page.html", *arguments)
    assert (done.exit_code, list(tmp_path.iterdir())) == (code, [])
    assert told in done.stderr and "Traceback" not in done.output


def test_sets_that_cant_be_shown_are_told(place: Path, tmp_path: Path) -> None:
    data = shutil.copytree(place / "toy", tmp_path / "toy")
    for modality in ("visual", "textual"):
        path = data / f"features/{modality}"
        next(path.glob("*.h5")).write_bytes(b"no store")
    run = next((place / "runs-toy").glob("*most-popular*"))
    made = gallery(run, "--data", data, "--out", tmp_path / "page.html")
    assert made["sets"] == [] and sum("left out" in note for note in made["notes"]) == 2


def test_a_dataset_without_items_and_features(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "bare", reviews=False)
    shutil.rmtree(data / "features")
    done = invoke("train", "--model", "most-popular", "--data", data, "--out", tmp_path / "r", "-q")
    assert done.exit_code == 0, done.output
    made = gallery(tmp_path / "r", "--out", tmp_path / "page.html")
    assert made["sets"] == [] and any("ids alone" in note for note in made["notes"])


def test_the_report_extra_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = sys.modules["mmbase.pages.rendering"]
    monkeypatch.setattr(rendering, "_NEEDED", ("altair", "no_such_module"))
    done = invoke("gallery", place / "runs-toy", "--out", tmp_path / "page.html")
    assert done.exit_code == 1 and "no_such_module" in done.stderr and "[report]" in done.stderr
