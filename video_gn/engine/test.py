"""Testing a trained network: several clips and views of each video, scores averaged."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from video_gn.config import Config, flatten, parse_config
from video_gn.console import say
from video_gn.data.augment import gather_clips, render
from video_gn.data.dataset import Clips
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record, find_list
from video_gn.data.loader import eval_loader, naming_videos
from video_gn.distributed.precision import autocast, autocast_dtype, share_cores
from video_gn.distributed.world import World, world
from video_gn.engine.board import show_test
from video_gn.engine.datasets import class_names, fingerprint, read_records, test_dataset
from video_gn.errors import UserError
from video_gn.files.atomic import check_writable, make_folder, write_error, write_text
from video_gn.models import Network, memory_format
from video_gn.run import checkpoint as ckpt
from video_gn.run.network import load_network
from video_gn.tasks import DEFAULT_TASK, TASKS, Task, build_task

ELSEWHERE = "give --out FOLDER for the files of the test"
BOARD_BYTES = 4 * 2**20
"""Room for what TensorBoard shows of a test: a confusion matrix and a sheet of 12 videos."""
SETTINGS = (
    *("data.kind", "data.frames", "data.stride", "data.crop", "data.mean", "data.std", "data.decoder"),
    *("data.quarantine", "test.views", "test.clips", "test.clip_starts", "test.short_side", "train.precision"),
)
"""What a score depends on beside the model section, the list and the weights."""
IN_PROTOCOL = {
    "center": {"test.views", "test.clips", "test.clip_starts", "data.crop"},
    "three": {"test.views", "test.clips", "test.clip_starts", "test.short_side"},
    "full": {"test.views", "test.clips", "test.clip_starts", "test.short_side"},
}
"""By test.views, the settings that the protocol's name says."""


@dataclass(frozen=True)
class TestResult:
    """What a test found; `content` is its JSON file."""

    protocol: str
    scores: dict[str, Any]
    """The task's numbers in percent, over the videos that were scored, and those of each class by its name; None where
    they are undefined."""
    videos_scored: int
    videos_listed: int
    unreadable: dict[str, str]
    """Path -> reason of each video that was not scored."""
    clips_per_second: float
    seconds: float
    checkpoint: str
    step: int
    weights_sha256: str
    """Of the model's tensors."""
    test_list: str
    list_sha256: str
    """Of the list's records (`engine.datasets.fingerprint`)."""
    config: dict

    def content(self) -> dict[str, Any]:
        """Return the content of the JSON file, where the scores stand side by side with all else."""
        values = asdict(self)
        protocol, scores = values.pop("protocol"), values.pop("scores")
        return {"protocol": protocol} | scores | values

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> TestResult:
        """Return the result that a JSON file holds. Raises TypeError where it is another version's."""
        names = {each.name for each in fields(cls)}
        scores = {key: value for key, value in content.items() if key not in names}
        return cls(**{key: value for key, value in content.items() if key in names}, scores=scores)

    def table(self) -> str:
        """Return lines for a person, on stdout."""
        figures = TASKS[self.config.get("task", DEFAULT_TASK)].scores
        lines = [
            f"{self.protocol}, {self.checkpoint} after step {self.step}, on {self.test_list}",
            *(f"{figure.name:<20} {_percent(self.scores[figure.key])}" for figure in figures),
            f"videos scored        {self.videos_scored} of {self.videos_listed} listed",
            f"speed                {self.clips_per_second:.1f} clips/s",
        ]
        return "\n".join(lines)


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
        result = _test(path, state, config, ranks, _run_folder(path) if out is None else Path(out))
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
        name = _file_stem(folder, result, state)
        write_text(folder / f"{name}.csv", _csv(build_task(config), records, scores, names), ELSEWHERE)
        write_text(folder / f"{name}.json", json.dumps(result.content(), indent=2) + "\n", ELSEWHERE)
        say(f"wrote {folder / name}.json and .csv")
        _show(folder / name, result, config, records, scores, names)
    except BaseException:  # whatever happens now, the work is not lost
        print(result.table())
        raise
    return result


def _read_records(path: Path, config: Config, names: Sequence[str], world: World) -> list[Record]:
    """The list's records. Of a list without labels, an error that names what needs none."""
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
    """Whether a list that cannot be read is of paths only: no line ends in a number, all in what looks like a file."""
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
    """Return the scores of each view and clip of a video, averaged over the last map: float32 (V * K, classes)."""
    task = build_task(config)
    frames = item.frames.to(device, non_blocking=True)
    dtype = autocast_dtype(config.train.precision, device)
    frames = render(frames, item.views, config.data.mean, config.data.std, dtype=dtype)
    clip_indices = torch.from_numpy(item.clip_indices).to(device)
    clips_a_pass = max(1, config.test.clips_per_batch // len(item.views))
    scores = []
    for chunk in clip_indices.split(clips_a_pass):
        clips = gather_clips(frames, chunk)
        clips = clips if config.dims == 3 else clips.squeeze(2)
        logits = model(clips.contiguous(memory_format=memory_format(config, device)), window)
        scores.append(task.probabilities(logits).mean(1))
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
    """test_<protocol>.json or .csv of a run's own test: in its folder, blanks in the protocol's name as underscores."""
    return folder / f"test_{protocol.replace(' ', '_')}{suffix}"


def read_results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return all tests' JSON files of a folder and their content, as `TestResult`; a plain name before longer ones.

    Files of other versions may lack keys. Raises UserError where a file is not readable as a JSON object.
    """
    return [(path, _read_result(path)) for path in sorted(folder.glob("test_*.json"), key=lambda path: path.stem)]


def _read_result(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); make it again or remove it") from None
    if not isinstance(value, dict) or not isinstance(value.get("config", {}), dict):
        raise UserError(f"{path}: a JSON object is needed; make it again or remove it")
    return value


def identity(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that makes two scores the same one, of a `TestResult` as a dict: one may replace the other."""
    names = ("checkpoint", "step", "weights_sha256", "test_list", "list_sha256")
    config = flatten(result["config"])
    settings = {key: value for key, value in config.items() if key in SETTINGS or key.startswith("model.")}
    return {name: result[name] for name in names if name in result} | settings


def full_stem(result: Mapping[str, Any]) -> str:
    """Return a file name that is this score's only: readable parts of its identity, and a hash of all of it."""
    data, short_side = result["config"]["data"], result["config"]["test"]["short_side"]
    digest = hashlib.sha256(json.dumps(identity(result), sort_keys=True, default=str).encode()).hexdigest()[:8]
    parts = [
        result_path(Path(), result["protocol"], "").name,
        Path(str(result.get("test_list", "list"))).stem[:40],
        f"{data['frames']}x{data['stride']}",
        f"short_side_{short_side}",
        Path(str(result.get("checkpoint", "checkpoint"))).stem[:40],
        f"step_{result.get('step')}",
        digest,
    ]
    return re.sub(r"[^\w.-]+", "-", "_".join(parts), flags=re.ASCII)


def _file_stem(folder: Path, result: TestResult, state: ckpt.Checkpoint) -> str:
    """The name of a test's files. Where the plain one is this test's and holds another score, that one is renamed."""
    new = result.content()
    plain = result_path(folder, result.protocol, "").name
    try:
        old = _read_result(folder / f"{plain}.json")
        before, now = identity(old), identity(new)
    except (UserError, KeyError):  # there is none
        old, before, now = {}, {}, {}
    if not _is_own(result, state, old.get("list_sha256")):
        return full_stem(new)
    if any(before[key] != now[key] for key in before.keys() & now.keys()):
        _rename(folder, plain, full_stem(old))
    return plain


def _is_own(result: TestResult, state: ckpt.Checkpoint, tested_list: str | None) -> bool:
    """Whether a test is the run's own: of last.pt, with the config's list and settings, but what the protocol says.

    Args:
        tested_list: the hash of the list that the last own test had.
    """
    own = flatten(parse_config(state["config"]).model_dump(mode="json"))
    now = flatten(result.config)
    settings = {"data.test_list", *SETTINGS} - IN_PROTOCOL[now["test.views"]]
    if result.checkpoint != ckpt.LAST or any(own[key] != now[key] for key in settings):
        return False
    if own["data.root"] == now["data.root"]:
        return True
    # Another root may be another machine's, or another data set with a list of that name.
    if own["data.val_list"] == now["data.test_list"] and "lists" in state:
        tested_list = state["lists"]["val"]
    return tested_list in (None, result.list_sha256)


def _rename(folder: Path, old: str, new: str) -> None:
    """Give a test's files another name; the JSON last, which says that there is a test."""
    try:
        for suffix in (".csv", ""):
            if (folder / f"{old}{suffix}").exists():
                shutil.rmtree(folder / f"{new}{suffix}", ignore_errors=True)  # a folder's place must be empty
                os.replace(folder / f"{old}{suffix}", folder / f"{new}{suffix}")
        os.replace(folder / f"{old}.json", folder / f"{new}.json")
    except OSError as error:
        raise write_error(folder / f"{new}.json", error, ELSEWHERE) from None
    say(f"{folder / old}.json held another score; it is now {new}.json")


def finished_result(checkpoint_path: Path, config: Config) -> TestResult | None:
    """The result on disk of the same checkpoint and test, if it is newer than the checkpoint; else None."""
    path = result_path(_run_folder(checkpoint_path), protocol(config), ".json")
    if not path.exists() or path.stat().st_mtime < checkpoint_path.stat().st_mtime:
        return None
    try:
        result = TestResult.of(_read_result(path))
    except (UserError, TypeError):  # damaged, or of another version
        return None
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


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f} %"


def _rounded(percent: float) -> float | None:
    """None for the NaN of no videos, which JSON does not have."""
    return None if math.isnan(percent) else round(percent, 4)


def _csv(task: Task, records: list[Record], scores: Scores, class_names: list[str]) -> str:
    """A row a listed video: path, label, predicted label, problem, then its score of each class."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["path", "label", "predicted", "problem", *(f"score_{name}" for name in class_names)])
    for index, record in enumerate(records):
        label = task.text(record.target)
        if index in scores.rows:
            row = scores.rows[index]
            rows.writerow([record.path, label, task.predicted(row), "", *(f"{score:.6g}" for score in row)])
        else:
            rows.writerow([record.path, label, "", scores.unreadable[index], *[""] * len(class_names)])
    return table.getvalue()
