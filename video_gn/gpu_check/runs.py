"""Whole runs on this device: clips from files, and the trainer with a resume."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from video_gn.benchmark.loader import rate_of_clips
from video_gn.benchmark.videos import Video, find_videos
from video_gn.config import Config, parse_config
from video_gn.distributed.world import World
from video_gn.engine.train import train
from video_gn.gpu_check.findings import Findings, Place, error
from video_gn.run.checkpoint import load
from video_gn.run.log import read_log

STARVED = 5  # % of a step's time that training may wait for data


def loader(place: Place, findings: Findings) -> None:
    """Measure training clips per second, from files to clips on the device."""
    files = find_videos(place.videos, place.quick)
    rate = rate_of_clips(files, place.quick, place.workers, place.device)
    findings.add(f"training clips per second, {place.workers} workers", rate, note=f"{len(files)} videos")


def training(place: Place, findings: Findings) -> None:
    """Train on files: all steps at once, and the same in two runs with a resume between them."""
    files = find_videos(place.videos, place.quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, halves = (_config(place, _lists(files, folder, place), folder / run) for run in ("whole", "halves"))
        world = World(0, 1, place.device)
        train(whole, world)
        train(halves.model_copy(update={"train": halves.train.model_copy(update={"epochs": 1})}), world)
        train(halves, world)
        logs = [read_log(folder / run) for run in ("whole", "halves")]
        models = [load(folder / run / "checkpoints" / "last.pt")["model"] for run in ("whole", "halves")]
    worst = max(error(models[1][key].float(), value.float()) for key, value in models[0].items())
    same = all(torch.equal(models[1][key], value) for key, value in models[0].items())
    findings.add("a run with a resume: largest difference of a weight", worst, ok=worst < 1e-2,
                 note=f"same bits: {same}")  # fmt: skip
    last = [line for line in logs[0] if "system/data_wait" in line][-1]
    wait = 100 * last["system/data_wait"]
    findings.add("training: % of the time waiting for data", wait, ok=wait < STARVED if place.goals else None,
                 note=f"{last['system/clips_per_second']:.0f} clips/s, {place.workers} workers")  # fmt: skip


def _lists(files: list[Video], folder: Path, place: Place) -> Path:
    """Write lists of half the steps' batches, and of one, and copies of the videos, as many as that takes."""
    clips = place.clips[0]
    number = clips * place.steps // 2
    videos = folder / "videos"
    videos.mkdir(exist_ok=True)
    names = []
    for index in range(number):
        source = Path(files[index % len(files)].path)
        target = videos / f"{index:03d}{source.suffix}"
        if not target.exists():
            shutil.copyfile(source, target)
        names.append(f"{target.name},{index % 2}")
    (folder / "train.csv").write_text("\n".join(names) + "\n")
    (folder / "val.csv").write_text("\n".join(names[:clips]) + "\n")
    (folder / "classes.txt").write_text("one\ntwo\n")
    return videos


def _config(place: Place, videos: Path, output: Path) -> Config:
    clips, frames, side = place.clips
    lists = {name: str(videos.parent / f"{name}.csv") for name in ("train", "val")}
    return parse_config(
        {
            "output_dir": str(output),
            "model": {
                "norm": "gn",
                "num_classes": 2,
                **place.net,
                **({"channels_per_group": 4} if place.quick else {}),
            },
            "data": {
                "root": str(videos),
                "train_list": lists["train"],
                "val_list": lists["val"],
                "class_names": str(videos.parent / "classes.txt"),
                "frames": frames,
                "stride": 2,
                "crop": side,
                "short_side": [side * 8 // 7, side * 10 // 7],
                "workers": place.workers,
            },
            "train": {"epochs": 2, "clips_per_gpu": clips, "global_batch": clips, "log_every": place.steps // 2},
        }
    )
