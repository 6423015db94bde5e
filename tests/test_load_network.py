"""A network from a checkpoint: its weights, ready for use."""

from __future__ import annotations

import pytest
import torch

from video_gn.config import parse_config
from video_gn.errors import UserError
from video_gn.models import build_model
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


def test_weights_of_another_network():
    config = parse_config(CONFIG, source="x")
    state = build_model(parse_config(CONFIG, ["model.width=16"], source="x").model).state_dict()
    with pytest.raises(UserError, match="last.pt: weights of another network"):
        load_network({"model": state}, config, source="last.pt")
