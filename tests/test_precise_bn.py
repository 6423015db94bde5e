"""Batch Norm's statistics for evaluation, against moments by hand.

fvcore's `update_bn_stats` speaks of "the average of per-batch mean/variance", but estimates (0.1.5) the mean and the
biased variance of all batches taken together, each batch weighted by its size. So these are what the tests expect.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.test_distributed import run_ranks
from video_gn.distributed.world import World
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn
from video_gn.norm.roles import precise_norms

no_autocast = contextlib.nullcontext


def batch(*values: float) -> Tensor:
    """A clip of one channel and one pixel for each value."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)


def test_equal_batches_by_hand() -> None:
    """0 2 4 6: mean 3, variance (9 + 1 + 1 + 9) / 4 = 5; the mean of the batches' unbiased variances would be 2."""
    norm = nn.BatchNorm3d(1)
    update_precise_bn(norm, iter([batch(0, 2), batch(4, 6)]), 2, no_autocast)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.item() == pytest.approx(3)
    assert norm.running_var.item() == pytest.approx(5)
    assert {name: value.item() for name, value in norm.state_dict().items() if name.startswith("running")} == {
        "running_mean": pytest.approx(3),
        "running_var": pytest.approx(5),
    }


def test_batches_of_different_sizes_by_hand() -> None:
    """0 2 | 4 6 8 10: mean 5, variance (25 + 9 + 1 + 1 + 9 + 25) / 6."""
    norm = nn.BatchNorm3d(1)
    update_precise_bn(norm, iter([batch(0, 2), batch(4, 6, 8, 10)]), 2, no_autocast)
    assert norm.running_mean.item() == pytest.approx(5)  # type: ignore[union-attr]
    assert norm.running_var.item() == pytest.approx(70 / 6)  # type: ignore[union-attr]


def test_a_deeper_layer_sees_batch_statistics() -> None:
    """The second norm's input is normalized by each batch's own moments, as in training."""
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 3, 1)
    model = nn.Sequential(nn.BatchNorm3d(2), conv, nn.ReLU(), nn.BatchNorm3d(3))
    batches = [3 * torch.randn(2, 2, 3, 4, 5) + index for index in range(4)]
    before = {name: value.clone() for name, value in model.named_parameters()}
    update_precise_bn(model, iter(batches), 4, no_autocast)

    hidden = []
    for x in batches:
        x = x.double()
        mean = x.mean((0, 2, 3, 4), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3, 4), keepdim=True)
        normalized = (x - mean) / (variance + 1e-5).sqrt()
        hidden.append(torch.relu(nn.functional.conv3d(normalized, conv.weight.double(), conv.bias.double())))
    for norm, inputs in ((model[0], torch.cat(batches).double()), (model[3], torch.cat(hidden))):
        mean = inputs.mean((0, 2, 3, 4))
        variance = (inputs**2).mean((0, 2, 3, 4)) - mean**2
        torch.testing.assert_close(norm.running_mean.double(), mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), variance, atol=1e-5, rtol=1e-5)
        assert norm.momentum == 0.1
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in model.named_parameters())


def test_it_takes_no_more_batches_than_asked() -> None:
    clips = iter([batch(0, 2), batch(4, 6), batch(100, 200)])
    norm = nn.BatchNorm3d(1)
    update_precise_bn(norm, clips, 2, no_autocast)
    assert norm.running_mean.item() == pytest.approx(3)  # type: ignore[union-attr]
    assert torch.equal(next(clips), batch(100, 200))


def test_a_model_in_evaluation_mode_is_updated_too() -> None:
    model = nn.Sequential(nn.BatchNorm3d(1)).eval()
    update_precise_bn(model, iter([batch(0, 2), batch(4, 6)]), 2, no_autocast)
    assert model[0].running_mean.item() == pytest.approx(3)


def test_the_forward_passes_run_under_autocast() -> None:
    inside = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.append(torch.is_autocast_enabled("cpu"))
            return x

    def autocast() -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16)

    def prepared() -> Iterator[Tensor]:
        for numbers in ((0, 2), (4, 6)):
            assert not torch.is_autocast_enabled("cpu")  # colours are changed in float32, as in training
            yield batch(*numbers)

    model = nn.Sequential(nn.BatchNorm3d(1), Spy())
    update_precise_bn(model, prepared(), 2, autocast)
    assert inside == [True, True]
    assert model[0].running_mean.dtype == torch.float32


def test_nothing_happens_without_batch_norm() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nn.GroupNorm(2, 4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def clips() -> Iterator[Tensor]:
        pytest.fail("a batch was asked for")
        yield torch.empty(0)

    update_precise_bn(model, clips(), 2, no_autocast)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_which_layers_keep_statistics() -> None:
    kept = nn.BatchNorm3d(2)
    model = nn.Sequential(kept, nn.BatchNorm3d(2, track_running_stats=False), nn.GroupNorm(1, 2))
    assert precise_norms(model) == [kept]


def test_a_single_process_keeps_its_statistics() -> None:
    norm = nn.BatchNorm3d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 0.1]))  # type: ignore[union-attr]
    norm.running_var.copy_(torch.tensor([2.0, 1e-6]))  # type: ignore[union-attr]
    average_running_statistics(norm, World(0, 1, torch.device("cpu")))
    assert torch.equal(norm.running_mean, torch.tensor([1.0, 0.1]))
    assert torch.equal(norm.running_var, torch.tensor([2.0, 1e-6]))


def test_average_over_two_ranks(tmp_path: Path) -> None:
    """0 2 on rank 0, 4 6 on rank 1 give what one process has for both: mean 3, variance 5."""
    script = """
import contextlib, json, sys
from pathlib import Path
import torch
from torch import nn
from video_gn.distributed.world import world
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn
from video_gn.norm.roles import precise_norms

with world("cpu") as ranks:
    model = nn.Sequential(nn.BatchNorm3d(1), nn.GroupNorm(1, 1))
    clips = torch.tensor([0.0, 2.0] if ranks.rank == 0 else [4.0, 6.0]).view(2, 1, 1, 1, 1)
    update_precise_bn(model, iter([clips]), 1, contextlib.nullcontext)
    average_running_statistics(model, ranks)
    average_running_statistics(nn.Linear(1, 1), ranks)
    result = [model[0].running_mean.item(), model[0].running_var.item()]
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(result))
"""
    run_ranks(script, 2, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx([3, 5])
