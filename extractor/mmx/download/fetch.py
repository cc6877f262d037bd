"""Dataset folders from a collection on the web, a mirror or files at hand, and items' images."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbase.progress import Progress, Silent
from mmx import __version__
from mmx.download import amazon, transfer
from mmx.download.amazon import Counts
from mmx.errors import DataError, UsageError
from mmx.vectors.ids import sha256_of

FEATURE_SET = "amazon-cnn"
_STATUS_FILE = "status.tsv"
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = re.compile(r"\.(jpe?g|png|gif|webp|bmp)$", re.IGNORECASE)
_MAX_IMAGE = 64 << 20


@dataclass(frozen=True)
class Fetched:
    """A dataset folder and the counts of what was read and left out.

    `already` tells that it was there, made of the same files.
    """

    path: Path
    counts: dict[str, int]
    already: bool


def fetch(
    name: str,
    out: Path,
    *,
    downloads: Path,
    mirror: str | None = None,
    from_files: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Fetched:
    """Get a category's files and convert them to a dataset folder.

    Args:
        name: Such as `amazon-2014/office`.
        out: The dataset folder; appears when all of it is there.
        downloads: Where downloaded files are kept.
        mirror: Folder or address that has the files.
        from_files: Files at hand by role (`reviews`, `meta`, `features`).
        progress: Shows bytes and notes.
        options: Of `transfer.get`.

    Raises:
        DataError: A file cannot be had or read, or `out` holds something else.
        UsageError: No such collection, category or role.
    """
    progress = progress or Silent()
    collection, category = amazon.parse_name(name)
    wanted = amazon.wanted_files(collection, category, mirror)
    own = from_files or {}
    for role in own:
        if role not in wanted:
            raise UsageError(f"--from-files {role}: {collection} has {', '.join(wanted)}")
    files = {}
    for role, one in wanted.items():
        given = own.get(role)
        if given is not None and not given.is_file():
            raise DataError(f"{given}: no such file")
        files[role] = given or transfer.get(one, downloads, progress=progress, **options)
    source = {"name": name, "files": {role: sha256_of(path) for role, path in files.items()}}
    if (out / "dataset.json").is_file():
        before = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        if before.get("source") != source:
            raise DataError(f"{out}: was made of other files; choose another --out, or remove it")
        return Fetched(out, before["counts"], True)
    if out.exists():
        raise DataError(
            f"{out}: exists and was not made by mmx fetch; choose another --out, or remove it"
        )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts = Counts()
    try:
        _convert(files, partial, counts, progress)
    except DataError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, transfer.DamagedDownload) and error.path not in own.values():
            transfer.forget(error.path)  # the next call gets it anew
        raise
    document = {
        "name": out.name,
        "source": source,
        "licence": amazon.LICENCE,
        "counts": counts.values,
        "bad_lines": counts.bad_lines,
        "tool": {"name": "mmx", "version": __version__},
    }
    (partial / "dataset.json").write_text(
        json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    partial.rename(out)
    for line in counts.bad_lines[:5]:
        progress.warn(f"left out: {line}")
    return Fetched(out, counts.values, False)


def _convert(files: Mapping[str, Path], out: Path, counts: Counts, progress: Progress) -> None:
    progress.note(f"converting {', '.join(path.name for path in files.values())}")
    items, users = set[str](), set[str]()
    with (out / "interactions.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("user_id\titem_id\trating\ttimestamp\n")
        for row in amazon.interactions(files["reviews"], counts):
            file.write("\t".join(row) + "\n")
            users.add(row[0])
            items.add(row[1])
            counts.add("interactions")
    if not items:
        raise DataError(f"{files['reviews']}: no reviews in this file")
    counts.values |= {"users": len(users), "items": len(items)}
    meta = amazon.metadata(files["meta"], items, counts)
    counts.values["items without metadata"] = len(items) - len(meta)
    empty = dict.fromkeys(amazon.COLUMNS[1:], "")
    ordered = sorted(items)
    with (out / "items.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(amazon.COLUMNS) + "\n")
        for item in ordered:
            texts = meta.get(item, empty)
            file.write("\t".join([item, *(texts[column] for column in amazon.COLUMNS[1:])]) + "\n")
    if "features" in files:
        _import_vectors(files["features"], ordered, out, counts, progress)


def _import_vectors(
    path: Path, items: list[str], out: Path, counts: Counts, progress: Progress
) -> None:
    from mmstore import FeatureSetWriter

    rows = {item: row for row, item in enumerate(items)}
    vectors, present = amazon.image_vectors(path, rows, counts, progress)
    if not present.any():
        raise DataError(
            f"{path}: no vector of any of the {len(items):,} items; is this the right category?"
        )
    counts.values["items without image vector"] = int((~present).sum())
    provenance = {
        "extractor": "import-amazon-b",
        "backend": "import",
        "importer": {"format": "amazon-b", "file": path.name, "file_sha256": sha256_of(path)},
        "tool": {"name": "mmx", "version": __version__},
    }
    target = out / "features" / "visual" / f"{FEATURE_SET}.h5"
    with FeatureSetWriter(
        target, modality="visual", dim=amazon.IMAGE_DIM, ids=items, provenance=provenance
    ) as writer:
        there = np.flatnonzero(present)
        for start in range(0, there.size, 1024):
            part = there[start : start + 1024]
            writer.write(part, vectors[part])
        if not present.all():
            writer.mark_missing(np.flatnonzero(~present))
        writer.finish()


def fetch_images(
    data: Path,
    *,
    jobs: int = 4,
    pause_s: float = 0.1,
    timeout_s: float = 30.0,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Download the items' images by the addresses in `items.tsv`, into `images/<item id>.<suffix>`.

    What happened to each item is appended to `images/status.tsv` (item, status, reason); the next
    call tries those that are not `ok` again and no others.

    Args:
        data: A dataset folder made by `fetch`.
        jobs: Connections at once.
        pause_s: Rest of a connection between two images.
        timeout_s: Of one image.
        progress: Shows items.

    Returns:
        Items by status: `ok`, `missing` (no address), `failed`.

    Raises:
        DataError: There is no items.tsv with addresses.
    """
    addresses = _addresses(data)
    folder = data / "images"
    folder.mkdir(exist_ok=True)
    done = _statuses(folder)
    left = [item for item in addresses if done.get(item) != "ok"]
    counts = {"ok": len(addresses) - len(left), "missing": 0, "failed": 0}

    def one(item: str) -> tuple[str, str, str]:
        if not addresses[item]:
            return item, "missing", "no address"
        if not _SAFE_ID.fullmatch(item):
            return item, "failed", "the id is no file name"
        try:
            _get_image(item, addresses[item], folder, timeout_s)
        except (OSError, ValueError, http.client.HTTPException) as error:  # a bad address, answer
            reason = " ".join(str(getattr(error, "reason", error)).split())
            return item, "failed", reason or type(error).__name__
        finally:
            time.sleep(pause_s)
        return item, "ok", ""

    with (
        (folder / _STATUS_FILE).open("a", encoding="utf-8") as log,
        (progress or Silent()).task("images", len(addresses), counts["ok"]) as task,
        ThreadPoolExecutor(jobs) as pool,
    ):
        futures = [pool.submit(one, item) for item in left]
        try:
            for future in as_completed(futures):
                item, status, reason = future.result()
                counts[status] += 1
                log.write(f"{item}\t{status}\t{reason}\n")
                log.flush()
                task.advance(1, "limited by network")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return counts


def _addresses(data: Path) -> dict[str, str]:
    path = data / "items.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); `mmx fetch` makes it"
        ) from error
    header = lines[0].split("\t") if lines else []
    if "image_url" not in header or "item_id" not in header:
        raise DataError(f"{path}: no columns item_id and image_url; `mmx fetch` writes them")
    item, url = header.index("item_id"), header.index("image_url")
    rows = [line.split("\t") for line in lines[1:]]
    return {row[item]: row[url] for row in rows}


def _statuses(folder: Path) -> dict[str, str]:
    path = folder / _STATUS_FILE
    if not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3}


def _get_image(item: str, url: str, folder: Path, timeout_s: float) -> None:
    # urllib would also open a file of this machine.
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError("not an address on the web")
    match = _SUFFIX.search(url.partition("?")[0])
    target = folder / (item + (match.group(0).lower() if match else ".jpg"))
    request = urllib.request.Request(url, headers=transfer.AGENT)
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("a web page instead of an image")
        content = answer.read(_MAX_IMAGE + 1)
        length = answer.headers.get("Content-Length")
    if len(content) > _MAX_IMAGE:
        raise ValueError(f"more than {_MAX_IMAGE >> 20} MiB")
    if not content or (length and len(content) < int(length)):
        raise ValueError("cut off")
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(content)
    partial.replace(target)
