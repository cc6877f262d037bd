"""What an extraction looks at, settled before the encoder is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mmx
from mmbase.devices import resolve_device
from mmbase.progress import Progress
from mmx.catalogue import interactions
from mmx.catalogue.contents import TEXT_COLUMNS, Contents, file_contents, text_contents
from mmx.catalogue.items import Items, load_items
from mmx.config import RunConfig, SetConfig
from mmx.encoders import Encoder, needs_torch
from mmx.encoders.compute import linear_kernel
from mmx.extraction.multipart import several_files

BATCH_SIZES = {
    "cpu": {"visual": 32, "textual": 32, "audio": 8},
    "gpu": {"visual": 128, "textual": 256, "audio": 16},
}
"""Items per forward pass when none is asked for. Recorded in the provenance.

A rule and not a measurement, so that the same command gives the same bits twice. On a processor
larger batches gain nothing; on a GPU they fill the device. Where memory does not suffice, the loop
halves them and says so.
"""

WINDOW_BATCHES = {"visual": 1, "textual": 64, "audio": 8}
"""Batches per window, within which items are sorted by length. Pictures are all of one size."""

BLOCK = 4096
"""Rows that are fetched at once where all contents are gone through."""


@dataclass(frozen=True)
class Plan:
    """What is looked at, settled before the encoder is built.

    Attributes:
        run: How to go about it.
        config: Encoder and input.
        items: The dataset's items, in the order of the rows.
        contents: What they have in this modality.
        batch_size: Items per forward pass.
        device: Where the encoder runs: `cpu`, `cuda`, `cuda:1`, `mps`.
    """

    run: RunConfig
    config: SetConfig
    items: Items
    contents: Contents
    batch_size: int
    device: str

    @property
    def window(self) -> int:
        """Rows per window."""
        return self.batch_size * WINDOW_BATCHES[self.config.modality]

    def of(self, config: SetConfig) -> Plan:
        """The plan of another set that looks at the same contents in batches of the same size."""
        return replace(self, config=config, device=_device(self.run, config))

    def all_contents(self) -> Iterator[tuple[int, str | Path]]:
        """Every usable content with its row, in the order of the rows; of an item with several files each of them."""
        for start in range(0, len(self.items), BLOCK):
            for row, content in enumerate(
                self.contents.fetch(start, min(start + BLOCK, len(self.items))), start
            ):
                for one in content if isinstance(content, tuple) else (content,):
                    if isinstance(one, str | Path):
                        yield row, one

    def provenance(self, encoder: Encoder) -> dict[str, Any]:
        """Encoder, input and circumstances that the vectors depend on. No path, host or user."""
        table = self.items.table
        return {
            **encoder.spec.provenance(),
            "input": {
                "table": table.path.name if table is not None else None,
                "columns": list(self.contents.columns),
                "joined_by": " "
                if len(self.contents.columns) > 1 and not self.config.text_template
                else None,
                **({"template": self.config.text_template} if self.config.text_template else {}),
                **({"several": self.config.several} if self.config.several else {}),
                **(
                    {"path_separator": self.config.path_separator}
                    if self.config.path_separator
                    else {}
                ),
                **(
                    {"long_texts": self.config.long_texts}
                    if self.config.long_texts != "truncate"
                    else {}
                ),
                "digest": self.contents.digest(),
            },
            "batch_size": self.batch_size,
            "window": self.window,
            "device": encoder.device.partition(":")[0],
            **({"linear": linear_kernel()} if _uses_linear_kernel(encoder) else {}),
            "seed": self.run.seed,
            "tool": {"name": "mmx", "version": mmx.__version__},
        }


def _uses_linear_kernel(encoder: Encoder) -> bool:
    """Whether the encoder's bits depend on which of torch's kernels this processor runs faster."""
    return (
        encoder.device == "cpu"
        and encoder.spec.precision == "fp32"
        and "torch" in encoder.spec.libraries
    )


def make_plan(run: RunConfig, config: SetConfig, progress: Progress) -> Plan:
    """Reads the items and finds their contents.

    Raises:
        DataError: No dataset, a table that cannot be used, or no content of this modality at all.
        UsageError: A column or file that was named and does not exist.
    """
    usual: Sequence[str] = TEXT_COLUMNS
    items: Items
    if config.source == "interaction":
        usual = interactions.TEXT_COLUMNS
        items = interactions.load_interactions(
            run.data,
            items_file=run.items_file,
            id_column=run.id_column,
            user_column=run.user_column,
            limit=run.limit,
        )
    else:
        items = load_items(
            run.data, items_file=run.items_file, id_column=run.id_column, limit=run.limit
        )
    contents: Contents
    if config.modality == "textual":
        contents = text_contents(items, config.text_columns, config.text_template, usual)
    elif config.several:
        contents = several_files(items, config.modality, config.path_column, config.path_separator)
    else:
        contents = file_contents(items, config.modality, config.path_column)
    for note in (*items.notes, *contents.notes):
        progress.note(note)
    return Plan(
        run=run,
        config=config,
        items=items,
        contents=contents,
        batch_size=batch_size_of(run, config),
        device=_device(run, config),
    )


def batch_size_of(run: RunConfig, config: SetConfig) -> int:
    """Items per forward pass: what was asked for, or what suits the device."""
    device = "cpu" if _device(run, config) == "cpu" else "gpu"
    return config.batch_size or BATCH_SIZES[device][config.modality]


def _device(run: RunConfig, config: SetConfig) -> str:
    """The device to build the encoder on; torch is not even imported for one that needs none."""
    needed = needs_torch(config.model, config.modality)
    return resolve_device(run.device) if needed else "cpu"
