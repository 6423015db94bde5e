"""Runs as their folders hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from video_gn.config import Config, load_config, parse_config
from video_gn.engine.results import read_results, result_path
from video_gn.errors import UserError
from video_gn.files.tables import csv_rows
from video_gn.run.log import read_log
from video_gn.tasks import Scored, Task, build_task


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
        """Return whether it is the run's own test, of last.pt on its config's list: such files have the plain name."""
        return self.path == result_path(self.path.parent, self.result["protocol"], ".json")

    @property
    def source(self) -> str:
        """Return what was tested on what: list, frames x stride, short side, checkpoint and step."""
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
