"""A trained network from a checkpoint."""

from __future__ import annotations

import torch

from video_gn.config import Config
from video_gn.errors import UserError
from video_gn.models import Network, build_network, memory_format
from video_gn.run import checkpoint as ckpt
from video_gn.tasks import DEFAULT_TASK


def load_network(
    checkpoint: ckpt.Checkpoint, config: Config, device: str | torch.device = "cpu", *, source: str
) -> Network:
    """Build a checkpoint's network for use: in evaluation mode, its parameters requiring no gradient.

    Args:
        checkpoint: as `video_gn.run.checkpoint.load` returns it.
        config: the checkpoint's own, or that with changes outside the model section.
        device: where the network is put, in the config's memory format.
        source: the checkpoint's path, for errors.

    Raises:
        UserError: the weights are those of another network than the config describes, or it was trained for another
            task.
    """
    trained = checkpoint.get("config", {}).get("task", DEFAULT_TASK)
    if config.task != trained:
        raise UserError(f"{source}: task is {config.task}, and the network was trained for {trained}; leave task out")
    model = build_network(config)
    if config.optim.ema_decay is not None:  # what is scored is the average
        average = {k.removeprefix("module."): v for k, v in checkpoint["ema"].items() if k != "n_averaged"}
        checkpoint = checkpoint | {"model": average}
    ckpt.load_model(model, checkpoint, source)
    model.to(device, memory_format=memory_format(config, torch.device(device)))  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)
