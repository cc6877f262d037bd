"""Known layouts that are not read: their names, and what to do instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_TABLE = "write its interactions as a table and use `mmbench data import FILE`"
_PICKLE = f"reading pickles and .pt files can run code; {_TABLE}, and the vectors as .npy"

UNREAD: Sequence[tuple[tuple[str, ...], str, str]] = (
    (("train.npy", "feat_v.pt", "v_feat.npy"), "MMGCN's (train.npy, feat_v.pt)", _PICKLE),
    (("*core/train.json", "train.json"), "LATTICE's or MMSSL's (5-core/train.json)", _TABLE),
    (("*.train.rating",), "NCF's (NAME.train.rating, NAME.test.negative)", _TABLE),
    (("behaviors.tsv", "news.tsv"), "MIND's (behaviors.tsv, news.tsv)",
     "write a row per click, user and news id, and use `mmbench data import FILE`"),
    (("reviews_*.json.gz",), "Amazon's of 2014 (reviews_NAME.json.gz)",
     "`mmx fetch` downloads and converts such data"),
    (("image_features_*.b",), "Amazon's of 2014 (image_features_NAME.b)",
     "`mmx fetch` downloads and converts such data"),
    (("*.tfrecord*",), "TensorFlow's records", _TABLE),
    (("*.tar",), "WebDataset's (NAME.tar)", "unpack it, and give the table of its items"),
    (("*.mat",), "Matlab's (NAME.mat)", _TABLE),
    (("*.lmdb", "data.mdb"), "an LMDB", _TABLE),
    (("train_mat*", "trnMat.pkl"), "MMSSL's or SGL's (train_mat, trnMat.pkl)", _PICKLE),
    (("*.pkl", "*.pickle"), "pickles", _PICKLE),
    (("*.pt", "*.pth"), "PyTorch's files", _PICKLE),
    (("*.xlsx", "*.xls"), "a spreadsheet", "save it as CSV and use `mmbench data import FILE`"),
    (("*.csv", "*.tsv", "*.parquet", "*.jsonl", "*.dat"), "a folder of tables",
     "give the files themselves: `mmbench data import FOLDER/FILE …`"),
)  # fmt: skip
"""Patterns of files, the layout, and the advice; the first entry with a matching file counts."""


def named(folder: Path) -> str | None:
    """Return the layout that a folder seems to have, with advice; None if it is unknown."""
    for patterns, name, advice in UNREAD:
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return f"the files look like {name}, a layout that is not read; {advice}"
    return None
