"""Statistics of norms for evaluation, against moments by hand, in float64, and against fvcore's."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import run_ranks
from video_gn.data.motion import write_dataset
from video_gn.distributed.world import World
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn
from video_gn.norm import norm_factory
from video_gn.norm.roles import precise_norms
from video_gn.run import checkpoint as ckpt

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


def deep() -> tuple[nn.Module, list[Tensor]]:
    """A network of three Batch Norms, and batches of different sizes whose distributions differ."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (2, 3, 4):
        layers += [norm_factory("bn")(channels), nn.Conv3d(channels, channels + 1, 1), nn.ReLU()]
    return nn.Sequential(*layers), [(1 + k) * torch.randn(1 + k % 3, 2, 2, 4, 5) + k for k in range(5)]


def inputs_of(model: nn.Module, batches: list[Tensor], autocast: Any = no_autocast) -> dict[nn.Module, Tensor]:
    """What each Batch Norm is given in training, float64, (C, pixels)."""
    seen: dict[nn.Module, list[Tensor]] = {}
    model = copy.deepcopy(model).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, x: seen.setdefault(module, []).append(x[0].detach()))
    for x in batches:
        with autocast():
            model(x)
    return {norm: torch.cat([x.double().transpose(0, 1).flatten(1) for x in seen[norm]], 1) for norm in norms}


def bf16() -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("autocast", [no_autocast, bf16])
def test_all_pixels_pooled_in_float64(autocast: Any) -> None:
    """Under autocast the second norm's input is bfloat16, and its statistics are of more digits than that."""
    model, batches = deep()
    inputs = list(inputs_of(model, batches, autocast).values())
    update_precise_bn(model, iter(batches), len(batches), autocast)
    for norm, x in zip((m for m in model.modules() if isinstance(m, nn.BatchNorm3d)), inputs, strict=True):
        torch.testing.assert_close(norm.running_mean.double(), x.mean(1), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), x.var(1, correction=0), atol=0, rtol=1e-6)


def test_fvcore_estimates_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        update_bn_stats = pytest.importorskip("fvcore.nn.precise_bn").update_bn_stats
    model, batches = deep()
    theirs = copy.deepcopy(model).train()
    update_bn_stats(theirs, batches, len(batches))
    update_precise_bn(model, iter(batches), len(batches), no_autocast)
    for name, value in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, theirs.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_a_mean_far_from_zero() -> None:
    """Mean 3000, sigma 0.1: E[x^2] - E[x]^2 in float32 has no digit left, and can be negative."""
    torch.manual_seed(0)
    batches = [3000 + 0.1 * torch.randn(2, 8, 2, 4, 4) for _ in range(6)]
    x = torch.cat(batches).double().transpose(0, 1).flatten(1)
    norm = norm_factory("bn")(8)
    update_precise_bn(norm, iter(batches), 6, no_autocast)
    torch.testing.assert_close(norm.running_var.double(), x.var(1, correction=0), atol=0, rtol=1e-3)  # type: ignore[operator, union-attr]


def test_nothing_but_precise_statistics_changes() -> None:
    """Neither a frozen norm, nor Batch Renorm's statistics and count, nor Batch Norm's count of training passes."""
    torch.manual_seed(0)
    names = ("bn", "frozen_bn", "brn", "gn", "bn")
    model = nn.Sequential(*(norm_factory(name, groups=2)(4) for name in names))
    model[4].eval()  # as in a frozen part of a network in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update_precise_bn(model, iter([torch.randn(2, 4, 3, 5, 5) + 1 for _ in range(3)]), 3, no_autocast)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.running_mean", "0.running_var"]
    assert model.training and not model[4].training


def test_a_norm_that_is_not_run_keeps_its_statistics() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = norm_factory("bn")(1), norm_factory("bn")(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Half()
    update_precise_bn(model, iter([batch(0, 2)]), 1, no_autocast)
    assert (model.used.running_mean.item(), model.unused.running_var.item()) == (1, 1)  # type: ignore[operator, union-attr]


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["bn", "sync_bn"])
def test_on_a_gpu_under_autocast(name: str) -> None:
    model, batches = deep()
    inputs = inputs_of(model, batches)
    first = next(iter(inputs.values()))
    sync = nn.Sequential(norm_factory(name)(2)).cuda()
    clips = (x.cuda() for x in batches)
    update_precise_bn(sync, clips, len(batches), lambda: torch.autocast("cuda", torch.bfloat16))
    torch.testing.assert_close(sync[0].running_mean.cpu().double(), first.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sync[0].running_var.cpu().double(), first.var(1, correction=0), atol=0, rtol=1e-5)


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
            assert not torch.is_autocast_enabled("cpu")  # colors are changed in float32, as in training
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


def test_two_ranks(tmp_path: Path) -> None:
    """0 2 on rank 0, 4 6 on rank 1 give what one process has for both: mean 3, variance 5.

    Pooled by precise BN (4 6 8 10 on rank 1: mean 5, variance 70 / 6), or of each rank's own statistics.
    """
    script = """
import contextlib, json, sys
from pathlib import Path
import torch
from torch import nn
from video_gn.distributed.world import world
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn

with world("cpu") as ranks:
    values = [0.0, 2.0] if ranks.rank == 0 else [4.0, 6.0]
    own = nn.Sequential(nn.BatchNorm3d(1), nn.GroupNorm(1, 1))
    update_precise_bn(own, iter([torch.tensor(values).view(2, 1, 1, 1, 1)]), 1, contextlib.nullcontext)
    average_running_statistics(own, ranks)
    average_running_statistics(nn.Linear(1, 1), ranks)
    pooled = [nn.BatchNorm3d(1), nn.BatchNorm3d(1)]
    for norm, numbers in zip(pooled, (values, [*values, 8.0, 10.0] if ranks.rank else values)):
        clips = torch.tensor(numbers).view(-1, 1, 1, 1, 1)
        update_precise_bn(norm, iter([clips]), 1, contextlib.nullcontext, world=ranks)
    result = [value.item() for norm in (own[0], *pooled) for value in (norm.running_mean, norm.running_var)]
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(result))
"""
    run_ranks(script, 2, tmp_path)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx([3, 5, 3, 5, 5, 70 / 6])


TOY = """
import sys
from pathlib import Path
import torch
from torch import nn
from video_gn.config import load_config
from video_gn.engine import train as loop
from video_gn.distributed.world import world
from video_gn.norm import NORMS

class Toy(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_square", torch.ones(channels))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.running_square.lerp_(x.detach().square().mean((0, 2, 3, 4)), 0.1)
            self.updates.add_(1)
        return x * (self.running_square + 1).rsqrt().view(-1, 1, 1, 1)

NORMS["toy"] = lambda options: Toy
folder = Path(sys.argv[1])
average = loop.average_running_statistics

def spy(model, ranks):
    torch.save(model.state_dict(), folder / f"{ranks.rank}.pt")
    average(model, ranks)

loop.average_running_statistics = spy
with world("cpu") as ranks:
    loop.train(load_config(folder / "toy.yaml"), ranks)
"""

TOY_CONFIG = """
output_dir: {folder}/run
device: cpu
model: {{norm: toy, blocks: [1, 1, 1, 1], width: 4, num_classes: 10, stem: sparse}}
data: {{root: {folder}, frames: 4, stride: 1, crop: 32, short_side: [32, 32], workers: 0, class_names: classes.txt}}
train: {{epochs: 1, clips_per_gpu: 2, global_batch: 8, checkpoint_stages: [res2, res4]}}
test: {{views: center, short_side: 32}}
"""


def test_a_new_norm_is_averaged_over_ranks_and_counts_each_micro_batch_once(tmp_path: Path) -> None:
    """A norm of 15 lines with running statistics of its own, of which nothing else in the package knows.

    Two steps of two micro-batches per rank; res2 and res4 run each forward pass twice, and two ranks see other clips.
    """
    write_dataset(tmp_path, train_videos=20, val_videos=10, num_frames=8, size=32, workers=1, progress=False)
    (tmp_path / "toy.yaml").write_text(TOY_CONFIG.format(folder=tmp_path))
    run_ranks(TOY, 2, tmp_path)
    before = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    after = ckpt.load(tmp_path / "run" / "checkpoints" / "last.pt")
    names = [name for name in after["model"] if name.endswith("running_square")]
    assert len(names) == 17
    for name in names:
        ours, theirs = (state[name] for state in before)
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(after["model"][name], (ours + theirs) / 2)
        assert all(torch.equal(share["buffers"][name], after["model"][name]) for share in after["loop"]["ranks"])
        assert after["model"][name.replace("running_square", "updates")] == 4
