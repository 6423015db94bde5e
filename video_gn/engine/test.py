"""Testing a trained net: several clips and views of each video, softmax averaged."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from video_gn.config import Config, parse_config
from video_gn.console import say
from video_gn.data.augment import gather_clips, render
from video_gn.data.dataset import Clips
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record
from video_gn.data.loader import eval_loader, naming_videos
from video_gn.engine import checkpoint as ckpt
from video_gn.engine.board import show_test
from video_gn.engine.datasets import class_names, read_records, test_dataset
from video_gn.engine.distributed import World, autocast, autocast_dtype, share_cores, world
from video_gn.engine.metrics import accuracy
from video_gn.engine.network import load_network
from video_gn.errors import UserError
from video_gn.models import Network


@dataclass(frozen=True)
class TestResult:
    """What test_<protocol>.json holds. Accuracies in per cent, over the videos that were scored."""

    protocol: str
    top1: float | None
    """None when no video was scored."""
    top5: float | None
    mean_class_accuracy: float | None
    videos_scored: int
    videos_listed: int
    unreadable: dict[str, str]
    """Path -> reason of each video that was not scored."""
    clips_per_second: float
    seconds: float
    checkpoint: str
    step: int
    test_list: str
    config: dict

    def table(self) -> str:
        """For a person, on stdout."""
        lines = [
            f"{self.protocol}, {self.checkpoint} after step {self.step}",
            f"top-1                {_percent(self.top1)}",
            f"top-5                {_percent(self.top5)}",
            f"mean class accuracy  {_percent(self.mean_class_accuracy)}",
            f"videos scored        {self.videos_scored} of {self.videos_listed} listed",
            f"speed                {self.clips_per_second:.1f} clips/s",
        ]
        return "\n".join(lines)


def test_checkpoint(checkpoint_path: str | Path, overrides: Sequence[str] = ()) -> TestResult | None:
    """Score a checkpoint on its test list and write test_<protocol>.json and .csv into the run's folder.

    Args:
        overrides: `key=value` changes of the checkpoint's config.

    Returns:
        The result on rank 0, None elsewhere.

    Raises:
        UserError: bad checkpoint, override or list; scores that are not finite; more than test.max_unreadable
            unreadable videos (the files are written and the table is printed before).
    """
    path = Path(checkpoint_path)
    state = ckpt.load(path)
    config = parse_config(state["config"], overrides, source=str(path))
    same = config.model_dump(mode="json") | {"checkpoint": {"step": state["step"]}}
    with world(config.device, same) as ranks:
        result = _test(path, state, config, ranks)
    if result is not None:
        _check_unreadable(result, config)
    return result


def _test(path: Path, state: ckpt.Checkpoint, config: Config, world: World) -> TestResult | None:
    check_decoder(config.data.decoder)
    model = load_network(state, config, world.device, source=str(path))
    share_cores(world.device, config.data.workers)
    names = class_names(config, state)
    records = read_records(config, config.data.test_list, world, names)

    begin = time.perf_counter()
    shares = world.gather(score_videos(model, config, records, world))
    if not world.is_main:
        return None
    seconds = time.perf_counter() - begin  # of the slowest rank
    scores = Scores.merged(shares)
    result = _result(path, state["step"], config, records, scores, seconds)
    folder = _run_folder(path)
    ckpt.write_text(result_path(folder, result.protocol, ".csv"), _csv(records, scores, names))
    ckpt.write_text(result_path(folder, result.protocol, ".json"), json.dumps(asdict(result), indent=2) + "\n")
    figures = {"top1": result.top1, "top5": result.top5, "mean_class_accuracy": result.mean_class_accuracy}
    board = result_path(folder, result.protocol, "")
    show_test(board, figures, result.step, test_dataset(config, records), scores.rows, names, config.data.workers)
    return result


@dataclass
class Scores:
    """Scores of videos, by their index in the list."""

    rows: dict[int, np.ndarray] = field(default_factory=dict)
    """Mean softmax, float32 (K,)."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Why a video has no score."""
    clips: int = 0
    """How many went through the network."""

    @classmethod
    def merged(cls, shares: Sequence[Scores]) -> Scores:
        """The ranks' shares together."""
        rows = {index: row for share in shares for index, row in share.rows.items()}
        unreadable = {index: reason for share in shares for index, reason in share.unreadable.items()}
        return cls(rows, unreadable, sum(share.clips for share in shares))


@torch.inference_mode()
def score_videos(model: Network, config: Config, records: list[Record], world: World) -> Scores:
    """Score this rank's share of the videos."""
    dataset, data = test_dataset(config, records), config.data
    loader = eval_loader(dataset, 1, data.workers, world.device, world.rank, world.size, data.timeout)
    window = model.feature_size(config.data.crop)
    precision = autocast(config.train.precision, world.device)
    scores = Scores()
    bar = tqdm(loader, "testing", len(loader), unit="video", disable=None if world.is_main else True)
    with naming_videos():
        for (item,) in bar:
            for error in item.unreadable:
                scores.unreadable[item.index] = error.reason
                say(f"video not scored: {error}")
            if item.views:
                with precision():
                    probabilities = score_video(model, item, config, window, world.device)
                row = probabilities.mean(0).cpu().numpy()  # sync point: once a video
                if not np.isfinite(row).all():
                    raise UserError(f"the scores of {records[item.index].path} are not finite; test another checkpoint")
                scores.rows[item.index] = row
                scores.clips += len(probabilities)
    return scores


def score_video(model: Network, item: Clips, config: Config, window: int, device: torch.device) -> Tensor:
    """Softmax of each view and clip of a video, averaged over the last map's locations: float32 (V * K, classes)."""
    frames = item.frames.to(device, non_blocking=True)
    dtype = autocast_dtype(config.train.precision, device)
    frames = render(frames, item.views, config.data.mean, config.data.std, dtype=dtype)
    clip_indices = torch.from_numpy(item.clip_indices).to(device)
    clips_a_pass = max(1, config.test.clips_per_batch // len(item.views))
    scores = []
    for chunk in clip_indices.split(clips_a_pass):
        clips = gather_clips(frames, chunk)
        logits = model(clips if config.dims == 3 else clips.squeeze(2), window)
        scores.append(logits.float().softmax(-1).mean(1))
    return torch.cat(scores)


def protocol(config: Config) -> str:
    """The name of the score: "10-clip center 224", "10x3 256" or "10-clip full 256"."""
    test = config.test
    if config.data.kind == "images":
        return f"1-crop center {config.data.crop}"
    name = {
        "center": f"{test.clips}-clip center {config.data.crop}",
        "three": f"{test.clips}x3 {test.short_side}",
        "full": f"{test.clips}-clip full {test.short_side}",
    }[test.views]
    return name + (" baseline starts" if test.clip_starts == "baseline" else "")


def result_path(folder: Path, protocol: str, suffix: str) -> Path:
    """test_<protocol>.json or .csv at the top of a run's folder, blanks in the protocol's name as underscores."""
    return folder / f"test_{protocol.replace(' ', '_')}{suffix}"


def finished_result(checkpoint_path: Path, config: Config) -> TestResult | None:
    """The result on disk of the same checkpoint and test, if it is newer than the checkpoint; else None."""
    path = result_path(_run_folder(checkpoint_path), protocol(config), ".json")
    if not path.exists() or path.stat().st_mtime < checkpoint_path.stat().st_mtime:
        return None
    result = TestResult(**json.loads(path.read_text(encoding="utf-8")))
    same = result.checkpoint == checkpoint_path.name and result.config == config.model_dump(mode="json")
    return result if same else None


def _run_folder(checkpoint_path: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; a checkpoint on its own is tested into its own folder."""
    folder = checkpoint_path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _check_unreadable(result: TestResult, config: Config) -> None:
    """Raises UserError when more videos than test.max_unreadable could not be scored."""
    missing = result.videos_listed - result.videos_scored
    if missing > config.test.max_unreadable:
        print(result.table())
        raise UserError(
            f"{missing} of {result.videos_listed} test videos could not be read, more than test.max_unreadable "
            f"{config.test.max_unreadable}: the score is of the others; mend the files or raise the limit"
        )


def _result(path: Path, step: int, config: Config, records: list[Record], scores: Scores, seconds: float) -> TestResult:
    scored = sorted(scores.rows)
    matrix = (
        np.stack([scores.rows[i] for i in scored]) if scored else np.empty((0, config.model.num_classes), np.float32)
    )
    accuracies = accuracy(matrix, np.array([records[i].label for i in scored], dtype=np.int64))
    return TestResult(
        protocol=protocol(config),
        top1=_rounded(accuracies.top1),
        top5=_rounded(accuracies.top5),
        mean_class_accuracy=_rounded(accuracies.mean_class),
        videos_scored=len(scored),
        videos_listed=len(records),
        unreadable={records[i].path: reason for i, reason in sorted(scores.unreadable.items())},
        clips_per_second=round(scores.clips / seconds, 3),
        seconds=round(seconds, 2),
        checkpoint=path.name,
        step=step,
        test_list=config.data.test_list,
        config=config.model_dump(mode="json"),
    )


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f} %"


def _rounded(percent: float) -> float | None:
    """None for the NaN of no videos, which JSON does not have."""
    return None if math.isnan(percent) else round(percent, 4)


def _csv(records: list[Record], scores: Scores, class_names: list[str]) -> str:
    """A row a listed video: path, label, predicted label, problem, then its score of each class."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["path", "label", "predicted", "problem", *(f"score_{name}" for name in class_names)])
    for index, record in enumerate(records):
        if index in scores.rows:
            row = scores.rows[index]
            rows.writerow([record.path, record.label, int(row.argmax()), "", *(f"{score:.6g}" for score in row)])
        else:
            rows.writerow([record.path, record.label, "", scores.unreadable[index], *[""] * len(class_names)])
    return table.getvalue()
