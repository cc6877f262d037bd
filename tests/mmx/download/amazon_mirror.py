"""A mirror folder in the originals' exact formats: Python literals, odd quoting, a cut-off tail."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np

TITLES = (
    "Gel pen, 0.7 mm",
    'The "big" stapler',
    "Crème paper café",
    "It's a 'ruler'",
    "日本の筆",
    "Desk\torganizer\n2-tier",
)


def asin(number: int) -> str:
    """Ten characters, some with leading zeros and a trailing X, as books have them."""
    return f"{number:09d}X" if number % 3 == 0 else f"B{number:09d}"


def write_mirror(
    folder: Path, category: str, *, users: int = 40, items: int = 30, seed: int = 0
) -> Path:
    """Write the reviews, metadata and image features of a category, as the collection names them.

    Each user has 6 to 12 reviews. Item 1 has no metadata, item 2 no image vector; metadata of
    foreign items, repeated asins, NaN descriptions, list-valued descriptions and missing fields
    occur; the binary ends within a record.
    """
    rng = np.random.default_rng(seed)
    (folder / "categoryFiles").mkdir(parents=True, exist_ok=True)
    (folder / "image_features/categoryFiles").mkdir(parents=True, exist_ok=True)
    side = rng.integers(0, 2, items)
    reviews = []
    for user in range(users):
        weights = np.where(side == user % 2, 1.0, 0.15)
        for item in rng.choice(
            items, rng.integers(6, 13), replace=False, p=weights / weights.sum()
        ):
            review = {
                "reviewerID": f"A{user:05d}",
                "asin": asin(int(item)),
                "reviewerName": 'J. "Jo" O\'Neil',
                "helpful": [0, 1],
                "reviewText": 'Great — 5 €, isn\'t it? \\ "quoted"',
                "overall": float(rng.integers(1, 6)),
                "unixReviewTime": int(1_300_000_000 + rng.integers(0, 10**8)),
            }
            reviews.append(repr(review) if rng.random() < 0.5 else json.dumps(review))
    reviews.append(reviews[0])  # twice the same
    _gzip(folder / f"categoryFiles/reviews_{category}_5.json.gz", reviews)
    meta = []
    for item in [*range(items), 0, 10**6]:
        if item == 1:
            continue
        record: dict[str, object] = {
            "asin": asin(item),
            "title": TITLES[item % len(TITLES)]
            + f" {'left' if item < items and side[item] else 'right'}",
            "categories": [["Office Products", "Pens"], ["Arts"]],
            "imUrl": f"http://images.example/{item}.jpg",
        }
        if item % 2:
            record["brand"] = "Pilot"
        if item % 4 == 0:
            record["description"] = float("nan")
        elif item % 4 == 1:
            record["description"] = ["first part", "second part"]
        elif item % 4 == 2:
            record["description"] = "A 'fine' point"
        meta.append(_literal(record))
    _gzip(folder / f"categoryFiles/meta_{category}.json.gz", meta)
    with (folder / f"image_features/categoryFiles/image_features_{category}.b").open("wb") as file:
        for item in [*range(items), 10**6]:
            if item == 2:
                continue
            sign = 1.0 if item < items and side[item] else -1.0
            vector = (sign + 0.3 * rng.standard_normal(4096)).astype("<f4")
            file.write(asin(item).encode() + vector.tobytes())
        file.write(asin(3).encode() + struct.pack("<f", 1.0))
    return folder


def _literal(record: dict[str, object]) -> str:
    """As the collection writes it: Python literals, but NaN as JSON has it."""
    if any(isinstance(value, float) and value != value for value in record.values()):
        return json.dumps(record)
    return repr(record)


def _gzip(path: Path, lines: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
