"""Group Norm, Group Norm and ReLU, Group Norm and residual add and ReLU, each as fused Triton kernels.

The torch ops `video_gn::group_norm` and `video_gn::group_norm_backward` work under torch.compile
and DDP. They compute, for x of shape (N, C, *) cut into G groups of D = C / G channels, with S pixels per channel:

    y = (x - mu) / sigma * gamma + beta      equations 1, 2 and 7, mu and sigma of a sample's group, D * S values
    y = max(y, 0)                            with `relu`
    y = max(y + residual, 0)                 with `residual`

Memory is what limits them, so they count passes over x: forward 3 (read for the statistics, read, write), backward 5
(x and dy for the sums, x and dy, write), 7 with a residual, whose gradient is written on the way. Kept for the backward
pass are x, mu and 1 / sigma; the ReLU's mask is computed again, but with a residual it is read from y, which the next
layer keeps anyway.

A program takes a tile (rows of pixels) x (channels) down a part of a sample: the reductions of a large map are split
over programs. A small map is one program's, which reads it twice, from the cache the second time: one launch for two.
What is split depends on a sample's size alone, and the order is fixed: a sample's result is the same bits in every
batch and every run. Statistics and sums are float32, by Welford's update, so that a mean far from zero costs no digits.
Both memory formats are one code: rows and channels change strides.

`TRITON_INTERPRET=1`, set before this module is imported, runs the kernels on the CPU; that is how they are tested.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# By sweeps on an H200 over shapes of R50 I3D (forward and backward, CUDA graph): tiles of 2048, 4 warps and 3 stages
# take 0.86 of the time of 4096, 8 and 1; 4 stages then 0.97, PROGRAM 32768 for 16384 0.99. Not timed together.
TILE = 2048  # values per tile: 16 per thread
WARPS = 4
STAGES = 4  # tiles whose loads are under way while one is computed
PROGRAM = 32768  # minimum of values per program, to be worth its launch
MAX_SPLITS = 64  # programs down a sample; each reads all their partial sums again
MAX_ONE = 65536  # values of a program, up to which a map is not split: one launch for two
ONE_PER_BLOCK = 4096  # and for each block of channels: few programs would take long over a map
SECTOR = 16  # channels that are read together from memory, 32 bytes in half precision
TOTAL_ROWS, TOTAL_CHANNELS = 64, 16  # of a tile of partial sums
SIZES = ["N", "S", "rows", "splits"]
"""Arguments that the kernels are not compiled for: one binary for every batch, so that its bits are the same in all."""
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_GROUP = 8192  # channels; a tile has complete groups
MAX_BATCH = 65535  # samples: CUDA's limit for the third axis of a grid


def supports(x: Tensor, groups: int) -> bool:
    """Return whether the kernels accept x: dtype, size and channels of a group (any device that Triton can use)."""
    batch, channels = x.shape[:2]
    if x.dtype not in DTYPES or x.numel() == 0 or batch > MAX_BATCH:
        return False
    return x[0].numel() < 2**31 and channels // groups <= MAX_GROUP


@triton.jit
def _lanes(block, C, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the channel of each lane of a tile, and whether there is one; a group has D_PAD lanes, a power of 2."""
    lane = tl.arange(0, BLOCK_C)
    if D == D_PAD:
        channel = block * BLOCK_C + lane
        valid = channel < C
    else:
        channel = (block * (BLOCK_C // D_PAD) + lane // D_PAD) * D + lane % D_PAD
        valid = (lane % D_PAD < D) & (channel < C)
    return channel, valid


@triton.jit
def _spread(of_groups, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """Map (groups,) to (BLOCK_C,): each group's value on its lanes."""
    return tl.reshape(tl.broadcast_to(of_groups[:, None], (BLOCK_C // D_PAD, D_PAD)), (BLOCK_C,))


@triton.jit
def _gather(of_lanes, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr):
    """Map (BLOCK_C,) to (groups,): the sum over each group's lanes."""
    return tl.sum(tl.reshape(of_lanes, (BLOCK_C // D_PAD, D_PAD)), 1)


@triton.jit
def _moments(
    x_ptr, channel, valid, begin, end, rows, stride_s, stride_c,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return mean, and sum of squared distances from it, of each group's values in rows `begin` to before `end`."""
    row = begin + tl.arange(0, BLOCK_S)
    mean = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    seen = 0.0
    for offset in tl.range(0, rows, BLOCK_S, num_stages=STAGES):
        inside = (row + offset < end)[:, None] & valid[None, :]
        x = tl.load(x_ptr + (row + offset)[:, None] * stride_s + channel[None, :] * stride_c, inside, 0.0)
        x = x.to(tl.float32)
        seen += 1.0
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta / seen
        squares += delta * (x - mean)

    # the tile's values become one: lanes of rows, then the group's channels (Chan's formula, equal counts a channel)
    counts = tl.maximum((end - row + BLOCK_S - 1) // BLOCK_S, 0).to(tl.float32)[:, None]
    count = (end - begin).to(tl.float32)
    # A mean of means is taken twice, the second time of what the first left: far from zero, a sum has few digits.
    channel_mean = tl.sum(mean * counts, 0) / count
    channel_mean += tl.sum((mean - channel_mean[None, :]) * counts, 0) / count
    channel_squares = tl.sum(squares + counts * (mean - channel_mean[None, :]) * (mean - channel_mean[None, :]), 0)
    group_mean = _gather(channel_mean, D_PAD, BLOCK_C) / D
    away = tl.where(valid, channel_mean - _spread(group_mean, D_PAD, BLOCK_C), 0.0)
    group_mean += _gather(away, D_PAD, BLOCK_C) / D
    away = tl.where(valid, channel_mean - _spread(group_mean, D_PAD, BLOCK_C), 0.0)
    return group_mean, _gather(channel_squares + count * away * away, D_PAD, BLOCK_C)


@triton.jit(do_not_specialize=SIZES)
def _statistics(
    x_ptr, partial_ptr, N, S, C, G, rows, splits, stride_s, stride_c,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write partial (2, N, splits, G): mean, and sum of squared distances from it, of a group's pixels in one split."""
    block, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, valid = _lanes(block, C, D, D_PAD, BLOCK_C)
    begin = split * rows
    mean, squares = _moments(
        x_ptr + n.to(tl.int64) * S * C, channel, valid, begin, tl.minimum(begin + rows, S), rows, stride_s, stride_c,
        D, D_PAD, BLOCK_C, BLOCK_S, STAGES,
    )  # fmt: skip
    group = block * (BLOCK_C // D_PAD) + tl.arange(0, BLOCK_C // D_PAD)
    place = (n * splits + split) * G + group
    tl.store(partial_ptr + place, mean, group < G)
    tl.store(partial_ptr + N * splits * G + place, squares, group < G)


@triton.jit(do_not_specialize=SIZES)
def _normalize(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, partial_ptr, y_ptr, mean_ptr, rstd_ptr,
    N, S, C, G, rows, splits, stride_s, stride_c, eps,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
    ONE: tl.constexpr, SPLITS_PAD: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Write y of one split; the first split also writes mean and 1 / sigma, float32 (N, G).

    `partial` holds the statistics of the splits; of a map that is `ONE` split, they are taken here.
    """
    block, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, valid = _lanes(block, C, D, D_PAD, BLOCK_C)
    group = block * (BLOCK_C // D_PAD) + tl.arange(0, BLOCK_C // D_PAD)
    sample = n.to(tl.int64) * S * C
    total = D * S * 1.0  # D * S < 2^31

    if ONE:
        mean, squares = _moments(
            x_ptr + sample, channel, valid, 0, S, rows, stride_s, stride_c, D, D_PAD, BLOCK_C, BLOCK_S, STAGES
        )
        variance = squares / total
    else:
        other = tl.arange(0, SPLITS_PAD)[:, None]
        there = (other < splits) & (group < G)[None, :]
        of_split = (n * splits + other) * G + group[None, :]
        means = tl.load(partial_ptr + of_split, there, 0.0)
        squares = tl.load(partial_ptr + N * splits * G + of_split, there, 0.0)
        counts = D * tl.where(there, tl.minimum(rows, S - other * rows), 0).to(tl.float32)
        mean = tl.sum(means * counts, 0) / total
        mean += tl.sum((means - mean[None, :]) * counts, 0) / total
        variance = tl.sum(squares + counts * (means - mean[None, :]) * (means - mean[None, :]), 0) / total
    rstd = 1.0 / tl.sqrt(variance + eps)
    if split == 0:
        tl.store(mean_ptr + n * G + group, mean, group < G)
        tl.store(rstd_ptr + n * G + group, rstd, group < G)

    center = _spread(mean, D_PAD, BLOCK_C)[None, :]
    scale = (tl.load(weight_ptr + channel, valid, 0.0).to(tl.float32) * _spread(rstd, D_PAD, BLOCK_C))[None, :]
    shift = tl.load(bias_ptr + channel, valid, 0.0).to(tl.float32)[None, :]
    row = split * rows + tl.arange(0, BLOCK_S)
    end = tl.minimum(split * rows + rows, S)
    for offset in tl.range(0, rows, BLOCK_S, num_stages=STAGES):
        inside = (row + offset < end)[:, None] & valid[None, :]
        place = sample + (row + offset)[:, None] * stride_s + channel[None, :] * stride_c
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        y = (x - center) * scale + shift
        if RESIDUAL:
            y += tl.load(residual_ptr + place, inside, 0.0).to(tl.float32)
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # and not a maximum, which would hide a NaN
        tl.store(y_ptr + place, y, inside)


@triton.jit
def _sums(
    dy_ptr, x_ptr, y_ptr, dresidual_ptr, sample, channel, valid, center, rstd, gamma, beta,
    begin, end, rows, stride_s, stride_c,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Return each channel's sums of dy and of dy * xhat, dy behind the ReLU's mask; write the residual's gradient."""
    row = begin + tl.arange(0, BLOCK_S)
    sum_dy = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    sum_dy_xhat = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    for offset in tl.range(0, rows, BLOCK_S, num_stages=STAGES):
        inside = (row + offset < end)[:, None] & valid[None, :]
        place = sample + (row + offset)[:, None] * stride_s + channel[None, :] * stride_c
        xhat = (tl.load(x_ptr + place, inside, 0.0).to(tl.float32) - center) * rstd
        dy = tl.load(dy_ptr + place, inside, 0.0).to(tl.float32)
        if RESIDUAL:
            dy = tl.where(tl.load(y_ptr + place, inside, 0.0) <= 0.0, 0.0, dy)
            tl.store(dresidual_ptr + place, dy, inside)
        elif RELU:
            dy = tl.where(xhat * gamma + beta <= 0.0, 0.0, dy)
        sum_dy += dy
        sum_dy_xhat += dy * tl.where(inside, xhat, 0.0)
    return tl.sum(sum_dy, 0), tl.sum(sum_dy_xhat, 0)


@triton.jit(do_not_specialize=SIZES)
def _gradient_sums(
    dy_ptr, x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dresidual_ptr, channel_sums_ptr, group_sums_ptr,
    N, S, C, G, rows, splits, stride_s, stride_c,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Write the sums of dy and of dy * xhat over a split's rows: (2, N, splits, C).

    And of gamma times these over a group's channels: (2, N, splits, G). With a residual, its gradient.
    """
    block, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, valid = _lanes(block, C, D, D_PAD, BLOCK_C)
    group = block * (BLOCK_C // D_PAD) + tl.arange(0, BLOCK_C // D_PAD)
    center = _spread(tl.load(mean_ptr + n * G + group, group < G, 0.0), D_PAD, BLOCK_C)[None, :]
    rstd = _spread(tl.load(rstd_ptr + n * G + group, group < G, 0.0), D_PAD, BLOCK_C)[None, :]
    gamma = tl.load(weight_ptr + channel, valid, 0.0).to(tl.float32)
    beta = tl.load(bias_ptr + channel, valid, 0.0).to(tl.float32)
    begin = split * rows
    of_channel, of_channel_xhat = _sums(
        dy_ptr, x_ptr, y_ptr, dresidual_ptr, n.to(tl.int64) * S * C, channel, valid, center, rstd,
        gamma[None, :], beta[None, :], begin, tl.minimum(begin + rows, S), rows, stride_s, stride_c,
        BLOCK_C, BLOCK_S, STAGES, RELU, RESIDUAL,
    )  # fmt: skip
    of_split = (n * splits + split) * C + channel
    tl.store(channel_sums_ptr + of_split, of_channel, valid)
    tl.store(channel_sums_ptr + N * splits * C + of_split, of_channel_xhat, valid)
    of_split = (n * splits + split) * G + group
    tl.store(group_sums_ptr + of_split, _gather(gamma * of_channel, D_PAD, BLOCK_C), group < G)
    tl.store(group_sums_ptr + N * splits * G + of_split, _gather(gamma * of_channel_xhat, D_PAD, BLOCK_C), group < G)


@triton.jit(do_not_specialize=SIZES)
def _gradient_input(
    dy_ptr, x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dresidual_ptr, channel_sums_ptr, group_sums_ptr,
    dx_ptr, N, S, C, G, rows, splits, stride_s, stride_c,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, STAGES: tl.constexpr,
    ONE: tl.constexpr, SPLITS_PAD: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Write dx = (gamma dy - mean(gamma dy) - xhat mean(gamma dy xhat)) / sigma, means over the group.

    `group_sums` holds the sums of the splits; of a map that is `ONE` split, this does what `_gradient_sums` does.
    """
    block, split, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel, valid = _lanes(block, C, D, D_PAD, BLOCK_C)
    group = block * (BLOCK_C // D_PAD) + tl.arange(0, BLOCK_C // D_PAD)
    sample = n.to(tl.int64) * S * C
    total = D * S * 1.0  # D * S < 2^31
    center = _spread(tl.load(mean_ptr + n * G + group, group < G, 0.0), D_PAD, BLOCK_C)[None, :]
    rstd = _spread(tl.load(rstd_ptr + n * G + group, group < G, 0.0), D_PAD, BLOCK_C)[None, :]
    gamma = tl.load(weight_ptr + channel, valid, 0.0).to(tl.float32)[None, :]
    beta = tl.load(bias_ptr + channel, valid, 0.0).to(tl.float32)[None, :]

    if ONE:
        of_channel, of_channel_xhat = _sums(
            dy_ptr, x_ptr, y_ptr, dresidual_ptr, sample, channel, valid, center, rstd, gamma, beta,
            0, S, rows, stride_s, stride_c, BLOCK_C, BLOCK_S, STAGES, RELU, RESIDUAL,
        )  # fmt: skip
        tl.store(channel_sums_ptr + n * C + channel, of_channel, valid)
        tl.store(channel_sums_ptr + (N + n) * C + channel, of_channel_xhat, valid)
        factor = tl.reshape(gamma, (BLOCK_C,))
        of_dy = _gather(factor * of_channel, D_PAD, BLOCK_C) / total
        of_dy_xhat = _gather(factor * of_channel_xhat, D_PAD, BLOCK_C) / total
    else:
        other = tl.arange(0, SPLITS_PAD)[:, None]
        there = (other < splits) & (group < G)[None, :]
        of_split = (n * splits + other) * G + group[None, :]
        of_dy = tl.sum(tl.load(group_sums_ptr + of_split, there, 0.0), 0) / total
        of_dy_xhat = tl.sum(tl.load(group_sums_ptr + N * splits * G + of_split, there, 0.0), 0) / total
    of_dy = _spread(of_dy, D_PAD, BLOCK_C)[None, :]
    of_dy_xhat = _spread(of_dy_xhat, D_PAD, BLOCK_C)[None, :]

    row = split * rows + tl.arange(0, BLOCK_S)
    end = tl.minimum(split * rows + rows, S)
    for offset in tl.range(0, rows, BLOCK_S, num_stages=STAGES):
        inside = (row + offset < end)[:, None] & valid[None, :]
        place = sample + (row + offset)[:, None] * stride_s + channel[None, :] * stride_c
        xhat = (tl.load(x_ptr + place, inside, 0.0).to(tl.float32) - center) * rstd
        if RESIDUAL and not ONE:
            dy = tl.load(dresidual_ptr + place, inside, 0.0).to(tl.float32)  # it has the mask already
        else:
            dy = tl.load(dy_ptr + place, inside, 0.0).to(tl.float32)
            if RESIDUAL:  # what this program has written itself, other threads of it may not see yet
                dy = tl.where(tl.load(y_ptr + place, inside, 0.0) <= 0.0, 0.0, dy)
            elif RELU:
                dy = tl.where(xhat * gamma + beta <= 0.0, 0.0, dy)
        tl.store(dx_ptr + place, (gamma * dy - of_dy - xhat * of_dy_xhat) * rstd, inside)


@triton.jit(do_not_specialize=["rows"])
def _totals(sums_ptr, total_ptr, rows, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write (2, C), the sums over the rows of (2, rows, C)."""
    which = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for offset in range(0, rows, BLOCK_R):
        there = (row + offset < rows)[:, None] & (channel < C)[None, :]
        total += tl.load(sums_ptr + ((which * rows + row + offset) * C)[:, None] + channel[None, :], there, 0.0)
    tl.store(total_ptr + which * C + channel, tl.sum(total, 0), channel < C)


@dataclass(frozen=True)
class _Layout:
    """How a tensor of shape (N, C, *) is cut into tiles; `sizes` and `blocks` are arguments of the kernels."""

    batch: int
    channels: int
    groups: int
    splits: int
    one: bool
    """Whether a program takes all pixels: statistics and output, or sums and gradient, are then one launch."""
    splits_pad: int
    grid: tuple[int, int, int]
    sizes: tuple[int, ...]
    blocks: dict[str, int]

    @staticmethod
    def of(x: Tensor, groups: int) -> _Layout:
        return _layout(x.shape, _is_channels_last(x), groups)

    def sums(self, x: Tensor, of: int) -> Tensor:
        """Return room for two partial sums of each of `of` groups or channels."""
        return torch.empty(2, self.batch, self.splits, of, dtype=torch.float32, device=x.device)


@functools.lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], last: bool, groups: int) -> _Layout:
    """Return how a tensor is cut; kept by shape, since finding it costs the host as much as a launch."""
    batch, channels = shape[:2]
    pixels = math.prod(shape[2:])
    per_group = channels // groups
    padded = triton.next_power_of_2(per_group)
    # Channels last, a row of the tile is some groups; else one group, whose pixels then lie together.
    lanes, rows = max(padded, SECTOR) if last else padded, pixels
    if lanes * pixels > min(MAX_ONE, ONE_PER_BLOCK * triton.cdiv(groups * padded, lanes)):
        lanes = max(padded, min(triton.next_power_of_2(groups * padded), 256)) if last else padded
        rows = min(max(triton.cdiv(pixels, MAX_SPLITS), PROGRAM // lanes), pixels)
    tile_rows = max(TILE // lanes, 1)
    rows = triton.cdiv(rows, tile_rows) * tile_rows
    splits = triton.cdiv(pixels, rows)
    strides = (channels, 1) if last else (1, pixels)
    return _Layout(
        batch,
        channels,
        groups,
        splits,
        splits == 1,
        triton.next_power_of_2(splits),
        (triton.cdiv(groups * padded, lanes), splits, batch),
        (batch, pixels, channels, groups, rows, splits, *strides),
        {
            "D": per_group,
            "D_PAD": padded,
            "BLOCK_C": lanes,
            "BLOCK_S": tile_rows,
            "STAGES": STAGES,
            "num_warps": WARPS,
        },
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim in CHANNELS_LAST and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])


def _dense(x: Tensor) -> Tensor:
    """Return x itself where it is contiguous or channels last, else a copy that is."""
    if x.is_contiguous() or _is_channels_last(x):
        return x
    return x.contiguous(memory_format=CHANNELS_LAST.get(x.ndim, torch.contiguous_format))


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    """Return `tensor` in the memory format of a dense x: the kernels walk all tensors alike."""
    last = CHANNELS_LAST[x.ndim] if _is_channels_last(x) else torch.contiguous_format
    return tensor.contiguous(memory_format=last)


def apply(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, eps: float, relu: bool
) -> Tensor:
    """Return the y of the op `group_norm` (see `_forward`), differentiable once.

    Outside torch.compile this is an `autograd.Function`: the op costs the host twice as much, 256 for 115 us a norm,
    forward and backward, against 65 us of Batch Norm (stub driver, torch 2.11).
    """
    if torch.compiler.is_compiling():
        return group_norm(x, weight, bias, residual, groups, eps, relu)[0]
    return _GroupNorm.apply(x, weight, bias, residual, groups, eps, relu)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        groups: int,
        eps: float,
        relu: bool,
    ) -> Tensor:
        y, mean, rstd = _forward(x, weight, bias, residual, groups, eps, relu)
        ctx.groups, ctx.relu = groups, relu
        ctx.save_for_backward(x, weight, bias, mean, rstd, None if residual is None else y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd, y = ctx.saved_tensors
        dx, (dbias, dweight), dresidual = _backward(dy, x, y, mean, rstd, weight, bias, ctx.groups, ctx.relu)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None if y is None else dresidual, None, None, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, in x's shape, dtype and memory format, and each group's mean and 1 / sigma, float32 (N, G).

    Args:
        x: (N, C, *), float32, bfloat16 or float16, contiguous or channels last; others are copied.
        weight, bias: gamma and beta, (C,), any floating dtype.
        residual: of x's shape, or None; with one, `relu` must be set.
        groups: G, a divisor of C.
    """
    x = _dense(x)
    layout = _Layout.of(x, groups)
    y = torch.empty_like(x)
    partial = x if layout.one else layout.sums(x, groups)  # x: a pointer that is not used
    mean = torch.empty(layout.batch, groups, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    with torch.cuda.device_of(x):
        if not layout.one:
            _statistics[layout.grid](x, partial, *layout.sizes, **layout.blocks)
        _normalize[layout.grid](
            x, x if residual is None else _like(residual, x), weight, bias, partial, y, mean, rstd, *layout.sizes, eps,
            ONE=layout.one, SPLITS_PAD=layout.splits_pad, RELU=relu, RESIDUAL=residual is not None, **layout.blocks,
        )  # fmt: skip
    return y, mean, rstd


def _backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of (beta, gamma), (2, C) float32, of the residual (empty where y is None)."""
    x = _dense(x)
    dy = _like(dy, x)
    layout = _Layout.of(x, groups)
    residual = y is not None
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if residual else x.new_empty(0)
    channel_sums = layout.sums(x, layout.channels)
    group_sums = x if layout.one else layout.sums(x, groups)
    tensors = (dy, x, y if residual else x, weight, bias, mean, rstd, dresidual, channel_sums, group_sums)
    with torch.cuda.device_of(x):
        if not layout.one:
            _gradient_sums[layout.grid](*tensors, *layout.sizes, RELU=relu, RESIDUAL=residual, **layout.blocks)
        _gradient_input[layout.grid](
            *tensors, dx, *layout.sizes,
            ONE=layout.one, SPLITS_PAD=layout.splits_pad, RELU=relu, RESIDUAL=residual, **layout.blocks,
        )  # fmt: skip
        totals = _sum_over_samples(channel_sums, layout)
    return dx, totals, dresidual


def _sum_over_samples(channel_sums: Tensor, layout: _Layout) -> Tensor:
    """Return (2, C) of (2, N, splits, C). torch.sum takes 9 us for these few rows (H200)."""
    totals = torch.empty(2, layout.channels, dtype=torch.float32, device=channel_sums.device)
    grid = triton.cdiv(layout.channels, TOTAL_CHANNELS), 2
    rows = layout.batch * layout.splits
    _totals[grid](channel_sums, totals, rows, layout.channels, BLOCK_R=TOTAL_ROWS, BLOCK_C=TOTAL_CHANNELS)
    return totals


group_norm = torch.library.custom_op(
    "video_gn::group_norm",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int groups, float eps, bool relu)"
    " -> (Tensor, Tensor, Tensor)",
)
group_norm_backward = torch.library.custom_op(
    "video_gn::group_norm_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor? y, Tensor mean, Tensor rstd, Tensor weight, Tensor bias, int groups,"
    " bool relu) -> (Tensor, Tensor, Tensor)",
)


@group_norm.register_fake
def _(x, weight, bias, residual, groups, eps, relu):
    statistics = x.new_empty((x.shape[0], groups), dtype=torch.float32)
    return torch.empty_like(_dense(x)), statistics, torch.empty_like(statistics)


@group_norm_backward.register_fake
def _(dy, x, y, mean, rstd, weight, bias, groups, relu):
    dx = torch.empty_like(_dense(x))
    dresidual = x.new_empty(0) if y is None else torch.empty_like(dx)
    return dx, x.new_empty((2, x.shape[1]), dtype=torch.float32), dresidual


def _save(ctx, inputs, output) -> None:
    x, weight, bias, residual, ctx.groups, _, ctx.relu = inputs
    y, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.residual = residual is not None
    ctx.save_for_backward(x, weight, bias, mean, rstd, *([y] if ctx.residual else []))


def _differentiate(ctx, dy, _dmean, _drstd):
    if dy is None:
        return (None,) * 7
    x, weight, bias, mean, rstd, *y = ctx.saved_tensors
    y = y[0] if y else None
    dx, (dbias, dweight), dresidual = group_norm_backward(dy, x, y, mean, rstd, weight, bias, ctx.groups, ctx.relu)
    dresidual = dresidual if ctx.residual else None
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dresidual, None, None, None


group_norm.register_autograd(_differentiate, setup_context=_save)
