"""Tiny feature sets, hypothesis strategies and a listing of a file, for tests and documentation.

```
python -m mmstore.testing list FILE.h5       an h5dump-like listing of a file
python -m mmstore.testing fixtures FOLDER    the small files that tests/data/mmstore-1.0 holds
```
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmstore.ids import Pairs
from mmstore.spec import DENSE, DTYPES, INTERACTION, ITEM, LAYOUTS, RAGGED, SOURCES, Status
from mmstore.store import FeatureStore
from mmstore.writer import FeatureSetWriter

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_ODD = "097293751X|007|7| 7|7 |a/b|../x|日本|👩‍👧|é|e\u0301|a b|\t|None|nan"
# Ids that a careless program confuses, strips or takes for a path.
ODD_IDS = tuple(_ODD.split("|"))


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a set, in memory.

    Attributes:
        ids: One column of ids, or two for interactions.
        vectors: For each row an array of shape (k, dim), with k = 1 for dense sets, or None where
            it has none.
        errors: Why rows are corrupt; the other rows without vectors are missing.
    """

    source: str
    layout: str
    dtype: str
    dim: int
    ids: tuple[tuple[str, ...], ...]
    vectors: tuple[NDArray[Any] | None, ...]
    errors: dict[int, str]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def keys(self) -> list[Any]:
        """Ids as `FeatureSet.matrix` takes them: text, or (user, item) pairs."""
        return list(self.ids[0]) if self.source == ITEM else list(zip(*self.ids, strict=True))

    @property
    def status(self) -> NDArray[np.uint8]:
        """The status that each row ends with, shape (n,)."""
        present = np.array([vectors is not None for vectors in self.vectors], bool)
        absent = [Status.CORRUPT if i in self.errors else Status.MISSING for i in range(len(self))]
        return np.where(present, Status.OK, np.array(absent, np.uint8)).astype(np.uint8)

    def writer(self, path: Path, **options: Any) -> FeatureSetWriter:
        """Return a writer for this content; `options` go to `FeatureSetWriter`."""
        columns = [list(column) for column in self.ids]
        arguments: dict[str, Any] = {
            "modality": "visual",
            "dim": self.dim,
            "ids": columns[0] if self.source == ITEM else Pairs(*columns),
            "layout": self.layout,
            "dtype": self.dtype,
            "provenance": {"encoder": "test"},
        }
        return FeatureSetWriter(path, **(arguments | options))

    def put(self, writer: FeatureSetWriter, rows: Sequence[int]) -> None:
        """Write some pending rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        status = self.status[chosen]
        present = chosen[status == Status.OK]
        vectors = [v for row in present.tolist() if (v := self.vectors[row]) is not None]
        if self.layout == DENSE:
            writer.write(present, np.concatenate([np.empty((0, self.dim), self.dtype), *vectors]))
        else:
            writer.write_ragged(present, vectors)
        writer.mark_missing(chosen[status == Status.MISSING])
        corrupt = chosen[status == Status.CORRUPT]
        writer.mark_corrupt(corrupt, [self.errors[row] for row in corrupt.tolist()])

    def save(self, path: Path, **options: Any) -> str:
        """Write the whole set in one go and return its content digest."""
        with self.writer(path, **options) as writer:
            self.put(writer, writer.pending.tolist())
            return writer.finish()


def random_content(
    seed: int,
    ids: Sequence[str] | Sequence[tuple[str, str]],
    *,
    layout: str = DENSE,
    dtype: str = "float32",
    dim: int = 3,
    absent: float = 0.3,
) -> Content:
    """Content for item ids or (user, item) pairs, fully determined by the seed.

    Among the values are zeros, -0.0, subnormals and the largest numbers of the dtype; ragged rows
    have 1 to 4 vectors. A share `absent` of rows has none: half are missing, half corrupt.
    """
    rng = np.random.default_rng(seed)
    limits = np.finfo(dtype)
    special = np.array([0.0, -0.0, limits.max, limits.min, limits.smallest_subnormal], dtype)
    vectors: list[NDArray[Any] | None] = []
    errors = {}
    for row in range(len(ids)):
        k = int(rng.integers(1, 5)) if layout == RAGGED else 1
        matrix = rng.normal(size=(k, dim)).astype(dtype)
        odd = rng.random((k, dim)) < 0.1
        matrix[odd] = rng.choice(special, int(odd.sum()))
        gone = float(rng.random())
        vectors.append(None if gone < absent else matrix)
        if gone < absent / 2:
            errors[row] = f"cannot decode picture {row}: números ≠ 日本"
    pairs = [key for key in ids if isinstance(key, tuple)]
    source = INTERACTION if pairs else ITEM
    columns = tuple(zip(*pairs, strict=True)) if pairs else (tuple(map(str, ids)),)
    return Content(source, layout, dtype, dim, columns, tuple(vectors), errors)


def tiny_store(root: Path) -> FeatureStore:
    """A store of four small sets: dense items, float16 items, ragged items, dense interactions."""
    items = list(ODD_IDS)
    pairs = [(f"u{i % 3}", item) for i, item in enumerate(items)]
    store = FeatureStore(root)
    for modality, name, ids, layout, dtype in (
        ("visual", "dense-f4", items, DENSE, "float32"),
        ("audio", "dense-f2", items, DENSE, "float16"),
        ("visual", "ragged-f2", items, RAGGED, "float16"),
        ("textual", "reviews-f4", pairs, DENSE, "float32"),
    ):
        content = random_content(7, ids, layout=layout, dtype=dtype)
        content.save(store.path(modality, name), modality=modality, provenance=_FIXTURE_PROVENANCE)
    return store


_FIXTURE_PROVENANCE = {
    "created": "2026-01-01T00:00:00Z",
    "encoder": "random",
    "output_layer": "avgpool",
    "pooling": "mean",
    "seed": 7,
    "versions": {"numpy": "2.0.0"},
}


# ------------------------------------------------------------------------------------------------
# strategies


def ids(*, max_size: int = 12) -> SearchStrategy[list[str]]:
    """Hypothesis strategy: lists of unique ids, odd ones among them."""
    from hypothesis import strategies as st

    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.lists(
        st.sampled_from(ODD_IDS) | st.text(letters, min_size=1, max_size=9),
        max_size=max_size,
        unique=True,
    )


def contents() -> SearchStrategy[Content]:
    """Hypothesis strategy: contents of every source, layout and dtype."""
    from hypothesis import strategies as st

    @st.composite
    def draw_content(draw: Any) -> Content:
        source = draw(st.sampled_from(SOURCES))
        keys: list[Any] = draw(ids())
        if source == INTERACTION:
            users = draw(ids(max_size=3).filter(bool))
            keys = [(users[i % len(users)], key) for i, key in enumerate(keys)]
        return random_content(
            draw(st.integers(0, 2**32 - 1)),
            keys,
            layout=draw(st.sampled_from(LAYOUTS)),
            dtype=draw(st.sampled_from(DTYPES)),
            dim=draw(st.integers(1, 5)),
            absent=draw(st.sampled_from((0.0, 0.4, 1.0))),
        )

    return draw_content()


# ------------------------------------------------------------------------------------------------
# listing


def listing(path: Path) -> str:
    """Return an HDF5 file as text: attributes, and datasets with types, storage and data."""
    from mmstore import hdf5

    with hdf5.open_file(path) as file:
        return "\n".join(_list_group(file, "/", "")) + "\n"


def _list_group(group: Any, name: str, indent: str) -> Iterator[str]:
    import h5py

    yield f'{indent}GROUP "{name}" {{'
    for key, value in group.attrs.items():
        shown = value.decode("utf-8") if isinstance(value, bytes) else bool(value)
        yield f'{indent}   ATTRIBUTE "{key}" {_type_name(group.attrs.get_id(key).dtype)} {shown!r}'
    for key, node in group.items():
        if isinstance(node, h5py.Group):
            yield from _list_group(node, key, indent + "   ")
            continue
        storage = "CONTIGUOUS" if node.chunks is None else f"CHUNKED {node.chunks}"
        yield f'{indent}   DATASET "{key}" {_type_name(node.dtype)} {node.shape} {storage} {{'
        rows = np.asarray(node[:])
        if rows.ndim == 1 and rows.dtype.kind != "S":
            yield f"{indent}      {', '.join(map(str, rows.tolist()))}"
        else:
            for row in rows:
                shown = repr(row.decode("utf-8")) if isinstance(row, bytes) else row
                yield f"{indent}      {shown}"
        yield f"{indent}   }}"
    yield f"{indent}}}"


def _type_name(dtype: np.dtype[Any]) -> str:
    import h5py

    text = h5py.check_string_dtype(dtype)
    if text is None:
        return "BOOLEAN (ENUM int8 FALSE=0 TRUE=1)" if dtype.kind == "b" else str(dtype.str)
    size = "variable" if text.length is None else f"{text.length} bytes, null-padded"
    return f"STRING {text.encoding} {size}"


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "list":
        sys.stdout.write(listing(Path(arguments[1])))
        return 0
    if len(arguments) == 2 and arguments[0] == "fixtures":
        for modality, name in tiny_store(Path(arguments[1])).sets():
            sys.stdout.write(f"{modality}/{name}.h5\n")
        return 0
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
