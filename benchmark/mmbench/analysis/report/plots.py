"""Plots of a report: SVG files whose bytes follow from the values, if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmbench.analysis.report.results import Reproduction
from mmbench.errors import DataError
from mmbench.runs.folder import RunFolder

# Okabe and Ito's palette, which colour-blind readers can tell apart, and two greys.
_HEX = "0072B2 E69F00 009E73 CC79A7 56B4E9 D55E00 000000 999999 F0E442 444444"
COLOURS = tuple(f"#{value}" for value in _HEX.split())


def trade_offs(part: Reproduction, path: Path) -> bool:
    """Plot accuracy against other metrics at the longest cut-off; False if it can't be drawn."""
    cutoff = part.cutoffs[-1] if part.cutoffs else 0
    accuracy = f"Recall@{cutoff}"
    there = (name for name in part.metrics if name.endswith(f"@{cutoff}"))
    across = [name for name in there if not name.startswith(("Recall", "nDCG"))][:6]
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
            if metric in line.published and accuracy in line.published:
                px, py = line.published[metric], line.published[accuracy]
                axis.plot([x, px], [y, py], "-", color=colour, linewidth=0.6)
                axis.plot(px, py, "o", color=colour, markerfacecolor="none")
        axis.set_xlabel(metric)
        axis.set_ylabel(accuracy)
    title = "filled: ours, hollow: published" if part.published else None
    return _save(figure, path, title)


def learning_curves(part: Reproduction, path: Path) -> bool:
    """Plot the selecting metric by epoch, first seed of each model; False if it can't be drawn."""
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
    return _save(figure, path)


def factor_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    labels: tuple[str, str],
    path: Path,
) -> bool:
    """Plot a metric by a factor with numbers, a panel and a line for each combination of others.

    Args:
        panels: By title and label the points of a line: the factor, the mean, half its interval.
        labels: Of the two axes.
        path: The SVG file.

    Returns:
        False if it can't be drawn.
    """
    lines = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    figure = _canvas(" ".join(labels), lines, len(panels)) if lines else None
    if figure is None:
        return False
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        for label, points in panel.items():
            x, mean, half = zip(*sorted(points), strict=True)
            colour = COLOURS[lines.index(label) % len(COLOURS)]
            axis.errorbar(x, mean, half, color=colour, label=label, marker="o", capsize=2)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel(labels[0])
    axes[0].set_ylabel(labels[1])
    return _save(figure, path)


def _figure(part: Reproduction, width: int) -> Any:
    return _canvas(part.dataset, [line.model for line in part.lines], width)


def _canvas(salt: str, labels: Sequence[str], width: int) -> Any:
    """Return an empty figure, `width` panels wide, or None without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib.figure import Figure
    except ImportError:
        return None
    matplotlib.rcParams["svg.hashsalt"] = salt  # the same values give the same file
    # The legend is below the axes, a line per label: they may be long.
    inches = max(3.2 * width, 0.6 + 0.07 * max(map(len, labels)))
    return Figure(figsize=(inches, 3.4 + 0.16 * len(labels)), layout="constrained")


def _save(figure: Any, path: Path, title: str | None = None) -> bool:
    shown = (axis.get_legend_handles_labels() for axis in figure.axes)
    legend = {
        label: handle
        for handles, labels in shown
        for handle, label in zip(handles, labels, strict=True)
    }
    place = {"loc": "outside lower left", "fontsize": "x-small", "title": title}
    figure.legend(legend.values(), legend.keys(), **place)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True


def _curve(run: Path) -> list[tuple[int, float]]:
    """Return epochs and validation values; of a search, those of the chosen trial."""
    folder = RunFolder(run)
    with suppress(OSError, ValueError, KeyError, DataError):
        chosen = folder.read_json("run.json")["chosen_trial"]
        metric = folder.read_json("metrics.json")["selected_by"]["metric"]
        lines = (folder if chosen is None else folder.trial(chosen)).history()
        return [(line["epoch"], line["valid"][metric]) for line in lines if line.get("valid")]
    return []
