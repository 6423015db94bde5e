"""Frozen parts of a network: no gradient is computed for them, and their norms stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from video_gn.errors import UserError

if TYPE_CHECKING:  # networks need no pydantic
    from typing_extensions import Self

    from video_gn.config import OptimConfig

HEAD = "head"


class Freezable(nn.Module):
    """A network whose named parts can be frozen; `train()` leaves these in evaluation mode.

    Running statistics of a frozen part stay as they are, since its norms use them instead of a batch's. An optimizer
    skips its parameters, which never get a gradient: neither weight decay nor momentum moves them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()
        """Names of the frozen modules, such as stem or res4.0."""

    def freeze(self, names: Sequence[str]) -> None:
        """Freeze the modules of these names. Call it before the network is given to DistributedDataParallel.

        Raises:
            UserError: there is no such module, or it has no parameters and buffers; nothing would be left to train.
        """
        modules = dict(self.named_modules())
        for name in names:
            if name not in modules or not modules[name].state_dict() or not name:
                inner = next(n for n, module in modules.items() if "." in n and module.state_dict())
                raise UserError(
                    f"optim.freeze: {name!r} is not a part of this network; its parts are "
                    f"{', '.join(parts(self))}, and the modules in them, such as {inner}"
                )
            modules[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(f"{', '.join(names)} frozen: nothing is left to train; leave a part out of optim.freeze")
        self.frozen = tuple(names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def parts(model: nn.Module) -> list[str]:
    """Return the names of a network's parts that have weights, input to output: stem, res2, ..., head."""
    return [name for name, module in model.named_children() if module.state_dict()]


def parts_to_freeze(model: nn.Module, optim: OptimConfig) -> list[str]:
    """Return what a config's `optim` section freezes: all but the head with `body_lr` 0, and the parts of `freeze`."""
    body = [name for name in parts(model) if name != HEAD] if optim.body_lr == 0 else []
    return list(dict.fromkeys([*body, *optim.freeze]))


def frozen_modules(model: nn.Module) -> set[nn.Module]:
    """Return the frozen modules of any network, those within frozen parts included."""
    return {module for name in getattr(model, "frozen", ()) for module in model.get_submodule(name).modules()}
