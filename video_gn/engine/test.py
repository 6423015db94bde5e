"""Testing a trained network: several clips and views of each video, scores averaged."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from video_gn.config import Config, parse_config
from video_gn.console import say
from video_gn.data.augment import network_input
from video_gn.data.dataset import Clips
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record, find_list
from video_gn.data.loader import eval_loader
from video_gn.data.workers import naming_videos
from video_gn.distributed.precision import autocast, autocast_dtype, share_cores
from video_gn.distributed.world import World, world
from video_gn.engine.board import show_test
from video_gn.engine.datasets import class_names, fingerprint, read_records, test_dataset
from video_gn.engine.results import ELSEWHERE, TestResult, file_stem, protocol, run_folder
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, make_folder, write_error, write_text
from video_gn.files.tables import csv_text
from video_gn.models import Network, memory_format
from video_gn.run import checkpoint as ckpt
from video_gn.run.network import load_network
from video_gn.tasks import Task, build_task

BOARD_BYTES = 4 * 2**20
"""Room for what TensorBoard shows of a test: a confusion matrix and a sheet of 12 videos."""


def test_checkpoint(
    checkpoint_path: str | Path, overrides: Sequence[str] = (), out: str | Path | None = None
) -> TestResult | None:
    """Score a checkpoint on its test list; write a JSON file, a csv and TensorBoard's files (see docs/testing.md).

    Args:
        overrides: `key=value` changes of the checkpoint's config.
        out: the files' folder; by default that of the run.

    Returns:
        The result on rank 0, None elsewhere.

    Raises:
        UserError: bad checkpoint, override or list; a list of other classes; a folder that cannot be written, before
            any work; scores that are not finite; more than test.max_unreadable unreadable videos (the files are written
            and the table is printed before). Whatever fails once all videos are scored, the table is printed.
    """
    path = Path(checkpoint_path)
    state = ckpt.load(path)
    config = parse_config(state["config"], overrides, source=str(path))
    same = config.model_dump(mode="json") | {"checkpoint": {"step": state["step"]}}
    with world(config.device, same) as ranks:
        result = _test(path, state, config, ranks, run_folder(path) if out is None else Path(out))
    if result is not None:
        _check_unreadable(result, config)
    return result


def _test(path: Path, state: ckpt.Checkpoint, config: Config, world: World, folder: Path) -> TestResult | None:
    check_decoder(config.data.decoder)
    model = load_network(state, config, world.device, source=str(path))
    share_cores(world.device, config.data.workers)
    names = class_names(config, state)
    records = _read_records(path, config, names, world)
    world.first(lambda: _check_folder(folder, records, names))

    begin = time.perf_counter()
    shares = world.gather(score_videos(model, config, records, world))
    if not world.is_main:
        return None
    seconds = time.perf_counter() - begin  # of the slowest rank
    scores = Scores.merged(shares)
    result = _result(path, state, config, records, scores, seconds, names)
    try:
        name = file_stem(folder, result, state)
        write_text(folder / f"{name}.csv", _csv(build_task(config), records, scores, names), ELSEWHERE)
        write_text(folder / f"{name}.json", json.dumps(result.content(), indent=2) + "\n", ELSEWHERE)
        say(f"wrote {folder / name}.json and .csv")
        _show(folder / name, result, config, records, scores, names)
    except BaseException:  # whatever happens now, the work is not lost
        print(result.table())
        raise
    return result


def _read_records(path: Path, config: Config, names: Sequence[str], world: World) -> list[Record]:
    """Return the list's records. Of a list without labels, raise an error that names what needs none."""
    try:
        return read_records(config, config.data.test_list, world, names)
    except UserError:
        if config.data.kind == "videos" and world.first(lambda: _has_no_labels(config)):
            raise UserError(
                f"{config.data.test_list} has no labels, and a score needs them (`path label`); the classes of videos "
                f"without labels are predicted by tools/predict.py {path} VIDEO..."
            ) from None
        raise


def _has_no_labels(config: Config) -> bool:
    """Return whether a list that cannot be read has paths only: no line ends in a number, all in a file's name."""
    try:
        text = find_list(config.data.test_list, config.data.root).read_text(encoding="utf-8-sig")
    except (UserError, OSError, ValueError):
        return False
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and re.search(r"\byoutube_id\b", lines[0]):  # Kinetics' test csv
        return re.search(r"\blabel\b", lines[0]) is None
    paths = lines[1:] if lines and not re.search(r"[./]", lines[0]) else lines  # after a header, such as `path`
    return bool(paths) and all(re.search(r"[./][^\s,]*$", line.rstrip(',"')) for line in paths)


def _check_folder(folder: Path, records: Sequence[Record], names: Sequence[str]) -> None:
    """Raise UserError unless the files of a test can be written into `folder`, which is made."""
    row = 64 + 14 * len(names)  # of the csv: label, prediction, scores
    files = sum(2 * len(record.path.encode("utf-8", "surrogateescape")) + row for record in records)
    make_folder(folder, ELSEWHERE)
    check_writable(folder, files + BOARD_BYTES, ELSEWHERE)


def _show(
    board: Path, result: TestResult, config: Config, records: list[Record], scores: Scores, names: list[str]
) -> None:
    """Write what TensorBoard shows of a test."""
    task, videos = build_task(config), test_dataset(config, records)
    figures = {figure.key: result.scores[figure.key] for figure in task.scores}
    try:
        show_test(board, task, figures, result.step, videos, scores.rows, names, config.data.workers)
    except OSError as error:
        raise write_error(board, error, ELSEWHERE) from None


@dataclass
class Scores:
    """Scores of videos, by their index in the list."""

    rows: dict[int, np.ndarray] = field(default_factory=dict)
    """Means over clips and views, float32 (K,)."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Why a video has no score."""
    clips: int = 0
    """How many went through the network."""

    @classmethod
    def merged(cls, shares: Sequence[Scores]) -> Scores:
        """Return the ranks' shares together."""
        rows = {index: row for share in shares for index, row in share.rows.items()}
        unreadable = {index: reason for share in shares for index, reason in share.unreadable.items()}
        return cls(rows, unreadable, sum(share.clips for share in shares))


@torch.inference_mode()
def score_videos(model: Network, config: Config, records: list[Record], world: World) -> Scores:
    """Score this rank's share of the videos."""
    dataset, data = test_dataset(config, records), config.data
    loader = eval_loader(dataset, 1, data.workers, world.device, world.rank, world.size, data.timeout)
    scores = Scores()
    bar = tqdm(loader, "testing", len(loader), unit="video", disable=None if world.is_main else True)
    with naming_videos():
        for item, probabilities in score_items(model, chain.from_iterable(bar), config, world.device):
            for error in item.unreadable:
                scores.unreadable[item.index] = error.reason
                say(f"video not scored: {error}")
            if probabilities is not None:
                row = probabilities.mean(0).cpu().numpy()  # sync point: once a video
                if not np.isfinite(row).all():
                    raise UserError(f"the scores of {records[item.index].path} are not finite; test another checkpoint")
                scores.rows[item.index] = row
                scores.clips += len(probabilities)
    return scores


def score_items(
    model: Network, items: Iterable[Clips], config: Config, device: torch.device
) -> Iterator[tuple[Clips, Tensor | None]]:
    """Yield videos as they come, each with the scores of its views and clips, averaged over the last map.

    The scores are float32 (V * K, classes); None for a video that could not be read.
    """
    task, data = build_task(config), config.data
    window = model.feature_size(data.crop)
    precision, dtype = autocast(config.train.precision, device), autocast_dtype(config.train.precision, device)
    dims, clips_per_batch, layout = config.dims, config.test.clips_per_batch, memory_format(config, device)
    forward = partial(model, window=window)
    for item in items:
        if not item.views:
            yield item, None
            continue
        at_once = max(1, clips_per_batch // len(item.views))  # clips, each in all views
        with precision():
            # No name holds what the network gets: it is large, and the next video's would come on top.
            logits = torch.cat(
                [*map(forward, network_input(item, device, data.mean, data.std, dims, dtype, at_once, layout))]
            )
            scores = task.probabilities(logits).mean(1)
        yield item, scores


def score_video(model: Network, item: Clips, config: Config, device: torch.device) -> Tensor:
    """Return the scores of each view and clip of a video that was read, as `score_items`: float32 (V * K, classes)."""
    _, scores = next(score_items(model, [item], config, device))
    assert scores is not None
    return scores


def _check_unreadable(result: TestResult, config: Config) -> None:
    """Raise UserError when more videos than test.max_unreadable could not be scored."""
    missing = result.videos_listed - result.videos_scored
    if missing > config.test.max_unreadable:
        print(result.table())
        raise UserError(
            f"{missing} of {result.videos_listed} test videos could not be read, more than test.max_unreadable "
            f"{config.test.max_unreadable}: the score is of the others; fix the files or raise the limit"
        )


def _result(
    path: Path,
    state: ckpt.Checkpoint,
    config: Config,
    records: list[Record],
    scores: Scores,
    seconds: float,
    names: Sequence[str],
) -> TestResult:
    return TestResult(
        protocol=protocol(config),
        scores=_numbers(build_task(config), records, scores, names),
        videos_scored=len(scores.rows),
        videos_listed=len(records),
        unreadable={records[i].path: reason for i, reason in sorted(scores.unreadable.items())},
        clips_per_second=round(scores.clips / seconds, 3),
        seconds=round(seconds, 2),
        checkpoint=path.name,
        step=state["step"],
        weights_sha256=weights_digest(state),
        test_list=config.data.test_list,
        list_sha256=fingerprint(records),
        config=config.model_dump(mode="json"),
    )


def _numbers(task: Task, records: list[Record], scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Return `TestResult.scores`: the task's numbers, and those of each class, by its name, where it has some."""
    scored = sorted(scores.rows)
    matrix = np.stack([scores.rows[i] for i in scored]) if scored else np.empty((0, len(names)), np.float32)
    targets = [records[i].target for i in scored]
    found = task.evaluate(matrix, targets)
    numbers: dict[str, Any] = {figure.key: _rounded(found[figure.key]) for figure in task.scores}
    if task.by_class is not None:
        values = map(_rounded, task.evaluate_classes(matrix, targets))
        numbers[task.by_class.key] = dict(zip(names, values, strict=True))
    return numbers


def weights_digest(state: ckpt.Checkpoint) -> str:
    """Return the sha256 of a checkpoint's model: names and bytes of its tensors."""
    digest = hashlib.sha256()
    for key, value in sorted(state["model"].items()):
        digest.update(key.encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _rounded(percent: float) -> float | None:
    """Round; return None for the NaN of no videos, which JSON does not have."""
    return None if math.isnan(percent) else round(percent, 4)


def _csv(task: Task, records: list[Record], scores: Scores, class_names: list[str]) -> str:
    """Return one row per listed video: path, label, predicted label, problem, then its score of each class."""
    rows: list[list[str]] = [["path", "label", "predicted", "problem", *(f"score_{name}" for name in class_names)]]
    for index, record in enumerate(records):
        label = task.text(record.target)
        if index in scores.rows:
            row = scores.rows[index]
            rows.append([record.path, label, task.predicted(row), "", *(f"{score:.6g}" for score in row)])
        else:
            rows.append([record.path, label, "", scores.unreadable[index], *[""] * len(class_names)])
    return csv_text(rows)
