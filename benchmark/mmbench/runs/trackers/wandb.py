"""Weights & Biases: offline, unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mmbench.runs.trackers.base import Sink, Tracked

PROJECT = "mmbench"


class WeightsAndBiases(Sink):
    """Config, metrics by epoch, and the final ones as the summary; trials are a group."""

    library = "wandb"

    def __init__(self, run: Tracked, place: str) -> None:
        import wandb

        self._run = wandb.init(
            project=place or PROJECT,
            id=re.sub(r"[^\w-]", "-", run.name)[:128],
            name=run.name,
            group=run.group,
            config=dict(run.parameters),
            mode=_mode(),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    @classmethod
    def where(cls, place: str) -> str:
        """See `Sink.where`."""
        sent = "; send it with `wandb sync`" if _mode() == "offline" else ""
        return f"wandb, project {place or PROJECT}, {_mode()}{sent}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """See `Sink.log`."""
        self._run.log({**values, "epoch": epoch})

    def final(self, values: Mapping[str, float], epoch: int) -> None:
        """See `Sink.final`."""
        self._run.summary.update({**values, "best_epoch": epoch})

    def close(self) -> None:
        """See `Sink.close`."""
        self._run.finish()


def _mode() -> str:
    return os.environ.get("WANDB_MODE") or "offline"
