"""Pooled features of videos: what a stage of a trained net says of each clip, averaged over space and time.

The folder holds shards (features_00000.npz, ...), index.csv with a row a video, and features.json, which says of
which weights, list and settings they are. A shard is written whole before the index names it, so whatever a kill
leaves is right, and the same command continues behind the index's last row.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from video_gn.config import Config, flatten, parse_config
from video_gn.console import say
from video_gn.data.augment import network_input
from video_gn.data.dataset import Clips
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record, check_files, read_list
from video_gn.data.loader import eval_loader
from video_gn.data.targets import Target, parse_several, text_of
from video_gn.data.workers import naming_videos
from video_gn.distributed.precision import autocast, autocast_dtype, share_cores
from video_gn.distributed.world import World, world
from video_gn.engine.datasets import (
    class_names,
    decoder,
    fingerprint,
    quarantine,
    read_records,
    test_dataset,
    warn_of_other_classes,
)
from video_gn.engine.test import weights_digest
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, is_temporary, make_folder, replacing, write_text
from video_gn.files.tables import csv_text, foreign_table
from video_gn.models import Network, build_network, memory_format
from video_gn.run import checkpoint as ckpt
from video_gn.run.network import load_network

Per = Literal["clip", "video"]
Format = Literal["npz", "safetensors"]

ELSEWHERE = "name another folder"
INDEX, META = "index.csv", "features.json"
COLUMNS = ("path", "label", "shard", "row", "clips")
ANY_LABEL = 2**31  # features need no classes: a list of another data set has its own labels


@dataclass(frozen=True)
class Row:
    """A line of index.csv: a video whose features are written."""

    path: str
    """As in the list."""
    label: Target
    shard: str
    """File name in the folder."""
    row: int
    """The video's first row in the shard's `features`."""
    clips: int
    """How many clips: so many rows, or with one row a video, how many are averaged in it."""


@dataclass(frozen=True)
class Features:
    """What stands in the folder after a run."""

    folder: Path
    channels: int
    videos: int
    listed: int
    unreadable: dict[str, str]
    """Path -> reason of each listed video that has no features."""

    def text(self) -> str:
        """For a person, on stdout."""
        return f"{self.folder / INDEX}: {self.videos} of {self.listed} videos, {self.channels} features each"


def extract_features(
    checkpoint_path: str | Path,
    list_path: str,
    out: str | Path,
    *,
    stage: str | None = None,
    per: Per = "clip",
    form: Format = "npz",
    videos_per_shard: int = 512,
    overrides: Sequence[str] = (),
) -> Features | None:
    """Write the pooled output of a stage for every video of a list; what an earlier run wrote stays.

    A feature is the mean over (T, H, W), and over the views, of the stage's output; res2's before the temporal pool
    that follows it. float32 `features` (rows, C), a row a clip or the mean of a video's clips.

    Args:
        list_path: videos and labels as for training, any labels, one, several or none per video; an image folder for
            a network of images.
        per: `clip` or `video`.
        overrides: `key=value` changes of the checkpoint's config, such as test.views=center.

    Returns:
        What stands there on rank 0, None elsewhere.

    Raises:
        UserError: bad checkpoint, stage, override or list; `out` holds other features; more than test.max_unreadable
            unreadable videos (all others are written before).
    """
    if form == "safetensors" and importlib.util.find_spec("safetensors") is None:
        raise UserError("safetensors missing; pip install safetensors, or use --format npz")
    path = Path(checkpoint_path)
    state = ckpt.load(path)
    listed = {"data": state["config"]["data"] | {"test_list": list_path}}
    config = parse_config(state["config"] | listed, overrides, source=str(path))
    with world(config.device, config.model_dump(mode="json") | {"stage": stage, "per": per}) as ranks:
        check_decoder(config.data.decoder)
        model = load_network(state, config, ranks.device, source=str(path))
        stage = model.stages[-1] if stage is None else stage
        channels = _channels(config, stage)
        share_cores(ranks.device, config.data.workers)
        records = ranks.first(lambda: _records(config))
        store = _Store(Path(out), form)
        meta = _meta(state, config, records, ranks.device) | {"stage": stage, "per": per, "format": form}
        done = ranks.first(lambda: store.open(meta))
        left = [record for record in records if record.path not in done]
        if ranks.is_main and done:
            say(f"{len(done)} of {len(records)} videos are done; going on with the other {len(left)}")
        rows = len(left) * (config.test.clips if per == "clip" else 1)
        ranks.first(lambda: check_writable(store.folder, 4 * rows * channels, ELSEWHERE))  # bytes of float32
        if ranks.is_main:
            warn_of_other_classes(config, state.get("class_names", []))
        extraction = _Extraction(model, config, stage, per, ranks)
        unreadable = extraction.run(left, store, videos_per_shard)
        if not ranks.is_main:
            return None
    result = Features(store.folder, channels, len(store.rows), len(records), unreadable)
    _check_unreadable(result, config)
    return result


def pooled(model: Network, x: Tensor, stage: str) -> Tensor:
    """Mean over (T, H, W) of a stage's output, float32 (N, C), for x as `Network.forward` takes it.

    The stages behind it do not run.
    """
    return model.run_to(stage, x).float().flatten(2).mean(2)


class _Store:
    """The folder; rank 0 alone writes."""

    def __init__(self, folder: Path, form: Format) -> None:
        self.folder = folder
        self.form = form
        self.rows: list[Row] = []

    def open(self, meta: dict[str, Any]) -> set[str]:
        """Make the folder, or check that it is of the same features. The paths that are done."""
        make_folder(self.folder, ELSEWHERE)
        file = self.folder / META
        if not file.exists():
            if not all(map(is_temporary, self.folder.iterdir())):  # a start that was killed leaves one
                raise UserError(f"{self.folder} holds other files and no {META}; name a new folder")
            write_text(file, json.dumps(meta, indent=2) + "\n", ELSEWHERE)
        try:
            old = flatten(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, AttributeError):
            raise UserError(f"{file}: damaged, so whose features these are is not known; name a new folder") from None
        new = flatten(meta)
        changed = [key for key in new if old.get(key) != new[key]]
        if changed:
            what = ", ".join(f"{key} ({_short(old.get(key))}, now {_short(new[key])})" for key in changed)
            raise UserError(f"{self.folder} holds features of another {what}; name a new folder")
        if (self.folder / INDEX).exists():
            self.rows = read_index(self.folder)
        return {row.path for row in self.rows}

    def add(self, videos: list[tuple[Record, np.ndarray, int]]) -> None:
        """Write a shard of (record, float32 rows (R, C), clips), then name it in the index."""
        number = 1 + max((int(row.shard.split("_")[1].split(".")[0]) for row in self.rows), default=-1)
        shard = f"features_{number:05d}.{self.form}"
        self._write(shard, np.concatenate([features for _, features, _ in videos]))
        first = 0
        for record, features, clips in videos:
            self.rows.append(Row(record.path, record.target, shard, first, clips))
            first += len(features)
        rows = ([row.path, text_of(row.label), row.shard, row.row, row.clips] for row in self.rows)
        write_text(self.folder / INDEX, csv_text([COLUMNS, *rows]), ELSEWHERE)

    def _write(self, name: str, features: np.ndarray) -> None:
        """Write a shard atomically."""
        with replacing(self.folder / name, ELSEWHERE) as temporary, temporary.open("wb") as file:
            if self.form == "npz":
                np.savez(file, features=features)
            else:
                from safetensors.numpy import save

                file.write(save({"features": np.ascontiguousarray(features)}))


def read_index(folder: str | Path) -> list[Row]:
    """Return the rows of a folder's index.csv, in its order. Raises UserError where it cannot be read."""
    with foreign_table(Path(folder) / INDEX, "name a folder of features") as lines:
        return [
            Row(line["path"], _label(line["label"]), line["shard"], int(line["row"]), int(line["clips"]))
            for line in lines
        ]


def _label(text: str) -> Target:
    """Read what `text_of` wrote; one label is an integer, whatever the task."""
    return int(text) if text.isdigit() else parse_several(text, ANY_LABEL)


def read_shard(path: str | Path) -> np.ndarray:
    """Return a shard's features: float32 (rows, C)."""
    if Path(path).suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["features"]
    from safetensors.numpy import load_file

    return load_file(path)["features"]


class _Extraction:
    """This rank's share of the work."""

    def __init__(self, model: Network, config: Config, stage: str, per: Per, ranks: World) -> None:
        self.model = model
        self.config = config
        self.stage = stage
        self.per = per
        self.world = ranks

    def run(self, records: list[Record], store: _Store, videos_per_shard: int) -> dict[str, str]:
        """Fill the store shard by shard, each by all ranks together. What could not be read, by path, on rank 0."""
        if not records:
            return {}
        ranks, data = self.world, self.config.data
        dataset = test_dataset(self.config, records)
        loader = eval_loader(dataset, 1, data.workers, ranks.device, ranks.rank, ranks.size, data.timeout)
        items = (item for (item,) in loader)
        bar = tqdm(total=len(records), desc="features", unit="video", disable=None if ranks.is_main else True)
        unreadable: dict[str, str] = {}
        with bar, naming_videos():
            for first in range(0, len(records), videos_per_shard):
                last = min(first + videos_per_shard, len(records))
                mine = sum(index % ranks.size == ranks.rank for index in range(first, last))
                shares = ranks.gather(list(self._features(islice(items, mine), records, unreadable)))
                found = {index: value for share in shares for index, value in share}
                if found:
                    store.add([(records[index], *found[index]) for index in sorted(found)])
                bar.update(last - first)
        return {path: reason for share in ranks.gather(unreadable) for path, reason in share.items()}

    @torch.inference_mode()
    def _features(
        self, items: Iterator[Clips], records: list[Record], unreadable: dict[str, str]
    ) -> Iterator[tuple[int, tuple[np.ndarray, int]]]:
        """Index in the list, features float32 (R, C) and number of clips of each readable video."""
        precision = autocast(self.config.train.precision, self.world.device)
        for item in items:
            for error in item.unreadable:
                unreadable[records[item.index].path] = error.reason
                say(f"video without features: {error}")
            if item.views:
                with precision():
                    features = self._clips(item)
                rows = features.mean(0, keepdim=True) if self.per == "video" else features
                yield item.index, (rows.cpu().numpy(), len(features))  # sync point: once a video

    def _clips(self, item: Clips) -> Tensor:
        """Features of each clip, the mean over its views: float32 (K, C)."""
        config, device = self.config, self.world.device
        dtype = autocast_dtype(config.train.precision, device)
        at_once = max(1, config.test.clips_per_batch // len(item.views))
        layout = memory_format(config, device)
        parts = []
        data = config.data
        for clips in network_input(item, device, data.mean, data.std, config.dims, dtype, at_once, layout):
            features = pooled(self.model, clips, self.stage)  # view by view
            parts.append(features.unflatten(0, (len(item.views), -1)).mean(0))
        return torch.cat(parts)


@torch.no_grad()
def _channels(config: Config, stage: str) -> int:
    """Return the channels of a stage's output. Raises UserError where there is no such stage."""
    with torch.device("meta"):  # nothing is computed
        size = (config.data.frames, config.data.crop, config.data.crop)
        return build_network(config).eval().run_to(stage, torch.empty(1, 3, *size[-config.dims :])).shape[1]


def _records(config: Config) -> list[Record]:
    data = config.data
    if data.kind == "images":
        return read_records(config, data.test_list, World(0, 1, torch.device("cpu")))
    names = None
    if data.class_names is not None:
        with suppress(UserError):  # only a csv of Kinetics needs them, and read_list says so
            names = class_names(config)
    parse = partial(parse_several, num_classes=ANY_LABEL)  # and of another task's lists
    records = read_list(data.test_list, data.root, ANY_LABEL, names, absolute_paths=data.absolute_paths, parse=parse)
    bad = quarantine(config)
    check_files([record for record in records if record.path not in bad], data.root, data.test_list)
    return records


def _meta(state: ckpt.Checkpoint, config: Config, records: list[Record], device: torch.device) -> dict[str, Any]:
    """All that the numbers depend on, in JSON's types."""
    data, test = config.data, config.test
    return {
        "weights": weights_digest(state),
        "list": fingerprint(records),
        "clips": {"frames": data.frames, "stride": data.stride, "number": test.clips, "starts": test.clip_starts},
        "views": {"kind": test.views, "short_side": test.short_side, "crop": data.crop},
        "pixels": {"mean": list(data.mean), "std": list(data.std)},
        "precision": str(autocast_dtype(config.train.precision, device)).removeprefix("torch."),
        "decoder": decoder(config),
        "model": config.model.model_dump(mode="json"),
    }


def _short(value: object) -> str:
    """Return a value in a message; of a SHA-256 its beginning."""
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


def _check_unreadable(result: Features, config: Config) -> None:
    """Raise UserError when more videos than test.max_unreadable have no features."""
    if len(result.unreadable) > config.test.max_unreadable:
        print(result.text())
        raise UserError(
            f"{len(result.unreadable)} of {result.listed} videos could not be read, more than test.max_unreadable "
            f"{config.test.max_unreadable}: the features are of the others; fix the files (the same command then adds "
            "them) or raise the limit"
        )
