"""A study: one config trained over a grid of values and seeds, and its results as a table, a csv and two figures.

A study file (configs/studies/) is YAML of the schema `Study`. Each run is an ordinary run folder, made as
``tools/train.py`` makes it, in OUT/CELL/seedN.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from video_gn.config import flatten
from video_gn.console import say
from video_gn.data.motion import write_dataset
from video_gn.data.workers import WorkerLost
from video_gn.distributed.world import World, world
from video_gn.engine.health import TooManyUnreadable
from video_gn.engine.test import test_checkpoint
from video_gn.engine.train import train
from video_gn.errors import UserError
from video_gn.files.atomic import write_text
from video_gn.run.checkpoint import LAST
from video_gn.run.lock import hold_on_rank0
from video_gn.study.plan import Run, as_override, commands, plan_runs
from video_gn.study.report import make_folder, write_report
from video_gn.study.results import check_folder, read_result
from video_gn.study.schema import Motion, Study, load_study

__all__ = [
    "Motion",
    "Run",
    "Study",
    "as_override",
    "commands",
    "load_study",
    "plan_runs",
    "render_motion",
    "run_study",
    "write_report",
]


def run_study(study: Study, runs: Sequence[Run], out: Path) -> None:
    """Train (and test) what is not finished, in order; write the report after each run, at the end print the table.

    All ranks call this.

    Raises:
        UserError: runs failed; the others were run.
    """
    failed: list[str] = []
    seconds: list[float] = []
    with world(runs[0].config.device) as ranks, hold_on_rank0(out, ranks):  # one world: it cannot be opened twice
        ranks.first(partial(make_folder, out))
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
