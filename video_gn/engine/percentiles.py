"""Percentiles of a layer's output during training (Figure 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from video_gn.errors import UserError

POINTS = (1, 20, 80, 99)
SAMPLES = 1_000_000
"""Values that are sorted, evenly spaced over the output."""


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule called `name`. Raises UserError, naming some, if there is none."""
    modules = dict(model.named_modules())
    if name not in modules or not name:
        some = ", ".join(list(modules)[1:200:20])
        raise UserError(f"train.percentiles_of {name!r}: the network has no such layer; it has for instance {some}")
    return modules[name]


@contextmanager
def percentiles_of(model: nn.Module, name: str | None) -> Iterator[dict[str, float]]:
    """While open, the first output of layer `name` is measured into the dict: percentiles/NAME/p01, p20, p80, p99."""
    values: dict[str, float] = {}
    if name is None:
        yield values
        return

    def measure(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if not values:
            flat = output.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)].float().cpu()  # sync point: once an evaluation
            quantiles = torch.quantile(sample, torch.tensor(POINTS) / 100)
            values.update({f"percentiles/{name}/p{p:02d}": q for p, q in zip(POINTS, quantiles.tolist(), strict=True)})

    handle = find_layer(model, name).register_forward_hook(measure)
    try:
        yield values
    finally:
        handle.remove()
