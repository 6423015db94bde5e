"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from video_gn.errors import UserError
from video_gn.models.weights.unpickling import Refused, load_torch

Checkpoint = dict[str, Any]
"""model, optimizer, step, best_error, config (nested dict of the resolved config), class_names (by label), lists (see
`train.fingerprint`) and loop (what else `train.Trainer` needs to go on)."""

LAST, BEST = "last.pt", "best.pt"


def save_last(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> None:
    """Write `last.pt`; the ones before become `previous.pt`, `previous_2.pt`, ..., so that `keep` stay.

    A kill at any moment leaves as many whole ones as there were, but for the oldest.
    """
    temporary = _write_beside(folder / LAST, lambda file: torch.save(checkpoint, file))
    names = [LAST, *map(_previous, range(1, keep))]
    for newer, older in reversed(list(itertools.pairwise(names))):
        if (folder / newer).exists():
            os.replace(folder / newer, folder / older)
    os.replace(temporary, folder / LAST)
    for path in _newest_first(folder):
        if path.name not in names:  # `keep` was larger before
            path.unlink()
    _sync_folder(folder)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path` in one move."""
    os.replace(_write_beside(path, lambda file: torch.save(checkpoint, file)), path)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    os.replace(_write_beside(path, lambda file: file.write(text.encode("utf-8"))), path)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, checksums included.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this package.
    """
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
    return checkpoint


def exists(folder: Path) -> bool:
    """Whether a run's folder of checkpoints holds one to go on from, whole or not."""
    return bool(_newest_first(folder))


def load_last(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a run to go on from; None where there is none at all.

    A damaged one is set aside as `last.pt.damaged` (or so), so that it never takes the place of a whole one.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            checkpoint = load(path)
        except UserError as error:
            warn(f"warning: {error}")
            continue
        if path != paths[0]:
            warn(f"going on from {path.name}, after step {checkpoint['step']}")
            for damaged in paths[: paths.index(path)]:
                os.replace(damaged, damaged.with_name(f"{damaged.name}.damaged"))
        return checkpoint
    if paths:
        raise UserError(f"{folder}: no checkpoint is whole; start again in another output_dir")
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


def _newest_first(folder: Path) -> list[Path]:
    """The files a run may go on from, whole or not."""
    numbers = [int(path.stem.partition("_")[2] or 1) for path in folder.glob("previous*.pt")]
    return [path for path in (folder / LAST, *(folder / _previous(n) for n in sorted(numbers))) if path.exists()]


def _write_beside(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write and fsync a temporary file beside `path`, and return it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer hides a full disk behind a RuntimeError
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"{path}: cannot be written ({cause.strerror}); free space or choose another output_dir"
        ) from None
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
