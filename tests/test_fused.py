"""The fused kernels against the equations in float64: on a GPU, or on the CPU by Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers import HANG
from video_gn.models.resnet import ResNet
from video_gn.norm import GroupNorm, norm_factory, normalize

fused = pytest.importorskip("video_gn.norm.fused")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="needs a GPU or TRITON_INTERPRET=1")
EPS = 1e-5
FORMS = ["norm", "relu", "residual"]


def equations(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, form: str) -> Tensor:
    """Equations 1, 2, 6 and 7, then what the form says; all in the dtype of x."""
    z = x.reshape(x.shape[0], groups, -1)
    mu = z.mean(2, keepdim=True)
    sigma = (((z - mu) ** 2).mean(2, keepdim=True) + EPS).sqrt()
    shape = (-1, *[1] * (x.ndim - 2))
    y = ((z - mu) / sigma).reshape(x.shape) * weight.view(shape) + bias.view(shape)
    if residual is not None:
        y = y + residual
    return y if form == "norm" else torch.where(y > 0, y, torch.zeros_like(y))


def last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def draw(
    shape: tuple[int, ...], form: str = "norm", *, mean: float = 0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, gamma, beta and the residual, if the form has one."""
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=random) + mean).to(dtype)
    weight, bias = torch.rand(shape[1], generator=random) + 0.5, torch.randn(shape[1], generator=random)
    residual = torch.randn(shape, generator=random).to(dtype) if form == "residual" else None
    return x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), None if residual is None else residual.to(DEVICE)


def check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, groups: int, form: str, **near: float
) -> None:
    """Output and gradients within `near` of the equations' in float64; gradients relative to the largest."""
    given = [t for t in (x, weight, bias, residual) if t is not None]
    inputs = [t.detach().requires_grad_() for t in given]
    exact = [t.detach().double().requires_grad_() for t in given]
    y = fused.group_norm(*inputs[:3], inputs[3] if residual is not None else None, groups, EPS, form != "norm")[0]
    expected = equations(*exact[:3], exact[3] if residual is not None else None, groups, form)  # type: ignore[misc]
    assert y.dtype == x.dtype and y.stride() == fused._dense(x).stride()
    torch.testing.assert_close(y.double(), expected, atol=near["y"], rtol=near["y"])

    # Where the sum is all but zero, its sign and so the ReLU's mask is a matter of rounding.
    pre = equations(*exact[:3], exact[3] if residual is not None else None, groups, "norm")  # type: ignore[misc]
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE) * (pre.abs() > 20 * near["y"])
    gradients = torch.autograd.grad(y, inputs, dy.to(y.dtype))
    for gradient, want in zip(gradients, torch.autograd.grad(expected, exact, dy.to(y.dtype).double()), strict=True):
        scale = want.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(gradient.double() / scale, want / scale, atol=near["gradient"], rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", ["channels_last", "contiguous"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 12, 3, 5, 7), 4),  # three channels a group: lanes without a channel
        ((1, 8, 9, 11), 8),  # Instance Norm
        ((2, 20, 3, 3), 1),  # Layer Norm
        ((2, 128, 1, 1, 1), 2),  # 64 channels a group, one pixel
        ((1, 16, 4, 40, 40), 4),  # one program with more than one tile
        ((1, 16, 9, 33, 33), 4),  # more than one split
    ],
    ids=str,
)
def test_equations(shape: tuple[int, ...], groups: int, memory: str, form: str) -> None:
    x, weight, bias, residual = draw(shape, form)
    x = last(x) if memory == "channels_last" else x
    check(x, weight, bias, residual, groups, form, y=2e-5, gradient=2e-5)


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_equations_for_any_size(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    batch, groups, per_group = (data.draw(st.integers(1, top)) for top in (2, 3, 64))
    form = data.draw(st.sampled_from(FORMS))
    shape = (batch, groups * per_group, *sizes)
    if per_group * math.prod(sizes) < 4:
        return  # with few values y is all rounding: gradients of a constant
    x, weight, bias, residual = draw(shape, form, seed=data.draw(st.integers(0, 99)))
    x = last(x) if data.draw(st.booleans()) else x
    check(x, weight, bias, residual, groups, form, y=5e-5, gradient=2e-4)


def test_splits_are_tried() -> None:
    """The largest shape of `test_equations` does split, else its test would be of one split."""
    assert fused._Layout.of(torch.empty(1, 16, 9, 33, 33), 4).splits > 1
    assert fused._Layout.of(last(torch.empty(1, 16, 9, 33, 33)), 4).splits > 1
    assert fused._Layout.of(torch.empty(1, 16, 4, 40, 40), 4).one


@pytest.mark.parametrize("form", FORMS)
def test_the_function_is_the_op(form: str) -> None:
    """`apply`, which a forward pass without torch.compile takes, has the bits of the op and of its gradients."""
    x, weight, bias, residual = draw((2, 12, 3, 5, 7), form)
    inputs = [t.requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    given = (*inputs[:3], inputs[3] if residual is not None else None, 4, EPS, form != "norm")
    y, by_op = fused.apply(*given), fused.group_norm(*given)[0]
    assert torch.equal(y, by_op)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, x), torch.autograd.grad(by_op, inputs, x), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(fused.apply(*given), y)


@pytest.mark.parametrize("memory", ["channels_last", "contiguous"])
def test_a_mean_far_from_zero_costs_no_digits(memory: str) -> None:
    """Mean 1000, sigma 1: one step of float32 at 1000 is 6e-5. PyTorch's on the CPU is wrong by 0.1 at mean 100."""
    x, weight, bias, _ = draw((2, 12, 3, 40, 9), mean=1000)
    check(last(x) if memory == "channels_last" else x, weight, bias, None, 4, "norm", y=1.5e-4, gradient=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    """Statistics in float32: y is the equations' result rounded to x's dtype, under autocast too."""
    x, weight, bias, residual = draw((2, 12, 2, 5, 7), "residual", dtype=dtype)
    assert residual is not None
    with torch.autocast(DEVICE, dtype=dtype):
        y = fused.group_norm(last(x), weight, bias, residual, 4, EPS, True)[0]
    expected = equations(x.double(), weight.double(), bias.double(), residual.double(), 4, "residual")
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_a_sample_is_the_same_in_every_batch() -> None:
    x, weight, bias, _ = draw((3, 16, 2, 30, 20))
    x = last(x).requires_grad_()
    whole = fused.group_norm(x, weight, bias, None, 4, EPS, True)[0]
    alone = fused.group_norm(last(x[1:2]), weight, bias, None, 4, EPS, True)[0]
    assert torch.equal(whole[1:2], alone)
    gradient = torch.autograd.grad(whole[1].sum(), x, retain_graph=True)[0][1:2]
    assert torch.equal(gradient, torch.autograd.grad(alone.sum(), x)[0][1:2])


@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_are_not_hidden(form: str) -> None:
    x, weight, bias, residual = draw((2, 4, 3, 3), form)
    x[0, 0, 1, 1] = math.nan
    y = fused.group_norm(x, weight, bias, residual, 2, EPS, form != "norm")[0]
    assert y[0, :2].isnan().all() and y[0, 2:].isfinite().all() and y[1].isfinite().all()


def test_other_strides() -> None:
    """A slice is copied, and a gradient of another memory format than x's is read right (here: expanded)."""
    x, weight, bias, _ = draw((2, 16, 3, 4, 5))
    inputs = [x[:, 4:12].requires_grad_(), weight[:8].requires_grad_(), bias[:8].requires_grad_()]
    loss = fused.group_norm(*inputs, None, 4, EPS, True)[0].mean()
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = equations(*exact, None, 4, "relu").mean()  # type: ignore[misc]
    pairs = zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, exact), strict=True)
    for gradient, want in pairs:
        torch.testing.assert_close(gradient.double(), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str) -> None:
    """Schema, fake implementation, autograd registration and AOTAutograd, as torch.compile will use them."""
    x, weight, bias, residual = draw((2, 6, 2, 3, 3), form)
    inputs = [t.requires_grad_() for t in (last(x), weight, bias)]
    torch.library.opcheck(fused.group_norm, (*inputs, residual, 3, EPS, form != "norm"))
    with torch.no_grad():
        y, mean, rstd = fused.group_norm(*inputs, residual, 3, EPS, form != "norm")
        y = y if form == "residual" else None
        torch.library.opcheck(
            fused.group_norm_backward, (torch.ones_like(x), last(x), y, mean, rstd, weight, bias, 3, form != "norm")
        )


def small_net() -> ResNet:
    torch.manual_seed(0)
    norm = norm_factory("gn", channels_per_group=4)
    net = ResNet(3, norm, blocks=(1, 1, 1, 1), width=4, dropout=0, dims=2)
    for block in net.blocks():  # zero would hide the branch
        nn.init.uniform_(block.last_norm.weight)  # type: ignore[arg-type]
    return net.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]


def test_the_net_is_the_same_fused_compiled_and_parallel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One graph through torch.compile, and DDP, with the kernels inside: the plain net's logits and gradients."""
    net, clips = small_net(), last(torch.randn(2, 3, 32, 32, device=DEVICE))
    results = {}
    with monkeypatch.context() as patch:
        patch.setattr(GroupNorm, "_fuses", lambda *_: False)
        results["plain"] = logits_and_gradients(net, net, clips)
    calls: list[bool] = []
    monkeypatch.setattr(GroupNorm, "_fuses", lambda self, x, residual: not calls.append(fused.supports(x, 1)))  # type: ignore[func-returns-value]
    results["fused"] = logits_and_gradients(net, net, clips)
    assert len(calls) == 17 and all(calls)
    monkeypatch.setattr(GroupNorm, "_fuses", lambda *_: True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    results["compiled"] = logits_and_gradients(compiled, net, clips)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    try:
        results["parallel"] = logits_and_gradients(nn.parallel.DistributedDataParallel(net), net, clips)
    finally:
        torch.distributed.destroy_process_group()
    for name, values in results.items():
        for value, expected in zip(values, results["plain"], strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                value, expected, atol=2e-4 * scale, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )


def logits_and_gradients(run: nn.Module, net: nn.Module, clips: Tensor) -> list[Tensor]:
    net.zero_grad()
    logits = run(clips)
    F.cross_entropy(logits, torch.tensor([0, 2], device=DEVICE)).backward()
    return [logits.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def test_export_is_never_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = GroupNorm(2, 4).to(DEVICE)

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return normalize(self.norm, x, relu=True)

    # as on a GPU, up to the check for export
    monkeypatch.setattr(GroupNorm, "_fuses", lambda *_: not torch.compiler.is_exporting())
    program = torch.export.export(Part(), (torch.randn(2, 4, 3, 3, device=DEVICE),), strict=False)
    assert "video_gn" not in str(program.graph) and "group_norm" in str(program.graph)


def test_hooks_see_the_norm() -> None:
    """A hooked norm gives its own output to the hook, and the same result."""
    norm, x = GroupNorm(2, 4), torch.randn(2, 4, 3, 3)
    expected, seen = normalize(norm, x, relu=True), []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    torch.testing.assert_close(normalize(norm, x, relu=True), expected)
    assert (seen[0] < 0).any()


COMPILE = """
import itertools, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from video_gn.norm import fused

pointers = {"weight_ptr", "bias_ptr", "partial_ptr", "mean_ptr", "rstd_ptr", "channel_sums_ptr", "group_sums_ptr"}
pointers |= {"sums_ptr", "total_ptr"}
kernels = (fused._statistics, fused._normalize, fused._gradient_sums, fused._gradient_input, fused._totals)
for kernel, (D, BLOCK_C, ones) in itertools.product(kernels, [
    (8, 256, ["stride_c"]), (3, 128, ["stride_c"]), (4, 4, ["stride_s"]),
]):
    padded = triton.next_power_of_2(D)
    constants = dict(D=D, D_PAD=padded, BLOCK_C=BLOCK_C, BLOCK_S=fused.TILE // BLOCK_C)
    constants |= dict(SPLITS_PAD=64, BLOCK_R=64, STAGES=fused.STAGES, ONE=BLOCK_C == 4)
    constants |= dict(RELU=True, RESIDUAL=D == 8) | dict.fromkeys(ones, 1)
    signature = {
        name: "constexpr" if name in constants else "fp32" if name == "eps" else "i32" if not name.endswith("_ptr")
        else "*fp32" if name in pointers else "*bf16"
        for name in kernel.arg_names
    }
    constants = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
                  if n.endswith("_ptr") or n in ("C", "stride_s", "stride_c") and signature[n] == "i32"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": fused.WARPS}).asm["ptx"]
    print(kernel.__name__, D, "ld.global.v4" in ptx or "cp.async.cg.shared.global" in ptx)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Triton's compiler needs no GPU and is stricter than its interpreter. At I3D's sizes reads are 16 bytes wide."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15
    assert all(wide == "True" for _, per_group, wide in lines if per_group == "8"), done.stdout
