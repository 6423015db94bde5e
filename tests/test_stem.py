"""The folded convolution and the max-pool kernels against PyTorch's own in float64 or float32."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.models import resnet
from video_gn.models.resnet import Conv3d, ResNet
from video_gn.models.stem import folded_conv3d
from video_gn.norm import norm_factory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = pytest.mark.skipif(
    DEVICE == "cpu" and (resnet.max_pool is None or os.environ.get("TRITON_INTERPRET") != "1"),
    reason="needs a GPU or TRITON_INTERPRET=1",
)
axis = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(0, 3), st.integers(0, 9))
"""Kernel, stride, padding, and how much larger than the kernel the input is."""


@given(axes=st.tuples(axis, axis, axis), channels=st.integers(1, 4), bias=st.booleans())
@settings(max_examples=60, deadline=None)
def test_folded_convolution(axes: tuple[tuple[int, int, int, int], ...], channels: int, bias: bool) -> None:
    kernel, stride, padding, more = zip(*axes, strict=True)
    torch.manual_seed(0)
    sizes = [k + extra for k, extra in zip(kernel, more, strict=True)]
    inputs = [torch.randn(2, channels, *sizes), torch.randn(5, channels, *kernel)] + [torch.randn(5)] * bias
    inputs = [t.double().requires_grad_() for t in inputs]
    x, weight, *maybe = inputs
    ours = folded_conv3d(x, weight, maybe[0] if bias else None, stride, padding)
    theirs = F.conv3d(x, weight, maybe[0] if bias else None, stride, padding)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    dy = torch.randn_like(theirs)
    for mine, want in zip(torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(theirs, inputs, dy), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-10, atol=1e-10)


def test_the_fold_of_the_stem_is_dense() -> None:
    """24 channels, 3 x 4 x 4 taps, stride 1, for 32 frames of 224 pixels: of I3D's conv1 nothing else is computed."""
    seen = []
    conv = Conv3d(3, 8, (5, 7, 7), (2, 2, 2), (2, 3, 3))
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv3d", lambda x, weight, bias: seen.append((x, weight)))
        folded_conv3d(torch.empty(1, 3, 32, 224, 224), conv.weight.to("meta"), None, (2, 2, 2), (2, 3, 3))
    ((x, weight),) = seen
    assert x.shape == (1, 24, 18, 115, 115) and weight.shape == (8, 24, 3, 4, 4)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_layer_has_the_parameters_of_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv3d(3, 8, (5, 7, 7), 2, (2, 3, 3), bias=False)
    ours = Conv3d(3, 8, (5, 7, 7), 2, (2, 3, 3), bias=False)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(ours(x), plain(x))


@KERNELS
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_max_pool(data: st.DataObject) -> None:
    """Values with many ties: the first of equal taps has the gradient, as in PyTorch."""
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    stride = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    sizes = [k + data.draw(st.integers(0, 5)) for k in kernel]
    check_pool((2, data.draw(st.sampled_from([1, 3, 16])), *sizes), kernel, stride, padding, torch.float32)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 3, 3), (2, 2, 2), (0, 0, 0)), ((1, 3, 3), (1, 2, 2), (0, 1, 1)), ((2, 1, 1), (2, 1, 1), (0, 0, 0))],
    ids=["stem", "slowfast", "pool2"],
)
def test_max_pools_of_the_nets(kernel, stride, padding, dtype: torch.dtype) -> None:
    check_pool((2, 200, 4, 13, 12), kernel, stride, padding, dtype)


def check_pool(shape, kernel, stride, padding, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randint(-2, 3, shape).to(dtype).to(DEVICE, memory_format=torch.channels_last_3d).requires_grad_()
    y, _ = resnet.max_pool.max_pool(x, kernel, stride, padding)
    want = F.max_pool3d(x, kernel, stride, padding)
    assert y.dtype == dtype and torch.equal(y, want)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    dy = torch.randint(-3, 4, want.shape).to(dtype).to(DEVICE)
    (ours,), (theirs,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(want, x, dy)
    assert torch.equal(ours, theirs)  # sums of few small integers are exact


@KERNELS
def test_max_pool_shows_a_nan() -> None:
    x = torch.zeros(1, 2, 2, 3, 3, device=DEVICE)
    x[0, 1, 1, 2, 1] = torch.nan
    y, _ = resnet.max_pool.max_pool(x, (2, 3, 3), (2, 2, 2), (0, 0, 0))
    assert y[0, 0].isfinite().all() and y[0, 1].isnan().all()


@KERNELS
def test_max_pool_is_an_op() -> None:
    x = torch.randn(1, 2, 4, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    torch.library.opcheck(resnet.max_pool.max_pool, (x, [2, 3, 3], [2, 2, 2], [0, 0, 0]))


@KERNELS
@pytest.mark.parametrize("kind", ["dense", "slowfast"])
def test_the_net_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ResNet(3, norm_factory("gn", channels_per_group=4), blocks=(1, 1, 1, 1), width=4, stem=kind, dropout=0)
    net = net.to(DEVICE, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 8, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)
    results = []
    for fast in (False, True):
        monkeypatch.setattr(resnet, "_on_gpu", lambda _, fast=fast: fast)
        net.zero_grad()
        logits = net(x)
        logits.sum().backward()
        results.append([logits.detach(), net.stem.conv.weight.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
