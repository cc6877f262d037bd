"""The dataset folder's conventions: names of columns, tables and files, and what an id is."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from mmbase.errors import DataError, UsageError
from mmbase.layout import counted
from mmbase.tables import SUFFIXES, TAB_SUFFIXES, Column, Table, open_table

# --- tables and their columns

# What a column of interactions can mean, in the order of a table without a header.
ROLES = ("user_id", "item_id", "rating", "timestamp")

NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "uid", "reviewerid", "user_id:token"),
    "item_id": (
        "item_id", "item", "itemid", "iid", "asin", "parent_asin", "movieid", "item_id:token",
    ),
    "rating": ("rating", "overall", "score", "stars", "rating:float"),
    "timestamp": (
        "timestamp", "time", "unixreviewtime", "date", "timestamp:float", "position",
        "position:float",
    ),
}  # fmt: skip
"""Column names of interactions that are understood, lower case, for each role."""

POSITIONS = frozenset({"position", "position:float"})
"""Those names that mean the place in a user's sequence: an order like that of times, and no time.
"""

# Columns of ids in a table of items, the most certain first.
ITEM_ID_COLUMNS = ("item_id", "itemID", "itemId", "asin", "parent_asin", "id")


def find_table(folder: Path, stems: Sequence[str]) -> Path | None:
    """Return the file in `folder` whose name is a stem with a known suffix; None if there is none.

    Raises:
        DataError: Several files fit.
    """
    names = (name + suffix for name in stems for suffix in (*SUFFIXES, *TAB_SUFFIXES))
    found = [folder / name for name in names if is_table_file(folder / name)]
    if len(found) > 1:
        raise DataError(f"{folder}: both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def is_table_file(path: Path) -> bool:
    """Whether it is a table by its name: a file, or the folder of Parquet files of Spark."""
    folder = path.suffix == ".parquet" and path.is_dir()
    return path.name.lower().endswith((*SUFFIXES, *TAB_SUFFIXES)) and (path.is_file() or folder)


def columns_of(role: str, columns: Iterable[str]) -> list[str]:
    """Return the columns whose names mean that role, in the order of the table.

    `parent_asin` comes before `asin`: it is what Amazon's items of 2023 are called by. A position
    comes after times.
    """
    found = [name for name in columns if name.strip().casefold() in NAMES[role]]
    found.sort(key=is_position)
    return sorted(found, key=_is_variant) if "parent_asin" in found else found


def _is_variant(name: str) -> bool:
    return name.strip().casefold() == "asin"


def is_position(name: str) -> bool:
    """Whether a column's name means the place in a user's sequence."""
    return name.strip().casefold() in POSITIONS


_LIKELY = {
    "user_id": ("user", "customer", "member", "reviewer", "visitor", "buyer", "client", "account",
                "person", "session"),
    "item_id": ("item", "product", "article", "sku", "movie", "book", "track", "song", "video",
                "business", "news", "goods", "content"),
}  # fmt: skip


_NUMBERS = ("id", "nr", "no", "code", "sku")
"""What names of columns of ids end in."""


def plausible_column(role: str, columns: Sequence[str]) -> str:
    """Return the column that is most likely meant by `user_id` or `item_id`, as an example.

    The names that hold a word for it come first, of these those that end as names of ids do; then
    any other that does; `NAME` if there is none.
    """
    others = [word for other, words in _LIKELY.items() if other != role for word in words]

    def rank(name: str) -> tuple[bool, bool]:
        folded = name.casefold()
        return (not any(word in folded for word in _LIKELY[role]), not folded.endswith(_NUMBERS))

    free = [name for name in columns if not any(word in name.casefold() for word in others)]
    best = min(free, key=rank, default="NAME")
    return "NAME" if all(rank(best)) else best


def open_interactions(path: Path, given: Collection[str] = ()) -> Table:
    """Open a table of interactions, with a header or without.

    The first line is a header if it holds two known names or one of the `given` ones, or if its
    third cell, the place of a rating, is no number; of two words that don't recur, if one is a
    known name. Tab-separated lines are split at tabs alone.
    Where it is no header, `given` may hold places, from "1".

    Raises:
        UsageError: Two words that don't recur may be names or ids.
    """
    table = open_table(path, literal=True)
    if table.kind != "text":
        return table
    first = table.columns
    known = sum(len(columns_of(role, first)) for role in ROLES)
    if known >= 2 or any(name in given and not name.isdigit() for name in first):
        return table
    places = bool(given) and all(name.isdigit() for name in given)
    if len(first) >= 3 and not _is_number(first[2]) and not places:
        return table
    rows = table.headerless([*ROLES, *map(str, range(len(first)))][: len(first)])
    if given or len(first) != 2 or not _may_be_names(rows, first):
        return rows
    if known:
        return table
    raise UsageError(
        f"{path}: is the first line, {' and '.join(map(repr, first))}, a header or a row? If a "
        f"header, name its columns: mmbench --columns user_id={first[0]} --columns "
        f"item_id={first[1]}; if a row, put a header above it: user_id, item_id"
    )


def _may_be_names(rows: Table, first: Sequence[str]) -> bool:
    """Whether the first row of two columns may hold their names: no digits, and never again."""
    import pyarrow.compute as pc

    if any(character.isdigit() for cell in first for character in cell):
        return False
    columns = rows.read(ROLES[:2]).values()
    return all(
        len(column) > 1 and pc.sum(pc.equal(column, column[0])).as_py() == 1 for column in columns
    )


def refuse_repeated_header(table: Table, columns: Mapping[str, Column]) -> None:
    """Refuse a text table that has its header again among its rows, as joined files do.

    Args:
        table: The table.
        columns: Cells of the columns of ids, by name.

    Raises:
        DataError: A row has the names of these columns for ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.kind != "text" or not table.header:
        return
    same = [pc.equal(cells, pa.scalar(name.encode())) for name, cells in columns.items()]
    row = pc.index(pc.and_(same[0], same[1]), True).as_py()
    if row >= 0:
        what = f"the header, {', '.join(columns)}, once more"
        raise DataError(
            f"{table.where(row)}: {what}; remove the line, or read the files one by one"
        )


def shared_id(table: Table, users: Column, items: Column) -> str | None:
    """Return an id that both columns of a table without a header hold; None if there is none.

    Users before items is a habit and no rule, and with such an id the table looks as good when it
    is read the wrong way round.
    """
    import pyarrow.compute as pc

    if table.header:
        return None
    users = users.unique()
    both = pc.index(pc.is_in(users, value_set=items.unique()), True).as_py()
    return None if both < 0 else users[both].as_py().decode("utf-8", "replace")


def require_one_reading(table: Table, users: Column, items: Column) -> None:
    """Ask which column is which where a table has no header and its ids don't tell.

    Raises:
        UsageError: There is no header, and an id is in both columns.
    """
    both = shared_id(table, users, items)
    if both is not None:
        raise UsageError(
            f"{table.path}: no header, and columns 1 and 2 both hold the id {both!r}: which are "
            "the users? Give it a header line (user_id, item_id), or say it: mmbench --columns "
            "user_id=1,item_id=2, or user_id=2,item_id=1"
        )


def item_id_column(table: Table, notes: list[str] | None = None) -> str:
    """Return the column of item ids of a table of items; a guess is added to `notes`.

    The usual names come first, then a name that ends in `id` or `asin`, then what interactions
    call an item. A column of users is never taken.

    Raises:
        DataError: There is none, or two of that name.
    """
    usual = next((name for name in ITEM_ID_COLUMNS if name in table.columns), None)
    if usual is not None:
        return table.require(usual)
    users = columns_of("user_id", table.columns)
    others = [name for name in table.columns if name not in users]
    guesses = [name for name in others if name.strip().casefold().endswith(("id", "asin"))]
    guesses += columns_of("item_id", others)
    if not guesses:
        got = f"expected {ITEM_ID_COLUMNS[0]}; got {', '.join(table.columns)}"
        likely = plausible_column("item_id", others)
        cure = (
            f"rename it, or name it: mmx --id-column {likely}, mmbench --columns item_id={likely}"
        )
        raise DataError(f"{table.path}: no column of item ids ({got}); {cure}")
    guess = table.require(guesses[0])
    if notes is not None:
        notes.append(f"item ids: column {guess!r} of {table.path.name} (--id-column overrides)")
    return guess


LONGEST_ID = 1000
"""Bytes of the longest id. What is longer is a text in the wrong column."""


def checked_ids(
    table: Table,
    column: str,
    cells: Column,
    notes: list[str] | None = None,
    longest: int | None = LONGEST_ID,
) -> Column:
    """Return the cells of a column of ids as an Arrow string array, none of them empty.

    Blanks around an id are part of it; `notes` gets their count.

    Raises:
        DataError: There are no rows, or an id is empty, not UTF-8, holds a NUL character, or has
            more than `longest` bytes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(cells) == 0:
        raise DataError(f"{table.path}: no items (the table has a header and no rows)")
    try:
        ids = cells.cast(pa.string())
    except pa.ArrowInvalid as error:
        row, cell = next(one for one in enumerate(cells.to_pylist()) if not _is_utf8(one[1]))
        raise DataError(f"{table.where(row)}: {column} {cell!r} is not valid UTF-8") from error
    stripped = pc.binary_length(pc.utf8_trim_whitespace(ids))
    sizes = pc.binary_length(ids)
    empty = pc.equal(stripped, 0)
    if (first := pc.index(empty, True).as_py()) >= 0:
        what = f"empty {column} ({counted(pc.sum(empty).as_py(), 'such row')})"
        raise DataError(f"{table.where(first)}: {what}; every row needs an id")
    if longest is not None and (most := pc.max(sizes).as_py()) > longest:
        row = pc.index(sizes, most).as_py()
        what = f"{column} {ids[row].as_py()[:20]!r}… has {most:,} bytes"
        cure = f"an id has at most {longest:,}; is this the right column?"
        raise DataError(f"{table.where(row)}: {what}; {cure}")
    nul = pc.index(pc.match_substring(ids, "\0"), True).as_py()
    if nul >= 0:
        raise DataError(f"{table.where(nul)}: {column} {ids[nul].as_py()!r} holds a NUL character")
    blanks = pc.sum(pc.not_equal(stripped, sizes)).as_py()
    if blanks and notes is not None:
        what = counted(
            blanks, f"value of {column} begins or ends", f"values of {column} begin or end"
        )
        notes.append(f"{table.path.name}: {what} with a blank, which is part of the id")
    return ids


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- content files

TEXT_COLUMNS = (
    "title", "name", "brand", "author", "authors", "artist", "artists", "category", "categories",
    "genre", "genres", "description", "abstract", "features", "text",
)  # fmt: skip
"""Names of columns of texts about items, lower case, in the order in which they are joined."""

FOLDERS = {"visual": "images", "audio": "audio"}
PATH_COLUMNS = {
    "visual": ("image", "image_path", "image_file", "img", "img_path", "picture", "photo"),
    "audio": ("audio", "audio_path", "audio_file", "sound"),
}
"""Names of columns of paths to an item's content."""
FILE_SUFFIXES = {
    "visual": (
        ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe", ".avif",
        ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc", ".ico", ".ppm", ".pgm", ".pbm", ".pnm",
        ".pfm", ".dib", ".apng", ".avifs", ".heic", ".heif", ".hif", ".jxl", ".svg",
    ),
    "audio": (
        ".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".oga", ".aifc", ".mp2",
        ".w64", ".caf", ".rf64", ".bwf", ".wave", ".snd", ".mpga", ".m4a", ".aac", ".mp4", ".m4b",
        ".webm", ".weba", ".mka", ".wv", ".ape", ".wma", ".amr", ".ac3", ".tta", ".dsf",
    ),
}  # fmt: skip
"""The extensions of files that bear an item's id, in upper or lower case, the preferred first.

mmx reads the formats of all of them (docs/statuses.md), those of the second half with the extra
`formats`; of SVG, a drawing, it says what it is.
"""


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies in `root`."""
    folder = os.path.join(os.path.realpath(root), "")  # noqa: PTH118
    return os.path.realpath(path).startswith(folder)


def content_files(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the names of files with one of `suffixes`, and those of them that are links.

    Hidden files are left out. The names are sorted by stem, then by the place of their suffix in
    `suffixes`.
    """
    names, links = [], set()
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.lower().endswith(tuple(suffixes)) or is_hidden(entry.name):
                    continue
                if _is_file(entry):
                    names.append(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
    rank = {suffix: place for place, suffix in enumerate(suffixes)}
    names.sort(key=lambda name: (stem(name), rank[name[len(stem(name)) :].lower()], name))
    return names, links


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's and not the user's.

    Names with a dot in front (`._a.jpg` beside `a.jpg`, `.Trashes`), what archives of macOS and
    photo servers add, and the bin of Windows.
    """
    return name.startswith((".", "$")) or name in ("__MACOSX", "@eaDir")


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False


def stem(name: str) -> str:
    """The name without its last extension: `a.v1.jpg` is the file of item `a.v1`."""
    return name[: name.rindex(".")]
