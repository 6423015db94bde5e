"""The runs of a study, each with its config, and the commands that start them."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_gn.config import Config, load_config
from video_gn.errors import UserError
from video_gn.run.checkpoint import LAST
from video_gn.study.schema import RESERVED, Study, cell_name, config_path, show


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


def as_override(key: str, value: Any) -> str:
    """key=value, as `load_config` and the tools take it."""
    return f"{key}={show(value)}"


def commands(study: Study, path: str | Path, runs: Iterable[Run]) -> list[str]:
    """Return a shell command for each run, to be started as a job of its own."""
    lines = []
    for run in runs:
        command = shlex.join(["python", "tools/train.py", config_path(study, path), *run.overrides])
        if study.measure == "test":
            command += " && " + shlex.join(["python", "tools/test.py", str(run.folder / "checkpoints" / LAST)])
        lines.append(command)
    return lines
