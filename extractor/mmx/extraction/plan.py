"""The plan of an extraction: items, contents, sizes of batches and windows, and the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmx
from mmbase.catalogue.files import file_contents
from mmbase.catalogue.items import Items, load_items
from mmbase.choices import recall_texts, remember_columns, remember_texts
from mmbase.dataset import TEXT_COLUMNS
from mmbase.process import resolve_device
from mmbase.progress import Progress
from mmx.catalogue import interactions
from mmx.catalogue.contents import Contents, text_contents
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, needs_torch
from mmx.encoders.compute import linear_kernel
from mmx.errors import UsageError
from mmx.extraction.multipart import several_files

BATCH_SIZES = {
    "cpu": {"visual": 32, "textual": 32, "audio": 8},
    "gpu": {"visual": 128, "textual": 256, "audio": 16},
}
"""Items per forward pass by default; recorded in the provenance.

A rule and not a measurement, so that the same command gives the same bits twice. On a processor
larger batches gain nothing; on a GPU they fill the device. Where memory does not suffice, they are
halved, and the summary tells.
"""

WINDOW_BATCHES = {"visual": 1, "textual": 64, "audio": 8}
"""Batches per window, within which items are sorted by length. Pictures are all of one size."""

_BLOCK = 4096  # rows that `all_contents` fetches at once


@dataclass(frozen=True)
class Plan:
    """What an encoder works through, settled before it is built.

    Attributes:
        run: How to go about it.
        config: Encoder and input.
        items: The dataset's items, in the order of the rows.
        contents: What they have in this modality.
        batch_size: Items per forward pass.
        device: Where the encoder runs, or the first of several: `cpu`, `cuda`, `cuda:1`, `mps`.
        other_devices: Where the same encoder runs, too; devices of the same kind.
    """

    run: RunConfig
    config: SetConfig
    items: Items
    contents: Contents
    batch_size: int
    device: str
    other_devices: tuple[str, ...] = ()

    @property
    def window(self) -> int:
        """Rows per window."""
        return self.batch_size * WINDOW_BATCHES[self.config.modality]

    def of(self, config: SetConfig) -> Plan:
        """Return the plan of another set with the same contents and the same batch size."""
        device, *others = _devices(self.run, config)
        return replace(self, config=config, device=device, other_devices=tuple(others))

    def take(self, rows: NDArray[np.int64]) -> Plan:
        """Return the plan of some items alone, shape (k,), in that order."""
        return replace(self, items=self.items.take(rows), contents=self.contents.take(rows))

    def all_contents(self) -> Iterator[tuple[int, str | Path]]:
        """Yield every usable text or file with its row, in order; of an item with several, all."""
        for start in range(0, len(self.items), _BLOCK):
            contents = self.contents.fetch(start, min(start + _BLOCK, len(self.items)))
            for row, content in enumerate(contents, start):
                for one in content if isinstance(content, tuple) else (content,):
                    if isinstance(one, str | Path):
                        yield row, one

    def provenance(self, encoder: Encoder) -> dict[str, Any]:
        """Return encoder, input and circumstances that the vectors depend on; no path or host."""
        table, config, columns = self.items.table, self.config, list(self.contents.columns)
        options = {
            "template": config.text_template,
            "several": config.several,
            "path_separator": config.path_separator,
            "background": config.background,
            "long_texts": config.long_texts if config.long_texts != "truncate" else None,
            "limit": self.run.limit,
        }
        is_joined = len(columns) > 1 and not config.text_template
        # The bits of fp32 networks depend on which of torch's kernels this processor runs faster.
        depends_on_kernel = (
            encoder.device == "cpu"
            and encoder.spec.precision == "fp32"
            and "torch" in encoder.spec.libraries
        )
        return {
            **encoder.spec.provenance(),
            "input": {
                "table": table.path.name if table is not None else None,
                "columns": columns,
                "joined_by": " " if is_joined else None,
                **{name: value for name, value in options.items() if value},
                "digest": self.contents.digest(),
            },
            "batch_size": self.batch_size,
            "window": self.window,
            "device": encoder.device.partition(":")[0],
            **({"linear": linear_kernel()} if depends_on_kernel else {}),
            "seed": self.run.seed,
            "tool": {"name": "mmx", "version": mmx.__version__},
        }


def make_plan(run: RunConfig, config: SetConfig, progress: Progress) -> Plan:
    """Read the items and find their contents.

    Raises:
        DataError: No dataset, a table that cannot be used, or no content of this modality at all.
        UsageError: A column or file that was named and does not exist.
    """
    items: Items
    contents: Contents
    source: Any = {"items_file": run.items_file, "id_column": run.id_column, "limit": run.limit}
    if config.source == "interaction":
        items = interactions.load_interactions(run.data, user_column=run.user_column, **source)
    else:
        items = load_items(run.data, **source)
    kind = "interactions" if config.source == "interaction" else "items"
    named = {"item_id": run.id_column, "user_id": run.user_column if kind != "items" else None}
    remember_columns(run.data, kind, {role: name for role, name in named.items() if name})
    if config.modality == "textual":
        by_source = {"item": TEXT_COLUMNS, "interaction": interactions.TEXT_COLUMNS}
        usual = by_source[config.source]
        known, own = recall_texts(run.data, kind), config.text_columns
        contents = text_contents(items, own, config.text_template, usual, known)
        if own and not set(usual) & set(map(str.casefold, own)):
            remember_texts(run.data, kind, own)
    elif config.several:
        contents = several_files(
            items,
            config.modality,
            config.path_column,
            config.path_separator,
            anywhere=run.allow_outside,
        )
    else:
        column, anywhere = config.path_column, run.allow_outside
        contents = file_contents(items, config.modality, column, anywhere=anywhere)
    for note in (*items.notes, *contents.notes):
        progress.note(note)
    device, *others = _devices(run, config)
    return Plan(run, config, items, contents, batch_size_of(run, config), device, tuple(others))


def batch_size_of(run: RunConfig, config: SetConfig) -> int:
    """Return the items per forward pass: the requested ones, or what suits the device."""
    device = "cpu" if _devices(run, config)[0] == "cpu" else "gpu"
    return config.batch_size or BATCH_SIZES[device][config.modality]


def _devices(run: RunConfig, config: SetConfig) -> list[str]:
    # Without torch an encoder runs on the CPU, and nothing imports torch to look for a GPU.
    if not needs_torch(config.model, config.modality):
        return ["cpu"]
    if run.engine == "ray" and run.device == "cuda":  # of the workers
        return ["cuda"]
    if run.device == "cuda:all":
        return all_of_cuda()
    return [resolve_device(device) for device in run.device.split(",")]


def has_cuda() -> bool:
    """Whether this machine has a GPU that computes."""
    try:
        resolve_device("cuda")
    except UsageError:
        return False
    return True


def all_of_cuda() -> list[str]:
    """Return the names of all CUDA devices of this machine.

    Raises:
        UsageError: There is none, or one does not compute.
    """
    resolve_device("cuda")
    import torch

    return [resolve_device(f"cuda:{number}") for number in range(torch.cuda.device_count())]
