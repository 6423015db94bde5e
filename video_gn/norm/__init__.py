"""Normalization layers, asked for by name in one place.

All take x of shape (N, C, *), where * is (H, W) for images and (T, H, W) for clips (section 4.3), with one class for
both. All but `none` have a gamma and a beta a channel (equation 6) and eps 1e-5. Statistics are biased (equation 2),
in float32 whatever the dtype of x, and the result has x's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from video_gn.errors import UserError
from video_gn.norm.batch_norm import BatchNorm, FrozenBatchNorm, SyncBatchNorm
from video_gn.norm.batch_renorm import BatchRenorm
from video_gn.norm.group_norm import GroupNorm, normalize

__all__ = ["NORMS", "GroupNorm", "NormFactory", "norm_factory", "normalize"]

NormFactory = Callable[[int], nn.Module]
"""Makes the norm of a given number of channels. A user's own norm comes in as such a callable."""

NORMS = ("bn", "sync_bn", "frozen_bn", "brn", "gn", "ln", "in", "none")


def norm_factory(
    name: str,
    *,
    groups: int = 32,
    channels_per_group: int | None = None,
    brn_r_max: float = 1.5,
    brn_d_max: float = 0.5,
    brn_warmup: int = 5000,
    brn_ramp: int = 20000,
) -> NormFactory:
    """Return the callable that makes the norm `name` for a number of channels.

    Args:
        name: `bn` Batch Norm over (N, *) of one rank; `sync_bn` of all ranks, on GPUs; `frozen_bn` BN*, the constants
            of a trained Batch Norm; `brn` Batch Renormalization; `gn` Group Norm; `ln` Layer Norm = GN with one group;
            `in` Instance Norm = GN with a group a channel; `none`.
        groups: GN's G (section 3.2; the paper's default is 32).
        channels_per_group: GN's C / G, in place of `groups`.
        brn_r_max, brn_d_max: bounds of Batch Renorm's correction (1.5 and 0.5 are section 4.1's).
        brn_warmup, brn_ramp: training forwards as plain Batch Norm, then those over which the bounds open; the paper
            names none, and the defaults are those of Ioffe (2017): 5k, and d_max's 20k (r_max's ramp there is 35k).

    Raises:
        UserError: unknown name; later, from the factory, an option out of its range or groups that do not divide the
            channels.
    """
    if name == "bn":
        return BatchNorm  # momentum 0.1 (Caffe2's 0.9)
    if name == "sync_bn":
        return SyncBatchNorm
    if name == "frozen_bn":
        return FrozenBatchNorm
    if name == "brn":
        return partial(BatchRenorm, r_max=brn_r_max, d_max=brn_d_max, warmup=brn_warmup, ramp=brn_ramp)
    if name == "gn":
        return partial(_group_norm, groups=groups, channels_per_group=channels_per_group)
    if name == "ln":
        return partial(GroupNorm, 1)
    if name == "in":
        return lambda channels: GroupNorm(channels, channels)
    if name == "none":
        return lambda channels: nn.Identity()
    raise UserError(f"norm {name!r} is not known; choose one of {', '.join(NORMS)} or pass a callable")


def _group_norm(channels: int, *, groups: int, channels_per_group: int | None) -> GroupNorm:
    """Group Norm of `groups` groups, or of groups of `channels_per_group` channels (equation 7)."""
    if channels_per_group is not None:
        if channels_per_group < 1 or channels % channels_per_group:
            raise UserError(
                f"channels_per_group {channels_per_group} does not divide a layer's {channels} channels; "
                "choose a divisor of model.width"
            )
        groups = channels // channels_per_group
    if groups < 1 or channels % groups:
        raise UserError(
            f"{groups} groups do not divide a layer's {channels} channels; "
            "lower model.groups or set model.channels_per_group"
        )
    return GroupNorm(groups, channels)
