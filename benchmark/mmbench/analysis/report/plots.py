"""Plots of a report, as SVG files whose bytes follow from the values; drawn only where matplotlib is installed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmbench.errors import DataError
from mmbench.runs.folder import RunFolder

if TYPE_CHECKING:
    from mmbench.analysis.report.reproduction import Reproduction

# Okabe and Ito's palette, which colour-blind readers can tell apart, and two greys.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
    "#999999",
    "#F0E442",
    "#444444",
)


def trade_offs(part: Reproduction, path: Path) -> bool:
    """Accuracy against each other metric at the longest cut-off, ours filled, published hollow; False if it can't be drawn."""
    cutoff = part.cutoffs[-1] if part.cutoffs else 0
    accuracy = f"Recall@{cutoff}"
    across = [
        name
        for name in part.metrics
        if name.endswith(f"@{cutoff}") and not name.startswith(("Recall", "nDCG"))
    ][:6]
    figure = _figure(part, len(across)) if accuracy in part.metrics and across else None
    if figure is None:
        return False
    axes = figure.subplots(1, len(across), squeeze=False)[0]
    for axis, metric in zip(axes, across, strict=True):
        for number, line in enumerate(part.lines):
            colour = COLOURS[number % len(COLOURS)]
            x, y = line.mean(metric), line.mean(accuracy)
            if x is None or y is None:
                continue
            axis.plot(x, y, "o", color=colour, label=line.model)
            px, py = line.published.get(metric), line.published.get(accuracy)
            if px is not None and py is not None:
                axis.plot([x, px], [y, py], "-", color=colour, linewidth=0.6)
                axis.plot(px, py, "o", color=colour, markerfacecolor="none")
        axis.set_xlabel(metric)
        axis.set_ylabel(accuracy)
    axes[-1].legend(
        fontsize="x-small", title="filled: ours, hollow: published" if part.published else None
    )
    return _save(figure, path)


def learning_curves(part: Reproduction, path: Path) -> bool:
    """The selecting metric on validation by epoch, a line per model (first seed); False if there is nothing to draw."""
    curves = {line.model: _curve(Path(line.runs[0])) for line in part.lines}
    curves = {model: curve for model, curve in curves.items() if len(curve) > 1}
    figure = _figure(part, 2) if curves else None
    if figure is None:
        return False
    axis = figure.subplots()
    for number, line in enumerate(part.lines):
        if line.model in curves:
            epochs, values = zip(*curves[line.model], strict=True)
            axis.plot(epochs, values, "-", color=COLOURS[number % len(COLOURS)], label=line.model)
    axis.set_xlabel("epoch")
    axis.set_ylabel("the selecting metric on validation")
    axis.legend(fontsize="x-small")
    return _save(figure, path)


def _figure(part: Reproduction, width: int) -> Any:
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib.figure import Figure
    except ImportError:
        return None
    matplotlib.rcParams["svg.hashsalt"] = part.dataset  # the same values give the same file
    return Figure(figsize=(3.2 * width, 3.2), layout="constrained")


def _save(figure: Any, path: Path) -> bool:
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True


def _curve(run: Path) -> list[tuple[int, float]]:
    """Epoch and validation value; of a search, those of the chosen trial."""
    folder = RunFolder(run)
    with suppress(OSError, ValueError, KeyError, DataError):
        chosen = folder.read_json("run.json")["chosen_trial"]
        metric = folder.read_json("metrics.json")["selected_by"]["metric"]
        lines = (folder if chosen is None else folder.trial(chosen)).history()
        return [(line["epoch"], line["valid"][metric]) for line in lines if line.get("valid")]
    return []
