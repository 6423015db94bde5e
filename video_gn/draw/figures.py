"""Figures of matplotlib, from numbers: arrays in, a `Figure` or its file out.

Figures are made without pyplot, which would choose a backend for the user's process and keep every figure alive.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from video_gn.errors import UserError
from video_gn.files.atomic import replacing

Points = Sequence[tuple[float, float]]
"""Pairs (epoch, value)."""

ELSEWHERE = "give another --out"
FILL = (0x4C / 255, 0x92 / 255, 0xDC / 255)  # of the confusion matrix, over the page's background
MAX_NAMED, MAX_COUNTED = 40, 16  # classes: more are not named beside the matrix, more are not counted in it
MAX_INSIDE, LEGEND_COLUMNS = 6, 3  # names of curves: more go below the figure
MAX_MARKED = 60  # points of a curve: more are not marked one by one


def curves_figure(curves: Sequence[tuple[str, Sequence[Points]]], titles: Sequence[str]) -> Figure:
    """Draw curves against epochs, one panel for each of `titles`, with one curve per name in each panel.

    Args:
        curves: names, each with its points in each panel.
        titles: of the panels' y axes.
    """
    below = len(curves) > MAX_INSIDE
    rows = -(-len(curves) // LEGEND_COLUMNS) if below else 0
    figure = Figure(figsize=(5 * len(titles), 4 + 0.25 * rows), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for name, panels in curves:
        for axis, points in zip(axes, panels, strict=True):
            axis.plot(*zip(*points, strict=True), marker=_marker(points), label=name)
    for axis, title in zip(axes, titles, strict=True):
        _over_epochs(axis)
        axis.set(ylabel=title)
        if axis.lines and not below:  # a run without a validation has no points there
            axis.legend()
    if below:
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return figure


Panels = Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]]
"""By panel and curve, the runs' numbers (%) by epoch."""


def panels_figure(panels: Panels, monitored: str) -> Figure:
    """Draw what is monitored against epochs, in panels by name with curves by name: the mean of each curve's runs.

    Args:
        panels: a mean is of the epochs that all runs of a curve have.
        monitored: what they are of the validation: error.
    """
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, runs in curves.items():
            epochs = sorted(set.intersection(*(set(run) for run in runs)))
            means = [statistics.mean(run[epoch] for run in runs) for epoch in epochs]
            axis.plot(epochs, means, marker=_marker(epochs), label=name)
        _over_epochs(axis)
        axis.set(title=title)
        if axis.lines:
            axis.legend()
    axes[0][0].set_ylabel(f"validation {monitored} (%)")
    return figure


def percentiles_figure(
    epochs: Sequence[float], values: Mapping[int, Sequence[float]], layer: str, title: str
) -> Figure:
    """Draw percentiles of a layer's output against epochs, as Figure 6 does.

    Args:
        values: by percentile (0 to 100), one per epoch.
        layer: its name.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    for percent, curve in values.items():
        axis.plot(epochs, curve, label=f"{percent} %")
    axis.set(xlabel="epochs", ylabel=f"output of {layer}", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(title="percentile")
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw counts int (K, K) by label and predicted label, shaded by their share of the label's videos."""
    count = len(classes)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = np.empty((count, count, 4))
    picture[..., :3], picture[..., 3] = FILL, share
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(picture, interpolation="nearest")
    axis.set(xlabel="predicted", ylabel="class")
    if count <= MAX_NAMED:
        size = 9 if count <= MAX_COUNTED else 6
        axis.set_xticks(range(count), classes, rotation=90, fontsize=size)
        axis.set_yticks(range(count), classes, fontsize=size)
    if count <= MAX_COUNTED:
        for (row, column), videos in np.ndenumerate(matrix):
            if videos:
                axis.text(column, row, f"{videos}", ha="center", va="center", fontsize=8)
    return figure


def plot_panels(panels: Panels, out: str | Path, monitored: str) -> Path:
    """Write `panels_figure` to a file. Raises as `write_figure`."""
    return write_figure(panels_figure(panels, monitored), out)


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """Write `confusion_figure` to a file."""
    confusion_figure(matrix, classes).savefig(out)


def write_figure(figure: Figure, out: str | Path, elsewhere: str = ELSEWHERE, *, dpi: int = 150) -> Path:
    """Write a figure to a file whose suffix says the format; its folder is made. Returns the path.

    Raises:
        UserError: `out` cannot be written, or is not the name of a figure's file.
    """
    out = Path(out)
    suffix = out.suffix[1:].lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{out}: not the name of a figure's file; end it in .png, .svg or .pdf")
    with replacing(out, elsewhere, parents=True) as temporary:
        figure.savefig(temporary, dpi=dpi, format=suffix)
    return out


def pixels(figure: Figure) -> np.ndarray:
    """Return a figure as RGB pixels, uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _marker(points: Sequence[object]) -> str | None:
    return "." if len(points) < MAX_MARKED else None


def _over_epochs(axis: Axes) -> None:
    axis.set(xlabel="epochs", ylim=(0, None), xlim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
