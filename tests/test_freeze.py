"""Frozen parts: not a bit of them moves, no gradient is computed, and all else trains as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny_runs import interrupted_after, launch, run, tiny
from video_gn.config import ModelConfig, OptimConfig, parse_config
from video_gn.engine.optim import build_optimizer
from video_gn.errors import UserError
from video_gn.models import Network, build_model
from video_gn.models.freeze import parts_to_freeze
from video_gn.models.info import describe, table
from video_gn.run import checkpoint as ckpt

BODY = ["stem", "res2", "res3", "res4", "res5"]
BN = ["model.norm=bn", "model.groups=32"]


def network(norm: str = "bn", arch: str = "resnet50") -> Network:
    torch.manual_seed(0)
    if arch == "vgg16":
        return build_model(ModelConfig(arch="vgg16", width=2, norm=norm, num_classes=3), dims=2)
    return build_model(ModelConfig(blocks=(1, 1, 1, 1), width=4, norm=norm, channels_per_group=2, num_classes=3))


def moved_by_steps(model: Network, optim: OptimConfig) -> set[str]:
    """The keys of the state that three steps of training change."""
    model.freeze(parts_to_freeze(model, optim))
    optimizer = build_optimizer(model, optim, lr=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(3):
        model.eval()
        model.train()  # as after an evaluation
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(3, 3, 8, 32, 32)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize("norm", ["bn", "gn", "brn"])
@pytest.mark.parametrize("frozen", [["stem", "res2"], ["res4.0"], ["head"], BODY, ["res2", "res2.0"]])
def test_what_is_frozen_stays_and_all_else_moves(norm: str, frozen: list[str]) -> None:
    model = network(norm)
    moved = moved_by_steps(model, OptimConfig(freeze=tuple(frozen), weight_decay=0.1, norm_weight_decay=0.1))
    kept = {key for key in model.state_dict() if any(key.startswith(f"{name}.") for name in frozen)}
    assert moved == set(model.state_dict()) - kept
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == (name in kept), name


def test_body_lr_0_freezes_all_but_the_head() -> None:
    model = network()
    assert moved_by_steps(model, OptimConfig(body_lr=0, weight_decay=0.1)) == {"head.fc.weight", "head.fc.bias"}
    assert model.frozen == tuple(BODY)
    model = network()
    assert "stem.conv.weight" in moved_by_steps(model, OptimConfig(body_lr=1e-3))
    vgg = network(arch="vgg16")
    assert parts_to_freeze(vgg, OptimConfig(body_lr=0)) == ["conv", "norm", "fc"]


def test_a_frozen_body_keeps_no_activations() -> None:
    model = network()
    model.freeze(BODY)
    assert not model.features(torch.randn(1, 3, 8, 32, 32)).requires_grad


def test_names_that_the_network_does_not_have() -> None:
    for name in ("layer1", "res6", "pool2", "", "res2.7", "Stem"):
        with pytest.raises(UserError) as caught:
            network().freeze(["stem", name])
        assert str(caught.value) == (
            f"optim.freeze: {name!r} is not a part of this network; its parts are stem, res2, res3, res4, res5, head, "
            "and the modules in them, such as stem.norm"
        )
    for optim in (OptimConfig(freeze=(*BODY, "head")), OptimConfig(body_lr=0, freeze=("head",))):
        model = network()
        with pytest.raises(UserError, match="nothing is left to train; leave a part out of optim.freeze"):
            model.freeze(parts_to_freeze(model, optim))


def test_the_table_says_what_is_frozen() -> None:
    tree: dict[str, Any] = {"output_dir": "x", "model": {"num_classes": 5}, "optim": {"body_lr": 0}}
    info = describe(parse_config(tree))
    assert (info["frozen"], info["trainable"]) == (BODY, 5 * 2048 + 5)
    line = "; frozen: stem, res2, res3, res4, res5; trained: 10,245 parameters"
    assert table(info).splitlines()[0].endswith(line)
    assert info["activation_mib"] < 1
    plain = describe(parse_config({**tree, "optim": {}}))
    assert "frozen" not in table(plain)
    assert plain["trainable"] == plain["parameters"] == info["parameters"]


# --- in training ---


def state(folder: Path) -> dict[str, torch.Tensor]:
    return ckpt.load(folder / "checkpoints" / "last.pt")["model"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A Batch Norm network, with precise statistics."""
    return run(tiny(tmp_path_factory.mktemp("trained"), videos, *BN, "train.epochs=1"))


def tune(trained: Path, folder: Path, videos: Path, *overrides: str) -> Path:
    folder.mkdir(exist_ok=True)
    source = f"model.init_from={trained / 'checkpoints' / 'last.pt'}"
    return run(tiny(folder, videos, *BN, source, "seed=3", "optim.weight_decay=0.1", *overrides))


def test_a_run_moves_not_a_bit_of_a_frozen_body(
    trained: Path, tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Running statistics, precise ones of evaluations and counts included; keys and shapes are those of any run."""
    before, after = state(trained), state(tune(trained, tmp_path, videos, "optim.body_lr=0"))
    assert list(before) == list(after)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"head.fc.weight", "head.fc.bias"}
    assert "; frozen: stem, res2, res3, res4, res5; trained: 2,570 parameters" in capsys.readouterr().err


def test_an_unknown_part_leaves_no_folder(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UserError, match=r"optim.freeze: 'layer1' is not a part of this network"):
        run(tiny(tmp_path, videos, "optim.freeze=[layer1]"))
    assert not (tmp_path / "run").exists()


def test_a_run_with_frozen_parts_resumes_bitwise(trained: Path, tmp_path: Path, videos: Path) -> None:
    freeze = "optim.freeze=[stem,res2]"
    whole = tune(trained, tmp_path / "whole", videos, freeze)
    with interrupted_after(7):
        tune(trained, tmp_path / "cut", videos, freeze)
    cut = tune(trained, tmp_path / "cut", videos, freeze)
    first, one, two = state(trained), state(whole), state(cut)
    for key in one:
        assert torch.equal(one[key], two[key]), key
        assert torch.equal(one[key], first[key]) == key.startswith(("stem.", "res2.")), key


def test_two_ranks_train_as_one_with_frozen_parts(tmp_path: Path, videos: Path) -> None:
    options = ["model.norm=bn", "train.epochs=1", "optim.freeze=[stem, res3]"]
    run(tiny(tmp_path, videos, *options))
    (tmp_path / "two").mkdir()
    tiny(tmp_path / "two", videos)
    for process in launch(2, "tools/train.py", str(tmp_path / "two" / "tiny.yaml"), *options):
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    two = state(tmp_path / "two" / "run")
    for key, value in state(tmp_path / "run").items():
        if key.startswith(("stem.", "res3.")):
            assert torch.equal(value, two[key]), key
        elif not key.endswith("num_batches_tracked"):  # a rank counts its own
            torch.testing.assert_close(value, two[key], atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
