"""Norms by name against a direct reading of the paper's equations, in float64."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from video_gn.config import ModelConfig, parse_config
from video_gn.errors import UserError
from video_gn.models import build_model
from video_gn.models.resnet import ResNet
from video_gn.norm import NORMS, GroupNorm, NormFactory, NormOptions, norm_factory, normalize
from video_gn.norm.batch_renorm import BatchRenorm
from video_gn.norm.roles import precise_norms, running_statistics, stateful_norms

ROOT = Path(__file__).resolve().parent.parent
FACTORIES = {name: partial(norm_factory, name, groups=2) for name in NORMS}
EPS = 1e-5
IMAGES, CLIPS = (3, 12, 5, 7), (2, 12, 3, 5, 7)
BOTH = pytest.mark.parametrize("shape", [IMAGES, CLIPS], ids=["images", "clips"])
Key = Callable[[Tensor, Tensor], Tensor]

# What the pixels of one set S_i share, for pixels of sample n and channel c
EQUATION_3: Key = lambda n, c: c  # noqa: E731
EQUATION_4: Key = lambda n, c: n  # noqa: E731
EQUATION_5: Key = lambda n, c: n * 1000 + c  # noqa: E731


def equation_7(channels: int, groups: int) -> Key:
    return lambda n, c: n * 1000 + torch.floor(c / (channels / groups)).long()


def by_equations(x: Tensor, key: Key, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """Equations 1, 2 and 6 in float64, one set S_i after the other, each a mean over its m pixels."""
    x = x.detach().double()
    ones = [1] * (x.ndim - 2)
    n = torch.arange(x.shape[0]).view(-1, 1, *ones).expand(x.shape)
    c = torch.arange(x.shape[1]).view(-1, *ones).expand(x.shape)
    keys, y = key(n, c), torch.empty_like(x)
    for value in keys.unique():
        pixels = x[keys == value]
        m = len(pixels)
        mu = pixels.sum() / m
        sigma = math.sqrt(((pixels - mu) ** 2).sum() / m + EPS)
        y[keys == value] = (pixels - mu) / sigma
    gamma = torch.ones(x.shape[1]) if gamma is None else gamma.detach()
    beta = torch.zeros(x.shape[1]) if beta is None else beta.detach()
    return y * gamma.double().view(-1, *ones) + beta.double().view(-1, *ones)


def make(name: str, channels: int, **options: float | None) -> nn.Module:
    """A norm with gamma and beta of its own in each channel."""
    norm = norm_factory(name, **options)(channels)  # type: ignore[arg-type]
    if isinstance(getattr(norm, "weight", None), Tensor):
        nn.init.uniform_(norm.weight, 0.5, 2)  # type: ignore[arg-type]
        nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    return norm


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


ALL = [
    ("bn", {}, EQUATION_3),
    ("brn", {}, EQUATION_3),  # its warm-up
    ("gn", {"groups": 4}, equation_7(12, 4)),
    ("gn", {"channels_per_group": 4}, equation_7(12, 3)),
    ("gn", {"groups": 12}, EQUATION_5),
    ("gn", {"groups": 1}, EQUATION_4),
    ("ln", {}, EQUATION_4),
    ("in", {}, EQUATION_5),
]
EACH = pytest.mark.parametrize(
    ("name", "options", "key"), ALL, ids=[f"{name}{list(options.values())}" for name, options, _ in ALL]
)


# The equations


@BOTH
@EACH
def test_equations(name: str, options: dict[str, int], key: Key, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + 2
    norm = make(name, 12, **options)
    expected = by_equations(x, key, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)
    y = norm(channels_last(x))
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gn", "ln", "in", "bn", "brn"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equations_for_any_size(name: str, data: st.DataObject) -> None:
    """Odd sizes, channels that are no power of two, maps of one pixel."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    batch, groups, per_group = (data.draw(st.integers(1, top)) for top in (3, 4, 4))
    channels = groups * per_group
    key = {"gn": equation_7(channels, groups), "ln": EQUATION_4, "in": EQUATION_5}.get(name, EQUATION_3)
    seed = data.draw(st.integers(0, 1000))
    x = torch.randn((batch, channels, *sizes), generator=torch.Generator().manual_seed(seed)) * 2 + 1
    norm = norm_factory(name, groups=groups)(channels)
    of_a_set = {"gn": per_group, "ln": channels, "in": 1}.get(name, batch) * math.prod(sizes)
    if of_a_set == 1 and (batch == 1 or key is EQUATION_3):
        with pytest.raises(ValueError, match="more than 1 value per channel"):  # PyTorch's own check
            norm(x)
    else:
        torch.testing.assert_close(norm(x).double(), by_equations(x, key), atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (2, 4, 2, 1, 2)], ids=["images", "clips"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gn", {"groups": 2}),
        ("ln", {}),
        ("in", {}),
        ("bn", {}),
        ("brn", {}),
        # every r and d at its bound, and so constant for finite differences too
        ("brn", {"brn_r_max": 1.01, "brn_d_max": 0.01, "brn_warmup": 0, "brn_ramp": 0}),
    ],
    ids=str,
)
def test_gradients_by_finite_differences(name: str, options: dict[str, float], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = make(name, 4, **options).double()
    if name == "brn":
        norm.running_mean.fill_(-50)  # type: ignore[operator, union-attr]
        norm.running_var.fill_(0.01)  # type: ignore[operator, union-attr]
        norm.momentum = 0.0  # type: ignore[assignment]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in norm.parameters()]
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("name", ["bn", "frozen_bn", "brn"])
def test_gradients_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    norm = make(name, 3).double().eval()
    norm.running_mean.normal_()  # type: ignore[operator, union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    assert torch.autograd.gradcheck(norm, torch.randn(2, 3, 2, 1, 2, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", ["bn", "brn", "frozen_bn", "gn", "ln", "in"])
@BOTH
def test_channels_last_gives_the_same_gradients(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x, towards = make(name, 12, groups=4), torch.randn(shape), torch.randn(shape)
    gradients = []
    for value in (x.clone(), channels_last(x)):
        value.requires_grad_()
        wanted = [value, *norm.parameters()]
        gradients.append(torch.autograd.grad((norm(value) * towards).sum(), wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# Section 3's identities


@BOTH
def test_one_group_is_layer_norm_and_a_group_a_channel_is_instance_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    layer_norm, instance_norm = F.layer_norm(x, shape[1:]), F.instance_norm(x)
    for norm in (
        norm_factory("gn", groups=1)(12),
        norm_factory("ln")(12),
        norm_factory("gn", channels_per_group=12)(12),
    ):
        torch.testing.assert_close(norm(x), layer_norm, atol=1e-5, rtol=1e-5)
    for norm in (
        norm_factory("gn", groups=12)(12),
        norm_factory("in")(12),
        norm_factory("gn", channels_per_group=1)(12),
    ):
        torch.testing.assert_close(norm(x), instance_norm, atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("name", ["bn", "brn"])
def test_batch_norm_of_one_sample_is_instance_norm(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, *shape[1:])
    norm, instance_norm = make(name, 12), norm_factory("in")(12)
    instance_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    torch.testing.assert_close(norm(x), instance_norm(x), atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_a_sample_does_not_see_the_rest_of_the_batch(name: str, shape: tuple[int, ...]) -> None:
    """So micro-batches or ranks of any size give the same outputs, and gradients that add up."""
    torch.manual_seed(0)
    norm, x, towards = make(name, 12, groups=4), torch.randn(shape), torch.randn(shape)
    y = norm(x)
    (y * towards).sum().backward()
    whole = [p.grad.clone() for p in norm.parameters() if p.grad is not None]
    norm.zero_grad()
    for i in range(len(x)):
        alone = norm(x[i : i + 1])
        torch.testing.assert_close(alone, y[i : i + 1], atol=1e-6, rtol=1e-6)
        (alone * towards[i : i + 1]).sum().backward()
    for gradient, parameter in zip(whole, norm.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-5)
    changed = x.clone()
    changed[1:] += 100
    torch.testing.assert_close(norm(changed)[0], y[0], atol=1e-6, rtol=1e-6)


# Precision


@BOTH
@EACH
def test_bf16_has_float32_statistics(name: str, options: dict[str, int], key: Key, shape: tuple[int, ...]) -> None:
    """Only the result is rounded to bf16 (8 bits): a mean of 16 in bf16 would be off by up to 1/16 of sigma."""
    torch.manual_seed(0)
    x = (torch.randn(shape) + 16).bfloat16()
    norm = make(name, 12, **options)
    expected = by_equations(x, key, norm.weight, norm.bias)
    outside = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = norm(x)
    for y in (outside, inside):
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=2**-8)
    if hasattr(norm, "running_mean"):
        mean = x.double().mean([0, *range(2, x.ndim)])
        torch.testing.assert_close(norm.running_mean.double(), mean * (1 - 0.9**2), atol=1e-5, rtol=1e-5)


@BOTH
@EACH
def test_a_mean_far_from_zero(name: str, options: dict[str, int], key: Key, shape: tuple[int, ...]) -> None:
    """Mean 1000, sigma 1 in float32, where one step of float32 is 6e-5."""
    torch.manual_seed(0)
    x = torch.randn(shape) + 1000
    norm = make(name, 12, **options)
    expected = by_equations(x, key, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-3, rtol=1e-3)
    if name in ("bn", "brn"):
        torch.testing.assert_close(norm(channels_last(x)).double(), expected, atol=1e-2, rtol=1e-3)


def gradients(norm: nn.Module, x: Tensor, towards: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = norm(x)
    return [y.detach(), *torch.autograd.grad((y * towards.to(y.dtype)).sum(), [x, *norm.parameters()])]


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a large map": lambda x: x,
    "far from zero": lambda x: x + 1000,
    "far below zero": lambda x: x - 1000,
    "one border far away": lambda x: x + 1000 * (torch.arange(x.shape[-1]) == 0),
    "channels far apart": lambda x: x + torch.linspace(-50, 50, x.shape[1]).view(-1, *[1] * (x.ndim - 2)) + 300,
}


@pytest.mark.parametrize("change", MAPS.values(), ids=list(MAPS))
@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (2, 12, 3, 5, 7), (1, 4, 8, 112, 112)], ids=str)
@pytest.mark.parametrize(("name", "options"), [("gn", {"groups": 4}), ("ln", {}), ("in", {})])
def test_channels_last_on_a_cpu_is_exact(
    name: str, options: dict[str, int], shape: tuple[int, ...], change: Callable[[Tensor], Tensor]
) -> None:
    """To 2e-5, result and gradients; PyTorch's kernel is off by up to 2000, on the large map by 6e-5 at mean 0.

    Gradients of gamma and beta are sums over the pixels, and grow as the square root of their number.
    """
    torch.manual_seed(0)
    x, towards = change(torch.randn(shape)), torch.randn(shape)
    norm = make(name, shape[1], **options)
    exact = gradients(copy.deepcopy(norm).double(), x.double(), towards)
    found = gradients(norm, channels_last(x), channels_last(towards))
    for one, other in zip(found, exact, strict=True):
        terms = 1 if one.shape == shape else math.prod(shape) / shape[1]
        torch.testing.assert_close(one.double(), other, atol=2e-5 * math.sqrt(terms), rtol=2e-5)
    with torch.no_grad():
        assert torch.equal(norm(channels_last(x)), found[0])
    assert found[0].stride() == channels_last(x).stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_last_on_a_cpu_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, towards = (torch.randn(CLIPS) * 3 + 200).to(dtype), torch.randn(CLIPS).to(dtype)
    norm = make("gn", 12, groups=4)
    exact = gradients(copy.deepcopy(norm).double(), x.double(), towards.double())
    found = gradients(norm, channels_last(x), channels_last(towards))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-2, rtol=2e-2)
    assert found[0].dtype == found[1].dtype == dtype


@pytest.mark.parametrize("shape", [(0, 12, 5, 7), (2, 12, 1, 1), (2, 12, 1, 1, 1), (2, 1, 5, 7), (2, 1, 4, 1)], ids=str)
def test_channels_last_without_values_pixels_or_channels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) + 100
    last = x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)  # strides of channels last
    norm = make("ln", shape[1])
    for one, other in zip(gradients(norm, last, x), gradients(norm, x.double().float(), x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_contiguous_results_are_pytorchs() -> None:
    torch.manual_seed(0)
    for x in (torch.randn(IMAGES), torch.randn(CLIPS), torch.randn(2, 12, 1, 5, 7), torch.randn(2, 12, 5)):
        assert torch.equal(norm_factory("gn", groups=4)(12)(x), F.group_norm(x, 4, torch.ones(12), torch.zeros(12)))


def test_channels_last_in_exported_programs_and_other_transforms() -> None:
    """One program for any number of samples; the gradient of a function; no values where there are none to look at."""
    torch.manual_seed(0)
    norm, x, more = make("gn", 12, groups=4), channels_last(torch.randn(CLIPS) + 500), torch.randn(5, *CLIPS[1:])
    sizes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(norm, (x,), dynamic_shapes=sizes).module()
    torch.testing.assert_close(program(channels_last(more)), norm(channels_last(more)))
    (expected,) = gradients(norm, x, torch.ones(CLIPS))[1:2]
    found = torch.func.grad(lambda x: norm(x).sum())(x)
    torch.testing.assert_close(found, expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert norm(mode.from_tensor(x)).shape == CLIPS


# bn


def test_batch_norm_is_pytorchs() -> None:
    norm = norm_factory("bn")(4)
    assert isinstance(norm, _BatchNorm)
    assert (norm.momentum, norm.eps) == (0.1, EPS)
    assert list(norm.state_dict()) == list(nn.BatchNorm3d(4).state_dict())
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(norm)) is nn.SyncBatchNorm


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4), (1, 2, 4, 3, 3, 3)])
def test_batch_norm_takes_images_and_clips_alone(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes \(N, C, H, W\) or \(N, C, T, H, W\), not shape \(\d"):
        norm_factory("bn")(4)(torch.zeros(shape))


@BOTH
@pytest.mark.parametrize("name", ["bn", "brn"])
def test_running_statistics_over_steps(name: str, shape: tuple[int, ...]) -> None:
    """mu <- 0.9 mu + 0.1 mu_B, and so sigma^2: PyTorch's Batch Norm takes the unbiased one, Batch Renorm the biased."""
    torch.manual_seed(0)
    norm = make(name, 12, brn_warmup=1, brn_ramp=2)
    mean, variance = torch.zeros(12).double(), torch.ones(12).double()
    for step in range(4):
        x = (step + 1) * torch.randn(shape) + step
        norm(x)
        pixels = x.double().transpose(0, 1).reshape(12, -1)
        m = pixels.shape[1]
        mean_b = pixels.sum(1) / m
        variance_b = ((pixels - mean_b[:, None]) ** 2).sum(1) / (m - 1 if name == "bn" else m)
        mean, variance = 0.9 * mean + 0.1 * mean_b, 0.9 * variance + 0.1 * variance_b
        torch.testing.assert_close(norm.running_mean.double(), mean, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]
        torch.testing.assert_close(norm.running_var.double(), variance, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]
        assert norm.num_batches_tracked == step + 1
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    y = norm.eval()(x)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    ones = [1] * (x.ndim - 2)
    gamma, beta = norm.weight.double().view(-1, *ones), norm.bias.double().view(-1, *ones)  # type: ignore[operator, union-attr]
    expected = gamma * (x - mean.view(-1, *ones)) / (variance + EPS).sqrt().view(-1, *ones) + beta
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)


# brn


def renorm_by_hand(x: Tensor, state: dict[str, Tensor], r_max: float, d_max: float) -> Tensor:
    """Ioffe's algorithm 1, r and d detached, written out; moves the running statistics in `state` on."""
    axes, ones = [0, *range(2, x.ndim)], [1] * (x.ndim - 2)
    mu_b = x.mean(axes, keepdim=True)
    sigma_b = (((x - mu_b) ** 2).mean(axes, keepdim=True) + EPS).sqrt()
    mu, sigma = state["mean"].view(-1, *ones), (state["variance"] + EPS).sqrt().view(-1, *ones)
    r = (sigma_b / sigma).clip(1 / r_max, r_max).detach()
    d = ((mu_b - mu) / sigma).clip(-d_max, d_max).detach()
    y = ((x - mu_b) / sigma_b * r + d) * state["gamma"].view(-1, *ones) + state["beta"].view(-1, *ones)
    state["mean"] = 0.9 * state["mean"] + 0.1 * mu_b.detach().flatten()
    state["variance"] = 0.9 * state["variance"] + 0.1 * (sigma_b.detach().flatten() ** 2 - EPS)
    return y


def steps_of(sizes: tuple[int, ...], count: int) -> list[Tensor]:
    """Batches whose channels drift: some r and d within their bounds, some beyond."""
    torch.manual_seed(1)
    spread = torch.linspace(0.4, 2.5, sizes[1]).view(-1, *[1] * (len(sizes) - 2))
    return [(spread * torch.randn(sizes) + 0.2 * step * spread).double() for step in range(count)]


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 2, 3, 3)], ids=["images", "clips"])
def test_batch_renorm_by_hand(shape: tuple[int, ...]) -> None:
    """Outputs and gradients of warm-up (2 steps), ramp (4 steps) and after; r and d are constants going back."""
    norm = make("brn", 6, brn_warmup=2, brn_ramp=4).double()
    state = {
        "gamma": norm.weight,
        "beta": norm.bias,
        "mean": torch.zeros(6).double(),
        "variance": torch.ones(6).double(),
    }
    bounds = [(1, 0), (1, 0), (1.125, 0.125), (1.25, 0.25), (1.375, 0.375), (1.5, 0.5), (1.5, 0.5)]
    for x, (r_max, d_max) in zip(steps_of(shape, 7), bounds, strict=True):
        x.requires_grad_()
        towards = torch.randn(shape).double()
        wanted = (x, norm.weight, norm.bias)
        y, expected = norm(x), renorm_by_hand(x, state, r_max, d_max)
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
        ours = torch.autograd.grad((y * towards).sum(), wanted)  # type: ignore[arg-type]
        theirs = torch.autograd.grad((expected * towards).sum(), wanted)  # type: ignore[arg-type]
        for gradient, by_hand in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, by_hand, atol=1e-6, rtol=1e-6)


def test_batch_renorm_without_freedom_is_batch_norm() -> None:
    """r_max 1, d_max 0; and so the warm-up, whatever the bounds."""
    shut = norm_factory("brn", brn_r_max=1, brn_d_max=0, brn_warmup=0, brn_ramp=0)(6)
    warm = norm_factory("brn", brn_warmup=5)(6)
    batch_norm = norm_factory("bn")(6)
    for x in steps_of((2, 6, 2, 3, 3), 5):
        expected = batch_norm(x.float())
        torch.testing.assert_close(shut(x.float()), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(warm(x.float()), expected, atol=1e-5, rtol=1e-5)


def test_batch_renorm_with_all_freedom_is_evaluation() -> None:
    """Within the bounds gamma ((x - mu_B) / sigma_B r + d) + beta is gamma (x - mu) / sigma + beta."""
    norm = make("brn", 6, brn_r_max=1e6, brn_d_max=1e6, brn_warmup=0, brn_ramp=0).double()
    for x in steps_of((2, 6, 2, 3, 3), 5):
        expected = norm.eval()(x)
        torch.testing.assert_close(norm.train()(x), expected, atol=1e-6, rtol=1e-6)


def test_batch_renorm_of_a_stationary_batch_is_evaluation() -> None:
    norm = make("brn", 6, brn_warmup=0, brn_ramp=0).double()
    (x,) = steps_of((2, 6, 2, 3, 3), 1)
    for _ in range(300):
        y = norm(x)
    torch.testing.assert_close(norm.eval()(x), y, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(y, by_equations(x, EQUATION_3, norm.weight, norm.bias), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("warmup", "ramp", "opened"),
    [(0, 0, [1, 1, 1]), (2, 0, [0, 0, 1, 1]), (2, 1, [0, 0, 1, 1]), (1, 4, [0, 0.25, 0.5, 0.75, 1, 1])],
)
def test_how_the_bounds_open(warmup: int, ramp: int, opened: list[float]) -> None:
    """A batch of mean and sigma 100 times the running sigma: r and d are the bounds, read off the output."""
    norm = norm_factory("brn", brn_r_max=3, brn_d_max=5, brn_warmup=warmup, brn_ramp=ramp)(1)
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1) * 100 + 100
    for part in opened:
        norm.running_mean.zero_()  # type: ignore[operator, union-attr]
        norm.running_var.fill_(1)  # type: ignore[operator, union-attr]
        low, high = norm(x).flatten().tolist()
        assert (high + low) / 2 == pytest.approx(5 * part, abs=1e-4)
        assert (high - low) / 2 == pytest.approx(1 + 2 * part, abs=1e-4)


def test_batch_renorms_count_survives_a_checkpoint() -> None:
    """An interrupted ramp continues where it was."""
    options = {"brn_warmup": 1, "brn_ramp": 4}
    straight, first = norm_factory("brn", **options)(6), norm_factory("brn", **options)(6)  # type: ignore[arg-type]
    batches = [x.float() for x in steps_of((2, 6, 3, 3), 5)]
    for x in batches[:3]:
        straight(x), first(x)
    resumed = norm_factory("brn", **options)(6)  # type: ignore[arg-type]
    resumed.load_state_dict(first.state_dict())
    for x in batches[3:]:
        assert torch.equal(resumed(x), straight(x))
    assert resumed.num_batches_tracked == 5


def test_batch_renorm_reads_nothing_from_the_device() -> None:
    """A tensor on the meta device has no values: whatever made the host wait for one would raise."""
    with torch.device("meta"):
        norm = norm_factory("brn", brn_warmup=0)(4)
    x = torch.empty(2, 4, 3, 3, 3, device="meta", requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is not None


def test_batch_renorm_takes_a_batch_norms_state() -> None:
    """A trained Batch Norm's count of steps goes for the warm-up."""
    batch_norm, norm = nn.BatchNorm2d(3), norm_factory("brn", brn_warmup=2)(3)
    for _ in range(3):
        batch_norm(torch.randn(4, 3, 2, 2))
    norm.load_state_dict(batch_norm.state_dict())
    assert norm.num_batches_tracked == 3
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(norm.eval()(x), batch_norm.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brn_r_max": 0.5}, "brn_r_max 0.5 is below 1"),
        ({"brn_d_max": -1}, "brn_d_max -1 is negative"),
        ({"brn_warmup": -1}, "brn_warmup -1 is negative"),
        ({"brn_ramp": -2}, "brn_ramp -2 is negative"),
    ],
)
def test_batch_renorms_ranges(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        norm_factory("brn", **options)(4)  # type: ignore[arg-type]


# frozen_bn


@BOTH
def test_frozen_batch_norm_takes_a_trained_ones_state(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Identity(), make("bn", 12))
    for _ in range(3):
        trained(2 * torch.randn(shape) + 1)
    frozen = nn.Sequential(nn.Identity(), norm_factory("frozen_bn")(12))
    state = trained.state_dict()
    frozen.load_state_dict(state)
    assert "1.num_batches_tracked" in state  # the caller's own is left alone
    assert list(frozen.parameters()) == []
    x = torch.randn(shape)
    expected = trained.eval()(x)
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frozen(channels_last(x)), expected, atol=1e-5, rtol=1e-5)
    kept = {key: value for key, value in state.items() if "num_batches" not in key}
    assert frozen.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[key]) for key, value in frozen.state_dict().items())


def test_frozen_batch_norm_still_reports_keys_that_do_not_fit() -> None:
    state = norm_factory("bn")(4).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key.*gamma"):
        norm_factory("frozen_bn")(4).load_state_dict(state | {"gamma": torch.ones(4)})
    del state["running_var"]
    with pytest.raises(RuntimeError, match="Missing key.*running_var"):
        norm_factory("frozen_bn")(4).load_state_dict(state)


def test_frozen_batch_norm_by_hand() -> None:
    """gamma / sigma (x - mu) + beta: 3 / 2 (5 - 1) + 0.5 = 6.5."""
    norm = norm_factory("frozen_bn")(1)
    values = {"weight": 3.0, "bias": 0.5, "running_mean": 1.0, "running_var": 4.0}
    norm.load_state_dict({key: torch.tensor([value]) for key, value in values.items()})
    assert norm(torch.full((1, 1, 1, 1, 1), 5.0)).item() == pytest.approx(6.5, abs=1e-4)
    assert norm(torch.full((1, 1, 1, 1), 5.0)).item() == pytest.approx(6.5, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_batch_norm_is_exact_far_from_zero(dtype: torch.dtype) -> None:
    """mu 1000, sigma 1: x - mu loses nothing, where gamma / sigma x - gamma mu / sigma + beta would lose 4 digits."""
    torch.manual_seed(0)
    norm = make("frozen_bn", 12)
    norm.running_mean.fill_(1000)  # type: ignore[operator, union-attr]
    x = (torch.randn(CLIPS) + 1000).to(dtype)
    gamma, beta = norm.weight.double().view(-1, 1, 1, 1), norm.bias.double().view(-1, 1, 1, 1)  # type: ignore[operator, union-attr]
    y = norm(x)
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(
        y.double(), gamma * (x.double() - 1000) / math.sqrt(1 + EPS) + beta, atol=1e-6, rtol=tolerance
    )
    half = norm.to(torch.bfloat16)(x)  # constants of 8 bits, arithmetic still of 24
    assert half.dtype == dtype


def test_frozen_batch_norm_keeps_nothing_of_xs_size() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_factory("frozen_bn")(12)(torch.randn(CLIPS, requires_grad=True))
    assert max(kept, default=0) <= 12


# sync_bn


def test_sync_batch_norm_says_that_it_needs_gpus() -> None:
    norm = norm_factory("sync_bn")(4)
    assert isinstance(norm, nn.SyncBatchNorm)
    assert norm.state_dict().keys() == nn.BatchNorm3d(4).state_dict().keys()
    for shape in ((2, 4, 3, 3), (2, 4, 3, 3, 3)):
        with pytest.raises(UserError, match="sync_bn trains only on GPUs.*on the CPU.*model.norm to bn or gn"):
            norm(torch.zeros(shape))
    assert norm.num_batches_tracked == 0


def test_sync_batch_norm_evaluates_on_the_cpu_and_is_measured_on_meta() -> None:
    trained = make("bn", 4)
    trained(torch.randn(2, 4, 3, 3, 3))
    norm = norm_factory("sync_bn")(4)
    norm.load_state_dict(trained.state_dict())
    x = torch.randn(2, 4, 3, 3, 3)
    assert torch.equal(norm.eval()(x), trained.eval()(x))
    with torch.device("meta"):
        assert norm_factory("sync_bn")(4)(torch.empty(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_sync_batch_norm_is_measured_in_a_process_group() -> None:
    """Where every run of several ranks measures its network."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch.device("meta"):
            assert norm_factory("sync_bn")(4)(torch.empty(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.cuda
@BOTH
def test_sync_batch_norm_of_one_gpu(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    y = norm_factory("sync_bn")(12).cuda()(x.cuda())
    torch.testing.assert_close(y.cpu().double(), by_equations(x, EQUATION_3), atol=1e-5, rtol=1e-5)


# Hooks

HOOKED = pytest.mark.parametrize("name", ["gn", "bn", "brn", "frozen_bn"])


@HOOKED
def test_a_forward_hook_may_keep_the_norms_output(name: str) -> None:
    norm, x = make(name, 12, groups=4), torch.randn(CLIPS)
    expected, kept = norm(x), []
    norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
    assert torch.equal(normalize(norm, x, relu=True), expected.relu())
    assert torch.equal(kept[0], expected) and (expected < 0).any()


@HOOKED
@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_sees_the_norms_gradient(name: str, register: str) -> None:
    """dy of the norm's own output: 1 where the ReLU lets it through, 0 elsewhere."""
    norm, x = make(name, 12, groups=4), torch.randn(CLIPS, requires_grad=True)
    seen: list[Tensor] = []
    expected = (norm(x) > 0).float()
    getattr(norm, register)(lambda module, *gradients: seen.append(gradients[-1][0]))
    normalize(norm, x, relu=True).sum().backward()
    assert torch.equal(seen[0], expected)


# Roles


def test_which_norms_have_running_statistics() -> None:
    statistics = {name: [*running_statistics(make()(4))] for name, make in FACTORIES.items()}
    moments = ["running_mean", "running_var"]
    assert statistics == {name: moments if name in ("bn", "sync_bn", "brn") else [] for name in NORMS}
    model = nn.Sequential(*(make()(4) for make in FACTORIES.values()))
    names = dict(zip(model, FACTORIES, strict=True))
    assert [names[norm] for norm in stateful_norms(model)] == ["bn", "sync_bn", "brn"]
    assert [names[norm] for norm in precise_norms(model)] == [
        "bn",
        "sync_bn",
    ]  # r and d of brn are trained with its own
    model[0].eval()  # frozen
    assert [names[norm] for norm in stateful_norms(model)] == ["sync_bn", "brn"]
    model.eval()  # nothing is frozen: the network is in evaluation mode
    assert [names[norm] for norm in stateful_norms(model)] == ["bn", "sync_bn", "brn"]


@pytest.mark.parametrize(
    ("layer", "stateful", "precise"),
    [
        (nn.BatchNorm3d(4), True, True),
        (nn.SyncBatchNorm(4), True, True),
        (nn.BatchNorm3d(4, track_running_stats=False), False, False),
        (nn.InstanceNorm3d(4, track_running_stats=True), True, False),  # a mean of clips' variances
        (nn.InstanceNorm3d(4), False, False),
        (nn.Conv3d(4, 4, 1), False, False),
    ],
    ids=str,
)
def test_roles_of_pytorchs_layers(layer: nn.Module, stateful: bool, precise: bool) -> None:
    assert (stateful_norms(layer) == [layer], precise_norms(layer) == [layer]) == (stateful, precise)


class Toy(nn.Module):
    """A norm of running statistics alone; what it gives depends on how often it was run."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_square", torch.ones(channels))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_square.lerp_(x.detach().square().mean((0, 2, 3, 4)), 0.1)  # type: ignore[operator]
            self.updates.add_(1)  # type: ignore[operator]
        return x * (self.running_square + 1).rsqrt().view(-1, 1, 1, 1)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("norm", "compiled"),
    [(Toy, False), (norm_factory("brn", brn_warmup=0, brn_ramp=2), False), (Toy, True)],
    ids=["toy", "brn", "toy compiled"],
)
def test_a_block_that_runs_again_begins_with_the_same_statistics(norm: NormFactory, compiled: bool) -> None:
    """Statistics, counts and gradients are those of a network that keeps its activations, to the last bit."""
    torch.manual_seed(0)
    kept = ResNet(4, norm, blocks=(1, 1, 1, 1), width=4, dropout=0, stem="sparse").double()
    again = copy.deepcopy(kept)
    again.checkpoint_stages = ("res2", "res4")
    run_again = torch.compile(again, backend="aot_eager") if compiled else again
    for step in range(2):
        x = (1 + step) * torch.randn(2, 3, 4, 48, 48).double()
        for net in (kept, run_again):
            net(x).square().sum().backward()
    tolerance = 1e-9 if compiled else 0
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, kept.state_dict()[name], atol=tolerance, rtol=tolerance, msg=name)
    for one, other in zip(again.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=tolerance, rtol=tolerance)


# What the fused kernels take


def fuses(norm: GroupNorm, x: tuple[int, ...], residual: tuple[int, ...] | None = None) -> bool:
    """Whether it would, on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        other = None if residual is None else torch.empty(residual, device="cuda")
        return norm._fuses(torch.empty(x, device="cuda"), other)


def test_only_what_the_kernels_read_right_is_fused() -> None:
    pytest.importorskip("triton")
    norm, x = GroupNorm(2, 8), (2, 8, 3, 3)
    assert fuses(norm, x) and fuses(norm, x, x) and fuses(norm, (65535, 8, 1, 1)) and fuses(norm, (2, 8))
    assert not fuses(norm, x, (2, 8, 1, 1))  # it would be read past its end
    assert not fuses(GroupNorm(2, 4), x) and not fuses(GroupNorm(4, 16), x)  # gamma would
    assert not fuses(GroupNorm(2, 8, affine=False), x)
    without = GroupNorm(2, 8)
    without.register_parameter("bias", None)  # torch 2.11 has no argument for it
    assert not fuses(without, x)
    assert not fuses(norm, (65536, 8, 1, 1))  # one more than a grid is deep
    assert not fuses(norm, (8,)) and not fuses(norm, (0, 8, 3, 3))


# Names and options


def test_names() -> None:
    made = {name: type(norm_factory(name)(32)).__name__ for name in NORMS}
    assert made == {
        "bn": "BatchNorm",
        "sync_bn": "SyncBatchNorm",
        "frozen_bn": "FrozenBatchNorm",
        "brn": "BatchRenorm",
        "gn": "GroupNorm",
        "ln": "GroupNorm",
        "in": "GroupNorm",
        "none": "Identity",
    }
    for name in NORMS.keys() - {"none"}:
        assert norm_factory(name)(32).eps == EPS
    assert norm_factory("gn")(64).num_groups == 32


def test_options_have_one_default() -> None:
    """Those of `NormOptions`, in the config's keys, the classes and the document."""
    defaults = asdict(NormOptions())
    assert {key: ModelConfig.model_fields[key].default for key in defaults} == defaults
    norm = BatchRenorm(4)
    assert {f"brn_{key}": getattr(norm, key) for key in ("r_max", "d_max", "warmup", "ramp")} == {
        key: value for key, value in defaults.items() if key.startswith("brn_")
    }
    rows = re.findall(r"^\| `model\.(\w+)` \| (\S+) \|", (ROOT / "docs" / "norms.md").read_text("utf-8"), re.MULTILINE)
    assert {key: yaml.safe_load(value) for key, value in rows} == defaults


def test_the_document_has_every_norm() -> None:
    table = (ROOT / "docs" / "norms.md").read_text("utf-8").partition("## Equations")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(NORMS)


def test_names_and_options_need_no_torch() -> None:
    code = "import sys, video_gn.config, video_gn.norm; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_norm_that_the_table_gets_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="model.norm: 'toy' is not known; choose one of bn, .*, none$"):
        parse_config({"output_dir": "x"}, ["model.norm=toy"])
    monkeypatch.setitem(NORMS, "toy", lambda options: lambda channels: nn.GroupNorm(options.groups, channels))
    config = parse_config({"output_dir": "x"}, ["model.norm=toy", "model.groups=2", "model.width=4"])
    assert build_model(config.model).stem.norm.num_groups == 2  # type: ignore[union-attr]


def test_none_and_unknown() -> None:
    x = torch.randn(1, 3, 2, 2, 2)
    assert torch.equal(norm_factory("none")(3)(x), x)
    with pytest.raises(UserError, match="'gnn' is not known.*bn, sync_bn, frozen_bn, brn, gn, ln, in, none"):
        norm_factory("gnn")


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(UserError, match="32 groups do not divide a layer's 16 channels.*channels_per_group"):
        norm_factory("gn")(16)
    with pytest.raises(UserError, match="channels_per_group 5 does not divide"):
        norm_factory("gn", channels_per_group=5)(16)
    with pytest.raises(UserError, match="0 groups do not divide"):
        norm_factory("gn", groups=0)(16)
    with pytest.raises(UserError, match="channels_per_group 0 does not divide"):
        norm_factory("gn", channels_per_group=0)(16)
