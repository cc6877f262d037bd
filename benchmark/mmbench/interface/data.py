"""Read a dataset folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmbench.data.dataset import load_split
from mmbench.interface.choices import Place, require_mappings
from mmbench.interface.results import Dataset


def load_dataset(
    data: Place, split: str | None = None, columns: Mapping[str, str] | None = None
) -> Dataset:
    """Read a dataset folder and one of its splits, as `mmbench train` does.

    Args:
        data: The dataset folder.
        split: Name of a folder under `splits/`, `random[:TEST,VALID[,SEED]]` or `leave-one-out`;
            None: the one taken before, else the only one, else `random:0.2,0.2,42`.
        columns: Column that is `user_id`, `item_id`, `rating`, `timestamp`, where the names are not
            understood.

    Raises:
        DataError: The folder lacks what is needed, or a part is empty.
        UsageError: There is no split of that name.
    """
    require_mappings('{"user_id": "reviewer"}', columns=columns)
    path = Path(data)
    return Dataset(path, load_split(path, split, columns), dict(columns or {}))
