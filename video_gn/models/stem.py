"""The first convolution of a network, of 3 channels, as a GPU computes it fast."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CHANNELS = 8
"""Tensor cores take half-precision pixels of a multiple of 16 bytes."""


def folded_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Return F.conv3d(x, weight, bias, stride, padding), computed with stride 1 on blocks of `stride` pixels.

    The pixels of a block become channels (space to depth), and so do the kernel's taps; zeros fill up what is missing
    to complete blocks and to a multiple of 8 channels.

    Args:
        x: (N, C, T, H, W).
        weight: (K, C, t, h, w).
    """
    around_x: list[int] = []  # as F.pad takes them, last axis first
    around_weight: list[int] = []
    for size, kernel, step, pad in zip(x.shape[:1:-1], weight.shape[:1:-1], stride[::-1], padding[::-1], strict=True):
        before = -(-pad // step) * step  # complete blocks: the first tap is `before - pad` pixels into the kernel's
        taps = -(-(kernel + before - pad) // step)
        blocks = (size + 2 * pad - kernel) // step + taps
        around_x += [before, blocks * step - before - size]
        around_weight += [before - pad, taps * step - kernel - (before - pad)]
    channels = weight.shape[1] * stride[0] * stride[1] * stride[2]
    missing = [0, -channels % CHANNELS]
    folded_x = _fold(F.pad(x, around_x), stride)
    folded_weight = _fold(F.pad(weight, around_weight), stride)
    return F.conv3d(_channels(folded_x, missing), _channels(folded_weight, missing), bias)


def _fold(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return (N, T / a, H / b, W / c, a b c C) of (N, C, T, H, W) and the stride (a, b, c)."""
    n, channels, *sizes = x.shape
    split = [part for size, step in zip(sizes, stride, strict=True) for part in (size // step, step)]
    return x.reshape(n, channels, *split).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def _channels(x: Tensor, missing: list[int]) -> Tensor:
    """Return (N, C, T, H, W), channels last in memory, of (N, T, H, W, C); channels of zeros are added to it."""
    return (F.pad(x, missing) if missing[1] else x).permute(0, 4, 1, 2, 3)
