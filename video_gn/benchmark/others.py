"""Other people's loading, called as their documents and code do: pytorchvideo's LabeledVideoDataset, and PySlowFast."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler, SequentialSampler

from video_gn.benchmark.videos import Video
from video_gn.data.sampling import ClipSpec

Transform = Callable[[dict], dict]


def labeled_videos(
    videos: Sequence[Video], seconds: float, decoder: str, starts: Sequence[list[int]] | None, transform: Transform
) -> Any:
    """pytorchvideo's LabeledVideoDataset over these videos, without audio.

    Args:
        seconds: a clip's length.
        starts: first frames of the clips of each video, in the order of `videos`; None draws one clip per video.
    """
    from pytorchvideo.data.clip_sampling import RandomClipSampler
    from pytorchvideo.data.labeled_video_dataset import LabeledVideoDataset

    if starts is None:
        drawn = [(video.path, {"label": 0}) for video in videos]
        return LabeledVideoDataset(drawn, RandomClipSampler(seconds), RandomSampler, transform, False, decoder)
    times = [[start / video.fps for start in clips] for video, clips in zip(videos, starts, strict=True)]
    given = [(video.path, {"starts": its}) for video, its in zip(videos, times, strict=True)]
    return LabeledVideoDataset(given, ClipsOfRecord(seconds), SequentialSampler, transform, False, decoder)


class ClipsOfRecord:
    """A clip sampler of pytorchvideo's: clips that start where the video's record says (`starts`, seconds)."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Forget a video, after its last clip."""
        self.next = 0

    def __call__(self, last_end: float, duration: float, record: dict) -> Any:
        from pytorchvideo.data.clip_sampling import ClipInfo

        start = record["starts"][self.next]
        self.next += 1
        return ClipInfo(start, start + self.seconds, self.next - 1, 0, self.next == len(record["starts"]))


# pytorchvideo.transforms does not import under today's torchvision; these do what its tutorials ask of it.


def subsample(frames: int) -> Transform:
    """UniformTemporalSubsample: `frames` of the (3, T, H, W) clip, evenly."""

    def transform(sample: dict) -> dict:
        indices = torch.linspace(0, sample["video"].shape[1] - 1, frames).long()
        return {"video": sample["video"].index_select(1, indices)}

    return transform


def training_transform(frames: int, crop: int, short_side: tuple[int, int]) -> Transform:
    """Subsample, / 255, Normalize, RandomShortSideScale, RandomCrop, RandomHorizontalFlip."""

    def transform(sample: dict) -> dict:
        clip = _normalized(sample, frames, int(torch.randint(short_side[0], short_side[1] + 1, ())))
        top, left = (int(torch.randint(0, side - crop + 1, ())) for side in clip.shape[2:])
        clip = clip[:, :, top : top + crop, left : left + crop]
        return {"video": clip.flip(-1) if torch.rand(()) < 0.5 else clip}

    return transform


def test_transform(frames: int, crop: int, short_side: int) -> Transform:
    """Subsample, / 255, Normalize, ShortSideScale, CenterCrop."""

    def transform(sample: dict) -> dict:
        clip = _normalized(sample, frames, short_side)
        top, left = ((side - crop) // 2 for side in clip.shape[2:])
        return {"video": clip[:, :, top : top + crop, left : left + crop]}

    return transform


def _normalized(sample: dict, frames: int, short_side: int) -> Tensor:
    clip = (subsample(frames)(sample)["video"] / 255 - 0.45) / 0.225
    height, width = clip.shape[2:]
    size = [side * short_side // min(height, width) for side in (height, width)]
    return F.interpolate(clip, size=size, mode="bilinear", align_corners=False)


class SlowFast:
    """PySlowFast's decoding (PyAV) and training transforms, from a checkout of its repository.

    What its `decoder.decode` and `Kinetics.__getitem__` do, called part by part: `decode` hands its PyAV branch a list
    where that counts on a number, and its torchvision branch wants operators that torchvision no longer has.

    Raises ImportError where the checkout or what it imports (cv2, scipy, iopath) is not there.
    """

    def __init__(self, folder: Path, frames: int, stride: int) -> None:
        # The package's own __init__ imports all of its data sets, and those want a newer pytorchvideo than PyPI's.
        package = types.ModuleType("slowfast.datasets")
        package.__path__ = [str(folder / "slowfast" / "datasets")]
        sys.path.insert(0, str(folder))
        try:
            importlib.import_module("slowfast")
            sys.modules[package.__name__] = package
            self.decoder, self.utils, self.container = (
                importlib.import_module(f"slowfast.datasets.{name}") for name in ("decoder", "utils", "video_container")
            )
        finally:
            sys.path.remove(str(folder))
        self.frames, self.stride = frames, stride

    def clip(self, path: str, number: int = -1, clips: int = 1) -> Tensor:
        """uint8 (T, H, W, 3): the clip that starts at `number` / `clips` of the valid starts; number -1 draws it."""
        container = self.container.get_video_container(path, False, "pyav")
        frames, fps, whole = self.decoder.pyav_decode(container, self.stride, self.frames, number, clips)
        size = max(1.0, self.stride * self.frames / 30 * fps)
        start, end, _ = self.decoder.get_start_end_idx(len(frames), size, *((number, clips) if whole else (0, 1)))
        return self.decoder.temporal_sampling(frames, start, end, self.frames)

    def augment(self, clip: Tensor, crop: int, short_side: tuple[int, int]) -> Tensor:
        """float32 (3, T, crop, crop) of a clip, as its training does."""
        clip = self.utils.tensor_normalize(clip.float() / 255.0, [0.45] * 3, [0.225] * 3).permute(3, 0, 1, 2)
        return self.utils.spatial_sampling(clip, -1, *short_side, crop)


class SlowFastClips(Dataset[dict]):
    """One random training clip per video."""

    def __init__(self, folder: Path, videos: Sequence[Video], spec: ClipSpec) -> None:
        self.slowfast = SlowFast(folder, spec.frames, spec.stride)
        self.videos, self.spec = videos, spec

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict:
        clip = self.slowfast.clip(self.videos[index].path)
        return {"video": self.slowfast.augment(clip, self.spec.crop, self.spec.short_side)}
