"""The Amazon review collections of 2014, 2018 and 2023 as dataset folders.

    2014  https://jmcauley.ucsd.edu/data/amazon/  5-core reviews, metadata, 4096-d image features;
          Python literals
    2018  https://nijianmo.github.io/amazon/      5-core reviews, metadata; JSON
    2023  https://amazon-reviews-2023.github.io/  5-core ratings, metadata; JSON; joined on
          parent_asin

Papers: McAuley, Targett, Shi, van den Hengel, SIGIR 2015; He, McAuley, WWW 2016; Ni, Li, McAuley,
EMNLP 2019; Hou et al., 2024.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmbase.progress import Progress, Silent
from mmx.download.transfer import DamagedDownload, Wanted
from mmx.errors import DataError, unknown_name

CATEGORIES = {
    "office": "Office_Products",
    "toys": "Toys_and_Games",
    "beauty": "Beauty",
    "sports": "Sports_and_Outdoors",
    "clothing": "Clothing_Shoes_and_Jewelry",
    "baby": "Baby",
    "music": "Digital_Music",
}
_RENAMED = {
    ("amazon-2018", "beauty"): "All_Beauty",
    ("amazon-2023", "beauty"): "Beauty_and_Personal_Care",
    ("amazon-2023", "baby"): "Baby_Products",
}
_ABSENT = {("amazon-2018", "baby")}
BASES = {
    "amazon-2014": "http://snap.stanford.edu/data/amazon/productGraph/",
    "amazon-2018": "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/",
    "amazon-2023": "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",
}
FILES = {
    "amazon-2014": {
        "reviews": "categoryFiles/reviews_{}_5.json.gz",
        "meta": "categoryFiles/meta_{}.json.gz",
        "features": "image_features/categoryFiles/image_features_{}.b",
    },
    "amazon-2018": {
        "reviews": "categoryFilesSmall/{}_5.json.gz",
        "meta": "metaFiles2/meta_{}.json.gz",
    },
    "amazon-2023": {
        "reviews": "benchmark/5core/rating_only/{}.csv.gz",
        "meta": "raw/meta_categories/meta_{}.jsonl.gz",
    },
}
LICENCE = (
    "Collected by J. McAuley's group from amazon.com for research; see the collection's page for "
    "terms and citation."
)
IMAGE_DIM = 4096
_RECORD = 10 + 4 * IMAGE_DIM
_MAX_BAD_LINES = 100
COLUMNS = ("item_id", "title", "brand", "categories", "description", "image_url")


@dataclass
class Counts:
    """Counts of what was read and left out, for `dataset.json`.

    Attributes:
        values: Name to count.
        bad_lines: File, line number and reason of lines that could not be read.
    """

    values: dict[str, int] = field(default_factory=dict)
    bad_lines: list[str] = field(default_factory=list)

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more."""
        self.values[name] = self.values.get(name, 0) + n

    def bad(self, where: str) -> None:
        """Record a line that cannot be read.

        Raises:
            DataError: There are too many of them for the right file.
        """
        self.bad_lines.append(where)
        if len(self.bad_lines) > _MAX_BAD_LINES:
            raise DataError(
                f"{where}; more than {_MAX_BAD_LINES} such lines: is this the right file?"
            )


def parse_name(name: str) -> tuple[str, str]:
    """Split a name such as `amazon-2014/office` into collection and category.

    Raises:
        UsageError: There is no such collection or category.
    """
    collection, _, category = name.partition("/")
    if collection not in FILES:
        raise unknown_name("collection", collection, FILES)
    known = [name for name in CATEGORIES if (collection, name) not in _ABSENT]
    if category not in known:
        raise unknown_name(f"category of {collection}", category, known)
    return collection, category


def wanted_files(collection: str, category: str, mirror: str | None) -> dict[str, Wanted]:
    """Return the files of a category by role: `reviews`, `meta` and, in 2014, `features`.

    `mirror` is a folder or an address that has the files under the same names, in the same folders
    or all in one.
    """
    full = _RENAMED.get((collection, category), CATEGORIES[category])
    out = {}
    for role, pattern in FILES[collection].items():
        relative = pattern.format(full)
        name = relative.rpartition("/")[2]
        if mirror is None:
            url = BASES[collection] + relative
        elif "://" in mirror:
            url = mirror.rstrip("/") + "/" + relative
        else:
            nested = Path(mirror) / relative
            url = str(nested if nested.is_file() else Path(mirror) / name)
        out[role] = Wanted(f"{collection}/{name}", url, gzip=name.endswith(".gz"))
    return out


def records(path: Path, counts: Counts) -> Iterator[dict[str, Any]]:
    """Read the lines of a reviews or metadata file: JSON, Python literals or CSV, gzip or not.

    Lines are data and are never executed: a Python literal is read by `ast.literal_eval`.

    Raises:
        DamagedDownload: The gzip is cut off or damaged.
        DataError: The file or too many lines cannot be read.
    """
    try:
        with _opened(path) as file:
            if ".csv" in path.suffixes:
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _parsed(line)
                if record is None:
                    counts.bad(f"{path.name}, line {number}: neither JSON nor a Python literal")
                else:
                    yield record
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedDownload(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); is this the right file?") from error


def _opened(path: Path) -> IO[str]:
    # The caller closes it.
    raw: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", newline="")


def _parsed(line: str) -> dict[str, Any] | None:
    text = line.strip()
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, dict):
            return value
    return None


def interactions(path: Path, counts: Counts) -> Iterator[tuple[str, str, str, str]]:
    """Yield user, item, rating and Unix time in seconds of each review as text.

    The first row of a repeated pair is kept. The times of 2023 (`timestamp`) are milliseconds,
    those of the earlier collections (`unixReviewTime`) seconds.
    """
    seen: set[tuple[str, str]] = set()
    for record in records(path, counts):
        user = _cell(record.get("reviewerID") or record.get("user_id"))
        item = _cell(record.get("parent_asin") or record.get("asin"))
        if not user or not item:
            counts.add("reviews without user or item")
            continue
        try:
            rating = float(record.get("overall", record.get("rating", 1)))
            time_s = (
                float(record.get("unixReviewTime", 0)) or float(record.get("timestamp", 0)) / 1000
            )
        except (TypeError, ValueError):
            rating = time_s = math.nan
        if not (math.isfinite(rating) and math.isfinite(time_s)):
            counts.add("reviews whose rating or time is no number")
            continue
        if (user, item) in seen:
            counts.add("repeated reviews")
            continue
        seen.add((user, item))
        # 13 digits: milliseconds, until the year 2286.
        yield user, item, f"{rating:g}", f"{time_s:.13g}"


def metadata(path: Path, items: set[str], counts: Counts) -> dict[str, dict[str, str]]:
    """Read the texts and image address of the items; the first record of an item counts."""
    out: dict[str, dict[str, str]] = {}
    for record in records(path, counts):
        item = _cell(record.get("parent_asin") or record.get("asin"))
        if item not in items:
            continue
        if item in out:
            counts.add("repeated metadata")
            continue
        out[item] = {
            "title": _cell(record.get("title")),
            "brand": _cell(record.get("brand") or record.get("store")),
            "categories": _cell(record.get("categories") or record.get("category")),
            "description": _cell(record.get("description")),
            "image_url": _image(record),
        }
    return out


def _cell(value: Any) -> str:
    """Return a value as one line of text: lists joined by blanks, NaN and None empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_cell, value)))
    return " ".join(str(value).split())


def _image(record: Mapping[str, Any]) -> str:
    for key in ("imUrl", "imageURLHighRes", "imageURL", "images"):
        value = record.get(key)
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("hi_res") or value.get("large") or value.get("thumb")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return value
    return ""


def image_vectors(
    path: Path, items: Mapping[str, int], counts: Counts, progress: Progress | None = None
) -> tuple[Any, Any]:
    """Read the vectors of some items from a binary image-feature file.

    A record is ten bytes of asin and 4096 little-endian float32. Other items' records are passed
    over; of an item's several records the first counts; a record that is cut off at the end of the
    file is counted and left out.

    Returns:
        Vectors (n, 4096) float32 in the rows that `items` gives, and which rows have one, (n,).

    Raises:
        DataError: The file does not have this form.
    """
    progress = progress or Silent()
    vectors = np.zeros((len(items), IMAGE_DIM), np.float32)
    present = np.zeros(len(items), bool)
    with path.open("rb") as file, progress.task(path.name, path.stat().st_size) as task:
        while record := file.read(_RECORD * 256):
            task.advance(len(record))
            for start in range(0, len(record), _RECORD):
                one = record[start : start + _RECORD]
                if len(one) < _RECORD:
                    counts.add("image vectors cut off at the end")
                    break
                try:
                    item = one[:10].decode("ascii").strip("\0 ")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}: no asin where a record begins; this is no file of 4096-d image "
                        "features"
                    ) from error
                row = items.get(item)
                if row is None:
                    continue
                if present[row]:
                    counts.add("repeated image vectors")
                    continue
                vector = np.frombuffer(one, "<f4", offset=10)
                if not np.isfinite(vector).all():
                    counts.add("image vectors with NaN")
                    continue
                vectors[row], present[row] = vector, True
    return vectors, present
