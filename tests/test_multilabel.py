"""Several labels per video, through all tools: what they write against scikit-learn and literal files."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.tiny_runs import TINY, records, run
from tools import extract_features, predict, show_clips, study
from video_gn import cli, report
from video_gn.config import load_config
from video_gn.data.motion import CLASSES, write_dataset
from video_gn.doctor import Target, folders
from video_gn.engine.test import test_checkpoint as score_checkpoint
from video_gn.errors import UserError
from video_gn.export import export_checkpoint
from video_gn.features import read_index
from video_gn.inference import load
from video_gn.run import plots

pytest.importorskip("torchmetrics")
NONE = "train/up_down/00000.mp4"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 and 12 videos of two motions each; the first line of each list is left without a label."""
    folder = tmp_path_factory.mktemp("pairs")
    options = {"num_frames": 20, "size": 32, "workers": 1, "progress": False}
    write_dataset(folder, train_videos=22, val_videos=12, shapes=2, **options)
    for name in ("train.csv", "val.csv"):
        lines = (folder / name).read_text().splitlines()
        assert lines[0].endswith("up_down/00000.mp4 0;1")
        lines[0] = lines[0].replace(" 0;1", ",")
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def config_file(videos: Path) -> Path:
    path = videos / "tiny.yaml"
    path.write_text(TINY.format(out=videos / "run", root=videos))
    tree = yaml.safe_load(path.read_text())
    tree |= {"task": "multilabel", "multilabel": {"threshold": 0.3}}
    tree["data"]["class_names"] = "classes.txt"
    tree["test"]["clips"] = 2
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def trained(config_file: Path) -> Path:
    """The folder of a run of two epochs, with its test."""
    folder = run(load_config(config_file))
    score_checkpoint(folder / "checkpoints" / "last.pt")
    return folder


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "last.pt"


def call(main: object, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tool.py", *map(str, arguments)])
    cli.run(main)  # type: ignore[arg-type]


def rows(trained: Path) -> list[dict[str, str]]:
    with (trained / "test_2-clip_center_32.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content(trained: Path) -> dict:
    return json.loads((trained / "test_2-clip_center_32.json").read_text())


def test_the_log_and_what_best_follows(trained: Path) -> None:
    log = records(trained)
    steps, epochs = ([r for r in log if r["kind"] == kind] for kind in ("train", "epoch"))
    assert {"train/loss", "train/label_error"} <= steps[0].keys() and not any("top1" in key for r in log for key in r)
    assert {"epoch/train_loss", "epoch/train_label_error", "val/loss", "val/label_error", "val/map"} <= epochs[0].keys()
    assert [r["val/videos_scored"] for r in epochs] == [12, 12]
    assert log[-1]["summary/val_map_median"] == pytest.approx(np.median([r["val/map"] for r in epochs]), rel=1e-5)
    best = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    highest = max(epochs, key=lambda r: r["val/map"])
    assert best["step"] == highest["step"]
    assert best["best_error"] == pytest.approx(100 - highest["val/map"], abs=1e-4)


def test_the_test_is_scikit_learns_of_its_own_table(trained: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    table, saved = rows(trained), content(trained)
    listed = {tuple(map(int, filter(None, row["label"].split(";")))) for row in table}
    assert table[0]["label"] == "" and {(0, 2), (1, 3)} <= listed and len(table) == 12
    scores = np.array([[float(row[f"score_{name}"]) for name in CLASSES] for row in table])
    holds = np.array([[str(k) in row["label"].split(";") for k in range(10)] for row in table])
    expected = {
        name: 100 * metrics.average_precision_score(holds[:, k], scores[:, k]) if holds[:, k].any() else None
        for k, name in enumerate(CLASSES)
    }
    assert saved["average_precision"] == pytest.approx(expected, abs=1e-3)
    assert saved["map"] == pytest.approx(np.mean([ap for ap in expected.values() if ap is not None]), abs=1e-3)
    assert [row["predicted"] for row in table] == [";".join(map(str, np.flatnonzero(s >= 0.3))) for s in scores]
    assert not {"top1", "top5", "mean_class_accuracy"} & saved.keys()


def test_scores_are_sigmoids_averaged_over_the_clips(checkpoint: Path, videos: Path, trained: Path) -> None:
    classifier = load(checkpoint, "cpu")
    logits: list[torch.Tensor] = []
    hook = classifier.model.head.register_forward_hook(lambda _, __, output: logits.append(output.flatten(0, -2)))
    row = rows(trained)[3]
    scores = classifier.scores(str(videos / row["path"]))
    hook.remove()
    expected = 1 / (1 + np.exp(-torch.cat(logits).numpy().astype(np.float64)))
    assert len(expected) == 2  # clips
    np.testing.assert_allclose(scores, expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(scores, [float(row[f"score_{name}"]) for name in CLASSES], atol=1e-5)
    assert [p.label for p in classifier.holding(scores)] == [k for k in np.argsort(-scores) if scores[k] >= 0.3]


@pytest.mark.parametrize(("threshold", "count"), [(0.001, 10), (0.999, 0)])
def test_predict(
    checkpoint: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, threshold, count
) -> None:
    """All predicted classes have a line and are marked; the others fill up to --top."""
    video, given = videos / NONE, ("--top", "3", "--set", f"multilabel.threshold={threshold}")
    call(predict.main, monkeypatch, checkpoint, video, *given)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[str(video), str(k + 1)] for k in range(max(count, 3))]
    assert [line[4] for line in lines] == (["predicted"] * 10 if count else ["-"] * 3)
    call(predict.main, monkeypatch, checkpoint, video, *given, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in answer["predictions"]] == [line[2] for line in lines[:3]]
    assert answer["labels"] == [CLASSES.index(line[2]) for line in lines[:count]]


def test_pictures_of_a_prediction(
    checkpoint: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(
        predict.main, monkeypatch, checkpoint, videos / NONE, "--timeline", "--overlay", "--gradcam", "--out", tmp_path
    )
    endings = {"timeline.csv", "timeline.png", "overlay.mp4", "gradcam.mp4"}
    assert {path.name.removeprefix("00000.") for path in tmp_path.iterdir()} == endings


def test_the_report(trained: Path, tmp_path: Path) -> None:
    page = report.write_report([trained], tmp_path / "r.html").read_text()
    saved = content(trained)
    assert f">{saved['map']:.2f}<small>" in page  # with an interval
    assert '<th class="n">mAP</th>' in page and "top-1" not in page.split("</section>")[0].split("<table")[1]
    assert "confusion matrix" not in page and "Average precision of 10 classes, worst first" in page
    worst = min((ap, k) for k, ap in enumerate(saved["average_precision"].values()) if ap is not None)[1]
    table = rows(trained)
    holds, predicted = ([str(worst) in row[column].split(";") for row in table] for column in ("label", "predicted"))
    counts = [sum(holds), sum(predicted), sum(a and b for a, b in zip(holds, predicted, strict=True))]
    first = page.split("Average precision of 10 classes")[1].split("<tbody><tr>")[1].split("</tr>")[0]
    assert first.startswith(f"<td>{CLASSES[worst]}</td>")
    assert first.endswith("".join(f'<td class="n">{count}</td>' for count in counts))


def test_curves_are_the_tasks(trained: Path, tmp_path: Path, drawn: list) -> None:
    plots.plot_curves([trained], tmp_path / "c.png")
    plots.plot_by_norm([trained], tmp_path / "n.png")
    expected = [r["val/map"] for r in records(trained) if r["kind"] == "epoch"]
    labels = [axis.get_ylabel() for axis in drawn[0].axes]
    assert labels == ["training error of labels (%)", "validation mAP, 1 clip (%)"]
    assert list(drawn[0].axes[1].lines[0].get_ydata()) == list(drawn[1].axes[0].lines[0].get_ydata()) == expected
    assert drawn[1].axes[0].get_ylabel() == "validation mAP (%)"


def test_a_study(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "s.yaml").write_text(
        f"{{config: {config_file}, grid: {{model.norm: [gn]}}, fixed: {{train.epochs: 1}}, measure: test}}"
    )
    call(study.main, monkeypatch, tmp_path / "s.yaml", "--out", tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    saved = content(Path(row["folder"]))
    assert float(row["test_map"]) == saved["map"]
    assert float(row["final_val_map"]) == records(Path(row["folder"]))[-2]["val/map"]
    printed = capsys.readouterr().out
    assert "2-clip center 32 mAP (%) after 1 epochs" in printed and f"| mAP | {saved['map']:.1f} (n=1) |" in printed


def test_tasks_share_no_table_and_no_panel(
    config_file: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cells = "[{task: multilabel}, {task: classification, multilabel.threshold: 0.5}]"
    (tmp_path / "s.yaml").write_text(f"{{config: {config_file}, together: {cells}}}")
    with pytest.raises(SystemExit, match="2"):
        call(study.main, monkeypatch, tmp_path / "s.yaml", "--out", tmp_path / "out")
    assert "cells are of tasks classification and multilabel" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    text = (trained / "config.yaml").read_text().replace("task: multilabel", "task: classification")
    (other / "config.yaml").write_text(text.replace("threshold: 0.3", "threshold: 0.5"))
    with pytest.raises(UserError, match="runs of tasks classification and multilabel cannot share a figure"):
        plots.plot_by_norm([trained, other], tmp_path / "n.png")


def test_features_copy_the_labels(
    checkpoint: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(extract_features.main, monkeypatch, checkpoint, "val.csv", tmp_path / "f", "--per", "video")
    with (tmp_path / "f" / "index.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels[:3] == ["", "0;2", "0;3"] and [row.label for row in read_index(tmp_path / "f")][:2] == [(), (0, 2)]


def test_an_exported_network_says_its_probability(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    export_checkpoint(checkpoint, out)
    extra = {"metadata.json": ""}
    torch.export.load(out, extra_files=extra)
    facts = json.loads(extra["metadata.json"])
    assert (facts["task"], facts["probability"]) == ("multilabel", "sigmoid")


def test_clips_are_shown_with_all_their_labels(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list = []
    monkeypatch.setattr("video_gn.show_clips.sheet", lambda sections: drawn.extend(sections) or _blank())
    call(show_clips.main, monkeypatch, config_file, "--out", tmp_path / "c.png", "--train", "22", "--test", "12")
    titles = {strip.title.split("   ")[0] for strip in drawn[0].strips} | {s.heading for s in drawn[1:]}
    assert {"no label", "up, sideways (0;2)"} <= titles
    assert any(title.endswith("down, still (1;3)") for title in titles)


def _blank() -> object:
    from PIL import Image

    return Image.new("RGB", (8, 8))


def test_the_doctor_reads_the_lists(config_file: Path) -> None:
    config = load_config(config_file, ["data.val_list=few.csv"])
    (Path(config.data.root) / "few.csv").write_text("val/up_sideways/00001.mp4,0;2\n")
    target = Target(Path(config.data.root), Path(config.output_dir), config)
    found = {line.name: (line.status, line.text) for line in (*folders.lists(target), *folders.labels(target))}
    assert found["list train.csv"] == ("ok", "22 videos; 22 of them looked for and there")
    status, warning = found["labels"]
    assert status == "warning" and warning.startswith("8 of 10 classes have no validation video")


# --- mistakes ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task=classification", "multilabel.threshold=0.5"],
            r"train\.csv, line 2 .* is several labels, .* set task: ",
        ),
        (["model.num_classes=3", "data.class_names=null"], r"train\.csv, line 3 .*: the label 3 is outside 0 to 2"),
        (["data.train_list=none.csv"], "none.csv: no video of the list has a label; write them as `path,3;17`"),
    ],
)
def test_lists_that_cannot_be_trained_on(config_file: Path, videos: Path, tmp_path: Path, overrides, words) -> None:
    (videos / "none.csv").write_text(f"{NONE}\n")
    with pytest.raises(UserError, match=words):
        run(load_config(config_file, [*overrides, f"output_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_a_list_of_one_label_per_video_is_one_of_several(config_file: Path, videos: Path, tmp_path: Path) -> None:
    lines = (videos / "train.csv").read_text().splitlines()
    (videos / "one.csv").write_text("".join(f"{line.split(';')[0]}\n" for line in lines[1:]))
    folder = run(
        load_config(config_file, ["data.train_list=one.csv", "train.epochs=1", f"output_dir={tmp_path / 'r'}"])
    )
    assert records(folder)[-1]["kind"] == "summary"


def test_another_task_than_the_networks_is_refused(checkpoint: Path, trained: Path, config_file: Path) -> None:
    with pytest.raises(UserError, match="task is classification, and the network was trained for multilabel"):
        score_checkpoint(checkpoint, ["task=classification", "multilabel.threshold=0.5"])
    with pytest.raises(UserError, match="holds another experiment .*task: multilabel -> classification"):
        run(
            load_config(
                config_file,
                ["task=classification", "multilabel.threshold=0.5", "data.train_list=one.csv", "data.val_list=one.csv"],
            )
        )


def test_a_test_list_without_labels_names_predict(checkpoint: Path, videos: Path) -> None:
    (videos / "paths.csv").write_text(f"{NONE}\nval/up_down/00000.mp4\n")
    with pytest.raises(UserError, match=r"paths.csv has no labels, and a score needs them .* tools/predict.py"):
        score_checkpoint(checkpoint, ["data.test_list=paths.csv"])


def test_the_command_of_the_example_renders_two_shapes(root: Path) -> None:
    """The config's header and the docs' page name the same command, whose options are the tool's."""
    header = (root / "configs" / "custom" / "motion_multilabel.yaml").read_text()
    page = (root / "docs" / "multilabel.md").read_text()
    (command,) = [line for line in page.splitlines() if line.startswith("python tools/demo.py")]
    assert command in " ".join(header.replace("#", "").replace("\\\n", " ").split())
    assert "--shapes 2" in " ".join(shlex.split(command))
