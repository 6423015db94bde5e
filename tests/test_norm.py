"""Norms by name against a direct reading of the paper's equations."""

from __future__ import annotations

import pytest
import torch

from video_gn.errors import UserError
from video_gn.norm import norm_factory

EPS = 1e-5


def by_equations(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Equations 1 and 2 over `axes`, biased variance, in float64."""
    x = x.double()
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt()


@pytest.mark.parametrize(
    ("name", "options", "groups"),
    [
        ("gn", {"groups": 4}, 4),
        ("gn", {"channels_per_group": 4}, 3),
        ("ln", {}, 1),
        ("in", {}, 12),
        ("gn", {"groups": 12}, 12),
    ],
)
def test_group_norms(name, options, groups):
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 12, 3, 5, 7) + 2
    norm = norm_factory(name, **options)(12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = by_equations(x.view(2, groups, -1), (2,)).view(x.shape)
    expected = expected * norm.weight.view(-1, 1, 1, 1).double() + norm.bias.view(-1, 1, 1, 1).double()
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, 5, 5)
    norm = norm_factory("bn")(4)
    torch.testing.assert_close(norm(x).double(), by_equations(x, (0, 2, 3, 4)), atol=1e-5, rtol=1e-5)
    assert (norm.momentum, norm.eps) == (0.1, EPS)


def test_none_and_unknown():
    x = torch.randn(1, 3, 2, 2, 2)
    assert torch.equal(norm_factory("none")(3)(x), x)
    with pytest.raises(UserError, match="'gnn' is not known.*bn, gn, ln, in, none"):
        norm_factory("gnn")


def test_groups_that_do_not_divide():
    with pytest.raises(UserError, match="32 groups do not divide a layer's 16 channels.*channels_per_group"):
        norm_factory("gn")(16)
    with pytest.raises(UserError, match="channels_per_group 5 does not divide"):
        norm_factory("gn", channels_per_group=5)(16)
