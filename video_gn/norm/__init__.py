"""Normalization layers, selected by name from one table.

All accept x of shape (N, C, *), where * is (H, W) for images and (T, H, W) for clips (section 4.3), with one class for
both. All but `none` have one gamma and one beta per channel (equation 6) and eps 1e-5. Statistics are biased (equation
2), in float32 whatever the dtype of x, and the result has x's dtype.

Importing this package does not import torch, so that a config can be checked without it: a norm's module is imported
when a norm of that name is first made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from video_gn.errors import UserError
from video_gn.norm.options import NormOptions

if TYPE_CHECKING:
    from torch import nn

    from video_gn.norm.group_norm import GroupNorm as GroupNorm
    from video_gn.norm.group_norm import normalize as normalize

__all__ = ["NORMS", "GroupNorm", "NormFactory", "NormOptions", "norm_factory", "normalize"]

NormFactory = Callable[[int], "nn.Module"]
"""Makes the norm for a given number of channels. A norm of your own can be passed as such a callable."""

Make = Callable[[NormOptions], NormFactory]


def _deferred(target: str) -> Make:
    """Return `module.function` of this package as a function that imports the module when it is first called."""
    module, _, function = target.partition(".")
    return lambda options: getattr(importlib.import_module(f"{__name__}.{module}"), function)(options)


NORMS: dict[str, Make] = {
    "bn": _deferred("batch_norm.make_bn"),
    "sync_bn": _deferred("batch_norm.make_sync_bn"),
    "frozen_bn": _deferred("batch_norm.make_frozen_bn"),
    "brn": _deferred("batch_renorm.make_brn"),
    "gn": _deferred("group_norm.make_gn"),
    "ln": _deferred("group_norm.make_ln"),
    "in": _deferred("group_norm.make_in"),
    "none": _deferred("group_norm.make_none"),
}
"""Every name that `model.norm` accepts, with the function that turns the options into a `NormFactory`."""


def norm_factory(name: str, **options: Any) -> NormFactory:
    """Return the callable that makes the norm `name` for a number of channels.

    Args:
        name: `bn` Batch Norm over (N, *) of one rank; `sync_bn` of all ranks, on GPUs; `frozen_bn` BN*, the constants
            of a trained Batch Norm; `brn` Batch Renormalization; `gn` Group Norm; `ln` Layer Norm = GN with one group;
            `in` Instance Norm = GN with one group per channel; `none`.
        options: fields of `NormOptions` that differ from their defaults. A norm ignores those of the others.

    Raises:
        UserError: unknown name; later, from the factory, an option out of its range or groups that do not divide the
            channels.
    """
    if name not in NORMS:
        raise UserError(f"norm {name!r} is not known; choose one of {', '.join(NORMS)} or pass a callable")
    return NORMS[name](NormOptions(**options))


def __getattr__(name: str) -> Any:
    if name in ("GroupNorm", "normalize"):
        return getattr(importlib.import_module(f"{__name__}.group_norm"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
