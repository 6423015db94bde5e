"""Pictures of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from video_gn.config import flatten
from video_gn.errors import UserError
from video_gn.files.atomic import replacing
from video_gn.run.folder import SAME_RESULT
from video_gn.run.log import read_config, read_log
from video_gn.tasks import DEFAULT_TASK, TASKS

matplotlib.use("Agg")  # files only: no display is needed

ELSEWHERE = "give another --out"
FILL = (0x4C / 255, 0x92 / 255, 0xDC / 255)  # of the confusion matrix, over the page's background
MAX_NAMED, MAX_COUNTED = 40, 16  # classes: more are not named beside the matrix, more are not counted in it
MAX_INSIDE, LEGEND_COLUMNS = 6, 3  # names of runs: more go below the figure
NORM, BATCH, SEEDS = "model.norm", "train.clips_per_gpu", SAME_RESULT | {"seed"}


def plot_curves(runs: Sequence[str | Path], out: str | Path, names: Sequence[str] | None = None) -> Path:
    """Draw training and validation against epochs, one curve per run, as Figure 4 does. Writes a picture.

    What is drawn are the curves of the runs' tasks: for classification training and validation error.

    Args:
        names: of the runs (default: those of `labels`).

    Raises:
        UserError: a folder is not a run, no epoch of it has ended, or `out` cannot be written.
    """
    below = len(runs) > MAX_INSIDE
    rows = math.ceil(len(runs) / LEGEND_COLUMNS) if below else 0
    epochs = [read_epochs(Path(run)) for run in runs]
    panels = _panels({tag for records in epochs for record in records for tag in record})
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4 + 0.25 * rows), layout="constrained")
    for records, name in zip(epochs, names or labels(runs), strict=True):
        for axis, (tag, _) in zip(axes, panels, strict=True):
            points = [(record["epoch"], record[tag]) for record in records if record.get(tag) is not None]
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else None, label=name)
    for axis, (_, title) in zip(axes, panels, strict=True):
        _over_epochs(axis)
        axis.set(ylabel=title)
        if axis.lines and not below:  # a run without a validation has no points there
            axis.legend()
    if below:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small"
        )
    return _write(figure, out)


def _panels(tags: Set[str]) -> list[tuple[str, str]]:
    """Return (tag, title) of the curves of all tasks that have logged one of these tags."""
    found = [task for task in TASKS.values() if any(tag in tags for tag, _ in task.curves)]
    return [curve for task in found or [TASKS[DEFAULT_TASK]] for curve in task.curves]


def plot_by_norm(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw what is monitored against epochs, one panel per norm, one curve per batch size, as Figures 5 and 7 do.

    Runs of one norm and batch size that differ in nothing but their seed are one curve, their mean; what else differs
    between them, such as the name of a list, is in the curves' names.

    Raises:
        UserError: a folder is not a run, no epoch of it has ended, two are of different tasks, or `out` cannot be
            written.
    """
    settings = {run: flatten(read_config(run).model_dump(mode="json")) for run in map(Path, runs)}
    tasks = sorted({values["task"] for values in settings.values()})
    if len(tasks) > 1:
        raise UserError(f"runs of tasks {' and '.join(tasks)} cannot share a figure; draw those of one task at a time")
    monitored = TASKS[tasks[0]].monitored
    panels: dict[str, dict[str, list[dict[int, float]]]] = {values[NORM]: {} for values in settings.values()}
    for run, values in sorted(settings.items(), key=lambda item: -item[1][BATCH]):
        alike = [other for other in settings.values() if all(other[key] == values[key] for key in (NORM, BATCH))]
        varied = [key for key in values if key not in SEEDS and any(other[key] != values[key] for other in alike)]
        of = "images" if values["data.kind"] == "images" else "clips"
        name = ", ".join([f"{values[BATCH]} {of}/GPU", *(f"{key} {values[key]}" for key in varied)])
        panels[values[NORM]].setdefault(name, []).append(monitored_by_epoch(read_epochs(run), monitored.key))
    return plot_panels(panels, out, monitored.name)


def monitored_by_epoch(records: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Return a number of the validation in percent by epoch, of the records of a log's epochs that have it."""
    tag = f"val/{key}"
    return {int(record["epoch"]): record[tag] for record in records if record.get(tag) is not None}


def plot_panels(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]], out: str | Path, monitored: str
) -> Path:
    """Draw what is monitored against epochs, in panels by name with curves by name: the mean of each curve's runs.

    Args:
        panels: by panel and curve, the runs' numbers (%) by epoch; a mean is of the epochs that all of them have.
        monitored: what they are of the validation: error.

    Raises:
        UserError: `out` cannot be written.
    """
    width = 1 + 4.5 * len(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 4), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, runs in curves.items():
            epochs = sorted(set.intersection(*(set(run) for run in runs)))
            means = [statistics.mean(run[epoch] for run in runs) for epoch in epochs]
            axis.plot(epochs, means, marker="." if len(epochs) < 60 else None, label=name)
        _over_epochs(axis)
        axis.set(title=title)
        if axis.lines:
            axis.legend()
    axes[0][0].set_ylabel(f"validation {monitored} (%)")
    return _write(figure, out)


def plot_percentiles(run: str | Path, out: str | Path, name: str | None = None) -> Path:
    """Draw the logged percentiles of a layer's output against epochs, as Figure 6 does. Writes a picture.

    Args:
        name: of the run (default: that of `label`).

    Raises:
        UserError: the folder is not a run, it was trained without train.percentiles_of, or `out` cannot be written.
    """
    epochs = [record for record in read_epochs(Path(run)) if any(key.startswith("percentiles/") for key in record)]
    if not epochs:
        raise UserError(f"{run}: no percentiles in its log; train with train.percentiles_of=LAYER")
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for tag in sorted(key for key in epochs[0] if key.startswith("percentiles/")):
        percent = int(tag.rsplit("/p", 1)[1])
        axis.plot([r["epoch"] for r in epochs], [r[tag] for r in epochs], label=f"{percent} %")
    axis.set(xlabel="epochs", ylabel=f"output of {tag.split('/')[1]}", title=name or label(Path(run)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(title="percentile")
    return _write(figure, out)


def _over_epochs(axis: Axes) -> None:
    axis.set(xlabel="epochs", ylim=(0, None), xlim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def _write(figure: Figure, out: str | Path) -> Path:
    out = Path(out)
    try:
        if out.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            raise UserError(f"{out}: not the name of a figure's file; end it in .png, .svg or .pdf")
        with replacing(out, ELSEWHERE, parents=True) as temporary:
            figure.savefig(temporary, dpi=150, format=out.suffix[1:].lower())
    finally:
        plt.close(figure)
    return out


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """A figure of counts int (K, K) by label and predicted label, shaded by their share of the label's videos."""
    count = len(classes)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = np.empty((count, count, 4))
    picture[..., :3], picture[..., 3] = FILL, share
    figure, axis = plt.subplots(figsize=(6, 6), layout="constrained")
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


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """Write the figure of a confusion matrix to a file."""
    figure = confusion_figure(matrix, classes)
    figure.savefig(out)
    plt.close(figure)


def label(run: Path) -> str:
    """A run's name in a figure: its folder's, after the cell's for a seed of a study."""
    return f"{run.parent.name}/{run.name}" if run.name.startswith("seed") else run.name


def labels(runs: Sequence[str | Path]) -> list[str]:
    """The names of several runs: their labels, or their whole paths where labels are equal."""
    names = [label(Path(run)) for run in runs]
    return [name if names.count(name) == 1 else str(run) for run, name in zip(runs, names, strict=True)]


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The records of ended epochs in a run's log.jsonl, or without one in its event files.

    Raises:
        UserError: there is no log, or no epoch has ended.
    """
    try:
        records = read_log(run)
    except OSError:
        raise UserError(
            f"{run}: no log.jsonl and no event files; name the folder of a run, such as runs/demo"
        ) from None
    epochs = [record for record in records if record["kind"] == "epoch"]
    if not epochs:
        raise UserError(f"{run}: no epoch has ended yet; wait for the first")
    return epochs
