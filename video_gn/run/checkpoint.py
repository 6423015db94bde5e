"""Checkpoints: written completely or not at all, with a digest of every byte; read without running code."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from video_gn.errors import UserError
from video_gn.files import digest
from video_gn.files.atomic import remove_leftovers, replacing, sync, sync_names, write_error
from video_gn.models.weights.unpickling import Refused, load_torch

Checkpoint = dict[str, Any]
"""model, optimizer, step, best_error, config (nested dict of the resolved config), class_names (by label), lists (see
`train.fingerprint`) and loop (what else `train.Trainer` needs to resume)."""

LAST, BEST = "last.pt", "best.pt"
ELSEWHERE = "choose another output_dir"
OLDER = re.compile(r"previous(?:_([2-9]|[1-9][0-9]+))?\.pt")
"""Names of the checkpoints before `last.pt`; the number is that of `_previous`, from 2."""


def save_last(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> None:
    """Write `last.pt`; the ones before become `previous.pt`, `previous_2.pt`, ..., so that `keep` stay.

    A kill at any moment leaves as many intact ones as there were, but for the oldest.

    Raises:
        UserError: the disk is full, or another reason why nothing can be written.
    """
    names = [LAST, *map(_previous, range(1, keep))]
    for name in (LAST, BEST):
        remove_leftovers(folder / name)
    with replacing(folder / LAST, ELSEWHERE, durable=False) as temporary:
        _write(checkpoint, temporary)
        sync(temporary)  # before the older ones move
        for newer, older in reversed(list(itertools.pairwise(names))):
            _move(folder / newer, folder / older)
    for path in newest_first(folder):
        if path.name not in names:  # `keep` was larger before
            _remove(path)
    sync_names(folder)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path` atomically. Raises UserError if it cannot be written."""
    with replacing(path, ELSEWHERE) as temporary:
        _write(checkpoint, temporary)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, after checking its digest.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this package.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {os.readlink(path)}, which is missing; use another checkpoint of the run")
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a checkpoint; name a file such as {LAST} in it")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; a run's checkpoints are in runs/NAME/checkpoints/")
    try:
        checkpoint = load_torch(path)
    except Refused as refused:
        raise UserError(f"{path}: not a checkpoint of video_gn: {refused}") from None
    except Exception as error:  # many kinds, for a damaged or foreign file
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path}: damaged or not a checkpoint ({reason:.120}); use another one of the run") from None
    if not isinstance(checkpoint, dict) or not {"model", "config", "step"} <= set(checkpoint):
        raise UserError(f"{path}: not a checkpoint of video_gn (no model, config and step in it)")
    model = checkpoint["model"]
    names = checkpoint.get("class_names", [])
    whole = isinstance(checkpoint["config"], dict) and isinstance(model, dict) and isinstance(names, list)
    whole = whole and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in model.items())
    if not whole or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: not a checkpoint of video_gn (its config, model or names are something else)")
    _rename_keys(checkpoint["config"])
    return checkpoint


def _rename_keys(config: dict[str, Any]) -> None:
    """Give the keys of a config their present names: checkpoints outlive them."""
    data = config.get("data")
    if isinstance(data, dict) and "colour_jitter" in data:
        data["color_jitter"] = data.pop("colour_jitter")


def exists(folder: Path) -> bool:
    """Return whether a run's folder of checkpoints holds one to resume from, intact or not."""
    return bool(newest_first(folder))


def load_last(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint of a run to resume from; None where there is none at all.

    A damaged one is set aside as `last.pt.damaged` (or so), so that it never takes the place of an intact one.

    Raises:
        UserError: there are checkpoints, but none is intact.
    """
    paths = newest_first(folder)
    for stray in sorted(set(folder.glob("previous*.pt")) - set(paths)):
        warn(f"{stray}: not a name that a run writes; left alone")
    for path in paths:
        try:
            checkpoint = load(path)
        except UserError as error:
            warn(f"warning: {error}")
            continue
        if path.name != LAST:
            missing = f"{folder / LAST} is missing; " if paths[0].name != LAST else ""
            warn(f"{missing}going on from {path.name}, after step {checkpoint['step']}")
        for damaged in paths[: paths.index(path)]:
            set_aside(damaged, "damaged")
        return checkpoint
    if paths:
        raise UserError(f"{folder}: no checkpoint is intact; start again in another output_dir")
    return None


def load_model(model: torch.nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """Load the checkpoint's weights. Raises UserError, naming a key, where they are those of another network."""
    ours, theirs = model.state_dict(), checkpoint["model"]
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in theirs or key not in ours:
            where = "the checkpoint" if key not in theirs else "the configured model"
            raise UserError(
                f"{source}: weights of another network ({key} is missing in {where}); match the model section"
            )
        if ours[key].shape != theirs[key].shape:
            shapes = f"{list(theirs[key].shape)}, configured {list(ours[key].shape)}"
            raise UserError(f"{source}: weights of another network ({key} is {shapes}); match the model section")
    model.load_state_dict(theirs)


def _previous(number: int) -> str:
    """Name of the checkpoint that is `number` older than `last.pt`."""
    return "previous.pt" if number == 1 else f"previous_{number}.pt"


def newest_first(folder: Path) -> list[Path]:
    """Return the files that a run may resume from, intact or not, dangling links included."""
    found = (OLDER.fullmatch(path.name) for path in folder.glob("previous*.pt"))
    numbers = sorted(int(match[1] or 1) for match in found if match)
    return [path for path in (folder / LAST, *(folder / _previous(n) for n in numbers)) if os.path.lexists(path)]


def set_aside(path: Path, why: str) -> Path:
    """Rename `path` to the first free one of NAME.WHY, NAME.WHY_2, ..., and return it."""
    names = itertools.chain([why], (f"{why}_{number}" for number in itertools.count(2)))
    free = next(new for name in names if not os.path.lexists(new := path.with_name(f"{path.name}.{name}")))
    os.replace(path, free)
    return free


def files_to_write(folder: Path, keep: int) -> list[Path]:
    """Return the checkpoints of a run's folder, those to come included."""
    return [folder / name for name in (LAST, BEST, *map(_previous, range(1, keep)))]


def _write(checkpoint: Checkpoint, path: Path) -> None:
    with path.open("w+b") as file:
        digest.save(checkpoint, file)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise write_error(path, error, ELSEWHERE) from None


def _move(newer: Path, older: Path) -> None:
    """Let a checkpoint, if there is one, take the place of the one before."""
    try:
        os.replace(newer, older)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise write_error(older, error, ELSEWHERE) from None
