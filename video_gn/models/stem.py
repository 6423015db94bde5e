"""What the first layers cost on a GPU: a convolution of 3 channels, and max-pools with overlapping windows.

Same parameters and same results, up to the order of sums, as `nn.Conv3d` and `nn.MaxPool3d`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from video_gn.models import max_pool
except ImportError:  # no Triton for this platform
    max_pool = None  # type: ignore[assignment]

CHANNELS = 8
"""Tensor cores take half-precision pixels of a multiple of 16 bytes."""


class Conv3d(nn.Conv3d):
    """Convolution with a stride, of few channels; on a GPU as one of stride 1 over blocks of pixels.

    cuDNN has no fast kernel for 3 channels. Forward and weight gradient of conv1 of 8 clips of 32 x 224 x 224 take
    2.5 ms folded and 12.5 ms as they are (H200, bf16, cuDNN 9.19).
    """

    def forward(self, x: Tensor) -> Tensor:
        if _on_gpu(x):
            return folded_conv3d(x, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]
        return super().forward(x)


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


class MaxPool3d(nn.MaxPool3d):
    """Max-pool; on a GPU, channels last, by kernels that keep a byte per output and whose gradient is deterministic."""

    def forward(self, x: Tensor) -> Tensor:
        if max_pool is None or not _on_gpu(x) or not x.is_contiguous(memory_format=torch.channels_last_3d):
            return super().forward(x)
        sizes = (_triple(value) for value in (self.kernel_size, self.stride, self.padding))
        return max_pool.max_pool(x, *sizes)[0]


def _on_gpu(x: Tensor) -> bool:
    """Return whether x is there, and is not of a program that is exported for elsewhere."""
    return x.is_cuda and not torch.compiler.is_exporting() and not torch.jit.is_tracing()


def _triple(value: int | tuple[int, ...]) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value)
