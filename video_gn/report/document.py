"""The page and its sections on training: curves, speed, environment, config."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import video_gn
from video_gn.config import flatten
from video_gn.report.classes import class_report
from video_gn.report.html import STYLE, Html, _anchor, as_svg, details, section, table, tag, wide
from video_gn.report.read import Run
from video_gn.report.scoring import scores, table8
from video_gn.run.plots import plot_curves, plot_percentiles


def page(runs: Sequence[Run]) -> str:
    """Return the page."""
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


def curves(runs: Sequence[Run]) -> Html:
    """Return all runs' training and validation against epochs; logged percentiles of each run that has them."""
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


def throughput(runs: Sequence[Run]) -> Html:
    """Return how fast the runs trained and were tested."""
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
    """Return what differs between the runs; below, folded, what all share."""
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
    """Return nested values by dotted key, as text."""
    return {key: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in flatten(tree).items()}


def _flat_environment(environment: dict[str, Any]) -> dict[str, str]:
    command = environment.get("command")
    readable = environment | ({"command": shlex.join(command)} if isinstance(command, list) else {})
    return _texts(readable)
