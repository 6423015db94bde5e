"""A trained net as a file that other programs run: ONNX, or a torch.export program.

The file holds the net alone, from normalized clips to logits. What else a program needs to know (how clips are cut and
normalized, the names of the classes) stands in its metadata.
"""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from video_gn import __version__
from video_gn.config import Config, parse_config
from video_gn.console import say
from video_gn.engine.datasets import class_names, warn_of_other_classes
from video_gn.engine.results import protocol
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, replacing
from video_gn.models import Network
from video_gn.run import checkpoint as ckpt
from video_gn.run.network import load_network
from video_gn.tasks import build_task

ELSEWHERE = "choose another place"
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit where that is above 1."""
METADATA = "metadata.json"
"""The extra file of a .pt2 archive."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written and how near its logits are."""

    path: Path
    shape: tuple[int | str, ...]
    """Of the input, such as ("batch", 3, "frames", 224, 224); a name is a size of the caller's choice."""
    tried: list[tuple[int, ...]]
    """Shapes at which its logits were compared with PyTorch's."""
    difference: float
    """The largest difference of a logit, divided by the largest logit where that is above 1."""

    def text(self) -> str:
        """For a person, on stdout."""
        sizes = " x ".join(str(size) for size in self.shape)
        return f"{self.path}: {sizes}, {len(self.tried)} shapes compared, largest difference {self.difference:.1e}"


def export_checkpoint(checkpoint_path: str | Path, out: str | Path, frames: int | None = None) -> Exported:
    """Write a checkpoint's net as ONNX (`out` ends in .onnx) or torch.export (.pt2), once its logits are PyTorch's.

    The file takes normalized float32 clips (N, 3, T, S, S), of images (N, 3, S, S), where S is data.crop, and gives
    logits (N, K), float32. N is free, and T from twice `min_frames` on: the last
    map then has two frames, while torch.export would fix a map of one.

    Args:
        frames: fix T to this. None: T is free, unless the network's own clips are shorter than that.

    Raises:
        UserError: bad checkpoint, suffix or `frames`; a package is missing; the logits differ, and nothing is written.
    """
    path, out = Path(checkpoint_path), Path(out)
    _check_target(out)
    state = ckpt.load(path)
    config = parse_config(state["config"], source=str(path))
    model = load_network(state, config, source=str(path))
    fixed = _fixed_frames(config, frames, model.min_frames)
    model.to(memory_format=torch.contiguous_format)
    names = class_names(config, state)
    warn_of_other_classes(config, names)
    facts = metadata(config, names, path.name, state["step"], fixed)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    check_writable(out.parent, size, ELSEWHERE)  # before the minutes that it takes

    program, shape = _program(model, config, fixed)
    with replacing(out, ELSEWHERE) as temporary:
        _save(program, shape, facts, temporary)
        tried = list(_shapes(config, fixed, 2 * model.min_frames))
        difference = _compare(model, _forward(temporary), tried, out.name)
    return Exported(out, shape, tried, difference)


def metadata(config: Config, names: list[str], checkpoint: str, step: int, frames: int | None) -> dict[str, Any]:
    """Return what a program must know to feed the file and to read its logits. docs/export.md explains each value."""
    data, test = config.data, config.test
    return {
        "class_names": names,
        "mean": data.mean,
        "std": data.std,
        "crop": data.crop,
        "short_side": test.short_side,
        "frames": frames or data.frames,
        "stride": data.stride,
        "clips": test.clips,
        "protocol": protocol(config),
        "task": config.task,
        "probability": build_task(config).probability,
        "model": config.model.model_dump(mode="json"),
        "checkpoint": checkpoint,
        "step": step,
        "video_gn": __version__,
    }


def _check_target(out: Path) -> None:
    if out.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{out}: the suffix says the format; end it in .onnx (ONNX) or .pt2 (torch.export)")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UserError(f"{', '.join(missing)} missing, which ONNX needs; pip install {' '.join(missing)}")


def _fixed_frames(config: Config, frames: int | None, min_frames: int) -> int | None:
    """Return the length that T is fixed to, or None where it is free."""
    if config.dims == 2:
        if frames is not None:
            raise UserError(f"--frames {frames}: the net is one of images, which have no length; leave it out")
        return None
    if frames is not None and frames < min_frames:
        raise UserError(f"--frames {frames} is too short for this network: at least {min_frames}")
    if frames is None and config.data.frames < 2 * min_frames:
        say(f"the length is fixed to {config.data.frames} frames: it is free for clips of at least {2 * min_frames}")
        return config.data.frames
    return frames


def _program(model: Network, config: Config, fixed: int | None) -> tuple[ExportedProgram, tuple[int | str, ...]]:
    """Return the net's graph, and the shape of its input."""
    crop = config.data.crop
    shape: tuple[int | str, ...] = ("batch", 3, crop, crop)
    example: tuple[int, ...] = (2, 3, crop, crop)
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    if config.dims == 3:
        shape = ("batch", 3, fixed or "frames", crop, crop)
        example = (2, 3, fixed or config.data.frames, crop, crop)
        if fixed is None:
            free[2] = Dim.DYNAMIC  # a named Dim wants proofs of what sparse stems ask of T, beyond its solver
    with _quiet():
        return torch.export.export(model, (torch.zeros(example),), dynamic_shapes={"x": free}), shape


def _save(program: ExportedProgram, shape: tuple[int | str, ...], facts: dict[str, Any], path: Path) -> None:
    if path.suffix == ".pt2":
        archive = io.BytesIO()  # on a full disk torch's writer would abort the process
        with _quiet():
            torch.export.save(program, archive, extra_files={METADATA: json.dumps(facts)})
        path.write_bytes(archive.getvalue())  # getbuffer: Python 3.12.1 may crash when writing fails (gh-111049)
        return
    free = {axis: name for axis, name in enumerate(shape) if isinstance(name, str)}
    with _quiet():
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes={"x": free},
            external_data=False,
            verbose=False,
        )
    assert onnx is not None
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    onnx.save(path, external_data=False)


def _forward(path: Path) -> Forward:
    """Return the file, read back, as a function from clips to logits."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(np.asarray(session.run(None, {"input": clips.numpy()})[0]))


def _shapes(config: Config, fixed: int | None, shortest: int) -> Iterator[tuple[int, ...]]:
    """Shapes to compare at: one clip and several, of the net's own length, the shortest and an odd one."""
    crop = config.data.crop
    if config.dims == 2:
        yield from ((clips, 3, crop, crop) for clips in (1, 3))
        return
    own = fixed or config.data.frames
    lengths = [(1, own), (3, own)] if fixed is not None else [(1, own), (3, shortest), (2, shortest + 5)]
    yield from ((clips, 3, length, crop, crop) for clips, length in lengths)


@torch.no_grad()
def _compare(model: Network, forward: Forward, shapes: Iterable[tuple[int, ...]], name: str) -> float:
    """Return the largest difference of the logits on random clips. Raises UserError where it is above `TOLERANCE`."""
    rng = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in shapes:
        clips = torch.randn(shape, generator=rng)
        ours = model(clips)
        try:
            theirs = forward(clips)
        except Exception as error:  # of a runtime, of many kinds
            raise UserError(f"{name} does not run on {shape}, so nothing is kept: {error!s:.200}") from None
        difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        difference /= max(1.0, float(ours.abs().max()))
        if not difference <= TOLERANCE:  # NaN, too
            raise UserError(
                f"{name}: logits of clips {shape} differ from PyTorch's by {difference:.1e}, above {TOLERANCE:.0e}, so "
                "nothing is kept; try another version of torch or onnxruntime, or the other format"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints on stdout and warns of, none of which concerns the user."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
