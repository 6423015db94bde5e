"""Results of tests: their content, the name of their protocol, and the files of a run's folder that hold them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from video_gn.config import Config, flatten, parse_config
from video_gn.console import say
from video_gn.errors import UserError
from video_gn.files.atomic import write_error
from video_gn.run import checkpoint as ckpt
from video_gn.tasks import DEFAULT_TASK, TASKS

ELSEWHERE = "give --out FOLDER for the files of the test"

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


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f} %"


def protocol(config: Config) -> str:
    """Return the name of the score: "10-clip center 224", "10x3 256" or "10-clip full 256"."""
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
    """Return test_<protocol>.json or .csv of a run's own test: the protocol's name with underscores for spaces."""
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


def finished_result(checkpoint_path: Path, config: Config) -> TestResult | None:
    """Return the result on disk of the same checkpoint and test, if it is newer than the checkpoint; else None."""
    path = result_path(run_folder(checkpoint_path), protocol(config), ".json")
    if not path.exists() or path.stat().st_mtime < checkpoint_path.stat().st_mtime:
        return None
    try:
        result = TestResult.of(_read_result(path))
    except (UserError, TypeError):  # damaged, or of another version
        return None
    same = result.checkpoint == checkpoint_path.name and result.config == config.model_dump(mode="json")
    return result if same else None


def run_folder(checkpoint_path: Path) -> Path:
    """Return the folder of a checkpoint's run; a checkpoint on its own is tested into its own folder."""
    folder = checkpoint_path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


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


def file_stem(folder: Path, result: TestResult, state: ckpt.Checkpoint) -> str:
    """Return the name of a test's files. Where the plain one is this test's and holds another score, rename that."""
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
    """Return whether a test is of last.pt with the list and settings of the run's config, the protocol aside.

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
