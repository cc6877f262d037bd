"""The record of a run, `run.json`: what ran on what, and what it cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from mmbase import gemm
from mmbase.process import peak_gpu_memory_bytes, peak_memory_bytes
from mmbench import __version__
from mmbench.config import Recipe
from mmbench.data.features import ItemFeatures
from mmbench.evaluation.scoring import Scores
from mmbench.ops import sparse
from mmbench.runs.devices import choose_device
from mmbench.runs.folder import FORMAT, FORMAT_VERSION
from mmbench.runs.inputs import Inputs


def _induced(recipe: Recipe, one: ItemFeatures, n_present: int) -> dict[str, Any]:
    """What a mask took from a modality, of training and other items, and what replaces the rest."""
    told: dict[str, Any] = {}
    if (share := recipe.mask.get(one.modality)) is not None:
        told["mask"] = {
            "share": share,
            "pattern": recipe.pattern,
            "seed": recipe.mask_seed,
        }
        if not recipe.treatment.policy.DROPS:  # then they have left the data
            told["mask"] |= {
                "masked": one.n_masked,
                "reached": one.n_masked / max(one.n_masked + n_present, 1),
                "masked_of_other_items": one.n_masked_others,
            }
    if one.control is not None:
        told["control"] = one.control
    return told


def record_of(
    recipe: Recipe,
    inputs: Inputs,
    timings: Mapping[str, Any],
    chosen: int | None,
    scores: Mapping[str, Scores],
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """Return `run.json`; `trained` is what the training, perhaps in another process, recorded."""
    training = inputs.split.training
    setting = inputs.setting_of(recipe)
    choice = choose_device(recipe, setting)
    device, trained_on = choice.device, trained.get("device") or choice.facts
    present = {
        m: one.present[: training.n_trained] if one.source == "item" else one.present
        for m, one in inputs.features.items()
    }
    n_valid, n_test = (
        int(training.of_trained_users(rows).users.size)
        for rows in (training.valid, inputs.split.test.rows)
    )
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
            "type": trained_on["chosen"],
            "asked": recipe.device,
            **trained_on,
            "threads": trained.get("threads", torch.get_num_threads()),
            "trainings_at_once": trained.get("jobs", 1),
            "products": {"gemm": gemm.chosen(), "sparse": sparse.backend()},
        },
        "dataset": {
            "name": training.name,
            "split": training.split,
            "digest": training.digest,
            "test_digest": inputs.split.test.digest,
            "n_users": training.train.n_users,
            "n_items": training.train.n_items,
            "n_train": training.train.n_edges,
            "n_valid": n_valid,
            "n_test": n_test,
            "notes": list(training.notes),
        },
        "features": {
            modality: {
                "name": one.name,
                **({"source": one.source} if one.source != "item" else {}),
                "digest": one.digest,
                "dim": int(one.vectors.shape[1]),
                "present": int(present[modality].sum()),
                "missing": int((~present[modality]).sum()),
                "missing_policy": recipe.missing,
                **_induced(recipe, one, int(present[modality].sum())),
                "scaling": recipe.scaling,
                "provenance": dict(one.provenance),
            }
            for modality, one in inputs.features.items()
        },
        "seeds": {"run": recipe.seed},
        "treatment": {
            name: value
            for name, value in recipe.dump().items()
            if name in ("missing", "mask", "pattern", "control", "mask_seed", "scaling")
        },
        "approximate": list(recipe.approximate),
        "settings": recipe.settings.model_dump(mode="json"),
        "chosen_trial": chosen,
        **({"start_from": trained["start_from"]} if "start_from" in trained else {}),
        "protocol": {
            **setting.describe(),
            "digests": dict(inputs.evaluation),
            "no_hit_possible": [
                part
                for part, held_out in (("valid", training.valid), ("test", inputs.split.test.rows))
                if setting.out_of_reach(setting.rows(held_out))
            ],
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
