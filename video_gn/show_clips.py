"""A contact sheet of what the network is fed: random training clips after augmentation, and all test clips of a video.

The pictures are made from the very tensors that go into the network, its normalization undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from video_gn.config import Config
from video_gn.console import say
from video_gn.data.dataset import Clips, TestClips
from video_gn.data.decode import check_decoder, open_video
from video_gn.data.lists import Record, video_path
from video_gn.data.loader import DeviceBatches
from video_gn.data.mixing import Mix
from video_gn.data.sampling import MIXING, clip_indices, keyed_rng, uniform_starts
from video_gn.data.targets import name_of
from video_gn.distributed.world import World
from video_gn.draw.text import INK, PAPER, font, resized, shorten
from video_gn.engine.datasets import (
    class_names,
    mixing,
    read_records,
    read_train_records,
    test_dataset,
    train_dataset,
)
from video_gn.engine.optim import global_batch
from video_gn.engine.results import protocol
from video_gn.errors import UserError
from video_gn.files.atomic import replacing

ELSEWHERE = "give another --out"
CPU = World(0, 1, torch.device("cpu"))
CELL, GAP, TEXT, HEADING, WIDTH = 112, 4, 13, 17, 960  # pixels; the width is of a sheet of single images


@dataclass(frozen=True)
class Strip:
    """Some frames of a clip."""

    title: str
    frames: np.ndarray
    """uint8 (n, H, W, 3)."""
    note: str = ""
    """A second line below the title."""


@dataclass(frozen=True)
class Section:
    """A heading, a line below it, and strips."""

    heading: str
    note: str
    strips: list[Strip]


def show_clips(config: Config, out: Path, *, train: int = 8, test: int = 1, frames: int = 8) -> Path:
    """Draw `train` random training clips and the test clips of `test` random videos, `frames` of each. Writes a PNG.

    The draws are those of the first epoch and follow the config's seed.

    Raises:
        UserError: a bad list, an unknown decoder, no clip that can be read, or `out` cannot be written.
    """
    kind = Image.registered_extensions().get(out.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"{out}: not the name of a picture; end it in .png")
    check_decoder(config.data.decoder)
    names = class_names(config)
    sections = []
    if train:
        records = read_train_records(config, CPU)
        sections.append(_train_section(config, records, names, min(train, len(records)), frames))
    if test:
        records = read_records(config, config.data.test_list, CPU)
        order = keyed_rng(config.seed).permutation(len(records))[:test].tolist()
        dataset = test_dataset(config, records)
        sections += [_test_section(config, dataset, index, names, frames) for index in order]
    if not any(section.strips for section in sections):
        raise UserError("there is no clip to draw: none could be read, or --train and --test are 0")
    image = sheet(sections)
    with replacing(out, ELSEWHERE, parents=True) as temporary:
        image.save(temporary, kind)
    return out


def _train_section(config: Config, records: list[Record], names: list[str], count: int, frames: int) -> Section:
    strips: list[Strip] = []
    batches = []
    for items, mix in _micro_batches(config, records, count):
        clips, shares = torch.cat([fed(item, config) for item in items]), torch.eye(len(items))
        if mix is not None:  # shares as targets: row i becomes what clip i is made of
            clips, shares = mix(clips, shares)
        clips = clips[: count - len(strips)]
        batches.append(clips)
        for item, clip, row in zip(items, clips, shares, strict=False):
            note = ""
            if mix is not None:
                parts = [f"{share:.2f} of {name_of(records[other.index].target, names)} {records[other.index].path}"
                         for other, share in zip(items, row.tolist(), strict=True) if share]  # fmt: skip
                note = f"{'mixup' if mix.box is None else 'CutMix'}: {', '.join(parts)}"
            title = f"{name_of(records[item.index].target, names)}   {records[item.index].path}   {_how(item)}"
            strips.append(Strip(title, shown(clip, config, frames), note))
    heading = f"training clips of {config.data.train_list}, after augmentation"
    return Section(heading, statistics(batches), strips)


def _micro_batches(config: Config, records: list[Record], count: int) -> Iterator[tuple[list[Clips], Mix | None]]:
    """Yield the first clips of the first epoch, and how they are mixed: where they are, by complete micro-batches."""
    dataset, rule = train_dataset(config, records), mixing(config)
    size = config.train.clips_per_gpu if rule.mixup or rule.cutmix else count
    per_step = global_batch(config) // config.train.clips_per_gpu
    for number in range(-(-count // size)):
        items = list(_read(dataset.__getitems__([(0, number * size + k) for k in range(size)])))
        rng = keyed_rng(config.seed, MIXING, *divmod(number, per_step))
        mix = rule.draw(rng, (config.data.crop, config.data.crop))
        if items:
            yield items, mix if len(items) == size else None  # training ends where a clip is missing


def _how(item: Clips) -> str:
    """Say what became of a training clip: its cut, and each augmentation that changed it."""
    view = item.views[0]
    changes = [augmentation.describe(params) for augmentation, params in item.changes]
    return ", ".join([f"{view.box[3]} x {view.box[2]} px to {view.width}", *dict.fromkeys(filter(None, changes))])


def _test_section(config: Config, dataset: TestClips, index: int, names: list[str], frames: int) -> Section:
    record = dataset.records[index]
    heading = f"test clips ({protocol(config)}) of {record.path}   {name_of(record.target, names)}"
    items = list(_read([dataset[index]]))
    if not items:
        return Section(heading, "cannot be read", [])
    clips = fed(items[0], config)
    views = len(items[0].views)
    titles = [
        text + (f"   view {view} of {views}" if views > 1 else "")
        for view in range(1, views + 1)
        for text in _clip_titles(config, record)
    ]
    strips = [Strip(title, shown(clip, config, frames)) for title, clip in zip(titles, clips, strict=True)]
    return Section(heading, statistics([clips]), strips)


def _read(items: Sequence[Clips]) -> Iterator[Clips]:
    """Those that could be read; the others are said."""
    for item in items:
        for error in item.unreadable:
            say(f"not drawn: {error}")
        if item.views:
            yield item


def _clip_titles(config: Config, record: Record) -> list[str]:
    """Which frames each test clip has."""
    data, test = config.data, config.test
    if data.kind == "images":
        return ["image"]
    with open_video(video_path(record, data.root), data.decoder) as video:
        count = video.num_frames
    starts = uniform_starts(count, data.frames, data.stride, test.clips, test.clip_starts)
    titles = []
    for number, start in enumerate(starts, 1):
        indices = clip_indices(start, data.frames, data.stride, count)
        titles.append(
            f"clip {number} of {len(starts)}: frames {indices[0]} to {indices[-1]} of {count}, stride {data.stride}"
        )
    return titles


def fed(item: Clips, config: Config) -> Tensor:
    """Return what the network gets of these clips: float (V K, 3, T, H, W), normalized; T is 1 for images."""
    batches = DeviceBatches([[item]], CPU.device, config.data.mean, config.data.std)
    return next(iter(batches)).clips


def shown(clip: Tensor, config: Config, frames: int) -> np.ndarray:
    """Return normalized frames (3, T, H, W) as pixels: uint8 (n, H, W, 3), up to `frames`, first and last included."""
    chosen = np.unique(np.linspace(0, clip.shape[1] - 1, frames).round().astype(int))
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (config.data.mean, config.data.std))
    pixels = (clip[:, chosen] * std + mean) * 255
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def statistics(batches: Sequence[Tensor]) -> str:
    """Return shape, mean, standard deviation and range of network inputs, by color."""
    if not batches:
        return "none could be read"
    values = torch.cat([clips.transpose(0, 1).flatten(1) for clips in batches], 1)
    count = sum(len(clips) for clips in batches)
    numbers = [" ".join(f"{value:.2f}" for value in row.tolist()) for row in (values.mean(1), values.std(1))]
    shape = " x ".join(str(side) for side in batches[0].shape[1:])
    return (
        f"network input: {count} x {shape}, normalized R G B mean {numbers[0]}, std {numbers[1]}, "
        f"from {values.min():.2f} to {values.max():.2f}"
    )


def sheet(sections: Sequence[Section]) -> Image.Image:
    """Draw the strips below each other, each under its title; where strips are narrow, several next to each other."""
    strips = [strip for section in sections for strip in section.strips]
    widest = max(sum(_cell(frame)[0] + GAP for frame in strip.frames) for strip in strips)
    width = max(widest, WIDTH) + GAP
    columns = max(1, width // widest)
    parts = [part for section in sections for part in _drawn(section, width, columns, widest)]
    image = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        image.paste(part, (0, top))
        top += part.height
    return image


def _drawn(section: Section, width: int, columns: int, widest: int) -> Iterator[Image.Image]:
    """Yield the heading, then rows of strips."""
    head = Image.new("RGB", (width, 4 * HEADING), (44, 44, 52))
    draw = ImageDraw.Draw(head)
    draw.text((2 * GAP, HEADING * 1.2), shorten(section.heading, width - 4 * GAP, HEADING), INK, font(HEADING), "lm")
    draw.text((2 * GAP, HEADING * 2.8), shorten(section.note, width - 4 * GAP, TEXT), INK, font(TEXT), "lm")
    yield head
    for begin in range(0, len(section.strips), columns):
        row = section.strips[begin : begin + columns]
        lines = 2 * TEXT + any(strip.note for strip in row) * (TEXT + GAP)
        height = max(_cell(strip.frames[0])[1] for strip in row) + lines
        image = Image.new("RGB", (width, height + GAP), PAPER)
        for column, strip in enumerate(row):
            left = GAP + column * widest
            room = (widest if columns > 1 else width) - 2 * GAP
            draw = ImageDraw.Draw(image)
            draw.text((left, TEXT), shorten(strip.title, room, TEXT), INK, font(TEXT), "lm")
            draw.text((left, 2 * TEXT + GAP), shorten(strip.note, room, TEXT), INK, font(TEXT), "lm")
            for frame in strip.frames:
                size = _cell(frame)
                image.paste(Image.fromarray(resized(frame, *size)), (left, lines))
                left += size[0] + GAP
        yield image


def _cell(frame: np.ndarray) -> tuple[int, int]:
    """(width, height) at which a frame is drawn."""
    height, width = frame.shape[:2]
    return max(round(CELL * width / height), 1), CELL
