"""Items of several parts: more than one picture or clip, or a text that is cut into pieces the encoder can take.

`Several` wraps any encoder: parts are encoded one by one, then averaged or kept. `several_files`
finds the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmbase.dataset import FILE_SUFFIXES, FOLDERS
from mmx.catalogue.contents import Content, FileContents, file_contents
from mmx.catalogue.items import Items
from mmx.encoders import Encoder, EncoderInfo
from mmx.errors import ContentError, UsageError

Combine = Literal["mean", "ragged"]
LongTexts = Literal["truncate", "mean", "ragged", "error"]


class Parts(list[Any]):
    """Loaded parts of one item.

    Attributes:
        long: Whether they are the pieces of a text that is longer than the encoder takes.
    """

    long = False

    @property
    def nbytes(self) -> int:
        """Memory of the parts that are arrays."""
        return sum(getattr(part, "nbytes", 0) for part in self)


class Several(Encoder):
    """An encoder of items that consist of parts.

    A mean is taken in double precision, over the parts in their order; where the encoder's own
    vectors have length 1, so has the mean.

    Args:
        encoder: Encodes one part.
        combine: `mean`: one vector per item; `ragged`: the vectors of its parts.
        long_texts: What becomes of a text that is longer than the encoder takes: `truncate` leaves
            that to the encoder, `mean` and `ragged` cut it in halves, at blanks, until every piece
            fits, `error` makes the item corrupt.
    """

    modalities = frozenset({"visual", "textual", "audio"})

    def __init__(
        self, encoder: Encoder, *, combine: Combine, long_texts: LongTexts = "truncate"
    ) -> None:
        self.encoder = encoder
        self.spec = encoder.spec
        self.combine = combine
        self.long_texts = long_texts
        self.concurrent = encoder.concurrent  # type: ignore[misc]
        self.ragged = combine == "ragged"
        self.needs_fit = encoder.needs_fit
        self.device = encoder.device
        if encoder.ragged:
            raise UsageError(
                f"{encoder.spec.name} gives several vectors per content already; leave out "
                "--several and --long-texts"
            )

    @classmethod
    def accepts(cls, model: str, modality: str) -> bool:
        """False: it is never built by name."""
        return False

    @classmethod
    def known(cls, modality: str, cache_dir: Path | None = None) -> list[EncoderInfo]:
        """Nothing."""
        return []

    @property
    def batch_size(self) -> int | None:
        """Parts per forward pass."""
        return self.encoder.batch_size

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        self.encoder.batch_size = value

    def fit(self, contents: Iterable[Path | str]) -> None:
        """Learns from the whole contents."""
        self.encoder.fit(contents)
        self.spec = self.encoder.spec

    def load(self, content: Any) -> Parts:
        """The loaded parts, in order; files that are absent are left out as long as one is there.

        Raises:
            ContentError: One of them is corrupt, or the text is too long and that is an error.
            FileNotFoundError: None of the files is there.
        """
        parts = Parts()
        contents = content if isinstance(content, tuple) else (content,)
        absent: FileNotFoundError | None = None
        for number, one in enumerate(contents, 1):
            try:
                if isinstance(one, ContentError):
                    raise one
                self._load_into(parts, one)
            except FileNotFoundError as error:
                absent = error
            except ContentError as error:
                raise (
                    error
                    if len(contents) == 1
                    else ContentError(f"part {number} of {len(contents)}: {error}")
                ) from error
        if not parts and absent is not None:
            raise absent
        return parts

    def _load_into(self, parts: Parts, content: Path | str) -> None:
        loaded = self.encoder.load(content)
        if (
            isinstance(content, Path)
            or self.long_texts == "truncate"
            or not self.encoder.truncated(loaded)
        ):
            parts.append(loaded)
            return
        if self.long_texts == "error":
            raise ContentError("the text is longer than the encoder takes (--long-texts error)")
        parts.long = True
        halves = in_halves(content)
        if halves is None:  # a single word that is too long
            parts.append(loaded)
            return
        for half in halves:
            self._load_into(parts, half)

    def encode(self, batch: Sequence[Parts]) -> Any:
        """One vector per item, shape (len(batch), dim); or, ragged, a list with one array of shape (k, dim) for each."""
        flat = [part for parts in batch for part in parts]
        order = np.argsort([self.encoder.sort_key(part) for part in flat], kind="stable")
        vectors = np.empty((len(flat), self.spec.dim), dtype=np.float32)
        size = self.batch_size or max(1, len(flat))
        for start in range(0, len(flat), size):
            chosen = order[start : start + size]
            vectors[chosen] = self.encoder.encode([flat[k] for k in chosen.tolist()])
        bounds = np.cumsum([len(parts) for parts in batch])[:-1]
        pieces = np.split(vectors, bounds)
        if self.combine == "ragged":
            return pieces
        unit = self.spec.preprocessing.get("normalisation") == "l2"
        return np.stack([mean_vector(piece, unit=unit) for piece in pieces])

    def sort_key(self, loaded: Parts) -> int:
        """Size of all parts together."""
        return sum(self.encoder.sort_key(part) for part in loaded)

    def truncated(self, loaded: Parts) -> bool:
        """Whether a part was longer than what the encoder takes."""
        return loaded.long or any(self.encoder.truncated(part) for part in loaded)


def mean_vector(vectors: NDArray[np.float32], *, unit: bool) -> NDArray[np.float32]:
    """The mean of vectors, shape (k, dim) → (dim,), float32; a single one is returned as it is.

    Args:
        vectors: k >= 1.
        unit: Scale the mean to length 1, unless it is zero.
    """
    if len(vectors) == 1:
        first: NDArray[np.float32] = vectors[0]
        return first
    mean: NDArray[np.float64] = vectors.mean(axis=0, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    return (mean / norm if unit and norm > 0 else mean).astype(np.float32)


def in_halves(text: str) -> tuple[str, str] | None:
    """The text cut at the blank nearest to its middle, or within a word where there is none; None for a single letter."""
    middle = len(text) // 2
    before, after = text.rfind(" ", 1, middle + 1), text.find(" ", middle, len(text) - 1)
    places = [place for place in (before, after) if place > 0]
    cut = min(places, key=lambda place: abs(place - middle)) if places else middle
    halves = text[:cut].strip(), text[cut:].strip()
    return halves if all(halves) else None


# ------------------------------------------------------------------------------------------------
# files


@dataclass(frozen=True)
class SeveralFiles:
    """Several files per item: see `several_files`.

    Attributes:
        files: The same items with one file each.
        separator: What stands between two paths of a cell; None: a cell is one path.
        folders: Ids of the items that have a folder of their own.
        modality: `visual` or `audio`.
        ids: The items' ids, an Arrow string array.
    """

    files: FileContents
    separator: str | None
    folders: frozenset[str]
    modality: str
    ids: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of paths, if there is one."""
        return self.files.columns

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed."""
        found = f"{len(self.folders):,} items have a folder of {self.modality} files"
        return (*self.files.notes, *((found,) if self.folders else ()))

    def fetch(self, start: int, stop: int) -> list[Content]:
        """For each row a tuple of paths (or reasons why one may not be followed), or None."""
        cells = [b""] * (stop - start)
        if self.files.named is not None:
            cells = self.files.named.slice(start, stop - start).to_pylist()
        by_name = replace(self.files, named=None).fetch(start, stop)
        ids = self.ids.slice(start, stop - start).to_pylist()
        return [
            self._of_cell(cell) if cell else self._of_names(item, content)
            for cell, item, content in zip(cells, ids, by_name, strict=True)
        ]

    def digest(self) -> str | None:
        """BLAKE2b-256 of the path column's cells; None without one."""
        return self.files.digest()

    def _of_cell(self, cell: bytes) -> Content:
        paths = [cell] if self.separator is None else cell.split(self.separator.encode())
        found = (self.files.path_of(path) for path in paths)
        return tuple(one for one in found if isinstance(one, Path | ContentError)) or None

    def _of_names(self, item: str, content: Content) -> Content:
        found = [content] if isinstance(content, Path | ContentError) else []
        if item in self.folders:
            folder = f"{FOLDERS[self.modality]}/{item}"
            names = sorted(path.name for path in (self.files.root / folder).iterdir())
            inside = (
                self.files.path_of(os.fsencode(f"{folder}/{name}"))
                for name in names
                if name.lower().endswith(FILE_SUFFIXES[self.modality])
            )
            found += [one for one in inside if isinstance(one, Path | ContentError)]
        return tuple(found) or None


def several_files(
    items: Items, modality: str, column: str | None, separator: str | None
) -> SeveralFiles:
    """All files of each item.

    Those of its cell in the path column, cut at `separator`; or else
    `<folder>/<item_id>.<extension>` and every file in the folder `<folder>/<item_id>/`, in the
    order of their names.

    Args:
        items: The items.
        modality: `visual` or `audio`.
        column: The column of paths; None looks for the usual names.
        separator: What stands between two paths of a cell; None: a cell is one path.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = file_contents(items, modality, column)
    above = items.root / FOLDERS[modality]
    folders: list[str] = []
    if above.is_dir():
        with os.scandir(above) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    known = items.ids.filter(pc.is_in(items.ids, value_set=pa.array(sorted(folders), pa.string())))
    return SeveralFiles(files, separator, frozenset(known.to_pylist()), modality, items.ids)
