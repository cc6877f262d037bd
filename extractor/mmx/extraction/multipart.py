"""Items of several parts: several pictures or sounds, or a long text in pieces.

`Several` wraps any encoder: parts are encoded one by one, then averaged or kept. `several_files`
finds the files.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mmbase.catalogue.files import Content, FileContents, file_contents
from mmbase.catalogue.items import Items
from mmbase.catalogue.paths import Absent, names_in
from mmbase.dataset import FILE_SUFFIXES, FOLDERS, is_hidden
from mmbase.tables import Column
from mmx.encoders import Encoder
from mmx.encoders.base import loaded_or_error
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


class Several:
    """An `Encoder` of items that consist of parts, around the encoder of one part.

    A mean is taken in double precision, over the parts in their order; where the encoder's own
    vectors have length 1, so has the mean.

    Args:
        encoder: Encodes one part.
        combine: `mean`: one vector per item; `ragged`: the vectors of its parts.
        long_texts: What becomes of a text that is longer than the encoder takes: `truncate` leaves
            that to the encoder, `mean` and `ragged` cut it in halves, at blanks, until every piece
            fits, `error` makes the item corrupt.
    """

    def __init__(
        self, encoder: Encoder, *, combine: Combine, long_texts: LongTexts = "truncate"
    ) -> None:
        self.encoder = encoder
        self.spec = encoder.spec
        self.long_texts = long_texts
        self.concurrent = encoder.concurrent
        self.ragged = combine == "ragged"
        self.needs_fit = encoder.needs_fit
        self.device = encoder.device
        self.replays = encoder.replays
        self.proven: Any = None
        if encoder.ragged:
            raise UsageError(
                f"{encoder.spec.name} gives several vectors per content already; leave out "
                "--several and --long-texts"
            )

    @property
    def batch_size(self) -> int | None:
        """Parts per forward pass."""
        return self.encoder.batch_size

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:
        self.encoder.batch_size = value

    def fit(self, contents: Iterable[Path | str]) -> None:
        """Learn from whole contents, not from parts."""
        self.encoder.fit(contents)
        self.spec = self.encoder.spec

    def loader(self) -> Any:
        """The same around the encoder's own loader."""
        inner = getattr(self.encoder, "loader", lambda: self.encoder)()
        if inner is self.encoder:
            return self
        light = copy.copy(self)
        light.encoder = inner
        return light

    def load(self, content: Any) -> Parts:
        """Return the loaded parts, in order, without absent files as long as one is there.

        Raises:
            ContentError: A part is corrupt, or the text is too long and that is an error.
            FileNotFoundError: No file is there.
        """
        parts = Parts()
        contents = content if isinstance(content, tuple) else (content,)
        absent: FileNotFoundError | None = None
        for number, one in enumerate(contents, 1):
            try:
                if isinstance(one, ContentError):
                    raise one
                if isinstance(one, Absent):
                    raise FileNotFoundError(one.name)
                self._load_into(parts, one)
            except FileNotFoundError as error:
                absent = error
            except ContentError as error:
                if len(contents) == 1:
                    raise
                raise ContentError(f"part {number} of {len(contents)}: {error}") from error
        if not parts and absent is not None:
            raise absent
        return parts

    def load_many(self, contents: Sequence[Any]) -> list[Any]:
        """Load each; the encoder is given all whole texts in one call."""
        if not all(isinstance(content, str) for content in contents):
            return [loaded_or_error(self.load, content) for content in contents]
        return [
            loaded_or_error(partial(self._parts_of, whole), content)
            for whole, content in zip(self.encoder.load_many(contents), contents, strict=True)
        ]

    def _parts_of(self, whole: Any, content: Any) -> Parts:
        """The parts of a text that was loaded as a whole."""
        if isinstance(whole, ContentError):
            raise whole
        parts = Parts()
        self._take(parts, content, whole)
        return parts

    def _load_into(self, parts: Parts, content: Path | str) -> None:
        self._take(parts, content, self.encoder.load(content))

    def _take(self, parts: Parts, content: Path | str, loaded: Any) -> None:
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
        if halves is None:  # a single letter that is too long
            parts.append(loaded)
            return
        for half in halves:
            self._load_into(parts, half)

    def encode(self, batch: Sequence[Parts]) -> Any:
        """Return the vectors of items, shape (len(batch), dim), or ragged, as `Encoder.encode`."""
        flat = [part for parts in batch for part in parts]
        # Parts of similar size share a pass, whichever items they belong to.
        order = np.argsort([self.encoder.sort_key(part) for part in flat], kind="stable")
        vectors = np.empty((len(flat), self.spec.dim), dtype=np.float32)
        size = self.batch_size or max(1, len(flat))
        for start in range(0, len(flat), size):
            chosen = order[start : start + size]
            vectors[chosen] = self.encoder.encode([flat[k] for k in chosen.tolist()])
        pieces = np.split(vectors, np.cumsum([len(parts) for parts in batch])[:-1])
        if self.ragged:
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
    """Return the mean of vectors, shape (k, dim) → (dim,), float32; a single one as it is.

    `unit` scales the mean to length 1, unless it is zero.
    """
    if len(vectors) == 1:
        return np.asarray(vectors[0])
    mean: NDArray[np.float64] = vectors.mean(axis=0, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    return (mean / norm if unit and norm > 0 else mean).astype(np.float32)


def in_halves(text: str) -> tuple[str, str] | None:
    """Return a text cut at the blank nearest to its middle; None for a single letter.

    Where there is no blank, it is cut within a word.
    """
    middle = len(text) // 2
    before, after = text.rfind(" ", 1, middle + 1), text.find(" ", middle, len(text) - 1)
    places = [place for place in (before, after) if place > 0]
    cut = min(places, key=lambda place: abs(place - middle)) if places else middle
    halves = text[:cut].strip(), text[cut:].strip()
    return halves if all(halves) else None


# ------------------------------------------------------------------------------------------------
# files


@dataclass(frozen=True, kw_only=True)
class SeveralFiles(FileContents):
    """Several files per item, in a tuple: see `several_files`.

    Attributes:
        separator: Between two paths of a cell; None: a cell is one path.
        folders: Ids of the items that have a folder of their own.
        suffixes: Of the files in these folders.
        ids: The items' ids, an Arrow string array.
    """

    separator: str | None
    folders: frozenset[str]
    suffixes: tuple[str, ...]
    ids: Any

    _BY_ITEM: ClassVar[tuple[str, ...]] = (*FileContents._BY_ITEM, "ids")

    def _by_id(self, pick: Callable[[Column], Column]) -> list[Content]:
        alone, ids = super()._by_id(pick), pick(self.ids).to_pylist()
        return [self._of_names(item, one) for item, one in zip(ids, alone, strict=True)]

    def _of_cell(self, cell: bytes) -> Content:
        names = names_in(cell, self.separator)
        if isinstance(names, ContentError):
            return names
        return tuple(map(self.place.file, names)) or None

    def _of_names(self, item: str, content: Content) -> Content:
        inside: list[str] = []
        if item in self.folders:
            folder = self.place.root / self.place.folder / item
            names = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
            inside = [name for name in names if name.lower().endswith(self.suffixes)]
        files = (self.place.file(f"{self.place.folder}/{item}/{name}") for name in inside)
        return _usable([content, *files])


def _usable(contents: Iterable[Content]) -> Content:
    return tuple(one for one in contents if isinstance(one, Path | ContentError)) or None


def several_files(
    items: Items,
    modality: str,
    column: str | None,
    separator: str | None,
    *,
    anywhere: bool = False,
) -> SeveralFiles:
    """Find all files of each item, `visual` or `audio`.

    These are the paths of its cell in the column, a list or cut at the separator; where the
    cell is empty `<folder>/<item_id>.<extension>` and every file in the folder
    `<folder>/<item_id>/`, in the order of their names. A column of None is looked for by the usual
    names; `anywhere` lets paths and links lead out of the dataset folder.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = file_contents(items, modality, column, several=True, anywhere=anywhere)
    above = items.root / FOLDERS[modality]
    folders: list[str] = []
    if above.is_dir():
        with os.scandir(above) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    names = pa.array(map(os.fsencode, folders), pa.binary())
    known = items.ids.filter(pc.is_in(items.ids.cast(pa.binary()), value_set=names))
    with_folder = frozenset(known.to_pylist())
    note = f"{len(with_folder):,} items have a folder of {modality} files"
    fields = {**vars(files), "notes": (*files.notes, note) if with_folder else files.notes}
    return SeveralFiles(
        **fields,
        separator=separator,
        folders=with_folder,
        suffixes=FILE_SUFFIXES[modality],
        ids=items.ids,
    )
