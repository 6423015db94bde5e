"""Normalization layers, asked for by name in one place.

All normalize x of shape (N, C, *) with statistics that are biased (equation 2) and eps 1e-5, and have a gamma and a
beta a channel (equation 6). For clips * is (T, H, W): equation 3 to 7 generalized, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from video_gn.errors import UserError

NormFactory = Callable[[int], nn.Module]
"""Makes the norm of a given number of channels. A user's own norm comes in as such a callable."""

NORMS = ("bn", "gn", "ln", "in", "none")


def norm_factory(name: str, *, groups: int = 32, channels_per_group: int | None = None) -> NormFactory:
    """Return the callable that makes the norm `name` for a number of channels.

    Args:
        name: `bn` Batch Norm over (N, T, H, W) of one rank; `gn` Group Norm; `ln` Layer Norm = GN with one group;
            `in` Instance Norm = GN with a group a channel; `none`.
        groups: GN's G (section 3.2; the paper's default is 32).
        channels_per_group: GN's C / G, in place of `groups`.

    Raises:
        UserError: unknown name; later, from the factory, groups that do not divide the channels.
    """
    if name == "bn":
        return nn.BatchNorm3d  # eps 1e-5, momentum 0.1 (Caffe2's 0.9)
    if name == "gn":
        return lambda channels: group_norm(channels, groups=groups, channels_per_group=channels_per_group)
    if name == "ln":
        return lambda channels: nn.GroupNorm(1, channels)
    if name == "in":
        return lambda channels: nn.GroupNorm(channels, channels)
    if name == "none":
        return lambda channels: nn.Identity()
    raise UserError(f"norm {name!r} is not known; choose one of {', '.join(NORMS)} or pass a callable")


def group_norm(channels: int, *, groups: int = 32, channels_per_group: int | None = None) -> nn.GroupNorm:
    """Group Norm of `groups` groups, or of groups of `channels_per_group` channels (equation 7)."""
    if channels_per_group is not None:
        if channels % channels_per_group:
            raise UserError(
                f"channels_per_group {channels_per_group} does not divide a layer's {channels} channels; "
                "choose a divisor of model.width"
            )
        groups = channels // channels_per_group
    if channels % groups:
        raise UserError(
            f"{groups} groups do not divide a layer's {channels} channels; "
            "lower model.groups or set model.channels_per_group"
        )
    return nn.GroupNorm(groups, channels)
