"""A run's folder: config.yaml, environment.json, log.jsonl, TensorBoard events, checkpoints/, test_*, ..."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import video_gn
from video_gn.config import Config, differences, load_config, parse_config, to_yaml
from video_gn.console import say
from video_gn.errors import UserError
from video_gn.files.atomic import is_temporary, write_text
from video_gn.run import checkpoint as ckpt
from video_gn.run.checkpoint import Checkpoint
from video_gn.run.lock import LOCK
from video_gn.run.log import EVENTS, restore_log

CHECKPOINTED = ".checkpointed"
"""Empty file in a run's folder once it has had a last.pt: without one it is not a run killed in its first epoch."""

FREE_TO_CHANGE = {
    *(
        "data.root",
        "data.absolute_paths",
        "data.train_list",
        "data.val_list",
        "data.test_list",
        "data.class_names",
    ),  # lists: by content
    *("data.workers", "data.max_unreadable", "data.timeout", "data.quarantine"),
}
"""Values of the model, data and optim sections that do not change what a run computes."""
SAME_RESULT = (FREE_TO_CHANGE - {"data.train_list", "data.val_list", "data.quarantine"}) | {
    *("output_dir", "device", "resume", "train.log_every", "train.max_bad_steps"),
    *("checkpoint.every_epochs", "checkpoint.every_minutes", "checkpoint.keep"),
}
"""Values that finished runs of one experiment and seed may differ in. Lists count by name: data.root is a machine's."""


def open_run(config: Config, lists: dict[str, str], derived: dict[str, object] | None = None) -> Checkpoint | None:
    """Make or reopen the run's folder; return the checkpoint to resume from, if there is one.

    Args:
        lists: hash of each data list, as `Checkpoint` holds them.
        derived: what follows from the config and the number of ranks; goes into environment.json.

    Raises:
        UserError: the folder holds another experiment, or its checkpoints are damaged. Nothing is written then.
    """
    folder = Path(config.output_dir)
    state = _resumable(folder, config, lists)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(config), ckpt.ELSEWHERE)  # first: it says whose folder this is
        (folder / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the run's folder ({error.strerror}); set output_dir") from None
    facts = environment() | {"derived": derived or {}}
    write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n", ckpt.ELSEWHERE)
    if state is not None:
        _check_best(folder / "checkpoints" / ckpt.BEST, state)
        restore_log(folder, state["loop"]["log_lines"])
    return state


def save_last(folder: Path, state: Checkpoint, keep: int) -> None:
    """Write the run's last.pt (`checkpoint.save_last`), and remember that there has been one."""
    ckpt.save_last(folder / "checkpoints", state, keep)
    (folder / CHECKPOINTED).touch()


def _resumable(folder: Path, config: Config, lists: dict[str, str]) -> Checkpoint | None:
    """Return the checkpoint to resume from, after checking that the folder is this experiment's or new."""
    if not folder.is_dir() or all(path.name == LOCK or is_temporary(path) for path in folder.iterdir()):
        return None  # at most, a start was killed before it had written the first file
    checkpoints = folder / "checkpoints"
    if not os.path.lexists(folder / "config.yaml"):
        if not ckpt.exists(checkpoints):
            raise UserError(f"{folder}: not empty and not a run's folder; choose another output_dir")
        say(f"warning: {folder / 'config.yaml'} is missing; written again from this command")
    _check_no_folder_in_the_way(folder, config.checkpoint.keep)
    if config.resume == "never":
        raise UserError(f"{folder}: holds a run, and resume is never; choose another output_dir or delete the folder")
    state = ckpt.load_last(checkpoints, say)
    if state is None:
        _check_no_history(folder)
        _check_same_experiment(folder, load_config(folder / "config.yaml"), config)
        return None  # it ended before its first checkpoint
    if not {"optimizer", "best_error", "lists", "loop"} <= state.keys():
        raise UserError(f"{folder}: its checkpoint has weights but no training state; choose another output_dir")
    old = parse_config(state["config"], source=f"{folder}: config of its checkpoint")
    _check_same_experiment(folder, old, config)
    for name, digest in lists.items():
        if state["lists"][name] != digest:
            raise UserError(f"{folder}: the {name} list has changed since this run began; choose another output_dir")
    return state


def _check_no_history(folder: Path) -> None:
    """Raise UserError where there has been a checkpoint: a start from scratch would end what was trained."""
    began = (folder / "checkpoints").is_dir()  # made before the log
    logs = [name for name in ("log.jsonl", EVENTS) if any(folder.glob(name))]
    if (folder / CHECKPOINTED).exists() or (logs and not began):
        best = folder / "checkpoints" / ckpt.BEST
        hint = f" (or copy {ckpt.BEST} to {ckpt.LAST}, to resume from its epoch)" if best.exists() else ""
        raise UserError(
            f"{folder}: a run that has lost its checkpoints; put checkpoints/{ckpt.LAST} back{hint}, or, to train from "
            "scratch, choose another output_dir or delete the folder"
        )


def _check_no_folder_in_the_way(folder: Path, keep: int) -> None:
    """Raise UserError where a folder has the name of a file that the run is going to write."""
    names = ["config.yaml", "environment.json", "log.jsonl", "unreadable.txt", CHECKPOINTED]
    files = [folder / name for name in names] + ckpt.files_to_write(folder / "checkpoints", keep)
    for path in files:
        if path.is_dir() and path.name not in (ckpt.LAST, ckpt.BEST):  # these are set aside, as damaged ones
            raise UserError(
                f"{folder}: {path.relative_to(folder)} is a folder, and the run writes a file of that name; move it "
                "away or choose another output_dir"
            )


def _check_best(path: Path, state: Checkpoint) -> None:
    """Name a missing or damaged best.pt, and let the next evaluation write it again, whatever its error."""
    if state["best_error"] == math.inf:  # none has been written
        return
    again = "the next evaluation, if there is one, writes it again"
    if not os.path.lexists(path):
        say(f"warning: {path} is missing; {again}")
    else:
        try:
            ckpt.load(path)
            return
        except UserError as error:
            say(f"warning: {error}; set aside as {ckpt.set_aside(path, 'damaged').name}, and {again}")
    state["best_error"] = math.inf


def _check_same_experiment(folder: Path, old: Config, new: Config) -> None:
    changed = list(differences(old, new))
    fixed = "; ".join(f"{key}: {a} -> {b}" for key, a, b in changed if _is_fixed(key))
    if fixed:
        raise UserError(f"{folder}: holds another experiment ({fixed}); choose another output_dir or delete the folder")
    for key, a, b in changed:
        say(f"resuming with {key}: {a} -> {b}")


def _is_fixed(key: str) -> bool:
    counted = {"train.clips_per_gpu", "train.global_batch", "seed"}  # they say what a step number means
    sections = {"task", "classification", "model", "data", "optim"}
    return (key.split(".")[0] in sections and key not in FREE_TO_CHANGE) or key in counted


def environment() -> dict[str, object]:
    """Versions, machine and command: what one needs to know to run the same thing again."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "video_gn": video_gn.__version__,
        "git_commit": _git_commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpus": gpus,
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed copy."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
