"""Is it right on this device: kernels, memory formats, the net, clips, host waits, the CUDA graph, collectives."""

from __future__ import annotations

import contextlib
import math
import statistics
import warnings
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.benchmark.norm import Case, norm_inputs
from video_gn.data.dataset import Clips
from video_gn.data.loader import DeviceBatches
from video_gn.data.sampling import View
from video_gn.distributed.precision import autocast
from video_gn.distributed.world import World
from video_gn.engine.graph import WARM_UP, GraphedPass, Pass
from video_gn.engine.precise_bn import update_precise_bn
from video_gn.engine.train import parallel
from video_gn.gpu_check.findings import Findings, Place, error
from video_gn.models import max_pool
from video_gn.models.resnet import ResNet
from video_gn.models.stem import folded_conv3d
from video_gn.norm import GroupNorm, fused, norm_factory
from video_gn.tasks.classification import Classification

L3 = torch.channels_last_3d
MEAN, STD = (0.45,) * 3, (0.225,) * 3
BF16 = 6e-3  # relative error of a tensor whose values are rounded to bf16


QUICK_CASES = (Case("norm + ReLU", (2, 64, 2, 5, 5)), Case("norm + add + ReLU", (2, 96, 1, 7, 7)))


def kernels(place: Place, findings: Findings) -> None:
    """Compare Group Norm at every shape of R50 I3D, bf16, with the equations in float64; its bits, twice and alone."""
    worst = dict.fromkeys(("y", "dx", "dgamma", "dbeta", "dresidual"), 0.0)
    same_bits = True
    for case in QUICK_CASES if place.quick else norm_inputs(*place.clips):
        relu, adds, channels = "ReLU" in case.kind, "add" in case.kind, case.shape[1]
        x, residual, dy = (place.random(case.shape, seed=seed) for seed in (1, 2, 3))
        gamma, beta = torch.rand(channels, device=place.device) + 0.5, torch.randn(channels, device=place.device) * 0.3

        def ours(*tensors: Tensor, relu: bool = relu, adds: bool = adds) -> list[Tensor]:
            x, residual, dy, gamma, beta = tensors
            leaves = [t.detach().requires_grad_() for t in ((x, gamma, beta, residual) if adds else (x, gamma, beta))]
            y = fused.apply(leaves[0], leaves[1], leaves[2], leaves[3] if adds else None, 32, 1e-5, relu)
            return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

        _poison(place, x)
        first, second = (ours(x, residual, dy, gamma, beta) for _ in range(2))
        alone = ours(*(t[1:2].contiguous(memory_format=L3) for t in (x, residual, dy)), gamma, beta)
        same_bits &= all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        same_bits &= torch.equal(first[0][1:2], alone[0]) and torch.equal(first[1][1:2], alone[1])

        exact = [t.double().requires_grad_() for t in (x[1:2], gamma, beta, residual[1:2])][: len(alone) - 1]
        z = F.group_norm(exact[0], 32, exact[1], exact[2], 1e-5)
        z = z + exact[3] if adds else z
        want = [z.relu() if relu else z]
        want += torch.autograd.grad(want[0], exact, dy[1:2].double())
        for name, got, right in zip(worst, alone, want, strict=False):
            worst[name] = max(worst[name], error(got, right.detach()))
    for name, value in worst.items():
        findings.add(f"Group Norm, {name}: worst error to float64 of all layers", value, ok=value < BF16)
    findings.add("the same bits twice, and of a sample alone", str(same_bits), ok=same_bits)
    x = place.random((2, 6, 2, 3, 3), torch.float32).requires_grad_()
    gamma, beta = (torch.rand(6, device=place.device, requires_grad=True) for _ in range(2))
    torch.library.opcheck(fused.group_norm, (x, gamma, beta, None, 3, 1e-5, True))
    findings.add("torch.library.opcheck of Group Norm", "passed", ok=True)


def _poison(place: Place, like: Tensor) -> None:
    """Fill what the allocator gives out next with NaN: an element that no kernel writes shows."""
    if place.gpu:
        torch.full((4 * like.numel(),), math.nan, device=place.device, dtype=like.dtype)


POOLS = {"stem": ((2, 3, 3), (2, 2, 2), 64, 2), "pool2": ((2, 1, 1), (2, 1, 1), 256, 4)}
"""Kernel, stride, channels, and by what the net has reduced frames and pixels before."""


def pools(place: Place, findings: Findings) -> None:
    """Compare max-pools and their gradients with PyTorch's, bit by bit: small whole numbers have exact sums."""
    clips, frames, side = place.clips
    for name, (kernel, stride, channels, reduced) in POOLS.items():
        channels = 8 if place.quick else channels
        shape = (clips, channels, frames // reduced, side // reduced, side // reduced)
        x = place.random(shape).mul(2).round().requires_grad_()
        _poison(place, x)
        y = max_pool.max_pool(x, kernel, stride, (0, 0, 0))[0]
        want = F.max_pool3d(x, kernel, stride)
        dy = place.random(tuple(y.shape), seed=1).round()
        (ours,), (theirs,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(want.float(), x, dy.float())
        same = torch.equal(y, want) and torch.equal(ours, theirs)
        findings.add(f"max-pool of the {name}: bits of output and gradient are PyTorch's", str(same), ok=same)


def stem(place: Place, findings: Findings) -> None:
    """Compare the folded convolution of every stem with the plain one, in float64."""
    x = place.random((2, 3, 8, 41, 44), torch.float64)
    for stride in ((2, 2, 2), (1, 2, 2)):
        weight = place.random((8, 3, 5, 7, 7), torch.float64, seed=1)
        ours = folded_conv3d(x, weight, None, stride, (2, 3, 3))
        value = error(ours, F.conv3d(x, weight, None, stride, (2, 3, 3)))
        findings.add(f"conv1 of stride {stride} on blocks of pixels: error, float64", value, ok=value < 1e-12)


def build(place: Place, norm: str = "gn", width: int | None = None) -> ResNet:
    """Return R50 I3D in training mode, random weights, no gamma at zero."""
    torch.manual_seed(0)
    net = ResNet(400, place.norm(norm), dropout=0.0, **(place.net | ({} if width is None else {"width": width})))
    for block in net.blocks():
        weight = block.last_norm.weight
        assert isinstance(weight, Tensor)
        nn.init.uniform_(weight)
    return net.to(place.device, memory_format=L3).train()  # type: ignore[call-overload]


def make_pass(net: nn.Module, place: Place, precision: str = "bf16") -> Pass:
    """Return forward, cross-entropy and backward of a net."""
    precise = autocast(precision, place.device)

    def run(clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with precise():
            logits = net(clips)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        return logits.detach(), loss.detach()

    return run


def gradients(net: nn.Module, run: Pass, clips: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a pass, by name."""
    net.zero_grad(set_to_none=True)
    run(clips, torch.arange(len(clips), device=clips.device))
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def formats(place: Place, findings: Findings) -> None:
    """Look at dtype and memory format of all outputs of convolutions and pools, and at strides of all gradients."""
    net, wrong = build(place), []

    def look(name: str, y: Tensor) -> None:
        if not y.is_contiguous(memory_format=L3) or y.dtype != torch.bfloat16:
            wrong.append(name)

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv3d, nn.MaxPool3d)):
            module.register_forward_hook(lambda _module, _inputs, y, name=name: look(name, y))
    found = gradients(net, make_pass(net, place), place.random((2, 3, *_side(place))))
    strides = [name for name, p in net.named_parameters() if found[name].stride() != p.stride()]
    goal = place.gpu or None  # a CPU's convolutions choose for themselves
    findings.add("outputs that are not bf16 and channels last", str(wrong[:3] or 0), ok=goal and not wrong)
    findings.add("gradients whose strides are not their weight's", str(len(strides)), ok=goal and not strides)


def _side(place: Place) -> tuple[int, int, int]:
    _, frames, side = place.clips
    return frames, side, side


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32, whose rounding turns 1e-7 into 1e-3."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def net(place: Place, findings: Findings) -> None:
    """Compare gradients of the net with fused and with PyTorch's Group Norm, float32, with those of float64.

    Medians over weights: one value that crosses zero at a ReLU moves a gradient by 1e-3.
    """
    width = None if place.quick else 32
    model = build(place, width=width)
    clips = place.random((2, 3, 8, 32, 32) if place.quick else (2, 3, 8, 64, 64), torch.float32)
    with exact_float32():
        ours = gradients(model, make_pass(model, place, "fp32"), clips)
        with mock.patch.object(GroupNorm, "_fuses", lambda *_: False):
            theirs = gradients(model, make_pass(model, place, "fp32"), clips)
        model.checkpoint_stages = ("res2", "res3")
        again = gradients(model, make_pass(model, place, "fp32"), clips)
        double = build(place, width=width).double()
        exact = gradients(double, make_pass(double, place, "fp32"), clips.double())
    mine, plain = (statistics.median(error(g[name], exact[name]) for name in exact) for g in (ours, theirs))
    findings.add("net in float32: median error of the gradients", mine, ok=mine < max(2 * plain, 1e-4),
                 note=f"with nn.GroupNorm {plain:.2g}")  # fmt: skip
    worst = max(error(again[name], ours[name]) for name in ours)
    findings.add("train.checkpoint_stages: largest difference of a gradient", worst, ok=worst < 2e-3)


def batches(place: Place, number: int = 4) -> list[list[Clips]]:
    """Return lists of two videos' uint8 frames, in pinned memory for a GPU."""
    frames, side, _ = _side(place)
    generator = torch.Generator().manual_seed(0)

    def item(index: int) -> Clips:
        pixels = torch.randint(0, 256, (frames, side + 26, side + 6, 3), dtype=torch.uint8, generator=generator)
        pixels = pixels.pin_memory() if place.gpu else pixels
        view = View((10, 5, side * 7 // 8, side * 6 // 7), side, side)
        return Clips(index, index, pixels, np.arange(frames)[None], [view])

    return [[item(2 * i), item(2 * i + 1)] for i in range(number)]


def clips(place: Place, findings: Findings) -> None:
    """Compare clips that are copied and rendered a batch ahead, all kept, with those of the CPU."""
    items = batches(place)
    ours = list(DeviceBatches(items, place.device, MEAN, STD))
    cpu = list(DeviceBatches(items, torch.device("cpu"), MEAN, STD))
    worst = max((a.clips.cpu() - b.clips).abs().max().item() for a, b in zip(ours, cpu, strict=True))
    findings.add("clips rendered on the device: largest difference to the CPU's", worst, ok=worst < 1e-3)


def waits(place: Place, findings: Findings) -> None:
    """Find calls that wait for the GPU in a step: forward, backward, metrics, optimizer, the next batch."""
    if not place.gpu:
        findings.add("calls of a step that wait for the GPU", "no GPU")
        return
    model = build(place)
    run = make_pass(model, place)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    metrics = Classification(400).metrics(place.device)
    ahead = iter(DeviceBatches(batches(place, 6), place.device, MEAN, STD, dtype=torch.bfloat16))
    for waited in (False, True):  # the first time memory is got, and libraries choose
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if waited else "default")
        try:
            batch = next(ahead)
            logits, loss = run(batch.clips, batch.targets)
            metrics.update(logits, batch.targets, loss)
            optimizer.step()
        except RuntimeError as found:
            findings.add("calls of a step that wait for the GPU", "found", ok=False, note=str(found)[:100])
            return
        finally:
            torch.cuda.set_sync_debug_mode("default")
    findings.add("calls of a step that wait for the GPU", "none", ok=True)


def graph(place: Place, findings: Findings) -> None:
    """Compare losses and gradients of the CUDA graph with those of the pass itself, over two micro-batches."""
    if not place.gpu:
        findings.add("CUDA graph against the pass itself", "no GPU")
        return
    model = build(place)
    labels = torch.arange(2, device=place.device)
    micro_batches = [place.random((2, 3, *_side(place)), seed=seed) for seed in range(2)]
    graphed = GraphedPass(make_pass(model, place), model.parameters(), strict=True)
    results = []
    for run in (make_pass(model, place), graphed):
        for _ in range(1 + WARM_UP):
            model.zero_grad(set_to_none=True)
            losses = [run(clips, labels)[1].item() for clips in micro_batches]
        results.append((losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (losses, plain), (replayed, ours) = results
    same = losses == replayed and all(torch.equal(ours[name], plain[name]) for name in plain)
    worst = max(error(ours[name], plain[name]) for name in plain)
    findings.add("CUDA graph: largest difference of a gradient", worst, ok=worst < 1e-2, note=f"same bits: {same}")


def ranks(place: Place, findings: Findings) -> None:
    """Run collectives in a group of one rank: all that the trainer uses, DDP, sync_bn, precise BN."""
    backend = "nccl" if place.gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        world = World(0, 2, place.device)  # of two, or it would leave the collectives out
        ones = world.sum(torch.ones(3, device=place.device))
        world.barrier()
        lists: list[list[object]] = [[None], [None]]
        dist.all_gather_object(lists[0], 5)
        dist.gather_object(6, lists[1])
        fine = ones.tolist() == [1, 1, 1] and lists == [[5], [6]]
        findings.add(f"{backend}: all_reduce, barrier, gather, all_gather", str(fine), ok=fine)
        _check_ddp(place, findings)
        if place.gpu:
            norm = norm_factory("sync_bn")(64).to(place.device)
            y = norm(place.random((2, 64, 2, 8, 8)))
            findings.add("sync_bn in bf16, channels last", str(y.dtype)[6:], ok=y.is_contiguous(memory_format=L3))
    finally:
        dist.destroy_process_group()
    model = build(place, "bn")
    samples = [place.random((2, 3, *_side(place)), torch.float32, seed) for seed in range(3)]
    update_precise_bn(model, iter(samples), 3, autocast("bf16", place.device))
    with torch.no_grad():
        outputs = [model.stem.conv(x).float().mean((0, 2, 3, 4)) for x in samples]
    value = error(model.stem.norm.get_buffer("running_mean"), torch.stack(outputs).mean(0))
    findings.add("precise BN: error of the stem's mean", value, ok=value < 2e-2)


def _check_ddp(place: Place, findings: Findings) -> None:
    model, samples = build(place), place.random((2, 3, *_side(place)))
    plain = gradients(model, make_pass(model, place), samples)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = parallel(model)
        ours = gradients(model, make_pass(wrapped, place), samples)
    worst = max(error(ours[name], plain[name]) for name in plain)
    findings.add("DDP: largest difference of a gradient, bf16", worst, ok=worst < 0.05)
    strides = any("strides do not match" in str(warning.message) for warning in said)
    findings.add("DDP warns of gradients' strides", str(strides), ok=(not strides) if place.gpu else None)
