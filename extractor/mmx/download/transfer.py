"""Downloads that survive a bad network: resumed, retried with back-off, checked, never half there.

A file appears under its name when all of it has arrived. Its SHA-256 is recorded then, in
`checksums.json` beside it, and a later use of a file that has changed since is an error.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbase.progress import Progress, Silent
from mmx.errors import DataError
from mmx.vectors.ids import sha256_of

CHECKSUMS = "checksums.json"
RETRIES = 5
TIMEOUT_S = 60.0
_CHUNK = 1 << 20
AGENT = {"User-Agent": "mmx-mmbench (feature extraction for research)"}


@dataclass(frozen=True)
class Wanted:
    """A file to get.

    Attributes:
        name: Where it lies below the download folder, e.g.
            `amazon-2014/meta_Office_Products.json.gz`.
        url: Its address, or its path in a mirror folder.
        gzip: Whether it must be gzip.
        sha256: What it must be, where that is known.
    """

    name: str
    url: str
    gzip: bool = False
    sha256: str | None = None


class DamagedDownload(DataError):
    """A file that has arrived and can't be unpacked.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"{path}: the gzip file is cut off or damaged ({reason}); remove it and get it again"
        )
        self.path = path


def get(
    wanted: Wanted,
    folder: Path,
    *,
    progress: Progress | None = None,
    retries: int = RETRIES,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the file on disk, downloaded if it is not there yet.

    Args:
        wanted: What to get.
        folder: The download folder.
        progress: Shows bytes.
        retries: How often a broken connection is tried again.
        wait: Sleeps; for tests.

    Raises:
        DataError: Not found, refused, broken off too often, or not what it should be. What has
            arrived is kept, and the next call goes on from there, unless it is wrong.
    """
    progress = progress or Silent()
    path = folder / wanted.name
    if path.is_file():
        _verify(path, wanted)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    source = Path(wanted.url)
    if "://" not in wanted.url:
        if not source.is_file():
            raise DataError(
                f"{source}: no such file in the mirror folder; it must hold "
                f"{wanted.name.rpartition('/')[2]}"
            )
        shutil.copyfile(source, partial)
    else:
        _download(wanted, partial, progress, retries, wait)
    _check_kind(partial, wanted)
    digest = sha256_of(partial)
    if wanted.sha256 and digest != wanted.sha256:
        partial.unlink()
        raise DataError(
            f"{wanted.url}: wrong checksum (got {digest}, expected {wanted.sha256}); removed, try "
            "again or use --mirror"
        )
    _record(path, wanted, digest, partial.stat().st_size)
    partial.replace(path)
    return path


def forget(path: Path) -> None:
    """Remove a damaged file, so that the next call gets it anew."""
    path.unlink(missing_ok=True)
    known = _known(path)
    if known.pop(path.name, None) is not None:
        _write(path.parent / CHECKSUMS, known)


def _download(
    wanted: Wanted, partial: Path, progress: Progress, retries: int, wait: Callable[[float], None]
) -> None:
    for attempt in range(retries + 1):
        try:
            return _transfer(wanted.url, partial, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what is there is not a beginning of what is offered
                partial.unlink(missing_ok=True)
                reason = "the server's file has changed"
            elif error.code in (408, 425, 429) or error.code >= 500:
                reason = f"HTTP {error.code} {error.reason}"
            else:
                raise DataError(
                    f"{wanted.url}: HTTP {error.code} {error.reason}; look at the address, use "
                    "--mirror DIR|URL, or give files that you have with --from-files"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < retries:
            pause = min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0)
            progress.detail(f"{wanted.url}: {reason}; again in {pause:.0f} s")
            wait(pause)
    have = partial.stat().st_size if partial.is_file() else 0
    raise DataError(
        f"{wanted.url}: {reason}, {retries + 1} times; {have:,} bytes are kept and the same "
        "command goes on from there; or use --mirror DIR|URL, or --from-files"
    )


def _transfer(url: str, partial: Path, progress: Progress) -> None:
    have = partial.stat().st_size if partial.is_file() else 0
    stamp = partial.with_name(partial.name + ".stamp")
    headers = dict(AGENT)
    if have and stamp.is_file():
        headers |= {"Range": f"bytes={have}-", "If-Range": stamp.read_text(encoding="utf-8")}
    else:
        have = 0
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        if answer.status != 206:  # the whole file, and not the rest of it
            have = 0
        if answer.headers.get_content_type() == "text/html":
            raise DataError(
                f"{url}: the server sent a web page instead of the file; use --mirror DIR|URL, or "
                "--from-files"
            )
        total = _total(answer, have)
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            stamp.write_text(validator, encoding="utf-8")
        with (
            partial.open("ab" if have else "wb") as file,
            progress.task(url.rpartition("/")[2], total or 0, have) as task,
        ):
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                task.advance(len(chunk), "limited by network")
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
    stamp.unlink(missing_ok=True)


def _total(answer: Any, have: int) -> int | None:
    match = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if match:
        return int(match.group(1))
    length = answer.headers.get("Content-Length")
    return have + int(length) if length else None


def _check_kind(path: Path, wanted: Wanted) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    if wanted.gzip and not head.startswith(b"\x1f\x8b"):
        what = "a web page" if head.lstrip()[:1] == b"<" else "something else"
        path.unlink()
        raise DataError(
            f"{wanted.url}: {what} instead of gzip; removed; use --mirror DIR|URL, or --from-files"
        )


def _known(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        values = json.loads((path.parent / CHECKSUMS).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    return {}


def _record(path: Path, wanted: Wanted, digest: str, size: int) -> None:
    known = _known(path)
    known[path.name] = {"sha256": digest, "bytes": size, "from": wanted.url.rpartition("/")[2]}
    _write(path.parent / CHECKSUMS, known)


def _write(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def _verify(path: Path, wanted: Wanted) -> None:
    expected = _known(path).get(path.name, {})
    digest = wanted.sha256 or expected.get("sha256")
    if expected and path.stat().st_size != expected["bytes"]:
        raise DataError(
            f"{path}: {path.stat().st_size:,} bytes, {expected['bytes']:,} when it was downloaded; "
            "remove it and try again"
        )
    if digest and sha256_of(path) != digest:
        raise DataError(
            f"{path}: wrong checksum: the file has changed since it was downloaded; remove it and "
            "try again"
        )
