"""The CUDA graph of a micro-batch: on a GPU against the pass itself; anywhere, when it is recorded and when not."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_gn.config import parse_config
from video_gn.distributed.world import World
from video_gn.engine import graph
from video_gn.engine.graph import WARM_UP, GraphedPass
from video_gn.errors import UserError


def build(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.LazyLinear(5)
    net = nn.Sequential(*layers).to(device)
    net(torch.zeros(2, 3, 2, 4, 4, device=device))
    return net


def make_pass(net: nn.Module) -> graph.Pass:
    def run(clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(clips)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        return logits.detach(), loss.detach()

    return run


def train(net: nn.Module, forward_backward: graph.Pass, device: str, micro_batches: int = 2) -> list[Tensor]:
    """Return the losses of 4 steps of SGD."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    for step in range(4):
        optimizer.zero_grad(set_to_none=True)
        for index in range(micro_batches):
            number = step * micro_batches + index
            generator = torch.Generator().manual_seed(number)
            clips = torch.randn(2 if number < 7 else 3, 3, 2, 4, 4, generator=generator).to(device)
            torch.manual_seed(number)  # of dropout
            _, loss = forward_backward(clips, torch.arange(len(clips), device=device))
            losses.append(loss.clone())
        optimizer.step()
    return losses


@pytest.mark.cuda
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_same_training_as_without(micro_batches: int) -> None:
    """Same dropout, same running statistics, gradients accumulated; a batch of another size goes without."""
    torch.backends.cudnn.allow_tf32 = False
    nets = [build("cuda"), build("cuda")]
    graphed = GraphedPass(make_pass(nets[1]), nets[1].parameters(), strict=True)
    plain = train(nets[0], make_pass(nets[0]), "cuda", micro_batches)
    ours = train(nets[1], graphed, "cuda", micro_batches)
    assert graphed.graph is not None
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that refuses every recording, as one does whose pass waits for it."""

    def record(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", record)


def test_training_continues_where_nothing_can_be_recorded(refusing: None, capsys: pytest.CaptureFixture) -> None:
    nets = [build("cpu"), build("cpu")]
    plain = train(nets[0], make_pass(nets[0]), "cpu", 1)
    ours = train(nets[1], GraphedPass(make_pass(nets[1]), nets[1].parameters()), "cpu", 1)
    assert ours == plain
    said = capsys.readouterr().err
    assert said.count("without a CUDA graph (operation not permitted when stream is capturing);") == 1


def test_where_it_is_asked_for_the_reason_is_raised(refusing: None) -> None:
    net = build("cpu")
    graphed = GraphedPass(make_pass(net), net.parameters(), strict=True)
    with pytest.raises(RuntimeError, match="not permitted"):
        train(net, graphed, "cpu")
    assert graphed.calls == WARM_UP


@pytest.mark.parametrize(
    ("wanted", "device", "ranks", "norm", "recorded"),
    [
        ("auto", "cuda", 1, "gn", True),
        ("auto", "cuda", 2, "gn", False),
        ("auto", "cpu", 1, "gn", False),
        (True, "cuda", 2, "gn", True),
        (True, "cuda", 1, "sync_bn", True),
        (False, "cuda", 1, "gn", False),
        (True, "cpu", 1, "gn", "needs a GPU, and the device is cpu; set it to auto"),
        (True, "cuda", 2, "sync_bn", "model.norm=sync_bn exchange statistics"),
    ],
)
def test_when_a_graph_is_recorded(wanted, device: str, ranks: int, norm: str, recorded: bool | str) -> None:
    config = parse_config({"output_dir": "", "model": {"norm": norm}, "train": {"cuda_graph": wanted}})
    world = World(0, ranks, torch.device(device))
    if isinstance(recorded, bool):
        assert graph.records(config, world) is recorded
    else:
        with pytest.raises(UserError, match=recorded):
            graph.records(config, world)
