"""One self-contained HTML page about runs: scores, curves, confusions, speed, environment, config differences.

The page fetches nothing and runs no script (its Content-Security-Policy forbids both). All text that comes from runs is
escaped where it enters: by `table`, `tag` and matplotlib's SVG writer.
"""

from __future__ import annotations

import html
import json
import re
import shlex
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

import video_gn
from video_gn.config import Config, flatten, load_config, parse_config
from video_gn.data.targets import labels_of
from video_gn.draw.figures import plot_confusion
from video_gn.engine.optim import PAPER_GPUS
from video_gn.engine.results import protocol, read_results, result_path
from video_gn.errors import UserError
from video_gn.files.atomic import replacing
from video_gn.files.tables import csv_rows
from video_gn.run.log import read_log
from video_gn.run.plots import labels, plot_curves, plot_percentiles
from video_gn.tasks import Figure, Scored, Task, build_task
from video_gn.tasks.intervals import wilson

TABLE8_COLUMNS = ((32, 2, 8), (32, 2, 4), (64, 1, 4))
"""Frames, stride, clips a GPU."""
TABLE8_PAPER = {
    "bn": ((73.3, 90.7), (72.1, 90.0), (73.3, 90.8)),
    "gn": ((73.0, 90.6), (72.8, 90.6), (74.5, 91.7)),
}
"""The paper's top-1 and top-5 in each column."""
TABLE8_EPOCHS = 109  # of the baseline: 400k steps of 64 clips
INK, PAPER = "#010203", "#040506"  # become the page's text and background colours
MAX_COUNTED = 16  # classes: the accuracies of more are folded away
MAX_PAIRS = 15


@dataclass(frozen=True)
class Test:
    """A test's JSON file and what its csv says."""

    path: Path
    result: dict[str, Any]
    """As `engine.test.TestResult.content`."""
    task: Task
    classes: list[str]
    scored: Scored | None
    """The rows of the csv that have scores; None without the csv."""

    @property
    def matrix(self) -> np.ndarray | None:
        """Videos by label and predicted label, int (K, K); None where there is none to draw."""
        if self.scored is None or not self.scored.targets:
            return None
        return self.task.confusion(self.scored.targets, self.scored.predicted)

    @property
    def is_own(self) -> bool:
        """Whether it is the run's own test, of last.pt on the list of its config: such files have the plain name."""
        return self.path == result_path(self.path.parent, self.result["protocol"], ".json")

    @property
    def source(self) -> str:
        """What was tested on what: list, frames x stride, short side, checkpoint and step."""
        r = self.result
        data, side = r["config"].get("data", {}), r["config"].get("test", {}).get("short_side")
        listed = r.get("test_list") or data.get("test_list", "a list")
        content = f" ({digest[:8]})" if (digest := r.get("list_sha256")) else ""
        clips = f"{data.get('frames')} x {data.get('stride')}, short side {side}"
        return f"{listed}{content}, {clips}, {r.get('checkpoint', 'a checkpoint')}, step {r.get('step')}"


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    name: str
    folder: Path
    config: Config
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    tests: list[Test]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == "epoch"]


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page.

    Raises:
        UserError: a folder is not a run's, or holds a file that cannot be read.
    """
    folders = [Path(run).resolve() for run in runs]
    read = [read_run(folder, name) for folder, name in zip(folders, labels(folders), strict=True)]
    out = Path(out)
    text = page(read)
    with replacing(out, "give another --out", parents=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return out


# --- reading ---


def read_run(folder: Path, name: str) -> Run:
    """Read a run's folder; the log, the tests and the environment may be absent.

    Raises:
        UserError: it has neither a config nor a test, or a file of it cannot be read.
    """
    tests = [_read_test(path, result) for path, result in read_results(folder)]
    if (folder / "config.yaml").exists():
        config = load_config(folder / "config.yaml")
    elif tests:  # of a checkpoint on its own
        config = parse_config(tests[0].result["config"], source=str(folder))
    else:
        raise UserError(f"{folder}: no config.yaml and no test_*.json; name the folder of a run, such as runs/demo")
    path = folder / "environment.json"
    environment = _read_json(path) if path.exists() else {}
    records = read_log(folder) if (folder / "log.jsonl").exists() else []
    return Run(name, folder, config, environment, records, tests)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); make it again or remove it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed; make it again or remove it")
    return value


def _read_test(path: Path, result: dict[str, Any]) -> Test:
    _check_has(path, result, {"protocol", "videos_scored", "videos_listed", "config"})
    config = parse_config(result["config"], source=f"{path}: config")
    task = build_task(config)
    _check_has(path, result, {figure.key for figure in (*task.scores, *([task.by_class] if task.by_class else []))})
    table_path = path.with_suffix(".csv")
    if not table_path.exists():
        return Test(path, result, task, [], None)
    try:
        head, *rows = csv_rows(table_path)
        classes = [name.removeprefix("score_") for name in head[4:]]
        task = build_task(config, len(classes))
        scored = [row for row in rows if row[4]]
        targets, predicted = ([task.parse(row[column]) for row in scored] for column in (1, 2))
        scores = np.array([row[4:] for row in scored], dtype=np.float32).reshape(-1, len(classes))
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{table_path}: not a table of scores ({error}); test again or remove it") from None
    return Test(path, result, task, classes, Scored(targets, predicted, scores))


def _check_has(path: Path, result: dict[str, Any], needed: set[str]) -> None:
    if lacking := needed - result.keys():
        raise UserError(f"{path}: has no {min(lacking)}; test again with tools/test.py or remove it")


# --- HTML ---


class Html(str):
    """Text that is HTML already."""


def escaped(value: object) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """An element; its content and attributes are escaped."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{''.join(map(escaped, content))}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], text: int = 1) -> Html:
    """A table that scrolls sideways on a narrow screen. The first `text` columns are text, the others numbers."""

    def cells(name: str, row: Sequence[object]) -> Html:
        return tag("tr", *(tag(name, cell, **({} if k < text else {"class_": "n"})) for k, cell in enumerate(row)))

    body = (cells("td", row) for row in rows)
    return wide(tag("table", tag("thead", cells("th", head)), tag("tbody", *body)))


def wide(content: Html) -> Html:
    return tag("div", content, class_="wide", tabindex="0")


def section(title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=_anchor(title))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def details(summary: str, *content: object, is_open: bool = False) -> Html:
    return tag("details", tag("summary", summary), *content, **({"open": ""} if is_open else {}))


def small(text: str) -> Html:
    return tag("small", text)


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = {
        "Scores": scores(runs),
        "Table 8": table8(runs),
        "Curves": curves(runs),
        "Classes": Html("".join(class_report(run, test) for run in runs for test in run.tests)),
        "Throughput": throughput(runs),
        "Environment": compare(runs, [_flat_environment(run.environment) for run in runs]),
        "Config": compare(runs, [_texts(run.config.model_dump(mode="json")) for run in runs]),
    }
    shown = {name: content for name, content in parts.items() if content}
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in shown]
    made = f"video_gn {video_gn.__version__}, {time.strftime('%Y-%m-%d %H:%M')}"
    body = [tag("h1", title), tag("p", made, class_="quiet"), tag("nav", *links)]
    body += [section(name, content) for name, content in shown.items()]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark">'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{tag("title", title)}<style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #5b6470; --line: #d5dae0; --fill: #4c92dc;
  --link: #0b5cad; --band: #f4f6f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #15181c; --quiet: #9aa4b0; --line: #363c44;
  --link: #7db8f5; --band: #1d2126 } }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.45 system-ui, sans-serif }
main { max-width: 70rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere }
a { color: var(--link) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem }
small, .quiet { color: var(--quiet); font-size: .85em }
small { display: block; min-width: 7rem; max-width: 20rem }
.n small { min-width: 0 }
.wide { overflow-x: auto; margin: .4rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { background: var(--band); padding-left: 0 }
.n { text-align: right; white-space: nowrap; padding-left: .7rem; padding-right: .3rem }
svg { color: var(--ink); height: auto; display: block; max-width: 100% }
svg.chart { min-width: 40rem }
svg.bar { display: inline-block; width: 5rem; height: .7rem; vertical-align: baseline; }
svg.bar + span { display: inline-block; min-width: 3.2rem }
summary { cursor: pointer; margin: .5rem 0 }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem }
.pair > * { min-width: 0 }
@media (max-width: 40rem) { main { padding: .7rem } table { font-size: .8rem } }
@media print { details::details-content { content-visibility: visible } }
"""


# --- sections ---


def scores(runs: Sequence[Run]) -> Html:
    """Every test, and the last validation, with 95 % intervals."""
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
    """The last epoch with a validation, if there is one."""
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
    """A number of a validation, by the log's record of its epoch."""
    if figure.error is None:
        return epoch.get(f"val/{figure.key}")
    error = epoch.get(f"val/{figure.error}")
    return None if error is None else 100 - error


def _numbers(
    figures: Sequence[Figure], run: Run, values: dict[str, Any], intervals: Mapping[str, tuple[float, float]]
) -> list[Html]:
    """A cell for each of the figures; a dash where it is not the run's, or says nothing with so few classes."""
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
    """The paper's Table 8 with the runs that fill its cells beside its figures; empty where none does."""
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
    rows: list[list[object]] = [["batch size (clips a GPU)", *(clips for _, _, clips in TABLE8_COLUMNS)]]
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


def curves(runs: Sequence[Run]) -> Html:
    """All runs' training and validation against epochs; logged percentiles of each run that has them."""
    ended = [run for run in runs if run.epochs]
    parts = []
    if ended:
        folders, names = [run.folder for run in ended], [run.name for run in ended]
        drawn = as_svg(partial(plot_curves, folders, names=names), "errors against epochs", "chart")
        parts.append(wide(drawn))
    if waiting := [run.name for run in runs if not run.epochs]:
        parts.append(tag("p", f"No epoch in the log of {', '.join(waiting)}.", class_="quiet"))
    for run in ended:
        if any(key.startswith("percentiles/") for record in run.epochs for key in record):
            draw = partial(plot_percentiles, run.folder, name=run.name)
            parts.append(as_svg(draw, f"percentiles of {run.name}", "square"))
    return Html("".join(parts))


def as_svg(draw: Callable[[Path], object], name: str, kind: str) -> Html:
    """What `draw(path)` draws, as an SVG whose lines and letters take the page's colour. `kind` is its class."""
    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.edgecolor"), "none")
    style |= {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    style |= {"legend.facecolor": PAPER, "legend.fontsize": "small", "grid.color": "#888888"}
    style["axes.prop_cycle"] = cycler(linestyle=["-", "--", ":"]) * matplotlib.rcParams["axes.prop_cycle"]
    with TemporaryDirectory() as folder, matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the letter
        path = Path(folder) / "figure.svg"
        draw(path)
        text = path.read_text(encoding="utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r' id="[A-Za-z0-9.]+_\d+"', "", text
    )  # figure_1, axes_1: nothing refers to them, and figures share them
    opening = f'<svg class="{kind}" role="img" aria-label="{html.escape(name)}"'
    return Html(opening + text.removeprefix("<svg").replace(INK, "currentColor").replace(PAPER, "var(--paper)"))


def class_report(run: Run, test: Test) -> Html:
    """Confusion matrix, most confused pairs and accuracy by class of one test, or the task's number of each class;
    videos that were not scored."""
    name = f"{run.name}: {test.result['protocol']}"
    parts = [small(test.source)]
    matrix = test.matrix
    if matrix is not None:
        drawn = as_svg(partial(plot_confusion, matrix, test.classes), f"confusion matrix of {name}", "square")
        parts.append(tag("div", tag("div", drawn), tag("div", _pairs(matrix, test.classes)), class_="pair"))
        summary = f"Accuracy of {len(test.classes)} classes, worst first"
        parts.append(details(summary, _per_class(matrix, test.classes), is_open=len(test.classes) <= MAX_COUNTED))
    elif test.task.by_class is not None and test.scored is not None:
        summary = f"{test.task.by_class.name.capitalize()} of {len(test.classes)} classes, worst first"
        parts.append(details(summary, _class_scores(test, test.scored), is_open=len(test.classes) <= MAX_COUNTED))
    if unreadable := test.result.get("unreadable"):
        rows = table(["video", "reason"], unreadable.items(), text=2)
        parts.append(details(f"Videos that could not be read, and have no score: {len(unreadable):,}", rows))
    return Html(tag("h3", name) + "".join(parts)) if len(parts) > 1 else Html("")


def _pairs(matrix: np.ndarray, classes: Sequence[str]) -> Html:
    """The largest counts beside the diagonal, with their share of the class's videos."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [divmod(int(index), len(classes)) for index in order if wrong.flat[index]]
    if not pairs:
        return tag("p", "No video is taken for another class.")
    rows = [[classes[a], classes[b], wrong[a, b], f"{100 * wrong[a, b] / matrix[a].sum():.0f} %"] for a, b in pairs]
    return Html(tag("h3", "Most confused") + table(["class", "taken for", "videos", "of class"], rows, text=2))


def _per_class(matrix: np.ndarray, classes: Sequence[str]) -> Html:
    """Accuracy of each class with videos, worst first."""
    rows = []
    for row in np.argsort(matrix.diagonal() / np.maximum(matrix.sum(1), 1), kind="stable"):
        n, hits = int(matrix[row].sum()), int(matrix[row, row])
        if n:
            low, high = wilson(hits, n)
            rows.append([classes[row], _bar(100 * hits / n), f"{low:.0f} to {high:.0f}", f"{hits:,} of {n:,}"])
    return table(["class", "accuracy (%)", "95 % (Wilson)", "videos right"], rows)


def _class_scores(test: Test, scored: Scored) -> Html:
    """The task's number of each class that has one, worst first; how often it holds, is predicted, and both."""
    figure = test.task.by_class
    assert figure is not None
    holds, predicted, right = (
        Counter(label for found in of for label in found)
        for of in (
            map(labels_of, scored.targets),
            map(labels_of, scored.predicted),
            (set(labels_of(a)) & set(labels_of(b)) for a, b in zip(scored.targets, scored.predicted, strict=True)),
        )
    )
    values = test.result[figure.key]
    rows: list[list[object]] = []
    for label, name in sorted(enumerate(test.classes), key=lambda item: (values.get(item[1]) or 0, item[0])):
        if values.get(name) is not None:
            counts = [f"{counter[label]:,}" for counter in (holds, predicted, right)]
            rows.append([name, _bar(values[name]), *counts])
    return table(["class", f"{figure.name} (%)", "videos with it", "predicted", "of these right"], rows)


def _bar(percent: float) -> Html:
    return Html(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="100" height="10" fill="var(--line)"/>'
        f'<rect width="{percent:.1f}" height="10" fill="var(--fill)"/></svg><span>{percent:.1f}</span>'
    )


def throughput(runs: Sequence[Run]) -> Html:
    """How fast the runs trained and were tested."""
    rows = []
    for run in runs:
        steps = [record for record in run.records if record["kind"] == "train"]

        def values(name: str, steps: list[dict[str, Any]] = steps) -> list[float]:
            return [record[name] for record in steps if record.get(name) is not None]

        speed, wait = values("system/clips_per_second"), values("system/data_wait")
        memory = values("system/memory_gib")
        hours = (run.records[-1]["time"] - run.records[0]["time"]) / 3600 if run.records else None
        tests = [f"{t.result['clips_per_second']:,.1f}" for t in run.tests if t.result.get("clips_per_second")]
        rows.append(
            [
                run.name,
                f"{statistics.median(speed):,.1f}" if speed else "-",
                f"{100 * statistics.median(wait):.1f} %" if wait else "-",
                f"{max(memory):.2f}" if memory else "-",
                f"{run.records[-1]['epoch']:g} of {run.config.train.epochs}" if run.records else "-",
                "-" if hours is None else f"{hours:.2f}",
                Html("<br>".join(tests) or "-"),
            ]
        )
    head = ["run", "training clips/s", "data wait", "memory GiB", "epochs", "hours", "test clips/s"]
    note = "Medians over the log's lines; the largest memory; hours from the first line to the last, pauses included."
    return Html(table(head, rows) + tag("p", note, class_="quiet"))


def compare(runs: Sequence[Run], values: Sequence[dict[str, str]]) -> Html:
    """What differs between the runs; below, folded, what all share."""
    keys = list(dict.fromkeys(key for value in values for key in value))
    if not keys:
        return Html("")
    rows = [[key, *(value.get(key, "-") for value in values)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    parts = []
    if differing:
        lines: list[Sequence[object]] = [["", *(run.name for run in runs)], *differing]
        if len(runs) > len(differing):
            lines = list(zip(*lines, strict=True))  # the longer side goes down the page
        parts.append(table(lines[0], lines[1:], text=len(lines[0])))
    elif len(runs) > 1:
        parts.append(tag("p", "No difference."))
    if same:
        summary = "All values" if len(runs) == 1 else f"{len(same)} values that all runs share"
        parts.append(details(summary, table(["", "value"], same, text=2)))
    return Html("".join(parts))


def _texts(tree: dict[str, Any]) -> dict[str, str]:
    """Nested values by dotted key, as text."""
    return {key: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in flatten(tree).items()}


def _flat_environment(environment: dict[str, Any]) -> dict[str, str]:
    command = environment.get("command")
    readable = environment | ({"command": shlex.join(command)} if isinstance(command, list) else {})
    return _texts(readable)
