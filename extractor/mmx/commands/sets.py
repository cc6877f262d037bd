"""Feature sets as a command line names them: a path, or MODALITY/NAME in a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmbase.cli import PATH
from mmx.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmstore import FeatureSet, FeatureStore

DEFAULT_STORE = Path("data/demo/features")

store_option = click.option(
    "--store",
    "--data",
    "root",
    metavar="DIR",
    type=PATH,
    default=DEFAULT_STORE,
    help="Store of the sets given as MODALITY/NAME, or the dataset folder around it.",
)


@contextmanager
def opened(path: Path) -> Iterator[FeatureSet]:
    """Open a feature set and check its header."""
    from mmstore import FeatureSet

    with FeatureSet(path) as features:
        _ = features.header
        yield features


def store_at(root: Path) -> FeatureStore:
    """Return the store at `root`, or inside it when `root` is a dataset folder."""
    from mmstore import FeatureStore

    if not root.is_dir():
        raise DataError(
            f"{root}: no such store; mmx extract or mmx store import make one, or name another "
            "folder"
        )
    return FeatureStore(root / "features" if (root / "features").is_dir() else root)


def find_set(target: str, root: Path) -> Path:
    """Return the file of `target`: a path, or MODALITY/NAME in the store `root`."""
    if Path(target).exists():
        return Path(target)
    names = target.removesuffix(".h5").split("/")
    if len(names) != 2 or not root.is_dir():
        raise DataError(
            f"{target}: no such file; give a path, or MODALITY/NAME together with --data DIR"
        )
    return store_at(root).open(*names).path


def check_names(modality: str, name: str) -> None:
    """Refuse a bad name of a new set before anything is read."""
    from mmstore import InvalidInput
    from mmstore.schema import check_modality, check_name

    try:
        check_modality(modality)
        check_name(name)
    except InvalidInput as error:
        raise UsageError(f"--{error}") from error
