"""The seam of networks: what training, testing, features, Grad-CAM, export and tables ask of one.

A new network is one file with a subclass of `Network` and one line in `NETWORKS` (video_gn/models/__init__.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from video_gn.errors import UserError
from video_gn.models.freeze import Freezable


class Network(Freezable):
    """A network of named stages and a head, over clips (N, 3, T, H, W) or images (N, 3, H, W).

    A subclass sets `stages`, has a submodule for each of them (or its own `layer`) and one called `head`.
    """

    head: nn.Module
    """What depends on the number of classes; fine-tuning begins it anew."""
    stages: tuple[str, ...] = ()
    """Names of the stages, input to output; the output of the last goes into the head."""
    min_frames: int = 1
    """Frames of the shortest clip that it takes."""
    checkpoint_stages: Sequence[str] = ()
    """Stages that run again in the backward pass instead of keeping their activations."""

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        """Return logits of clips x, float (N, 3, T, H, W), or images (N, 3, H, W).

        With `window` None the last map is averaged over all of T, H and W: (N, K). Else the head slides over the map
        with stride 1, its window `window` cells wide and high: (N, locations, K), for fully-convolutional testing.
        """
        return self.classify(self.features(x), window)

    def features(self, x: Tensor) -> Tensor:
        """Return the last stage's output (N, C, *)."""
        return self.run_to(self.stages[-1], x)

    def run_to(self, stage: str, x: Tensor) -> Tensor:
        """Return the output (N, C, *) of a stage for input x; the stages behind it do not run."""
        return self._run(self.stages[: self.position(stage) + 1], x)

    def run_from(self, stage: str, x: Tensor, window: int | None = None) -> Tensor:
        """Return logits, as `forward` does, of the output x of a stage."""
        return self.classify(self._run(self.stages[self.position(stage) + 1 :], x), window)

    def layer(self, stage: str) -> Callable[[Tensor], Tensor]:
        """Return what runs a stage."""
        return self.get_submodule(stage)

    def classify(self, x: Tensor, window: int | None = None) -> Tensor:
        """Return logits, as `forward` does, of the last stage's output."""
        return self.head(x, window)

    def position(self, stage: str) -> int:
        """Return a stage's index in `stages`. Raises UserError, naming them, where there is none of that name."""
        if stage not in self.stages:
            raise UserError(f"stage {stage!r} is not known; choose one of {', '.join(self.stages)}")
        return self.stages.index(stage)

    @abstractmethod
    def norms(self) -> Iterator[nn.Module]:
        """Yield every norm, whatever its class."""

    def last_norms(self) -> Iterator[nn.Module]:
        """Yield the last norm of each residual branch, whose gamma starts at zero (section 4.1)."""
        return iter(())

    @abstractmethod
    def feature_size(self, side: int) -> int:
        """Return the cells of the last map along a side of `side` pixels: the head's window for that crop."""

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """Yield gamma and beta of every norm."""
        for norm in self.norms():
            yield from norm.parameters()

    def _run(self, stages: Sequence[str], x: Tensor) -> Tensor:
        again = self.checkpoint_stages if torch.is_grad_enabled() else ()
        layers = [partial(self._run_again_later, stage) if stage in again else self.layer(stage) for stage in stages]
        for layer in layers:
            x = layer(x)
        return x

    def _run_again_later(self, stage: str, x: Tensor) -> Tensor:
        # Here: it imports the compiler, which takes longer than all the rest of the package.
        from video_gn.models.recompute import run_again_later

        module = getattr(self, stage, None)
        if not isinstance(module, nn.Sequential):
            return run_again_later(self.layer(stage), x, self)
        for block in module:
            x = run_again_later(block, x, block)
        return x
