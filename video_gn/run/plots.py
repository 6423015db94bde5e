"""Figures of runs, from their logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from video_gn.config import flatten
from video_gn.draw.figures import curves_figure, percentiles_figure, plot_panels, write_figure
from video_gn.errors import UserError
from video_gn.run.folder import SAME_RESULT
from video_gn.run.log import read_config, read_log
from video_gn.tasks import DEFAULT_TASK, TASKS

NORM, BATCH, SEEDS = "model.norm", "train.clips_per_gpu", SAME_RESULT | {"seed"}


def plot_curves(runs: Sequence[str | Path], out: str | Path, names: Sequence[str] | None = None) -> Path:
    """Draw training and validation against epochs, one curve per run, as Figure 4 does. Writes a picture.

    What is drawn are the curves of the runs' tasks: for classification training and validation error.

    Args:
        names: of the runs (default: those of `labels`).

    Raises:
        UserError: a folder is not a run, no epoch of it has ended, or `out` cannot be written.
    """
    epochs = [read_epochs(Path(run)) for run in runs]
    panels = _panels({tag for records in epochs for record in records for tag in record})
    curves = []
    for records, name in zip(epochs, names or labels(runs), strict=True):
        points = [[(r["epoch"], r[tag]) for r in records if r.get(tag) is not None] for tag, _ in panels]
        curves.append((name, points))
    return write_figure(curves_figure(curves, [title for _, title in panels]), out)


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
    tags = sorted(key for key in epochs[0] if key.startswith("percentiles/"))
    values = {int(tag.rsplit("/p", 1)[1]): [record[tag] for record in epochs] for tag in tags}
    layer = tags[-1].split("/")[1]
    figure = percentiles_figure([record["epoch"] for record in epochs], values, layer, name or label(Path(run)))
    return write_figure(figure, out)


def label(run: Path) -> str:
    """Return a run's name in a figure: its folder's, after the cell's for a seed of a study."""
    return f"{run.parent.name}/{run.name}" if run.name.startswith("seed") else run.name


def labels(runs: Sequence[str | Path]) -> list[str]:
    """Return the names of several runs: their labels, or their paths where labels are equal."""
    names = [label(Path(run)) for run in runs]
    return [name if names.count(name) == 1 else str(run) for run, name in zip(runs, names, strict=True)]


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """Return the records of ended epochs in a run's log.jsonl, or without one in its event files.

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
