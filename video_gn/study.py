"""A study: one config trained over a grid of values and seeds, and its results as a table, a csv and two figures.

A study file (configs/studies/) is YAML of the schema `Study`. Each run is an ordinary run folder, made as
``tools/train.py`` makes it, in OUT/CELL/seedN.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from matplotlib.figure import Figure
from pydantic import Field, ValidationError, model_validator

from video_gn.config import Config, Positive, Section, differences, flatten, load_config, parse_config, read_yaml
from video_gn.console import say
from video_gn.data.motion import CLASSES, write_dataset
from video_gn.data.workers import WorkerLost
from video_gn.distributed.world import World, world
from video_gn.draw.figures import plot_panels, write_figure
from video_gn.engine.health import TooManyUnreadable
from video_gn.engine.results import protocol, read_results
from video_gn.engine.test import test_checkpoint
from video_gn.engine.train import train
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, write_error, write_text
from video_gn.files.tables import csv_text
from video_gn.run.checkpoint import LAST
from video_gn.run.folder import SAME_RESULT
from video_gn.run.lock import hold_on_rank0
from video_gn.run.plots import monitored_by_epoch, read_epochs
from video_gn.tasks import build_task

ELSEWHERE = "give another --out"
MEDIAN_OF = 5  # epochs; section 4.1 of the paper
RESERVED = {"seed", "output_dir"}  # the study's own
SAME_SCORE = (SAME_RESULT - {"data.test_list"}) | {"test.clips_per_batch", "test.max_unreadable"}
"""Values that two tests of one checkpoint and one score may differ in."""


class Motion(Section):
    """The first `classes` of the embedded data set; train_K.csv and val_K.csv of data.root list them."""

    classes: Annotated[int, Field(ge=2, le=len(CLASSES))]
    train_videos: Positive
    """To render, of all ten classes."""
    val_videos: Positive


class Published(Section):
    """A figure of the paper."""

    cell: dict[str, Any]
    """Values that one cell alone has."""
    value: float


class Study(Section):
    """One study file. Keys of a cell are dotted keys of a config, such as `model.norm`."""

    config: str
    """Path of the config that all cells begin with, relative to the study file."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Key -> values; all combinations are trained."""
    together: list[dict[str, Any]] = Field(default_factory=list)
    """Keys that vary together: each mapping is combined with each combination of `grid`."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Values of all cells that differ from the config's."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    measure: Literal["final", "median5", "test"] = "median5"
    """What the task monitors (validation error) after the last epoch, its median over the last 5 epochs, or the task's
    first score (top-1) by the config's test."""
    rows: tuple[str, ...] = ()
    """Keys whose values name the table's rows and the figures' curves and panels; the other keys name the columns."""
    paper: tuple[Published, ...] = ()
    motion: Motion | None = None
    """Render the embedded data set into data.root first."""

    @property
    def keys(self) -> list[str]:
        """What varies, in the file's order."""
        return list(dict.fromkeys([*self.grid, *itertools.chain.from_iterable(self.together)]))

    @property
    def columns(self) -> list[str]:
        return [key for key in self.keys if key not in self.rows]

    def cells(self) -> list[dict[str, Any]]:
        """Values of each cell, the first key of `grid` varying slowest."""
        products = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return [product | joined for product in products for joined in self.together or [{}]]

    def published(self, cell: dict[str, Any]) -> float | None:
        """The paper's figure for a cell."""
        return next((p.value for p in self.paper if p.cell.items() <= cell.items()), None)

    @model_validator(mode="after")
    def _check(self) -> Study:
        if not self.keys:
            raise ValueError("nothing varies; give grid or together some keys")
        joined = set(itertools.chain.from_iterable(self.together))
        if twice := sorted(set(self.grid) & joined | set(self.fixed) & {*self.grid, *joined}):
            raise ValueError(f"{twice[0]} is given twice; a key stands in one of grid, together and fixed")
        if own := sorted(RESERVED & {*self.keys, *self.fixed}):
            raise ValueError(f"{own[0]} is the study's to set; use seeds, and --out of tools/study.py")
        if unknown := [key for key in self.rows if key not in self.keys]:
            raise ValueError(f"rows: {unknown[0]} does not vary; choose of {', '.join(self.keys)}")
        for names in (
            [cell_name(cell) for cell in self.cells()],  # of folders
            [f"{row_label(self, cell)} / {column_label(self, cell)}" for cell in self.cells()],
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two cells are {twice[0]} by name; remove one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat; a repeated seed repeats its run")
        for entry in self.paper:
            if (n := sum(entry.cell.items() <= cell.items() for cell in self.cells())) != 1:
                raise ValueError(f"paper: {entry.cell} fits {n} cells; give the values of one")
        return self


@dataclass(frozen=True)
class Run:
    """A cell with a seed."""

    cell: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]
    """`key=value` that make the study's config this run's."""
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def __str__(self) -> str:
        return f"{cell_name(self.cell)} seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a finished run measured, in percent."""

    monitored: dict[int, float]
    """What its task monitors, after each evaluated epoch."""
    test: float | None
    """None where the study asks for no test."""

    @property
    def final(self) -> float:
        return self.monitored[max(self.monitored)]

    @property
    def median5(self) -> float:
        """Over the last 5 epochs, or over all of a shorter run."""
        last = max(self.monitored) - MEDIAN_OF
        return statistics.median(value for epoch, value in self.monitored.items() if epoch > last)

    def value(self, measure: str) -> float:
        """What the table shows."""
        if measure == "test":
            assert self.test is not None  # read_result returns no result without
            return self.test
        return self.median5 if measure == "median5" else self.final


@dataclass(frozen=True)
class Spread:
    """Mean and spread over seeds."""

    mean: float
    deviation: float | None
    """Standard deviation of the sample (n - 1); None of a single seed."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}") + f" (n={self.n})"


# --- the plan ---


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        UserError: it is missing or malformed, or against the schema.
    """
    try:
        return Study.model_validate(read_yaml(Path(path)))
    except ValidationError as error:
        places = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        problems = (f"{place or 'study'}: {message.removeprefix('Value error, ')}" for place, message in places)
        raise UserError(f"{path}: {'; '.join(problems)}") from None


def config_path(study: Study, path: str | Path) -> str:
    """Where the config of the study file `path` lies."""
    return normpath(Path(path).parent / study.config)


def plan_runs(study: Study, path: str | Path, overrides: Sequence[str], out: str | Path) -> list[Run]:
    """All runs, each config checked; every cell's first seed comes before any second.

    Args:
        path: of the study file.
        overrides: `key=value` for all cells.
        out: folder of the runs.

    Raises:
        UserError: an override is of a key that the study varies, a cell's config is not valid, or cells are of
            different tasks.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in RESERVED or key in study.keys:
            raise UserError(f"override {override!r}: the study itself sets {key}; change the study file or --out")
    common = [*(as_override(*item) for item in study.fixed.items()), *overrides]
    runs = []
    for seed, cell in itertools.product(study.seeds, study.cells()):
        folder = Path(out) / cell_name(cell) / f"seed{seed}"
        own = {**cell, "seed": seed, "output_dir": str(folder)}
        run_overrides = (*common, *(as_override(*item) for item in own.items()))
        try:
            config = load_config(config_path(study, path), run_overrides)
        except UserError as error:
            raise UserError(f"cell {cell_name(cell)}: {error}") from None
        if study.measure == "median5" and config.train.eval_every != 1:
            raise UserError(f"measure median5 needs every epoch's error; set train.eval_every: 1 in {path}")
        runs.append(Run(cell, seed, run_overrides, config))
    if len(tasks := sorted({run.config.task for run in runs})) > 1:
        raise UserError(
            f"{path}: cells are of tasks {' and '.join(tasks)}, which share no number; write a study for each"
        )
    return runs


def cell_name(cell: dict[str, Any]) -> str:
    """Name of a cell's folder: norm=bn,clips_per_gpu=8."""
    values = ((short(key), re.sub(r"[^\w.+-]+", "-", show(value)).strip("-")) for key, value in cell.items())
    return ",".join(f"{key}={value}" for key, value in values)


def short(key: str) -> str:
    """norm of model.norm."""
    return key.rpartition(".")[2]


def show(value: Any) -> str:
    """A value as it stands in a YAML file; what YAML would not read as this string is quoted."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value, ensure_ascii=False)


def as_override(key: str, value: Any) -> str:
    """key=value, as `load_config` and the tools take it."""
    return f"{key}={show(value)}"


def commands(study: Study, path: str | Path, runs: Iterable[Run]) -> list[str]:
    """A shell command for each run, to be started as a job of its own."""
    lines = []
    for run in runs:
        command = shlex.join(["python", "tools/train.py", config_path(study, path), *run.overrides])
        if study.measure == "test":
            command += " && " + shlex.join(["python", "tools/test.py", str(run.folder / "checkpoints" / LAST)])
        lines.append(command)
    return lines


# --- the runs ---


def run_study(study: Study, runs: Sequence[Run], out: Path) -> None:
    """Train (and test) what is not finished, in order; write the report after each run, at the end print the table.

    All ranks call this.

    Raises:
        UserError: runs failed; the others were run.
    """
    failed: list[str] = []
    seconds: list[float] = []
    with world(runs[0].config.device) as ranks, hold_on_rank0(out, ranks):  # one world: it cannot be opened twice
        ranks.first(partial(_check_out, out))
        if study.motion is not None:
            ranks.first(partial(render_motion, study.motion, Path(runs[0].config.data.root)))
        todo = ranks.first(lambda: [run for run in runs if _is_unfinished(run, study.measure)])
        for index, run in enumerate(todo):
            if ranks.is_main:
                left = f", about {statistics.mean(seconds) * (len(todo) - index) / 60:.0f} min to go" if seconds else ""
                say(f"== run {len(runs) - len(todo) + index + 1} of {len(runs)}: {run}{left}")
            begin = time.monotonic()
            problem = next(filter(None, ranks.all_gather(_finish(run, study.measure, ranks))), None)
            if problem is None:
                seconds.append(time.monotonic() - begin)
            else:
                failed.append(f"{run}: {problem}")
            if ranks.is_main:
                if problem is not None:
                    say(f"== failed: {failed[-1]}")
                write_report(study, runs, out)
        if ranks.is_main:
            text, _ = write_report(study, runs, out)
            print(text)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def _finish(run: Run, measure: str, ranks: World) -> str | None:
    """Train and test a run; returns what went wrong on this rank, if something did."""
    try:
        ranks.first(partial(check_folder, run))
        train(run.config, ranks)
        if measure == "test":
            wanted = flatten(run.config.model_dump(mode="json"))  # the checkpoint's config may have another test
            overrides = [as_override(*item) for item in wanted.items()]
            test_checkpoint(run.folder / "checkpoints" / LAST, overrides)  # rank 0 alone may fail at its end
        if ranks.is_main:
            read_result(run, measure)
    except (WorkerLost, TooManyUnreadable) as error:
        if ranks.size > 1:  # this rank alone knows, and the others wait for it in the training
            raise
        return str(error)
    except UserError as error:
        return str(error)
    return None


def _is_unfinished(run: Run, measure: str) -> bool:
    try:
        return read_result(run, measure) is None
    except UserError:  # told when its turn comes
        return True


def render_motion(motion: Motion, root: Path) -> None:
    """Render the embedded data set, or reuse it, and list its first classes in train_K.csv and val_K.csv."""
    write_dataset(root, train_videos=motion.train_videos, val_videos=motion.val_videos)
    for split in ("train", "val"):
        lines = (root / f"{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        wanted = [line for line in lines if int(line.rpartition(" ")[2]) < motion.classes]
        write_text(root / f"{split}_{motion.classes}.csv", "".join(wanted))


# --- what the run folders say ---


def check_folder(run: Run) -> None:
    """Raises UserError where the run's folder holds a run that would have come out otherwise."""
    path = run.folder / "config.yaml"
    if not path.exists():
        return
    found = differences(load_config(path), run.config)
    other = "; ".join(
        f"{key}: {a} -> {b}" for key, a, b in found if key not in SAME_RESULT and not key.startswith("test.")
    )
    if other:
        raise UserError(f"{run.folder}: holds another experiment ({other}); delete the folder or set --out")


def read_result(run: Run, measure: str) -> Result | None:
    """The result of a run; None where it, or the test that `measure` asks for, is not finished.

    Raises:
        UserError: the folder holds another experiment, or no validation video was scored.
    """
    check_folder(run)
    if not (run.folder / "log.jsonl").exists():
        return None
    try:
        records = read_epochs(run.folder)
    except UserError:  # no epoch has ended
        return None
    last = records[-1]
    if last["epoch"] < run.config.train.epochs:
        return None
    monitored = build_task(run.config).monitored
    values = monitored_by_epoch(records, monitored.key)
    if last["epoch"] not in values:
        what = f"validation {monitored.name}"
        raise UserError(f"{run.folder}: the last epoch has no {what}, no video was scored; see its log")
    test = _read_test(run, last["step"]) if measure == "test" else None
    return None if measure == "test" and test is None else Result(values, test)


def _read_test(run: Run, step: int) -> float | None:
    """The first score of the run's own test of last.pt after `step`, if no more videos than allowed lack one."""
    for path, result in read_results(run.folder):
        if (result.get("checkpoint"), result.get("step")) != (LAST, step):
            continue
        tested = parse_config(result["config"], source=str(path))
        same = all(key in SAME_SCORE for key, *_ in differences(tested, run.config))
        unscored = result["videos_listed"] - result["videos_scored"]
        if same and unscored <= run.config.test.max_unreadable:
            score: float | None = result[build_task(run.config).scores[0].key]
            return score
    return None


# --- the report ---


@dataclass(frozen=True)
class Summary:
    """Results of finished runs by row and column of the table. Rows and columns are in the study file's order."""

    rows: list[str]
    columns: list[str]
    results: dict[tuple[str, str], list[Result]]
    """(row, column) -> the seeds' results; every cell of the study has an entry."""
    measured: str
    """The name of what is measured: error, top-1."""

    def spread(self, row: str, column: str, measure: str) -> Spread | None:
        """None where the study has no such cell or none of its runs is finished."""
        results = self.results.get((row, column))
        return Spread.of([result.value(measure) for result in results]) if results else None


def write_report(study: Study, runs: Sequence[Run], out: Path) -> tuple[str, list[str]]:
    """Write table.md, results.csv and, once a run is finished, errors.png and epochs.png.

    Returns:
        The text of table.md, and what is wrong with run folders that were left out.

    Raises:
        UserError: `out` cannot be written.
    """
    results: dict[int, Result] = {}
    problems = []
    for index, run in enumerate(runs):
        try:
            if (result := read_result(run, study.measure)) is not None:
                results[index] = result
        except UserError as error:
            problems.append(str(error))
    summary = summarize(study, runs, results)
    measured, finished = describe(study, runs), f"{len(results)} of {len(runs)} runs finished"
    text = f"{measured}; {finished}.\n\n{table(study, summary)}"
    _check_out(out)
    write_text(out / "table.md", text, ELSEWHERE)
    write_text(out / "results.csv", rows_csv(study, runs, results), ELSEWHERE)
    if results:
        plot_errors(study, summary, measured, out / "errors.png")
        panels: dict[str, dict[str, list[dict[int, float]]]] = {}
        for (row, column), found in summary.results.items():
            if found:
                panels.setdefault(row, {})[column] = [result.monitored for result in found]
        plot_panels(panels, out / "epochs.png", build_task(runs[0].config).monitored.name)
    return text, problems


def _check_out(out: Path) -> None:
    """Make the study's folder. Raises UserError where files cannot be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error, ELSEWHERE) from None
    check_writable(out, elsewhere=ELSEWHERE)


def describe(study: Study, runs: Sequence[Run]) -> str:
    """What is measured, in words."""
    config = runs[0].config
    epochs, task = config.train.epochs, build_task(config)
    clip = protocol(config) if config.data.kind == "images" else "1-clip augmented"
    return {
        "final": f"{clip} validation {task.monitored.name} (%) after {epochs} epochs",
        "median5": f"{clip} validation {task.monitored.name} (%), median of the last {MEDIAN_OF} of {epochs} epochs",
        "test": f"{protocol(config)} {task.scores[0].name} (%) after {epochs} epochs",
    }[study.measure]


def summarize(study: Study, runs: Sequence[Run], results: dict[int, Result]) -> Summary:
    """Sort results, by index of their run, into the table's cells."""
    cells: dict[tuple[str, str], list[Result]] = {}
    task = build_task(runs[0].config)
    measured = task.scores[0].name if study.measure == "test" else task.monitored.name
    for index, run in enumerate(runs):
        place = row_label(study, run.cell) or measured, column_label(study, run.cell) or measured
        found = cells.setdefault(place, [])
        if index in results:
            found.append(results[index])
    rows, columns = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    return Summary(rows, columns, cells, measured)


def row_label(study: Study, cell: dict[str, Any]) -> str:
    """`bn`, or `norm bn` where not all cells have the same rows' keys; of a study with one row, nothing."""
    named = any(key not in other for other in study.cells() for key in study.rows)
    values = (f"{short(key)} {show(cell[key])}" if named else show(cell[key]) for key in study.rows if key in cell)
    return ", ".join(values)


def column_label(study: Study, cell: dict[str, Any]) -> str:
    """`clips_per_gpu 8`; of a study with one column, nothing."""
    values = (f"{short(key)} {show(cell[key])}" for key in study.columns if key in cell)
    return ", ".join(values)


def table(study: Study, summary: Summary) -> str:
    """Markdown: mean ± standard deviation (n seeds) [the paper's figure]. A single row stands upright."""
    published = {
        (row_label(study, cell) or summary.measured, column_label(study, cell) or summary.measured): value
        for cell in study.cells()
        if (value := study.published(cell)) is not None
    }
    corner = ", ".join(short(key) for key in study.rows)
    lines = [[corner, *summary.columns]]
    for row in summary.rows:
        entries = []
        for column in summary.columns:
            spread = summary.spread(row, column, study.measure)
            paper = published.get((row, column))
            entries.append(("-" if spread is None else str(spread)) + ("" if paper is None else f" [{paper}]"))
        lines.append([row, *entries])
    if len(summary.rows) == 1 < len(summary.columns):
        lines = [list(line) for line in zip(*lines, strict=True)]
    lines.insert(1, ["---"] * len(lines[0]))
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    note = "Mean ± standard deviation over n seeds" + (", [the paper's figure]" if study.paper else "")
    return f"{text}\n{note}.\n"


def rows_csv(study: Study, runs: Sequence[Run], results: dict[int, Result]) -> str:
    """Return one row per finished run: the cell's values, the seed, what was measured, the folder."""
    task = build_task(runs[0].config)
    name = task.monitored.name.lower()
    measures = [f"final_val_{name}", f"median5_val_{name}", f"test_{task.scores[0].key}"]
    rows: list[list[object]] = [[*study.keys, "seed", *measures, "folder"]]
    for index, result in results.items():
        run = runs[index]
        values = [show(run.cell[key]) if key in run.cell else "" for key in study.keys]
        measured = [result.final, result.median5, "" if result.test is None else result.test]
        rows.append([*values, run.seed, *measured, run.folder])
    return csv_text(rows)


def plot_errors(study: Study, summary: Summary, measured: str, out: Path) -> None:
    """What was measured against the columns (the batch size), a curve a row, bars of one deviation; as Figure 1."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for row in summary.rows:
        spreads = [(x, summary.spread(row, column, study.measure)) for x, column in enumerate(summary.columns)]
        points = [(x, s.mean, s.deviation or 0.0) for x, s in spreads if s is not None]
        if points:
            x, mean, deviation = zip(*points, strict=True)
            axis.errorbar(x, mean, yerr=deviation, marker="o", capsize=4, label=row)
    only = short(study.columns[0]) if len(study.columns) == 1 else ""
    labels = [column.removeprefix(f"{only} ") for column in summary.columns]
    axis.set_xticks(range(len(labels)), labels, rotation=0 if only else 30, ha="center" if only else "right")
    axis.set(xlabel=only, ylabel=f"{summary.measured} (%)", xlim=(-0.3, len(labels) - 0.7))
    axis.set_title(measured, fontsize="small")
    axis.grid(alpha=0.3)
    if axis.containers:  # of runs that have ended
        axis.legend()
    write_figure(figure, out, ELSEWHERE)
