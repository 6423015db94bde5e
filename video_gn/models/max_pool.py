"""Max-pool over (T, H, W) as Triton kernels, for channels last in memory.

PyTorch's keeps an int64 index per output and adds gradients atomically, in no fixed order. Here an output keeps the
number of its tap, a byte, and each input collects the gradients of the windows that chose it: the same bits in every
run. A batch of R50 I3D (8 clips of 32 x 224 x 224, bf16) keeps 37 MB for 297 MB.

`TRITON_INTERPRET=1`, set before this module is imported, runs the kernels on the CPU; that is how they are tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # values per program
WARPS = 4
MOST_LANES = 128  # channels of a program


@triton.jit
def _split(row, T, H, W):
    """Return sample, t, h and w of a row of (N, T, H, W)."""
    return row // (T * H * W), row // (H * W) % T, row // W % H, row % W


@triton.jit
def _forward(
    x_ptr, y_ptr, tap_ptr, rows, C, T, H, W, OUT_T, OUT_H, OUT_W,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the largest value of each window, and which of its taps has it: the first, or the last NaN."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, t, h, w = _split(row, OUT_T, OUT_H, OUT_W)
    best = tl.full((BLOCK_R, BLOCK_C), float("-inf"), tl.float32)
    chosen = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)
    for tap in tl.static_range(KT * KH * KW):
        in_t, in_h, in_w = t * ST - PT + tap // (KH * KW), h * SH - PH + tap // KW % KH, w * SW - PW + tap % KW
        inside = (row < rows) & (in_t >= 0) & (in_t < T) & (in_h >= 0) & (in_h < H) & (in_w >= 0) & (in_w < W)
        place = (((n * T + in_t) * H + in_h) * W + in_w).to(tl.int64)
        there = inside[:, None] & (channel < C)[None, :]
        x = tl.load(x_ptr + place[:, None] * C + channel[None, :], there, float("-inf")).to(tl.float32)
        larger = (x > best) | (x != x)
        best = tl.where(larger, x, best)
        chosen = tl.where(larger, tap, chosen)
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    there = (row < rows)[:, None] & (channel < C)[None, :]
    tl.store(y_ptr + place, best, there)
    tl.store(tap_ptr + place, chosen.to(tl.uint8), there)


@triton.jit
def _backward(
    dy_ptr, tap_ptr, dx_ptr, rows, C, T, H, W, OUT_T, OUT_H, OUT_W,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write for each input the sum of dy over the windows that chose it."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n, t, h, w = _split(row, T, H, W)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    # Of the windows along an axis that have a pixel, the last starts at or before it; there are at most K / S of them.
    WT: tl.constexpr = (KT + ST - 1) // ST
    WH: tl.constexpr = (KH + SH - 1) // SH
    WW: tl.constexpr = (KW + SW - 1) // SW
    for window in tl.static_range(WT * WH * WW):
        out_t = (t + PT) // ST - window // (WH * WW)
        out_h = (h + PH) // SH - window // WW % WH
        out_w = (w + PW) // SW - window % WW
        tap_t, tap_h, tap_w = t + PT - out_t * ST, h + PH - out_h * SH, w + PW - out_w * SW
        inside = (row < rows) & (out_t >= 0) & (out_t < OUT_T) & (out_h >= 0) & (out_h < OUT_H)
        inside = inside & (out_w >= 0) & (out_w < OUT_W) & (tap_t < KT) & (tap_h < KH) & (tap_w < KW)
        tap = (tap_t * KH + tap_h) * KW + tap_w
        place = (((n * OUT_T + out_t) * OUT_H + out_h) * OUT_W + out_w).to(tl.int64)
        place = place[:, None] * C + channel[None, :]
        there = inside[:, None] & (channel < C)[None, :]
        mine = tl.load(tap_ptr + place, there, 0).to(tl.int32) == tap[:, None]
        dy = tl.load(dy_ptr + place, there, 0.0).to(tl.float32)
        total += tl.where(mine & there, dy, 0.0)
    tl.store(dx_ptr + row.to(tl.int64)[:, None] * C + channel[None, :], total, (row < rows)[:, None] & (channel < C))


def _run(kernel, tensors: tuple[Tensor, ...], over: Tensor, x: Tensor, y: Tensor, window: Sequence[int]) -> None:
    """Launch a kernel over the pixels of `over`, an input's or an output's."""
    channels = x.shape[1]
    rows = over.numel() // channels
    lanes = min(triton.next_power_of_2(channels), MOST_LANES)
    tile = TILE // lanes
    names = ("KT", "KH", "KW", "ST", "SH", "SW", "PT", "PH", "PW")
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(rows, tile), triton.cdiv(channels, lanes))](
            *tensors, rows, channels, *x.shape[2:], *y.shape[2:],
            **dict(zip(names, window, strict=True)), BLOCK_R=tile, BLOCK_C=lanes, num_warps=WARPS,
        )  # fmt: skip


def _outputs(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    sizes = [
        (size + 2 * pad - k) // step + 1
        for size, k, step, pad in zip(x.shape[2:], kernel, stride, padding, strict=True)
    ]
    y = torch.empty((*x.shape[:2], *sizes), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    return y, torch.empty_like(y, dtype=torch.uint8)


@torch.library.custom_op(
    "video_gn::max_pool",
    mutates_args=(),
    schema="(Tensor x, int[] kernel, int[] stride, int[] padding) -> (Tensor, Tensor)",
)
def max_pool(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, Tensor]:
    """Return F.max_pool3d(x, kernel, stride, padding), channels last, and the tap of each maximum, uint8.

    Args:
        x: (N, C, T, H, W), floating; copied where it is not channels last.
        kernel: at most 256 taps, whose numbers fit in a byte.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    y, taps = _outputs(x, kernel, stride, padding)
    _run(_forward, (x, y, taps), y, x, y, (*kernel, *stride, *padding))
    return y, taps


@torch.library.custom_op(
    "video_gn::max_pool_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor taps, int[] sizes, int[] kernel, int[] stride, int[] padding) -> Tensor",
)
def max_pool_backward(
    dy: Tensor, taps: Tensor, sizes: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Return the gradient of x, whose shape is `sizes`."""
    dy = dy.contiguous(memory_format=torch.channels_last_3d)
    dx = torch.empty(sizes, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last_3d)
    _run(_backward, (dy, taps, dx), dx, dx, dy, (*kernel, *stride, *padding))
    return dx


@max_pool.register_fake
def _(x, kernel, stride, padding):
    return _outputs(x, kernel, stride, padding)


@max_pool_backward.register_fake
def _(dy, taps, sizes, kernel, stride, padding):
    return torch.empty(sizes, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last_3d)


def _save(ctx, inputs, output) -> None:
    x, ctx.kernel, ctx.stride, ctx.padding = inputs
    ctx.sizes = list(x.shape)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _differentiate(ctx, dy, _):
    if dy is None:
        return (None,) * 4
    return max_pool_backward(dy, *ctx.saved_tensors, ctx.sizes, ctx.kernel, ctx.stride, ctx.padding), None, None, None


max_pool.register_autograd(_differentiate, setup_context=_save)
