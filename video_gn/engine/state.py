"""What a checkpoint holds of a training run, and how a run begins: anew, from given weights, or where it stopped.

A checkpoint is exact at any step without the state of a random number generator or of a sampler: clips are drawn by
functions of (seed, epoch, position), dropout and mixing by ones of (seed, step, micro-batch), nothing else is random.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video_gn.console import say
from video_gn.engine.datasets import other_classes, trained_classes
from video_gn.errors import UserError
from video_gn.models.inflate import HEAD, initialize
from video_gn.models.weights import read_weights
from video_gn.run import checkpoint as ckpt
from video_gn.run.folder import open_run, save_last
from video_gn.run.log import Writers

if TYPE_CHECKING:
    from video_gn.engine.train import Trainer


def save(trainer: Trainer, writers: Writers | None, *, last: bool = True, best: bool = False) -> None:
    """Write last.pt or best.pt or both; all ranks call this. Each rank's running statistics are its own."""
    trainer.feed.unreadable.share()
    buffers = {name: buffer.cpu() for name, buffer in trainer.model.named_buffers()}
    ranks = trainer.world.gather({"interval": trainer.window.metrics.state.cpu(), "buffers": buffers})
    trainer.world.first(lambda: _write(trainer, ranks, writers, last, best))
    if last:
        trainer.saved_at = time.monotonic()


def _write(trainer: Trainer, ranks: list[dict[str, Any]], writers: Writers | None, last: bool, best: bool) -> None:
    assert writers is not None
    loop: dict[str, Any] = {
        "epochs_done": trainer.epochs_done,
        "log_lines": writers.lines,
        "bad_steps": trainer.skipped.count,
        "epoch": trainer.epoch_metrics.state.cpu(),
        "ranks": ranks,
    }
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "step": trainer.step_done,
        "best_error": trainer.best_error,
        "config": trainer.config.model_dump(mode="json"),
        "class_names": trainer.class_names,
        "lists": trainer.lists,
        "loop": loop,
    }
    if trainer.ema is not None:
        state["ema"] = trainer.ema.state_dict()
    if trainer.scaler.is_enabled():
        loop["scaler"] = trainer.scaler.state_dict()
    writers.sync()
    if best:  # first: a kill before last.pt does this epoch's end again, one after it would leave best.pt behind
        ckpt.save(trainer.folder / "checkpoints" / ckpt.BEST, state)
    if last:
        save_last(trainer.folder, state, trainer.config.checkpoint.keep)


def begin(trainer: Trainer) -> None:
    """Open the run folder on rank 0 and take its last checkpoint, if any, on all ranks; else `model.init_from`."""
    if not trainer.world.first(lambda: ckpt.exists(trainer.folder / "checkpoints")):
        _initialize(trainer)  # first, so that weights which do not fit leave no folder behind
    _check_classes(trainer, str(trainer.folder / "checkpoints" / ckpt.LAST), "choose another output_dir")
    state = trainer.world.first(lambda: open_run(trainer.config, trainer.lists, asdict(trainer.plan)))
    if state is not None:
        _restore(trainer, state)


def _initialize(trainer: Trainer) -> None:
    """Load weights of `model.init_from`, read on rank 0, and say what became of each."""
    model = trainer.config.model
    if model.init_from is None:
        return
    source = model.init_from
    weights, what = trainer.world.first(lambda: read_weights(source))
    report = initialize(trainer.model, weights, drop=model.init_drop)
    if any(key.startswith(HEAD) for key in report.copied):
        _check_classes(trainer, source, f"set model.init_drop=['{HEAD}*']")
    if trainer.ema is not None:
        trainer.ema.module.load_state_dict(trainer.model.state_dict())
    if trainer.world.is_main:
        say(f"{source}: {what}\n{report}")


def _check_classes(trainer: Trainer, checkpoint: str, remedy: str) -> None:
    """Raise UserError where a checkpoint, if it is there, has a classifier of other classes than this run."""
    names = trainer.world.first(lambda: trained_classes(checkpoint))
    data = trainer.config.data
    source = data.class_names or f"the folder of {data.train_list}"
    if (problem := other_classes(names, trainer.class_names, source)) is not None:
        raise UserError(f"{checkpoint}: {problem}; correct the names, or for other classes {remedy}")


def _restore(trainer: Trainer, state: ckpt.Checkpoint) -> None:
    ckpt.load_model(trainer.model, state, str(trainer.folder))
    fused = trainer.optimizer.defaults["fused"]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group in trainer.optimizer.param_groups:
        group["fused"] = fused  # of this device, and not of the one that wrote the checkpoint
    trainer.step_done, trainer.best_error = state["step"], state["best_error"]
    loop = state["loop"]
    trainer.epochs_done, trainer.log_lines = loop["epochs_done"], loop["log_lines"]
    trainer.skipped.count = loop["bad_steps"]
    trainer.epoch_metrics.state += loop["epoch"].to(trainer.world.device)
    if trainer.ema is not None:
        trainer.ema.load_state_dict(state["ema"])
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(loop["scaler"])
    # Of another number of ranks, each share still counts once; the running statistics are then some rank's.
    shares, rank = loop["ranks"], trainer.world.rank
    set_buffers(trainer.model, shares[rank % len(shares)]["buffers"])
    for share in shares[rank :: trainer.world.size]:
        trainer.window.metrics.state += share["interval"].to(trainer.world.device)
    trainer.window.clips_before = sum(int(share["interval"][-1]) for share in shares)


def copy_of_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers, such as running statistics, by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def set_buffers(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Put the buffers back to what `copy_of_buffers` gave."""
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])
