"""What the workers of a Ray cluster do for `runs.on_ray`: look around, and train.

Nothing heavy is imported before the process is set up for it.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mmbase.errors import install_extra
from mmbase.process import tune_process
from mmbench.errors import DataError, TrainingError

OURS = "mmbench"
"""Stands for this program among the packages."""

_WAIT_S = 60.0  # for a worker that was lost to the cluster and may still be writing


class Order(NamedTuple):
    """A training that a worker is to do.

    Attributes:
        work: Function and job, pickled: what they need is imported late.
        run: The run's folder.
        folder: Where the training is kept, in it.
        token: Name of a file in the run's folder, which all machines see.
        threads: For torch.
        on_gpu: Whether a GPU, or a part of one, is reserved.
        versions: Package to its version, as on the machine that gives the order.
    """

    work: bytes
    run: Path
    folder: Path
    token: str
    threads: int
    on_gpu: bool
    versions: Mapping[str, str | None]


def versions(packages: Mapping[str, object] | tuple[str, ...]) -> dict[str, str | None]:
    """Return the version of each package here; None for one that is not installed."""
    from mmbench import __version__

    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = __version__ if name == OURS else metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def refuse_unlike(
    where: str, wanted: Mapping[str, str | None], found: Mapping[str, str | None]
) -> None:
    """Refuse a machine whose packages are not those of the command.

    Raises:
        TrainingError: One is absent there, or of another version.
    """
    for name, version in wanted.items():
        here = found.get(name)
        if here == version:
            continue
        if here is None:
            extra = _EXTRAS.get(name)
            how = f"; run there: {install_extra(extra)}" if extra else ""
            raise TrainingError(f"the Ray worker on {where} lacks {name} {version}{how or _SAME}")
        raise TrainingError(
            f"the Ray worker on {where} has {name} {here}, and this machine {version}{_SAME}"
        )


_EXTRAS = {"optuna": "tune", "torch-sparse": "sparse"}
_SAME = "; install the same on all machines (constraints.txt)"


def train_there(order: Order) -> None:
    """Do a training; it is in its folder then.

    Raises:
        DataError: The run's folder is not the one of the command.
        TrainingError: The packages are not those of the command, or what `runs.batch.train` raises.
    """
    tune_process()
    where = socket.gethostname()
    refuse_unlike(where, order.versions, versions(order.versions))
    refuse_unseen(where, order.run, seen=(order.run / order.token).is_file())
    if not order.on_gpu and "torch" not in sys.modules:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nobody reserved one
    import torch
    from filelock import FileLock, Timeout

    from mmbase.progress import Silent
    from mmbench.runs.folder import TRAINS

    train, job = pickle.loads(order.work)  # noqa: S301 - made by this command
    torch.set_num_threads(order.threads)
    # A machine that the cluster has lost may be training on.
    lock = FileLock(order.folder / TRAINS)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout as error:
        raise TrainingError(
            f"{order.folder}: another worker is still writing; wait for it or stop it"
        ) from error
    with lock:
        train(job, Silent())
        (order.folder / TRAINS).unlink(missing_ok=True)


def refuse_unseen(where: str, folder: Path, *, seen: bool) -> None:
    """Refuse a machine that does not see the run's folder.

    Raises:
        DataError: It does not.
    """
    if not seen:
        raise DataError(
            f"{folder}: the Ray worker on {where} does not see it; --out has to be in a folder "
            "that all machines of the cluster share"
        )
