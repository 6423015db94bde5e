"""Figures of runs, from their logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_gn.config import flatten
from video_gn.draw.figures import curves_figure, percentiles_figure, plot_panels, write_figure
from video_gn.errors import UserError
from video_gn.run.folder import SAME_RESULT
from video_gn.run.log import read_config, read_log

VAL = "val/top1_error"
PANELS = (("epoch/train_top1_error", "training error (%)"), (VAL, "validation error, 1 clip (%)"))
NORM, BATCH, SEEDS = "model.norm", "train.clips_per_gpu", SAME_RESULT | {"seed"}


def plot_curves(runs: Sequence[str | Path], out: str | Path, names: Sequence[str] | None = None) -> Path:
    """Draw training and validation error against epochs, one curve per run, as Figure 4 does. Writes a picture.

    Args:
        names: of the runs (default: those of `labels`).

    Raises:
        UserError: a folder is not a run, no epoch of it has ended, or `out` cannot be written.
    """
    curves = []
    for run, name in zip(runs, names or labels(runs), strict=True):
        epochs = read_epochs(Path(run))
        points = [[(r["epoch"], r[error]) for r in epochs if r.get(error) is not None] for error, _ in PANELS]
        curves.append((name, points))
    return write_figure(curves_figure(curves, [title for _, title in PANELS]), out)


def plot_by_norm(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw validation error against epochs: one panel per norm, one curve per batch size, as Figures 5 and 7 do.

    Runs of one norm and batch size that differ in nothing but their seed are one curve, their mean; what else differs
    between them, such as the name of a list, is in the curves' names.

    Raises:
        UserError: a folder is not a run, no epoch of it has ended, or `out` cannot be written.
    """
    settings = {run: flatten(read_config(run).model_dump(mode="json")) for run in map(Path, runs)}
    panels: dict[str, dict[str, list[dict[int, float]]]] = {values[NORM]: {} for values in settings.values()}
    for run, values in sorted(settings.items(), key=lambda item: -item[1][BATCH]):
        alike = [other for other in settings.values() if all(other[key] == values[key] for key in (NORM, BATCH))]
        varied = [key for key in values if key not in SEEDS and any(other[key] != values[key] for other in alike)]
        of = "images" if values["data.kind"] == "images" else "clips"
        name = ", ".join([f"{values[BATCH]} {of}/GPU", *(f"{key} {values[key]}" for key in varied)])
        errors = {int(record["epoch"]): record[VAL] for record in read_epochs(run) if record.get(VAL) is not None}
        panels[values[NORM]].setdefault(name, []).append(errors)
    return plot_panels(panels, out)


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
