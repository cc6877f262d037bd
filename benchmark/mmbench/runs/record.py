"""What a finished run says about itself: what ran on what, and the values behind its averages."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmbase.process import peak_gpu_memory_bytes, peak_memory_bytes
from mmbench import __version__
from mmbench.config import Recipe
from mmbench.data.dataset import TrainingData
from mmbench.evaluation.evaluate import Scores
from mmbench.evaluation.protocol import describe
from mmbench.models import model_class
from mmbench.ops import gemm, sparse
from mmbench.runs.fit import choose_device
from mmbench.runs.folder import FORMAT, FORMAT_VERSION, RunFolder
from mmbench.runs.inputs import Inputs


def write_per_user(folder: RunFolder, training: TrainingData, scores: Mapping[str, Scores]) -> None:
    """Per-user values as Parquet: user_id, split, one column per metric@cut-off."""
    user_ids = np.array([*training.user_ids.tolist(), *training.other_user_ids], dtype=object)
    frames = [
        pd.DataFrame({"user_id": user_ids[one.users], "split": split, **one.per_user})
        for split, one in scores.items()
    ]
    partial = folder.path / "per_user.parquet.partial"
    pd.concat(frames, ignore_index=True).to_parquet(partial, index=False)
    partial.replace(folder.path / "per_user.parquet")


def run_record(
    recipe: Recipe,
    inputs: Inputs,
    timings: Mapping[str, Any],
    chosen: int | None,
    scores: Mapping[str, Scores],
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """What ran on what; `trained` is what the training, perhaps in another process, said of itself."""
    training = inputs.split.training
    device = choose_device(recipe.device)
    peaks = {
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": peak_gpu_memory_bytes(device),
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool": {"name": "mmbench", "version": __version__},
        "libraries": {
            name: metadata.version(name) for name in ("torch", "numpy", "scipy", "pandas", "h5py")
        },
        "python": platform.python_version(),
        "device": {
            "type": str(device),
            "name": _device_name(device),
            "threads": trained.get("threads", torch.get_num_threads()),
            "trainings_at_once": trained.get("jobs", 1),
            "products": {**gemm.describe(), "sparse": sparse.backend()},
        },
        "dataset": {
            "name": training.name,
            "split": training.split,
            "digest": training.digest,
            "test_digest": inputs.split.test.digest,
            "n_users": training.train.n_users,
            "n_items": training.train.n_items,
            "n_train": training.train.n_edges,
            "n_valid": int(training.valid.users.size),
            "n_test": int(inputs.split.test.rows.users.size),
            "notes": list(training.notes),
        },
        "features": {
            modality: {
                "name": one.name,
                "digest": one.digest,
                "dim": int(one.vectors.shape[1]),
                "present": int(one.present.sum()),
                "missing": int((~one.present).sum()),
                "missing_policy": recipe.missing,
                "scaling": recipe.scaling,
                "provenance": dict(one.provenance),
            }
            for modality, one in inputs.features.items()
        },
        "seeds": {"run": recipe.seed},
        "approximate": list(recipe.approximate),
        "settings": recipe.settings.model_dump(mode="json"),
        "chosen_trial": chosen,
        "protocol": {
            **describe(recipe.evaluation, training, model_class(recipe.model)),
            "digests": dict(inputs.evaluation),
            "users_evaluated": {split: one.n_evaluated for split, one in scores.items()},
            "users_with_relevant": {split: one.n_relevant for split, one in scores.items()},
            "users_without_list_counted": {
                split: one.n_without_list for split, one in scores.items()
            },
        },
        "timings": dict(timings),
        **{
            name: max(filter(None, (here, trained.get(name))), default=None)
            for name, here in peaks.items()
        },
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
