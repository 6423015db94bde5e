"""A run's folder: config.yaml, environment.json, log.jsonl, TensorBoard events, checkpoints/, test_*, ..."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import video_gn
from video_gn.config import Config, differences, load_config, parse_config, to_yaml
from video_gn.console import say
from video_gn.engine import checkpoint as ckpt
from video_gn.engine.checkpoint import Checkpoint
from video_gn.engine.lock import LOCK
from video_gn.errors import UserError

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
    """Make or reopen the run's folder; returns the checkpoint to go on from, if there is one.

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
        ckpt.write_text(folder / "config.yaml", to_yaml(config))  # first: it tells the next start whose folder this is
        (folder / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the run's folder ({error.strerror}); set output_dir") from None
    facts = environment() | {"derived": derived or {}}
    ckpt.write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")
    return state


def _resumable(folder: Path, config: Config, lists: dict[str, str]) -> Checkpoint | None:
    """The checkpoint to go on from, after checking that the folder is this experiment's or new."""
    if not folder.is_dir() or all(path.name in (".config.yaml.tmp", LOCK) for path in folder.iterdir()):
        return None  # at most, a start was killed before it had written the first file
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder}: not empty and not a run's folder; choose another output_dir")
    if config.resume == "never":
        raise UserError(f"{folder}: holds a run, and resume is never; choose another output_dir or delete the folder")
    state = ckpt.load_last(folder / "checkpoints", say)
    if state is None:  # it ended before its first checkpoint
        _check_same_experiment(folder, load_config(folder / "config.yaml"), config)
        return None
    if not {"optimizer", "best_error", "lists", "loop"} <= state.keys():
        raise UserError(f"{folder}: its checkpoint has weights but no training state; choose another output_dir")
    old = parse_config(state["config"], source=f"{folder}: config of its checkpoint")
    _check_same_experiment(folder, old, config)
    for name, digest in lists.items():
        if state["lists"][name] != digest:
            raise UserError(f"{folder}: the {name} list has changed since this run began; choose another output_dir")
    return state


def _check_same_experiment(folder: Path, old: Config, new: Config) -> None:
    changed = list(differences(old, new))
    fixed = "; ".join(f"{key}: {a} -> {b}" for key, a, b in changed if _is_fixed(key))
    if fixed:
        raise UserError(f"{folder}: holds another experiment ({fixed}); choose another output_dir or delete the folder")
    for key, a, b in changed:
        say(f"resuming with {key}: {a} -> {b}")


def _is_fixed(key: str) -> bool:
    counted = {"train.clips_per_gpu", "train.global_batch", "seed"}  # they say what a step number means
    return (key.split(".")[0] in {"model", "data", "optim"} and key not in FREE_TO_CHANGE) or key in counted


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
