"""TensorBoard: event files in a folder per run, `tensorboard --logdir DIR` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmbench.runs.trackers.base import Sink, Tracked

FOLDER = "tensorboard"


class TensorBoard(Sink):
    """Scalars by epoch; the recipe and the final metrics as hyper-parameters."""

    library = "tensorboard"

    def __init__(self, run: Tracked, place: str) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._run = run
        self._writer = SummaryWriter(Path(place or FOLDER) / run.name)

    @classmethod
    def where(cls, place: str) -> str:
        """See `Sink.where`."""
        return f"tensorboard --logdir {place or FOLDER}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """See `Sink.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def final(self, values: Mapping[str, float], epoch: int) -> None:
        """See `Sink.final`."""
        from torch.utils.tensorboard.summary import hparams

        plain = (int, float, bool, str)
        told = {k: v if isinstance(v, plain) else str(v) for k, v in self._run.parameters.items()}
        file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        # `add_hparams` would begin another run below this one.
        for summary in hparams(told, dict(values)):  # type: ignore[no-untyped-call]
            file.add_summary(summary)
        self.log(values, epoch)

    def close(self) -> None:
        """See `Sink.close`."""
        self._writer.close()
