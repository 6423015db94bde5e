"""How fast it is on this device: norms against the roofline, parts of a step, steps against what else one would run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from video_gn.benchmark import norm as norm_benchmark
from video_gn.benchmark import step as step_benchmark
from video_gn.benchmark.common import Call, Samples, Table, host_sample
from video_gn.data.loader import DeviceBatches
from video_gn.gpu_check.correct import MEAN, POOLS, STD, batches, build
from video_gn.gpu_check.findings import Findings, Place
from video_gn.models.resnet import MaxPool3d
from video_gn.models.stem import folded_conv3d

ROOFLINE = 60  # % of a copy's bandwidth that Group Norm and ReLU shall reach


def norms(place: Place, findings: Findings) -> None:
    """Time all 53 norms of a batch, forward and backward: ours, Batch Norm, nn.GroupNorm; share of the roofline."""
    tables = norm_benchmark.run(repeats=3, quick=place.quick, device=place.device.type)
    for table in tables[:-1]:
        if "backward" not in table.title:
            continue
        times = {row["name"]: row["wall_ms"] for row in table.rows()}
        share = table.columns["% of roofline"]["ours"]
        goal = share >= ROOFLINE if place.goals and table.title.startswith("norm + ReLU") else None
        others = ", ".join(f"{name} {value:.2f}" for name, value in times.items() if name != "ours")
        name = table.title.partition(", forward")[0]
        findings.add(f"{name}, forward + backward: % of roofline", share, ok=goal,
                     note=f"ours {times['ours']:.2f} ms; {others}; {table.note.rpartition('; ')[2]}")  # fmt: skip
    shapes = tables[-1]
    for row in shapes.rows():
        findings.add(f"one {row['name']}, us", 1e3 * row["wall_ms"], note=f"{row['% of roofline']:.0f} % of roofline")


def parts(place: Place, findings: Findings) -> None:
    """Time the stem's convolution, pools, optimizer, and the rendering of a batch, each beside the plain way."""
    n, frames, side = place.clips
    x = place.random((n, 3, frames, side, side))
    weight = place.random((place.net["width"], 3, 5, 7, 7), seed=1).requires_grad_()

    for stride in ((2, 2, 2), (1, 2, 2)):
        ours, plain = (
            _milliseconds(place, partial(_forward_backward, partial(conv, x, weight, None, stride, (2, 3, 3)), weight))
            for conv in (folded_conv3d, F.conv3d)
        )
        findings.add(f"conv1 of stride {stride}, forward + weight gradient, ms", ours, note=f"plain {plain:.2f}")
    for name, (kernel, step, channels, reduced) in POOLS.items():
        shape = (n, channels, frames // reduced, side // reduced, side // reduced)
        y = place.random(shape).requires_grad_()
        ours, plain = (
            _milliseconds(place, partial(_forward_backward, partial(pool, y), y))
            for pool in (MaxPool3d(kernel, step), torch.nn.MaxPool3d(kernel, step))
        )
        findings.add(f"max-pool of the {name}, forward + backward, ms", ours, note=f"PyTorch's {plain:.2f}")
    net = build(place)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    for fused in (True, False):
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, fused=fused, foreach=not fused)
        name = f"SGD, {'fused' if fused else 'foreach'}, ms"
        findings.add(name, _milliseconds(place, lambda optimizer=optimizer: optimizer.step() or 1))  # type: ignore[misc]
    items = [item for batch in batches(place, max(n // 2, 1)) for item in batch][:n]
    loader = DeviceBatches([], place.device, MEAN, STD, dtype=torch.bfloat16)
    sample = host_sample(lambda: int(loader._assemble(items) is not None))
    value = _milliseconds(place, lambda: int(loader._assemble(items) is not None))
    findings.add(f"copy and render of {n} clips, ms", value, note=f"host {1e3 * sample.cpu:.2f} ms")


def _forward_backward(forward: Callable[[], Tensor], leaf: Tensor) -> int:
    y = forward()
    torch.autograd.grad(y, leaf, y.detach())
    return 1


def _milliseconds(place: Place, call: Call) -> float:
    """Return the median time of the device alone."""
    sample = norm_benchmark.gpu_sample if place.gpu else host_sample
    call()
    return 1e3 * statistics.median(sample(call).wall for _ in range(3))


def steps(place: Place, findings: Findings) -> None:
    """Time training steps of both clip lengths: Group Norm and Batch Norm, each at its fastest, and others."""
    for table in step_benchmark.run(repeats=3, quick=place.quick, device=place.device.type):
        batch = table.title.removeprefix("training step: ")
        for row in table.rows():
            notes = [f"host {row['cpu_ms']:.1f} ms"]
            notes += [f"peak {row['peak GiB']:.2f} GiB"] if "peak GiB" in row else []
            findings.add(f"{row['name']}: {batch}, ms", row["wall_ms"], note=", ".join(notes))
        gn, bn = (_fastest(table.samples, f"ours, {norm}") for norm in ("GN", "BN"))
        goal = (lambda met: met) if place.goals else (lambda met: None)
        findings.add("GN step / BN step, each at its fastest", gn / bn, ok=goal(gn <= bn))
        for other in ("nn.GroupNorm, contiguous", "pytorchvideo i3d_r50, BN"):
            if other in table.samples:
                ratio = _fastest(table.samples, other) / gn
                findings.add(f"{other}: times our step", ratio, ok=goal(ratio >= 2))
        _compare_memory(table, findings, place)


def _compare_memory(table: Table, findings: Findings, place: Place) -> None:
    peaks = table.columns.get("peak GiB", {})
    if "ours, GN" in peaks and "ours, BN" in peaks:
        ratio = peaks["ours, GN"] / peaks["ours, BN"]
        findings.add("GN memory / BN memory", ratio, ok=ratio <= 1.01 if place.goals else None)


def _fastest(samples: Samples, prefix: str) -> float:
    """Return the shortest median time of the alternatives whose names begin with `prefix`."""
    times = [statistics.median(s.wall for s in its) for name, its in samples.items() if name.startswith(prefix)]
    return min(times, default=float("nan"))
