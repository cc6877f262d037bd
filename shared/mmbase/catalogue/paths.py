"""Cells that name files: how people write paths, what they lead to, and where they may lead.

A cell may hold one path or a list of them, as text too (`['a.jpg', 'b.jpg']`); backslashes and
`file://` are understood where the file is there. A path never leaves the dataset folder as it is
written. Links are followed inside the folder, and what an entry of the folder itself links to (an
`images` on another disk) is part of it; one rule for files that a cell names and for files that
bear an item's id.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from mmbase.errors import ContentError

BETWEEN = "\x1f"
"""Separates the paths of a list cell once the list is text."""

NO_PATH = ("", "NaN", "nan")
"""Cells that name no file; data frames write the last two."""

_ADDRESS = re.compile(rb"\s*(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


@dataclass(frozen=True)
class Absent:
    """A file that a cell names and that is not there.

    Attributes:
        name: As the cell has it.
        cure: What to do about it; for the message.
    """

    name: str
    cure: str


def is_address(cell: bytes) -> bool:
    """Whether a cell holds a URL of anything but the file system."""
    return _ADDRESS.match(cell) is not None


def names_in(cell: bytes, separator: str | None = None) -> list[str] | ContentError:
    """Return the paths in a cell, which may be a list, cut at the separator if there is one."""
    try:
        text = cell.decode().strip()
    except UnicodeDecodeError:
        return ContentError("the path is not valid UTF-8")
    if BETWEEN in text:
        names = text.split(BETWEEN)
    elif text.startswith("[") and text.endswith("]"):
        quoted = [one or other for one, other in _QUOTED.findall(text)]
        names = quoted or text[1:-1].split(",")
    else:
        names = [text] if separator is None else text.split(separator)
    return [name for name in map(str.strip, names) if name not in NO_PATH]


@dataclass(frozen=True)
class Place:
    """The folders in which files are looked for.

    Attributes:
        root: The dataset folder.
        folder: Where names are looked for as well, inside `root`.
        anywhere: Whether paths and links may lead out of `root`.
    """

    root: Path
    folder: str
    anywhere: bool = False
    _linked: dict[str, str] = field(default_factory=dict, compare=False)
    _inside: dict[str, str] = field(default_factory=dict, compare=False)

    def file(self, name: str) -> Path | Absent | ContentError:
        """Return the file of that name, or why there is none to use."""
        if "\0" in name:
            return ContentError("the path holds a NUL character")
        if (plain := self._plain(name)) is not None:
            return plain
        refused: ContentError | None = None
        for way in dict.fromkeys((name, _without_scheme(name), name.replace("\\", "/"))):
            for path in (self.root / way, self.root / self.folder / way):
                if not self.allows(path):
                    refused = refused or ContentError(
                        f"{name}: leads out of the dataset folder (--allow-outside lets it)"
                    )
                    continue
                try:
                    mode = path.stat().st_mode
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    return ContentError(f"{name}: {error.strerror or error}")
                return path if stat.S_ISREG(mode) else ContentError(f"{name}: not a file")
        return refused or Absent(name, self._cure(name))

    def _plain(self, name: str) -> Path | None:
        """Return the file of that name where it is no link itself, and its folder is allowed.

        What is known of folders makes this a twentieth of the work: it looks at the file alone.
        """
        above, _, last = name.rpartition("/")
        if name.startswith("/") or last in ("", ".", ".."):
            return None
        for root in self._roots:
            key = f"{root}/{above}"
            if (folder := self._inside.get(key)) is None:
                written = root / above
                fits = self.anywhere or self._is_inside(
                    os.path.realpath(written) + os.sep + "_", _written(written) + os.sep + "_"
                )
                folder = self._inside[key] = f"{written}{os.sep}" if fits else ""
            if not folder:
                return None
            try:
                mode = os.lstat(folder + last).st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                return None
            return Path(folder + last) if stat.S_ISREG(mode) else None
        return None

    def allows(self, path: Path) -> bool:
        """Whether a path below `root` leads to a place inside it, with every link followed.

        What an entry of `root` links to counts as inside.
        """
        if self.anywhere:
            return True
        return self._is_inside(os.path.realpath(path), _written(path))

    def _is_inside(self, real: str, written: str) -> bool:
        """Whether a path is inside, with every link followed and as it is written."""
        if real.startswith(self._real_root):
            return True
        if not written.startswith(self._written_root):
            return False
        entry = written[len(self._written_root) :].partition(os.sep)[0]
        if entry not in self._linked:
            self._linked[entry] = os.path.realpath(self.root / entry) + os.sep
        return real.startswith(self._linked[entry])

    @cached_property
    def _roots(self) -> tuple[Path, Path]:
        return self.root, self.root / self.folder

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root).rstrip(os.sep) + os.sep

    @cached_property
    def _written_root(self) -> str:
        return _written(self.root).rstrip(os.sep) + os.sep

    def _cure(self, name: str) -> str:
        if is_address(os.fsencode(name)):
            return "addresses are not fetched: download the files and name them by item id"
        last = re.split(r"[\\/]", name)[-1]
        if last and (self.root / self.folder / last).is_file():
            return f"{self.folder}/{last} is there: correct the folder in the path"
        return f"paths start from {self.root} or its folder {self.folder}"


def _written(path: Path) -> str:
    """The absolute path as it is written, without following links."""
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`


def _without_scheme(name: str) -> str:
    """The path of a `file:` address."""
    scheme, separator, rest = name.partition(":")
    if scheme.lower() != "file" or not separator:
        return name
    return unquote(rest.removeprefix("//").removeprefix("localhost"))
