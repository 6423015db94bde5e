"""The report of a study: its table, a csv and two figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from video_gn.draw.figures import plot_panels, write_figure
from video_gn.engine.results import protocol
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, write_error, write_text
from video_gn.files.tables import csv_text
from video_gn.study.plan import Run
from video_gn.study.results import MEDIAN_OF, Result, Spread, read_result
from video_gn.study.schema import Study, column_label, row_label, short, show
from video_gn.tasks import build_task

ELSEWHERE = "give another --out"


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
    make_folder(out)
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


def make_folder(out: Path) -> None:
    """Make the study's folder. Raises UserError where files cannot be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error, ELSEWHERE) from None
    check_writable(out, elsewhere=ELSEWHERE)


def describe(study: Study, runs: Sequence[Run]) -> str:
    """Return what is measured, in words."""
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
    """Plot what was measured against the columns (the batch size): one curve per row, bars of one deviation."""
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
