"""What a config trains and tests on: its lists and data sets, of videos or of images."""

from __future__ import annotations

import torch

from video_gn.config import Config
from video_gn.data.dataset import ClipSpec, TestClips, TrainClips, ValClips
from video_gn.data.images import read_image_folder
from video_gn.data.lists import Record, check_files, read_class_names, read_list
from video_gn.engine.distributed import World


def read_records(config: Config, name: str, world: World) -> list[Record]:
    """The records of a list or an image folder, checked on rank 0 for all ranks.

    Raises:
        UserError: it is missing or malformed, or files of it are missing.
    """
    return world.first(lambda: _read_records(config, name))


def _read_records(config: Config, name: str) -> list[Record]:
    data = config.data
    if data.kind == "images":
        return read_image_folder(name, data.root, config.model.num_classes)
    classes = config.model.num_classes
    class_names = None if data.class_names is None else read_class_names(data.class_names, data.root, classes)
    records = read_list(name, data.root, classes, class_names)
    check_files(records, data.root, name)
    return records


def train_dataset(config: Config, records: list[Record]) -> TrainClips:
    """Random clips or images with training augmentation."""
    data = config.data
    return TrainClips(
        records,
        data.root,
        _decoder(config),
        clip_spec(config),
        seed=config.seed,
        max_unreadable=data.max_unreadable,
        clips_per_video=data.clips_per_video,
    )


def val_dataset(config: Config, records: list[Record]) -> ValClips | TestClips:
    """What the monitored error is of: one random clip a video (Figure 7), the center crop of an image (section 4.1)."""
    if config.data.kind == "images":
        return test_dataset(config, records)
    return ValClips(records, config.data.root, _decoder(config), clip_spec(config), seed=config.seed)


def test_dataset(config: Config, records: list[Record]) -> TestClips:
    """All clips and views of the configured test."""
    test = config.test
    return TestClips(
        records,
        config.data.root,
        _decoder(config),
        clip_spec(config),
        views=test.views,
        clips=test.clips,
        clip_starts=test.clip_starts,
        short_side=test.short_side,
    )


def clip_spec(config: Config) -> ClipSpec:
    """The part of the `data` section that says how clips are cut."""
    data = config.data
    return ClipSpec(
        data.frames,
        data.stride,
        data.crop,
        data.short_side,
        data.flip,
        area=data.area,
        colour_jitter=data.colour_jitter,
        lighting=data.lighting,
    )


def memory_format(config: Config) -> torch.memory_format:
    """Of weights and input."""
    if not config.train.channels_last:
        return torch.contiguous_format
    return torch.channels_last if config.dims == 2 else torch.channels_last_3d


def _decoder(config: Config) -> str:
    return "image" if config.data.kind == "images" else config.data.decoder
