"""The files of a dataset folder: where pictures and sounds lie, which ones there are, and what leads out of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

FOLDERS = {"visual": "images", "audio": "audio"}
FILE_SUFFIXES = {
    "visual": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".m4a"),
}


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies in `root`."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))  # noqa: PTH118


def content_files(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], set[str]]:
    """The names of the files in `folder` with one of `suffixes`, sorted by stem and preference; those that are links."""
    names, links = [], set()
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(tuple(suffixes)) and _is_file(entry):
                    names.append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    names.sort(key=lambda name: (stem(name), rank[name[len(stem(name)) :].lower()], name))
    return names, links


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one; links that lead in a circle are not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def stem(name: str) -> str:
    """The name without its last extension: `a.v1.jpg` is the file of item `a.v1`."""
    return name[: name.rindex(".")]
