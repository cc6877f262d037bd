"""What checks look at: a dataset folder's tables, pictures and feature sets, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbase.checks.kit import Found

Strings = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Coded:
    """A column of ids: which distinct id each row has.

    Attributes:
        names: The distinct ids, in order of first occurrence, shape (k,), object.
        codes: Row of `names` for each row of the table, shape (n,), int32.
    """

    names: Strings
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, column: Any) -> Coded:
        """Code a column of an Arrow table (`mmbase.tables.Column`)."""
        encoded = column.combine_chunks().dictionary_encode()
        texts = [cell.decode("utf-8", "replace") for cell in encoded.dictionary.to_pylist()]
        return cls(np.array(texts, object), np.asarray(encoded.indices, np.int32))

    def counts(self) -> NDArray[np.int64]:
        """Return how many rows each distinct id has, shape (k,)."""
        return np.bincount(self.codes, minlength=self.names.size)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The table of items.

    Attributes:
        where: The file's name.
        columns: Its first line.
        column: The column of ids.
        ids: As written.
        texts: The columns of texts, by name: a text per row.
        pictures: The column of paths to pictures, a text per row; empty without one.
        naming: Another column, which names most of the pictures there are; empty without one.
    """

    where: str
    columns: tuple[str, ...]
    column: str
    ids: Coded
    texts: dict[str, Strings] = field(default_factory=dict)
    pictures: Strings = field(default_factory=lambda: np.empty(0, object))
    naming: str = ""


@dataclass(frozen=True, eq=False)
class Vectors:
    """One feature set of items, from one pass over it.

    Attributes:
        where: `MODALITY/NAME`.
        ids: Of all rows, in file order, shape (n,), object.
        ok: Which rows have a vector, shape (n,).
        errors: Why rows are corrupt, by row.
        zeros: Rows with a vector of zeros.
        repeated: How many rows have the most frequent vector, and one of them.
        distinct: Number of distinct vectors.
        sketch: The vectors, centred, projected to few dimensions and of length 1 (0 where there is
            none), shape (n, SKETCH), float32; at most `MOST` rows, from the top.
    """

    where: str
    ids: Strings
    ok: NDArray[np.bool_]
    errors: Sequence[tuple[int, str]]
    zeros: NDArray[np.int64]
    repeated: tuple[int, int]
    distinct: int
    sketch: NDArray[np.float32]

    @property
    def is_textual(self) -> bool:
        """Whether its vectors are of texts."""
        return self.where.startswith("textual/")


@dataclass(eq=False)
class Dataset:
    """A dataset folder as far as it could be read.

    Attributes:
        folder: The folder.
        troubles: What could not be read, by the kind of trouble: `unreadable`, `damaged`, or the
            name of the check that tells of it.
        catalogue: Its table of items; None without one.
        vectors: Names of files of arrays in the folder itself.
        files: Names of the pictures in its folder, without the folder.
        encodings: For each text table (lines of UTF-8 with other letters than ASCII, lines that
            are no UTF-8, number of the first such line, byte order marks past the start).
        sets: Its feature sets of items.
        related: Pairs of item ids that belong together, by what says so (texts, users).
        known: Ids of all items that are known from items.* or, without it, from interactions.
    """

    folder: Path
    troubles: dict[str, list[Found]] = field(default_factory=dict)
    catalogue: Catalogue | None = None
    vectors: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    encodings: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    sets: list[Vectors] = field(default_factory=list)
    related: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def trouble(self, kind: str) -> list[Found]:
        """Return the list of one kind of trouble, to read or to add to."""
        return self.troubles.setdefault(kind, [])
