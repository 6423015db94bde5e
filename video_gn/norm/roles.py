"""Roles of norms, found by what a layer keeps rather than by its class: a new norm has them without being mentioned.

- A buffer `running_*` is a **running statistic**, which training forward passes update. It is averaged over ranks
  before it is used or saved, and each micro-batch counts once, also where activation checkpointing runs a forward pass
  twice.
- `constant_statistics = True` in a class says that such buffers are constants (`frozen_bn`).
- `precise_statistics = True` says that `running_mean` and `running_var` estimate the mean and the variance per channel
  of the norm's input, and that its training forward pass does not read them. Precise BN may then measure them instead.

A norm in evaluation mode within a network in training mode is frozen, and its statistics are constants as well.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(norm: nn.Module) -> dict[str, Tensor]:
    """Return the buffers `running_*` that the layer's own training forward passes update, by name."""
    if getattr(norm, "constant_statistics", False):
        return {}
    return {name: buffer for name, buffer in norm.named_buffers(recurse=False) if name.startswith("running_")}


def stateful_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that keep running statistics and are not frozen, input to output."""
    return [m for m in model.modules() if running_statistics(m) and (m.training or not model.training)]


def precise_norms(model: nn.Module) -> list[nn.Module]:
    """Return those of `stateful_norms` whose statistics precise BN measures."""
    return [m for m in stateful_norms(model) if _is_precise(m)]


def _is_precise(norm: nn.Module) -> bool:
    # PyTorch's own Batch Norms have the role, and no attribute to say so.
    return getattr(norm, "precise_statistics", isinstance(norm, _BatchNorm))


def recomputes_compiled(block: nn.Module) -> bool:
    """Return whether torch.compile may run the block's forward pass twice, as activation checkpointing does.

    It leaves out the second update of PyTorch's Batch Norm, which is within one operator, and repeats any other.
    """
    return all(isinstance(m, _BatchNorm) for m in block.modules() if any(True for _ in m.buffers(recurse=False)))


class StartingBuffers:
    """While open, the block's buffers are copies of those at construction; on leaving it has its own again.

    For the forward pass that activation checkpointing runs a second time. It leaves no trace, so that running
    statistics and counts see each micro-batch once; and a norm whose output depends on them (`brn`) begins with those
    that the first pass began with, and gives the same output.
    """

    def __init__(self, block: nn.Module) -> None:
        self.owners = [(m, name) for m in block.modules() for name, _ in m.named_buffers(recurse=False)]
        self.start = [getattr(module, name).clone() for module, name in self.owners]

    def __enter__(self) -> None:
        self.now = [getattr(module, name) for module, name in self.owners]
        self._put([buffer.clone() for buffer in self.start])

    def __exit__(self, *_: object) -> None:
        self._put(self.now)

    def _put(self, buffers: list[Tensor]) -> None:
        for (module, name), buffer in zip(self.owners, buffers, strict=True):
            setattr(module, name, buffer)
