"""What the writers write, read back by others: json and TensorBoard."""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from video_gn.config import parse_config, to_yaml
from video_gn.console import say
from video_gn.errors import UserError
from video_gn.run.log import Writers, read_config, read_log


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Lines of log.jsonl as strict JSON, which knows no NaN."""
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def tensorboard_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def scalars_of(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in tensorboard_of(folder).Scalars(tag)]


def test_log_lines(tmp_path: Path) -> None:
    begin = time.time()
    with Writers(tmp_path) as writers:
        writers.write("train", 20, 1 / 3, {"train/loss": 2.5, "train/lr": 0.005})
        lines = log_of(tmp_path)  # a line is there at once, not when the run ends
        writers.write("epoch", 60, 1, {"val/top1_error": 12.25, "val/videos_scored": 40})
        assert lines == log_of(tmp_path)[:1]
    first, second = log_of(tmp_path)
    assert begin - 0.001 <= first.pop("time") <= second.pop("time") <= time.time() + 0.001
    assert first.pop("epoch") == pytest.approx(1 / 3, abs=1e-4)
    assert first == {"kind": "train", "step": 20, "train/loss": 2.5, "train/lr": 0.005}
    assert second == {"kind": "epoch", "step": 60, "epoch": 1, "val/top1_error": 12.25, "val/videos_scored": 40}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(tmp_path: Path, value: float) -> None:
    with Writers(tmp_path) as writers:
        writers.write("epoch", 1, 1.0, {"val/loss": value, "val/top1_error": 50.0})
    (line,) = log_of(tmp_path)
    assert line["val/loss"] is None
    assert line["val/top1_error"] == 50.0


def test_tensorboard_events(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        writers.text("config", "seed: 0")
        for step in (1, 2, 3):
            writers.write("train", step, step / 10, {"train/loss": 2 / step, "train/lr": 0.01})
        writers.write("epoch", 3, 1, {"val/top1_error": 75.0})
    events = tensorboard_of(tmp_path)
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "val/top1_error", "system/epoch"}
    assert [e.value for e in events.Scalars("system/epoch")] == pytest.approx([0.1, 0.2, 0.3, 1])
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2), (2, 1), (3, pytest.approx(2 / 3))]
    assert [(e.step, e.value) for e in events.Scalars("val/top1_error")] == [(3, 75.0)]
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    assert events.Tensors(tag)[0].tensor_proto.string_val == [b"seed: 0"]


def test_the_event_files_alone_hold_the_log_and_the_config(tmp_path: Path) -> None:
    config = parse_config({"output_dir": "runs/x", "model": {"num_classes": 7}})
    with Writers(tmp_path) as writers:
        writers.text("config", f"```\n{to_yaml(config)}\n```\n8 clips a GPU")
        for epoch in (1, 2, 3):
            writers.write(
                "train", 100 * epoch - 50, epoch - 1 / 3, {"train/loss": math.pi / epoch, "system/data_wait": 0.1}
            )
            writers.write("train", 100 * epoch, epoch, {"train/loss": math.nan if epoch == 2 else 1.0})
            values = {"epoch/train_loss": 0.1 + epoch, "percentiles/res5/p99": 4.0}
            writers.write("epoch", 100 * epoch, epoch, values | ({"val/top1_error": 100 / 3} if epoch != 1 else {}))
        writers.write("summary", 300, 3, {"summary/val_top1_error_median": 33.3})
    expected = log_of(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    found = read_log(tmp_path)
    for record in (*expected, *found):
        assert record.pop("time") > 1.7e9
    assert len(found) == len(expected) == 10
    for record, other in zip(found, expected, strict=True):
        assert record.keys() == other.keys()
        for key, value in other.items():
            assert record[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert read_config(tmp_path) == config


def test_what_others_wrote_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path)
    with SummaryWriter(str(tmp_path)) as board:
        board.add_scalar("val/top1_error", 3.0, 1)
    assert read_log(tmp_path) == []
    with pytest.raises(UserError, match="no config in its event files"):
        read_config(tmp_path)


def test_a_resume_drops_what_it_does_again(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        for step in (10, 20):
            writers.write("train", step, step / 20, {"train/loss": float(step)})
        writers.write("epoch", 20, 1, {"val/loss": 0.5})
        assert writers.lines == 3
        for step in (30, 40):
            writers.write("train", step, step / 20, {"train/loss": float(step)})
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')  # cut by a kill
    assert [record["step"] for record in read_log(tmp_path)] == [10, 20, 20, 30, 40]
    with Writers(tmp_path, 3) as writers:
        assert writers.lines == 3
        writers.write("train", 30, 1.5, {"train/loss": -30.0})
    assert [(r["step"], r.get("train/loss")) for r in log_of(tmp_path)] == [(10, 10), (20, 20), (20, None), (30, -30)]
    assert read_log(tmp_path) == log_of(tmp_path)
    assert scalars_of(tmp_path, "train/loss") == [(10, 10), (20, 20), (30, -30)]
    assert scalars_of(tmp_path, "val/loss") == [(20, 0.5)]
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_what_a_kill_took_from_tensorboard_comes_back(tmp_path: Path) -> None:
    """It queues events for minutes; log.jsonl has them all."""
    lost = Writers(tmp_path)
    lost.write("train", 1, 0.5, {"train/loss": 2.0, "val/loss": math.nan})
    for path in tmp_path.glob("events.*"):
        path.write_bytes(path.read_bytes()[:30])
    with Writers(tmp_path, 1) as writers:
        writers.write("train", 2, 1, {"train/loss": 1.0})
    assert scalars_of(tmp_path, "train/loss") == [(1, 2.0), (2, 1.0)]
    ((step, value),) = scalars_of(tmp_path, "val/loss")
    assert step == 1 and math.isnan(value)


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = pytest.raises(UserError, match=r"log\.jsonl: cannot be written \(File too large\); free space")
    with told, Writers(tmp_path) as writers:
        writers.write("train", 1, 0.5, {"train/loss": 2.0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, old[1]))
        try:
            for step in range(2, 20):
                writers.write("train", step, 0.5, {"train/loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert read_log(tmp_path)[0]["step"] == 1


def test_a_run_from_the_start_drops_all(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint begins again at step 0."""
    for value in (1.0, 2.0):
        with Writers(tmp_path) as writers:
            writers.write("train", 1, 0.1, {"train/loss": value})
    assert [record["train/loss"] for record in log_of(tmp_path)] == [2.0]
    assert scalars_of(tmp_path, "train/loss") == [(1, 2.0)]


def test_files_are_closed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Writers(tmp_path) as writers:
        writers.write("train", 1, 0.1, {"train/loss": 1.0})
        raise ZeroDivisionError
    assert writers.log.closed
    assert scalars_of(tmp_path, "train/loss") == [(1, 1.0)]


def test_say_leaves_stdout_alone(capfd: pytest.CaptureFixture[str]) -> None:
    say("epoch 1: ü")
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "epoch 1: ü\n")


def test_lines_that_are_no_records_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By readers, too: a report and curves are drawn of the others."""
    path = tmp_path / "log.jsonl"
    with Writers(tmp_path) as writers:
        for step in (1, 2, 3, 4):
            writers.write("train", step, step / 4, {"train/loss": 1.0})
    good = path.read_bytes().splitlines(keepends=True)
    bad = [
        b'\xff\xfe{"step"\n',
        b"[]\n",
        b'{"kind": "epoch"}\n',
        b'{"kind": "epoch", "step": 1, "epoch": 1, "val/loss": "x"}\n',
        b"[" * 10_000 + b"\n",
    ]
    path.write_bytes(b"".join([good[0], *bad, *good[1:], b'{"kind": "tr']))
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err == f"warning: {path}: 5 lines are not records and left out, line 2 first\n"
    path.write_bytes(b"".join(good) + b'{"kind": "tr')  # cut by a kill
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["log.jsonl", "events.out.tfevents.1.host"])
def test_a_folder_in_place_of_a_log(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"cannot (be read|read its event files) \(Is a directory\); move"):
        read_log(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, bytes(500)])
def test_event_files_of_garbage_hold_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(content)
    assert read_log(tmp_path) == []
