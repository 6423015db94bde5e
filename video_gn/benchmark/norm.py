"""`norm`: Group Norm alone, with ReLU, with add and ReLU, at the R50 I3D's shapes, against PyTorch's and Batch Norm."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.benchmark.common import Call, Sample, Samples, Table, host_sample, measure, select
from video_gn.distributed.precision import autocast
from video_gn.distributed.world import world
from video_gn.models.resnet import Bottleneck, ResNet, Stem
from video_gn.norm import NormOptions, norm_factory, normalize

PASSES = {"norm": (3, 5), "norm + ReLU": (3, 5), "norm + add + ReLU": (4, 7)}
"""Passes over a tensor of x's size, forward and backward, of kernels that fuse all and keep nothing on the chip.

Forward: read x for the statistics, read x, write y; backward: read x and dy for the sums, read both, write dx. With a
residual it is read too; y is read for the ReLU's mask and the residual's gradient is written.
"""
DIRECTIONS = ("forward", "forward + backward")
BEYOND_CACHE = 2**28  # bytes of distinct inputs, several times a GPU's L2 cache
MOST_CALLS = 32  # in a timing: more launches than that do not fit in the GPU's queue


class Case(NamedTuple):
    """What follows a convolution of the net, and the shape (N, C, T, H, W) of its output."""

    kind: str
    shape: tuple[int, ...]


class Alternative(NamedTuple):
    norm: Callable[[int], nn.Module]
    apply: Callable[..., Tensor]
    layout: torch.memory_format


def run(*, repeats: int, quick: bool, device: str) -> list[Table]:
    """Time all norms of one batch of clips: a table a kind and direction, and one of our time at each shape."""
    with world(device) as here:
        place = here.device
    gpu = place.type == "cuda"
    clips, frames, crop = (8, 32, 224) if gpu and not quick else (1, 8, 64) if quick else (1, 32, 112)
    dtype = torch.bfloat16 if gpu else torch.float32
    sample = gpu_sample if gpu else host_sample
    clock = "wall" if gpu else "cpu"  # a CPU is shared
    bandwidth = copy_bandwidth(place, 2**30 if gpu else 2**26, sample, clock)

    cases = norm_inputs(clips, frames, crop)
    totals: dict[tuple[str, str], dict[str, list[Sample]]] = defaultdict(dict)
    floors: dict[tuple[str, str], float] = defaultdict(float)  # seconds at the copy's bandwidth
    measured = list(ALTERNATIVES)
    shapes: dict[str, list[Sample]] = {}
    shares: dict[str, float] = {}
    for (case, count), direction in itertools.product(cases.items(), DIRECTIONS):
        backward = direction == DIRECTIONS[1]
        calls = {name: _calls(case, way, backward, dtype, place) for name, way in ALTERNATIVES.items()}
        samples = measure(calls, repeats, sample, f"{case.kind} {direction}")
        measured = [name for name in measured if name in samples]  # a sum wants all shapes
        floor = sum(PASSES[case.kind][: 1 + backward]) * math.prod(case.shape) * dtype.itemsize / bandwidth
        for key in ((case.kind, direction), ("all norms", direction)):
            _add(totals[key], samples, count)
            floors[key] += count * floor
        if backward:
            label = f"{case.kind}, {' x '.join(map(str, case.shape))}, {count} of them"
            shapes[label], shares[label] = samples["ours"], _share(floor, samples["ours"], clock)

    size = sum(math.prod(case.shape) * count for case, count in cases.items())
    batch = f"{clips} clips of {frames} x {crop} x {crop}, {str(dtype).removeprefix('torch.')}"
    note = f"{sum(cases.values())} norms, {size / 1e6:.1f} M values; a copy moves {bandwidth / 1e9:.0f} GB/s"
    column = "% of roofline"
    tables = []
    for key in itertools.product(("all norms", *PASSES), DIRECTIONS):
        samples = select(totals[key], measured)
        share = {column: {name: _share(floors[key], its, clock) for name, its in samples.items()}}
        tables.append(Table(f"{', '.join(key)}: {batch}, a batch", samples, clock, share, note))
    title = f"ours at each shape, {DIRECTIONS[1]}, one norm: {batch}"
    return [*tables, Table(title, shapes, clock, {column: shares})]


def norm_inputs(clips: int, frames: int, crop: int) -> Counter[Case]:
    """Return what the norms of the R50 I3D take for a batch, and how often."""
    cases: Counter[Case] = Counter()

    def watch(kind: str, convolution: nn.Module) -> None:
        convolution.register_forward_hook(lambda _module, _inputs, y: cases.update([Case(kind, tuple(y.shape))]))

    with torch.device("meta"):
        net = ResNet(400, norm_factory("none"))
        for part in net.modules():
            if isinstance(part, Stem):
                watch("norm + ReLU", part.conv)
            elif isinstance(part, Bottleneck):
                watch("norm + ReLU", part.conv_a)
                watch("norm + ReLU", part.conv_b)
                watch("norm + add + ReLU", part.conv_c)
                if part.shortcut is not None:
                    watch("norm", part.shortcut.get_submodule("conv"))
        with torch.no_grad():
            net(torch.empty(clips, 3, frames, crop, crop))
    return cases


def _as_one_would_write_it(norm: nn.Module, x: Tensor, *, relu: bool, residual: Tensor | None) -> Tensor:
    """Autocast makes the norm's result float32; the next convolution's input is cast back."""
    y = norm(x)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return (F.relu(y, inplace=True) if relu else y).to(x.dtype)


ALTERNATIVES = {
    "ours": Alternative(norm_factory("gn"), normalize, torch.channels_last_3d),
    "nn.GroupNorm, contiguous": Alternative(
        partial(nn.GroupNorm, NormOptions.groups), _as_one_would_write_it, torch.contiguous_format
    ),
    "BN, channels last": Alternative(norm_factory("bn"), normalize, torch.channels_last_3d),
}


def _calls(case: Case, way: Alternative, backward: bool, dtype: torch.dtype, place: torch.device) -> Call:
    """Return calls over inputs that no cache holds together; an item is one norm."""
    relu, adds = "ReLU" in case.kind, "add" in case.kind
    precision = autocast("bf16" if dtype == torch.bfloat16 else "fp32", place)
    layer = way.norm(case.shape[1]).to(place)
    size = math.prod(case.shape) * dtype.itemsize
    calls = min(max(math.ceil(BEYOND_CACHE / size), 2), MOST_CALLS) if place.type == "cuda" else 1

    def tensor(grad: bool) -> Tensor:
        values = torch.randn(case.shape, dtype=dtype, device=place)
        return values.contiguous(memory_format=way.layout).requires_grad_(grad)

    inputs = [(tensor(True), tensor(True) if adds else None, tensor(False)) for _ in range(calls)]

    def call() -> int:
        for x, residual, dy in inputs:
            with precision():
                y = way.apply(layer, x, relu=relu, residual=residual)
            if backward:
                wanted = [x, *layer.parameters()] if residual is None else [x, residual, *layer.parameters()]
                torch.autograd.grad(y, wanted, dy)
        return calls

    return call


def _add(total: dict[str, list[Sample]], samples: Samples, count: int) -> None:
    """Add `count` times the samples, repeat by repeat."""
    for name, its in samples.items():
        before = total.get(name, [Sample(0, 0)] * len(its))
        total[name] = [Sample(a.wall + count * b.wall, a.cpu + count * b.cpu) for a, b in zip(before, its, strict=True)]


def _share(floor: float, samples: list[Sample], clock: str) -> float:
    return 100 * floor / statistics.median(getattr(sample, clock) for sample in samples)


def gpu_sample(call: Call) -> Sample:
    """Time of the GPU alone: its work is queued while it pauses, so that it never waits for Python."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = 50_000_000
    while True:
        torch.cuda._sleep(cycles)
        start.record()
        begin = time.process_time()
        items = call()
        cpu = time.process_time() - begin
        end.record()
        in_time = not start.query()  # the pause outlasted the queueing
        torch.cuda.synchronize()
        if in_time or cycles > 2**34:
            return Sample(start.elapsed_time(end) / 1e3 / items, cpu / items)
        cycles *= 2


def copy_bandwidth(place: torch.device, size: int, sample: Callable[[Call], Sample], clock: str) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes: the median of five."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=place) for _ in range(2))

    def call() -> int:
        target.copy_(source)
        return 1

    return 2 * size / statistics.median([getattr(sample(call), clock) for _ in range(6)][1:])
