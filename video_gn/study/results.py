"""What the run folders of a study say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from video_gn.config import differences, load_config, parse_config
from video_gn.engine.results import read_results
from video_gn.errors import UserError
from video_gn.run.checkpoint import LAST
from video_gn.run.folder import SAME_RESULT
from video_gn.run.plots import monitored_by_epoch, read_epochs
from video_gn.study.plan import Run
from video_gn.tasks import build_task

MEDIAN_OF = 5  # epochs; section 4.1 of the paper
SAME_SCORE = (SAME_RESULT - {"data.test_list"}) | {"test.clips_per_batch", "test.max_unreadable"}
"""Values that two tests of one checkpoint and one score may differ in."""


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
        """Return what the table shows."""
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


def check_folder(run: Run) -> None:
    """Raise UserError where the run's folder holds a run that would have come out otherwise."""
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
    """Return the result of a run; None where it, or the test that `measure` asks for, is not finished.

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
    """Return the first score of the run's own test of last.pt after `step`, if no more videos than allowed lack one."""
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
