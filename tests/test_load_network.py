"""A network from a checkpoint: its weights, ready for use."""

from __future__ import annotations

import pytest
import torch

from video_gn.config import parse_config
from video_gn.errors import UserError
from video_gn.inference import Classifier
from video_gn.models import build_model, build_network, memory_format
from video_gn.run.network import load_network

CONFIG = {"output_dir": "x", "model": {"blocks": [1, 1, 1, 1], "width": 8, "norm": "bn", "num_classes": 3}}


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_is_loaded_for_use(channels_last):
    config = parse_config(CONFIG, [f"train.channels_last={channels_last}"], source="x")
    trained = build_model(config.model)
    for tensor in trained.state_dict().values():
        tensor.fill_(0.5 if tensor.is_floating_point() else 3)
    model = load_network({"model": trained.state_dict()}, config, source="last.pt")
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert all((tensor == (0.5 if tensor.is_floating_point() else 3)).all() for tensor in model.state_dict().values())
    kernel = model.get_parameter("stem.conv.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
    assert kernel.is_contiguous() != channels_last


@pytest.mark.parametrize(
    ("given", "device", "width", "last"),
    [
        ("auto", "cuda", 64, True),
        ("auto", "cuda", 16, True),
        ("auto", "cpu", 16, True),
        ("auto", "cpu", 64, False),
        ("true", "cpu", 64, True),
        ("false", "cpu", 16, False),
        ("false", "cuda", 64, False),
    ],
)
@pytest.mark.parametrize("kind", ["videos", "images"])
def test_memory_format_by_device_and_width(given, device, width, last, kind):
    values = [f"train.channels_last={given}", f"model.width={width}", f"data.kind={kind}"]
    values += ["data.frames=1", "test={views: center, clips: 1}"] if kind == "images" else []
    config = parse_config(CONFIG, values, source="x")
    formats = {"videos": torch.channels_last_3d, "images": torch.channels_last}
    assert memory_format(config, torch.device(device)) == (formats[kind] if last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["videos", "images"])
def test_the_test_feeds_the_memory_format_of_the_config(channels_last, kind):
    """A convolution computes channels last where either its weight or its input is so."""
    values = [f"train.channels_last={channels_last}", f"data.kind={kind}", "data.crop=32", "test.short_side=32"]
    values += ["test={views: center, clips: 1}"] if kind == "images" else ["model.stem=slowfast"]
    values += [f"data.frames={1 if kind == 'images' else 4}"]
    config = parse_config(CONFIG, values, source="x")
    model = load_network({"model": build_network(config).state_dict()}, config, source="last.pt")
    fed: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    frames = torch.randint(0, 256, (config.data.frames, 32, 32, 3), dtype=torch.uint8)
    classifier = Classifier(model, config, ["a", "b", "c"], torch.device("cpu"))
    classifier.scores(frames)
    assert fed and all(clips.is_contiguous() != channels_last for clips in fed)


def test_weights_of_another_network():
    config = parse_config(CONFIG, source="x")
    state = build_model(parse_config(CONFIG, ["model.width=16"], source="x").model).state_dict()
    with pytest.raises(UserError, match="last.pt: weights of another network"):
        load_network({"model": state}, config, source="last.pt")
