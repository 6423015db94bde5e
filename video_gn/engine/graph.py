"""Forward and backward pass of a micro-batch, recorded once as a CUDA graph and replayed.

Python needs about 30 ms for the 600 launches of a step of R50 I3D, the GPU 12 ms to run them (8 clips of 32 frames,
224 pixels, bf16, H200). A replay is one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from video_gn.config import Config
from video_gn.console import say
from video_gn.distributed.world import World
from video_gn.errors import UserError

Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Clips and targets to logits and loss, both without gradient; it adds to the parameters' gradients."""
WARM_UP = 3  # micro-batches before the recording, in which libraries choose their kernels


class GraphedPass:
    """A forward and backward pass that is a CUDA graph from its fourth call on; same results as the pass itself.

    A graph is of one shape and memory format: other clips go through the pass itself. What the pass does on the host is
    done once, at the recording; so it may not wait for the GPU. Random numbers on the device are those of the generator
    at each call.

    Args:
        run: the pass.
        parameters: those whose gradients the pass makes.
        strict: raise what the recording raises; else warn, and continue without a graph.
    """

    def __init__(self, run: Pass, parameters: Iterable[nn.Parameter], strict: bool = False) -> None:
        self.run, self.strict = run, strict
        self.parameters = [p for p in parameters if p.requires_grad]
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and loss, valid until the next call, and add to the parameters' gradients."""
        if self.graph is None and self.calls >= WARM_UP and not self.failed:
            self._record(clips, targets)
        self.calls += 1
        if self.graph is None or not (_alike(clips, self.clips) and _alike(targets, self.targets)):
            return self.run(clips, targets)
        self.clips.copy_(clips)
        self.targets.copy_(targets)
        # A replay overwrites its gradients: those of earlier micro-batches of the step are kept and added.
        earlier = [p.grad for p in self.parameters if p.grad is not None]
        kept = torch._foreach_mul(earlier, 1.0) if earlier else []
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        if kept:
            torch._foreach_add_(self.gradients, list(kept))
        return self.outputs

    def _record(self, clips: Tensor, targets: Tensor) -> None:
        earlier = [(p, p.grad) for p in self.parameters]
        self.clips, self.targets = clips.clone(), targets.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            for parameter in self.parameters:
                parameter.grad = None  # the graph makes its own
            # Other threads pin memory meanwhile, which a recording of all threads would not bear.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = self.run(self.clips, self.targets)
            self.parameters = [p for p in self.parameters if p.grad is not None]
            self.gradients = [p.grad for p in self.parameters if p.grad is not None]
            self.graph = graph
        except RuntimeError as error:
            if self.strict:
                raise
            self.failed = True
            reason = str(error).strip().splitlines()[0]
            say(f"warning: training continues without a CUDA graph ({reason}); train.cuda_graph=false tries none")
        finally:
            for parameter, gradient in earlier:
                parameter.grad = gradient


def records(config: Config, world: World) -> bool:
    """Return whether forward and backward pass become a CUDA graph: with `auto` on one GPU, and where it is asked for.

    On several ranks DDP, which sends gradients while others are computed, cannot be recorded: ranks then average all
    gradients after the backward pass.

    Raises:
        UserError: it is asked for and cannot be.
    """
    wanted, gpu = config.train.cuda_graph, world.device.type == "cuda"
    if wanted is True and not gpu:
        raise UserError(f"train.cuda_graph=true needs a GPU, and the device is {world.device.type}; set it to auto")
    if wanted is True and world.size > 1 and config.model.norm == "sync_bn":
        raise UserError(
            "train.cuda_graph=true: ranks of model.norm=sync_bn exchange statistics within the pass, which no graph "
            "records; set it to auto"
        )
    return gpu and (wanted is True or (wanted == "auto" and world.size == 1))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
