"""Catalogues in the shapes that people have: one import, and both tools run without options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from mmbench.cli import cli as mmbench
from mmbench.data.dataset import load_split
from mmstore import FeatureSet
from mmx.cli import cli as mmx

N_USERS, N_ITEMS = 12, 9
FIRST = 1_600_000_000
WORDS = ("red lamp", "blue chair", "green table", "grey sofa", "old desk")


def rows() -> list[tuple[int, int, int, int]]:
    """User and item numbers from 1, rating and Unix time: some items of each user."""
    rng = np.random.default_rng(0)
    found = []
    for user in range(1, N_USERS + 1):
        for item in rng.permutation(N_ITEMS)[:6]:
            when = FIRST + 86_400 * len(found)
            found.append((user, int(item) + 1, int(rng.integers(1, 6)), when))
    return found


def dates(form: str) -> list[str]:
    return [f"{pd.Timestamp(row[3], unit='s'):{form}}" for row in rows()]


def fashion(folder: Path) -> list[str]:
    """CSV as of H&M: names of its own, dates, ids with leading zeros, texts with commas."""
    frame = pd.DataFrame(
        {
            "t_dat": dates("%Y-%m-%d"),
            "customer_id": [f"{row[0]:08x}" for row in rows()],
            "article_id": [f"0{row[1]}" for row in rows()],
            "price": 0.02,
            "sales_channel_id": 2,
        }
    )
    frame.to_csv(folder / "transactions_train.csv", index=False)
    articles = pd.DataFrame(
        {
            "article_id": [f"0{item}" for item in range(1, N_ITEMS + 1)],
            "product_code": range(N_ITEMS),
            "prod_name": [WORDS[item % 5] for item in range(N_ITEMS)],
            "product_type_name": "furniture",
            "detail_desc": ["soft, warm" if item else None for item in range(N_ITEMS)],
        }
    )
    articles.to_csv(folder / "articles.csv", index=False)
    pd.DataFrame({"customer_id": ["00000001"], "age": [24]}).to_csv(
        folder / "customers.csv", index=False
    )
    return ["transactions_train.csv", "articles.csv", "customers.csv"]


def movielens(folder: Path) -> list[str]:
    """`::` without a header, Latin-1 titles, users and items numbered from 1."""
    lines = ["::".join(map(str, row)) for row in rows()]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    titles = [
        f"{item}::Amélie {WORDS[item % 5]} (2001)::Comedy|Drama\n" for item in range(1, N_ITEMS + 1)
    ]
    (folder / "movies.dat").write_bytes("".join(titles).encode("latin-1"))
    return ["ratings.dat", "movies.dat"]


def amazon(folder: Path) -> list[str]:
    """JSON lines of 2023: variants beside parents, milliseconds, lists and objects."""
    reviews = [
        {"rating": float(rating), "title": "ok", "text": "fine", "images": [], "asin": f"V{item}",
         "parent_asin": f"B00{item}", "user_id": f"A{user}", "timestamp": when * 1000 + 123}
        for user, item, rating, when in rows()
    ]  # fmt: skip
    meta: list[dict[str, Any]] = [
        {"main_category": "Home", "title": WORDS[item % 5], "average_rating": 4.5,
         "features": ["a", "b"], "description": [], "price": None, "images": [{"large": "http"}],
         "categories": ["Home", "Desks"], "details": {"Brand": "x"}, "parent_asin": f"B00{item}"}
        for item in range(1, N_ITEMS + 1)
    ]  # fmt: skip
    for name, records in (("Home.jsonl", reviews), ("meta_Home.jsonl", meta)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["Home.jsonl", "meta_Home.jsonl"]


def clicks(folder: Path) -> list[str]:
    """Parquet with an index and datetimes; sessions are the users."""
    frame = pd.DataFrame(
        {
            "session_id": [row[0] for row in rows()],
            "sku": [f"s-{row[1]}" for row in rows()],
            "event_time": pd.to_datetime([row[3] * 10**6 for row in rows()], unit="us"),
        }
    )
    frame.sample(frac=1, random_state=0).to_parquet(folder / "clicks.parquet")
    items = pd.DataFrame({"sku": [f"s-{item}" for item in range(1, N_ITEMS + 1)]})
    items["name"] = [WORDS[item % 5] for item in range(N_ITEMS)]
    items.to_parquet(folder / "products.parquet")
    return ["clicks.parquet", "products.parquet"]


def excel(folder: Path, encoding: str = "cp1252") -> list[str]:
    """Semicolons, a byte order mark or another encoding, dates with the day first."""
    when = dates("%d.%m.%Y")
    lines = ["Kunde;Artikel;Rating;Date"]  # ratings with a decimal comma
    lines += [
        f"Müller {row[0]};Öl{row[1]};{row[2]},5;{when[place]}" for place, row in enumerate(rows())
    ]
    items = ["Artikel;Name", *(f"Öl{item};{WORDS[item % 5]} für Küche" for item in range(1, 10))]
    for name, text in (("orders.csv", lines), ("items.csv", items)):
        (folder / name).write_bytes(("\r\n".join(text) + "\r\n").encode(encoding))
    return ["orders.csv", "items.csv", "--columns", "user_id=Kunde,item_id=Artikel"]


def microlens(folder: Path) -> list[str]:
    """Pairs in milliseconds, titles of several lines."""
    lines = [f"{user},{item},{when * 1000}\n" for user, item, _, when in rows()]
    (folder / "MicroLens-50k_pairs.csv").write_text("user,item,timestamp\n" + "".join(lines))
    titles = [f'{item},"{WORDS[item % 5]},\nnew"\n' for item in range(1, N_ITEMS + 1)]
    (folder / "MicroLens-50k_titles.csv").write_text("item,title\n" + "".join(titles))
    return ["."]


SHAPES: dict[str, Callable[[Path], list[str]]] = {
    "fashion": fashion,
    "movielens": movielens,
    "amazon": amazon,
    "clicks": clicks,
    "excel": excel,
    "excel-bom": lambda folder: excel(folder, "utf-8-sig"),
    "excel-utf16": lambda folder: excel(folder, "utf-16"),
    "microlens": microlens,
}


def imported(folder: Path, shape: str, *more: str) -> tuple[Path, Result]:
    source, out = folder / "source", folder / "data"
    source.mkdir()
    arguments = [
        str(source / one) if (source / one).exists() else one for one in SHAPES[shape](source)
    ]
    command = ["data", "import", *arguments, "--out", str(out), *more]
    return out, CliRunner().invoke(mmbench, command)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_import_and_both_tools_run_without_options(tmp_path: Path, shape: str) -> None:
    pytest.importorskip("sklearn")
    data, done = imported(tmp_path, shape)
    assert done.exit_code == 0, done.output
    extract = [
        "extract",
        "--modality",
        "textual",
        "--model",
        "tfidf-lsa",
        "--data",
        str(data),
        "-q",
    ]
    done = CliRunner().invoke(mmx, extract)
    assert done.exit_code == 0, done.output
    (path,) = (data / "features/textual").glob("*.h5")
    with FeatureSet(path) as features:
        assert len(features.ids) == N_ITEMS
    train = ["train", "--model", "item-knn,content-knn", "--data", str(data)]
    done = CliRunner().invoke(mmbench, [*train, "--out", str(tmp_path / "runs"), "-q"])
    assert done.exit_code == 0, done.output
    training = load_split(data).training
    assert (training.train.n_users, training.train.n_items) == (N_USERS, N_ITEMS)
    assert set(training.item_ids) == set(features.ids)
    if training.interactions.times is not None:
        ours = sorted({row[3] for row in rows()})
        times = pd.read_csv(data / "interactions.tsv", sep="\t")["timestamp"]
        assert np.abs(np.sort(times) - np.array(ours)).max() < 86_400
        assert times.is_monotonic_increasing == (shape != "clicks")


SHEET = (
    "Artikel;Nummer;Titel;Beschreibung;Preis;Farbe;Bild;Link;Seit",
    "A1;0071;Rote Lampe;Aus Glas, warm;9,50;rot;bilder/eine rote lampe.jpg;http://x/1;01.02.2024",
    "A2;0072;Blauer Stuhl;;19,00;blau;bilder/stuhl.jpg;http://x/2;02.02.2024",
    "A3;0073;Tisch;Ein Tisch;29,00;grün;bilder/tisch.jpg;http://x/3;03.02.2024",
)


def test_texts_under_names_of_ones_own_are_found_once_and_said(tmp_path: Path) -> None:
    """A sheet of Excel in German: import finds the texts, extraction takes them."""
    pytest.importorskip("sklearn")
    orders, items, data = (tmp_path / name for name in ("orders.csv", "items.csv", "data"))
    orders.write_text("Kunde;Artikel\n" + "".join(f"K{n % 4};A{n % 3 + 1}\n" for n in range(12)))
    items.write_text("\n".join(SHEET) + "\n")
    command = ["data", "import", str(orders), str(items), "--out", str(data)]
    roles = ["--columns", "user_id=Kunde,item_id=Artikel"]
    done = CliRunner().invoke(mmbench, [*command, *roles], catch_exceptions=False)
    assert "texts, by the look of their cells: Titel + Beschreibung, which mmx" in done.output
    extract = ["extract", "--modality", "textual", "--model", "tfidf-lsa", "--data", str(data)]
    done = CliRunner().invoke(mmx, extract, catch_exceptions=False)
    assert "text: Titel + Beschreibung of items.tsv, as dataset.json says" in done.output
    (path,) = (data / "features/textual").glob("*.h5")
    with FeatureSet(path) as features:
        assert features.provenance["input"]["columns"] == ["Titel", "Beschreibung"]
    others = ["--text-columns", "Farbe", "--name", "colours"]
    assert CliRunner().invoke(mmx, [*extract, *others], catch_exceptions=False).exit_code == 0
    done = CliRunner().invoke(mmx, [*extract, "--name", "again"], catch_exceptions=False)
    assert "text: Farbe of items.tsv, as dataset.json says" in done.output
