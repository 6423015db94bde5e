"""Scores with their intervals, and the paper's Table 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from video_gn.config import Config, parse_config
from video_gn.engine.optim import PAPER_GPUS
from video_gn.engine.results import protocol
from video_gn.report.html import Html, escaped, small, table, tag
from video_gn.report.read import Run
from video_gn.tasks import Figure, build_task

TABLE8_COLUMNS = ((32, 2, 8), (32, 2, 4), (64, 1, 4))
"""Frames, stride, clips per GPU."""
TABLE8_PAPER = {
    "bn": ((73.3, 90.7), (72.1, 90.0), (73.3, 90.8)),
    "gn": ((73.0, 90.6), (72.8, 90.6), (74.5, 91.7)),
}
"""The paper's top-1 and top-5 in each column."""
TABLE8_EPOCHS = 109  # of the baseline: 400k steps of 64 clips


def scores(runs: Sequence[Run]) -> Html:
    """Return every test, and the last validation, with 95 % intervals."""
    figures = list(dict.fromkeys(figure for run in runs for figure in build_task(run.config).scores))
    rows: list[list[object]] = []
    for run in runs:
        for test in run.tests:
            r = test.result
            n = r["videos_scored"]
            name = [run.name, Html(escaped(r["protocol"]) + small(test.source))]
            intervals = test.task.intervals(r, n, test.scored)
            rows.append([*name, *_numbers(figures, run, r, intervals), _of(n, r["videos_listed"])])
        rows += _validation_row(run, figures)
    note = (
        "Percent, with 95 % intervals: Wilson's of a share of the videos; else a bootstrap over the videos "
        "(of mean class accuracy, over those of each class). They say how far a score would move with "
        "other videos, not with another seed. Validation scores one random clip per video under training augmentation."
    )
    head = ["run", "protocol", *(figure.name for figure in figures), "videos scored"]
    return Html(table(head, rows, text=2) + tag("p", note, class_="quiet"))


def _validation_row(run: Run, figures: Sequence[Figure]) -> list[list[object]]:
    """Return the row of the last epoch with a validation, if there is one."""
    task = build_task(run.config)
    last = next((r for r in reversed(run.epochs) if r.get(f"val/{task.monitored.key}") is not None), None)
    if last is None:
        return []
    n = int(last.get("val/videos_scored") or 0)
    unread = int(last.get("val/videos_unreadable") or 0)
    values = {figure.key: _validated(figure, last) for figure in task.scores}
    kind = protocol(run.config) if run.config.data.kind == "images" else "1-clip augmented"
    name = Html(escaped(kind) + small(f"validation after epoch {last['epoch']:g} of {run.config.train.epochs}"))
    numbers = _numbers(figures, run, values, task.intervals(values, n, None))
    return [[run.name, name, *numbers, _of(n, n + unread) if n else "-"]]


def _validated(figure: Figure, epoch: dict[str, Any]) -> float | None:
    """Return a number of a validation, by the log's record of its epoch."""
    if figure.error is None:
        return epoch.get(f"val/{figure.key}")
    error = epoch.get(f"val/{figure.error}")
    return None if error is None else 100 - error


def _numbers(
    figures: Sequence[Figure], run: Run, values: dict[str, Any], intervals: Mapping[str, tuple[float, float]]
) -> list[Html]:
    """Return a cell for each figure; a dash where it is not the run's, or says nothing with so few classes."""
    enough = [figure.minimum_classes <= run.config.model.num_classes for figure in figures]
    return [
        _percent(values.get(figure.key) if shown else None, intervals.get(figure.key))
        for figure, shown in zip(figures, enough, strict=True)
    ]


def _percent(percent: float | None, interval: tuple[float, float] | None = None) -> Html:
    if percent is None:
        return Html("-")
    return Html(f"{percent:.2f}" + (small(f"{interval[0]:.1f} to {interval[1]:.1f}") if interval else ""))


def _of(scored: int, listed: int) -> str:
    return f"{scored:,} of {listed:,}"


def table8(runs: Sequence[Run]) -> Html:
    """Return the paper's Table 8 with the runs that fill its cells; empty where none does."""
    found: dict[tuple[str, int], list[Html]] = {}
    for run in runs:
        cell = table8_cell(run.config)
        ends = {record["step"] for record in run.epochs if record["epoch"] == TABLE8_EPOCHS}
        for test in run.tests:
            r = test.result
            config = parse_config(r["config"], source=f"{run.folder}: config of its test")  # may have other clips
            same = test.is_own and table8_cell(config) == cell and config.test.clips == 10 and r.get("step") in ends
            if cell and same and r.get("top1") is not None:
                start = "" if config.model.init_from else ", from scratch"
                where = f"{run.name}{start}, {r['protocol']}, {_of(r['videos_scored'], r['videos_listed'])} videos"
                found.setdefault(cell, []).append(Html(_both(r["top1"], r["top5"]) + small(where)))
    if not found:
        return Html("")
    rows: list[list[object]] = [["batch size (clips per GPU)", *(clips for _, _, clips in TABLE8_COLUMNS)]]
    for norm, paper in TABLE8_PAPER.items():
        rows.append([norm.upper(), *(Html("".join(found.get((norm, k), ["-"]))) for k in range(len(TABLE8_COLUMNS)))])
        rows.append([f"{norm.upper()}, the paper", *(_both(*figures) for figures in paper)])
    head = ["clip (frames x stride)", *(f"{frames} x {stride}" for frames, stride, _ in TABLE8_COLUMNS)]
    note = "Kinetics-400, ResNet-50 I3D, 10-clip top-1 / top-5 (%). The paper's nets start from ImageNet weights."
    return Html(table(head, rows, text=len(head)) + tag("p", note, class_="quiet"))


def _both(top1: float, top5: float) -> str:
    return f"{top1:.1f}\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}{top5:.1f}"


def table8_cell(config: Config) -> tuple[str, int] | None:
    """(norm, column) of the cell that a whole run of `config` fills, None where it is another experiment."""
    model, data, train = config.model, config.data, config.train
    net = (model.arch, model.blocks, model.width, model.temporal, model.stem, model.num_classes)
    grouped = (model.groups, model.channels_per_group) == (32, None) or model.norm != "gn"
    column = (data.frames, data.stride, train.clips_per_gpu)
    comparable = (
        net == ("resnet50", None, 64, "i3d", "dense", 400)
        and model.norm in TABLE8_PAPER
        and grouped
        and data.crop == 224
        and train.epochs == TABLE8_EPOCHS
        and train.global_batch in (None, PAPER_GPUS * train.clips_per_gpu)
    )
    return (model.norm, TABLE8_COLUMNS.index(column)) if comparable and column in TABLE8_COLUMNS else None
