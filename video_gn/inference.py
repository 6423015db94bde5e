"""A trained net to use: a checkpoint becomes a classifier of video files and of frames.

    clf = video_gn.load("runs/demo/checkpoints/last.pt")
    clf.predict("video.mp4")          # [Prediction(label=0, name='up', score=0.998), ...]
    clf.scores(frames)                # uint8 (T, H, W, 3) -> float32 (K,)

The scores are those of the test (`video_gn.engine.test`): same clips, same views, same average.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from video_gn.config import Config, parse_config
from video_gn.data.augment import network_input
from video_gn.data.dataset import Clips, read_clips, read_planned
from video_gn.data.decode import VideoReader, check_decoder, open_video
from video_gn.data.decode.display import Crop
from video_gn.data.images import ImageReader
from video_gn.data.sampling import Box, eval_views, uniform_clips
from video_gn.data.targets import labels_of
from video_gn.distributed.precision import autocast, autocast_dtype
from video_gn.engine.datasets import class_names, clip_spec, warn_of_other_classes
from video_gn.engine.test import score_video
from video_gn.errors import UserError
from video_gn.models import Network, memory_format
from video_gn.run import checkpoint as ckpt
from video_gn.run.network import load_network
from video_gn.tasks import build_task

Video = str | os.PathLike[str] | np.ndarray | Tensor
"""A file, or uint8 RGB frames (T, H, W, 3) at the frame rate of the training videos."""


@dataclass(frozen=True)
class Prediction:
    """A class and its score."""

    label: int
    name: str
    """The class's name; its number where the run had no names."""
    score: float
    """Mean probability, in [0, 1]: softmax, of task multilabel sigmoid."""


@dataclass(frozen=True)
class Timeline:
    """Scores of clips along a video."""

    starts: np.ndarray
    """int64 (C,): first frame of each clip, rising."""
    span: int
    """Frames from a clip's first to the next clip's first, were it to follow at once: frames * stride."""
    scores: np.ndarray
    """float32 (C, K): probabilities, averaged over the views."""
    num_frames: int
    fps: float | None
    """None where the video does not tell."""

    @property
    def middles(self) -> np.ndarray:
        """float64 (C,): the frame in the middle of each clip."""
        return self.starts + min(self.span, self.num_frames) / 2

    def top(self, count: int) -> list[int]:
        """Return the labels with the highest peaks, in the order of their means."""
        peaks = np.argsort(-self.scores.max(0), kind="stable")[:count]
        return sorted(peaks.tolist(), key=lambda label: -self.scores[:, label].mean())


@dataclass(frozen=True)
class Gradcam:
    """Where in space and time a net sees a class, in clips that follow each other along a video."""

    starts: np.ndarray
    """int64 (C,): first frame of each clip; the last one may begin before the one before it ends."""
    span: int
    """Frames that a clip covers: frames * stride."""
    box: Box
    """The rectangle of the source frame that the maps cover."""
    maps: np.ndarray
    """float32 (C, t, h, w), at least 0, in the resolution of the layer's output."""
    label: int

    def heat(self, clip: int) -> Tensor:
        """Return a clip's map on the source: float32 (span, box height, box width); 1 is the highest of the video."""
        maps = torch.from_numpy(self.maps[clip])[None, None] / max(float(self.maps.max()), 1e-12)
        return F.interpolate(maps, (self.span, *self.box[2:]), mode="trilinear")[0, 0]


class Classifier:
    """A trained net on a device, with the test protocol of its config. Made by `load`.

    Attributes:
        model: the net, in evaluation mode, on `device`; its parameters require no gradient.
        config: of the training run, with the overrides of `load`.
        task: that it was trained for.
        names: of the classes, by label.
        device: where it computes.
    """

    def __init__(self, model: Network, config: Config, names: Sequence[str], device: torch.device) -> None:
        self.model = model
        self.config = config
        self.task = build_task(config)
        self.names = list(names)
        self.device = device

    @overload
    def predict(self, video: Video, top: int = 5) -> list[Prediction]: ...
    @overload
    def predict(self, video: list[Video] | list[str] | list[Path], top: int = 5) -> list[list[Prediction]]: ...

    def predict(self, video, top=5):  # type: ignore[no-untyped-def]
        """Return the `top` classes of a video, best first; of a list of videos, a list of them.

        Raises:
            VideoError: a file cannot be read.
            UserError: frames are not uint8 (T, H, W, 3).
        """
        if isinstance(video, (list, tuple)):
            return [self.predict(each, top) for each in video]
        return self.ranked(self.scores(video), top)

    def ranked(self, scores: np.ndarray, top: int = 5) -> list[Prediction]:
        """Return the classes with the highest of the scores (K,), best first."""
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        return [Prediction(label, self.names[label], float(scores[label])) for label in order]

    def holding(self, scores: np.ndarray) -> list[Prediction]:
        """Return the classes that the scores (K,) say to hold, best first.

        That is the best one; of task multilabel all from multilabel.threshold on, which may be none.
        """
        held = labels_of(self.task.parse(self.task.predicted(scores)))
        return [prediction for prediction in self.ranked(scores, len(scores)) if prediction.label in held]

    @torch.inference_mode()
    def scores(self, video: Video) -> np.ndarray:
        """Return mean probabilities over the clips and views of the test: float32 (K,). Raises as `predict`."""
        test = self.config.test
        plan = partial(
            uniform_clips,
            clips=test.clips,
            clip_starts=test.clip_starts,
            spec=clip_spec(self.config),
            kind=test.views,
            short_side=test.short_side,
        )
        frames, clips = read_planned(partial(self.open, video), plan)
        item = Clips(0, 0, frames, clips.clip_indices, clips.views)
        return self._probabilities(item).mean(0).cpu().numpy()

    @torch.inference_mode()
    def timeline(self, video: Video) -> Timeline:
        """Return the scores of clips that start a quarter of their length apart. Raises as `predict`."""
        data, test = self.config.data, self.config.test
        span = max(data.frames * data.stride, 1)
        with self.open(video) as reader:
            last = max(reader.num_frames - span, 0)
            starts = np.append(np.arange(0, last, max(span // 4, 1)), last)
            views = len(eval_views(test.views, reader.height, reader.width, data.crop, test.short_side))
            size = max(1, test.clips_per_batch // views)  # one forward pass: few frames at a time
            rows = []
            for begin in tqdm(range(0, len(starts), size), "timeline", leave=False, disable=None):
                item, _ = self._clips(reader, starts[begin : begin + size].tolist(), test.views)
                rows.append(self._probabilities(item).unflatten(0, (views, -1)).mean(0))
            return Timeline(starts, span, torch.cat(rows).cpu().numpy(), reader.num_frames, reader.fps)

    def gradcam(self, video: Video, label: int | None = None, layer: str | None = None) -> Gradcam:
        """Grad-CAM of clips one after the other, in the middle crop or (test.views three, full) the whole frame.

        Args:
            label: the class; the one with the highest score by default.
            layer: a stage of the network, by default the last; earlier ones have finer maps of simpler features.

        Raises:
            UserError: the network classifies images, or there is no such stage or label. Else as `predict`.
        """
        model, data = self.model, self.config.data
        if self.config.dims != 3:
            raise UserError(f"Grad-CAM is of networks on videos, not on {data.kind}")
        stage = model.stages[-1] if layer is None else layer
        model.position(stage)
        if label is not None and not 0 <= label < len(self.names):
            raise UserError(f"label {label} is outside 0 to {len(self.names) - 1}")
        label = int(self.scores(video).argmax()) if label is None else label
        span = max(data.frames * data.stride, 1)
        views = "center" if self.config.test.views == "center" else "full"
        maps = []
        with self.open(video) as reader:
            last = max(reader.num_frames - span, 0)
            starts = np.append(np.arange(0, last, span), last)
            for start in tqdm(starts.tolist(), "gradcam", unit="clip", leave=False, disable=None):
                item, box = self._clips(reader, [start], views)
                with autocast(self.config.train.precision, self.device)():
                    maps.append(gradcam(model, self._input(item), label, stage))
        return Gradcam(starts, span, box, torch.cat(maps).cpu().numpy(), label)

    def open(self, video: Video) -> VideoReader:
        """Return the reader of a file or of frames."""
        if isinstance(video, (np.ndarray, Tensor)):
            return FramesReader(video)
        path = os.fspath(video)
        return ImageReader(path) if self.config.data.kind == "images" else open_video(path, self.config.data.decoder)

    def _clips(self, reader: VideoReader, starts: Sequence[int], kind: str) -> tuple[Clips, Box]:
        return read_clips(reader, starts, clip_spec(self.config), kind, self.config.test.short_side)

    def _probabilities(self, item: Clips) -> Tensor:
        """float32 (V * K clips, classes), as the test has it."""
        return score_video(self.model, item, self.config, self.device)

    def _input(self, item: Clips) -> Tensor:
        """Clips as the network is fed them: (V K, 3, T, H, W)."""
        data = self.config.data
        dtype = autocast_dtype(self.config.train.precision, self.device)
        layout = memory_format(self.config, self.device)
        return next(network_input(item, self.device, data.mean, data.std, dtype=dtype, layout=layout))


def load(
    checkpoint: str | os.PathLike[str], device: str | torch.device = "auto", overrides: Sequence[str] = ()
) -> Classifier:
    """Return a classifier from a checkpoint of this package.

    Args:
        device: `auto` is a GPU where there is one; else cpu, cuda or cuda:1.
        overrides: `key=value` changes of the checkpoint's config, such as test.views=center.

    Raises:
        UserError: bad checkpoint or override, no such device, decoder or file of class names, or a file of other
            classes than the checkpoint's.
    """
    path = Path(checkpoint)
    state = ckpt.load(path)
    config = parse_config(state["config"], overrides, source=str(path))
    check_decoder(config.data.decoder)
    place = _device(device)
    model = load_network(state, config, place, source=str(path))
    names = class_names(config, state)
    warn_of_other_classes(config, names)
    return Classifier(model, config, names, place)


def gradcam(network: Network, clips: Tensor, label: int, stage: str | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) in space and time.

    The channels A_c of the stage's output, weighted by the gradient of the class's logit y,
    relu(sum_c w_c A_c) with w_c the mean of dy/dA_c over (T, H, W).

    Args:
        clips: float (N, 3, T, H, W), normalized.
        stage: of the network; by default the last.

    Returns:
        float32 (N, t, h, w) in the resolution of the stage's output.
    """
    stage = network.stages[-1] if stage is None else stage
    with torch.no_grad():  # nothing before this stage is kept for the gradient
        output = network.run_to(stage, clips)
    with torch.enable_grad():
        output = output.requires_grad_()
        logits = network.run_from(stage, output)
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), output)
    weights = gradient.float().mean((2, 3, 4), keepdim=True)
    return (weights * output.detach().float()).sum(1).relu()


class FramesReader(VideoReader):
    """Frames in memory as a video: uint8 (T, H, W, 3), a numpy array or a tensor on any device."""

    decoder = "memory"
    path = "frames"
    fps = None

    def __init__(self, frames: np.ndarray | Tensor) -> None:
        shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
        if dtype != "uint8" or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UserError(f"frames are {dtype} {shape}, but must be uint8 RGB (T, H, W, 3), at least one")
        self._frames = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
        self.num_frames, self.height, self.width = shape[:3]

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        for target, index in zip(out, indices, strict=True):
            target[:] = crop(self._frames[index])

    def close(self) -> None:
        pass


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {str(name)!r} is not known; use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {device} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: this torch sees no GPU; use cpu or auto, or check the driver")
    if device.type == "cuda" and (device.index or 0) >= (gpus := torch.cuda.device_count()):
        raise UserError(f"device {device}: GPUs count from 0, and this torch sees {gpus}; use a lower number")
    return device
