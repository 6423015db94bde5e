"""Studies: the schema, the plan, what is run, and what the tables and figures say of made-up logs."""

from __future__ import annotations

import csv
import functools
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers import HANG
from tests.tiny_runs import TINY, launch
from video_gn import study as studies
from video_gn.config import parse_config, to_yaml
from video_gn.data.workers import WorkerLost
from video_gn.distributed.world import World
from video_gn.engine.health import TooManyUnreadable
from video_gn.errors import UserError
from video_gn.study import Motion, Run, Study, as_override, commands, load_study, plan_runs, render_motion, run_study

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
NORMS_BY_CLIPS = {"model.norm": ["bn", "gn"], "train.clips_per_gpu": [2, 1]}


def write_study(folder: Path, root: object = "videos", **values: object) -> Path:
    """A study of the tiny config of test_train.py, which lies beside it."""
    (folder / "tiny.yaml").write_text(TINY.format(out="unused", root=root))
    tree = {"config": "tiny.yaml", "grid": NORMS_BY_CLIPS, "seeds": [0, 1], "measure": "final", "rows": ["model.norm"]}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(tree | values, sort_keys=False))
    return path


def plan(folder: Path, *overrides: str, **values: object) -> tuple[Study, list[Run]]:
    path = write_study(folder, **values)
    study = load_study(path)
    return study, plan_runs(study, path, overrides, folder / "out")


def pretend(run: Run, errors: list[float | None]) -> None:
    """The folder of a run whose epochs had these validation errors."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    values = [{} if error is None else {"val/top1_error": error} for error in errors]
    lines = [{"kind": "epoch", "step": 5 * e, "epoch": e} | value for e, value in enumerate(values, 1)]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretend_test(run: Run, *overrides: str, **values: object) -> None:
    """The result of a test whose config had these overrides."""
    config = parse_config(run.config.model_dump(mode="json"), overrides).model_dump(mode="json")
    result = {"checkpoint": "last.pt", "step": 10, "top1": 61.5, "videos_scored": 11, "videos_listed": 11}
    path = run.folder / values.pop("name", "test_10-clip_center_32.json")
    path.write_text(json.dumps(result | {"config": config} | values))


# --- the study file ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grids": {}}, "grids: Extra inputs"),
        ({"grid": {}, "rows": []}, "nothing varies"),
        ({"grid": {"model.norm": []}}, "grid.model.norm: List should have at least 1 item"),
        ({"measure": "best"}, "measure: Input should be 'final', 'median5' or 'test'"),
        ({"rows": ["model.width"]}, "rows: model.width does not vary; choose of model.norm, train.clips_per_gpu"),
        ({"seeds": [0, 0]}, "seeds [0, 0] repeat"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"grid": {"model.norm": ["bn", "bn"]}}, "two cells are norm=bn"),
        (
            {"grid": {}, "rows": [], "together": [{"data.max_unreadable": 1}, {"test.max_unreadable": 1}]},
            "two cells are max_unreadable=1 by name",
        ),
        (
            {
                "grid": {},
                "together": [{"model.norm": "gn", "optim.lr": 0.1}, {"optim.lr": 0.1, "model.norm": "gn"}],
            },
            "two cells are gn / lr 0.1 by name",
        ),
        ({"grid": {"seed": [1, 2]}, "rows": []}, "seed is the study's to set"),
        ({"fixed": {"output_dir": "x"}}, "output_dir is the study's to set"),
        ({"fixed": {"model.norm": "gn"}}, "model.norm is given twice"),
        ({"together": [{"model.norm": "gn"}]}, "model.norm is given twice"),
        ({"paper": [{"cell": {"model.norm": "bn"}, "value": 1.0}]}, "{'model.norm': 'bn'} fits 2 cells"),
        ({"paper": [{"cell": {"model.norm": "ln"}, "value": 1.0}]}, "{'model.norm': 'ln'} fits 0 cells"),
        ({"motion": {"classes": 11, "train_videos": 1, "val_videos": 1}}, "motion.classes"),
        ({"grid": {"model.norm": ["bn", "qn"]}}, "cell norm=qn: "),
        ({"fixed": {"model.nrom": "gn"}}, "did you mean 'norm'"),
        ({"config": "absent.yaml"}, "absent.yaml"),
        ({"measure": "median5", "fixed": {"train.eval_every": 2}}, "set train.eval_every: 1"),
    ],
)
def test_mistakes_in_a_study_file(tmp_path, values, words):
    with pytest.raises(UserError) as error:
        plan(tmp_path, **values)
    assert words in str(error.value)


@pytest.mark.parametrize("override", ["model.norm=gn", "seed=3", "output_dir=x"])
def test_an_override_of_what_varies_is_a_mistake(tmp_path, override):
    with pytest.raises(UserError, match="the study itself sets"):
        plan(tmp_path, override)


def test_runs_are_all_combinations_first_seeds_first(tmp_path):
    _, runs = plan(tmp_path, "train.epochs=7", fixed={"optim.lr": 0.5})
    assert [(r.folder.relative_to(tmp_path).as_posix(), r.config.model.norm) for r in runs] == [
        ("out/norm=bn,clips_per_gpu=2/seed0", "bn"),
        ("out/norm=bn,clips_per_gpu=1/seed0", "bn"),
        ("out/norm=gn,clips_per_gpu=2/seed0", "gn"),
        ("out/norm=gn,clips_per_gpu=1/seed0", "gn"),
        ("out/norm=bn,clips_per_gpu=2/seed1", "bn"),
        ("out/norm=bn,clips_per_gpu=1/seed1", "bn"),
        ("out/norm=gn,clips_per_gpu=2/seed1", "gn"),
        ("out/norm=gn,clips_per_gpu=1/seed1", "gn"),
    ]
    assert [r.config.train.clips_per_gpu for r in runs] == [2, 1] * 4
    assert [r.config.seed for r in runs] == [0] * 4 + [1] * 4
    assert {(r.config.train.epochs, r.config.optim.lr) for r in runs} == {(7, 0.5)}


def test_keys_that_vary_together(tmp_path):
    together = [{"data.frames": 8, "data.stride": 2}, {"data.frames": 16, "data.stride": 1}, {"data.stride": 4}]
    study, _ = plan(tmp_path, grid={"model.norm": ["bn", "gn"]}, together=together)
    assert study.cells() == [
        {"model.norm": "bn", "data.frames": 8, "data.stride": 2},
        {"model.norm": "bn", "data.frames": 16, "data.stride": 1},
        {"model.norm": "bn", "data.stride": 4},
        {"model.norm": "gn", "data.frames": 8, "data.stride": 2},
        {"model.norm": "gn", "data.frames": 16, "data.stride": 1},
        {"model.norm": "gn", "data.stride": 4},
    ]
    assert study.columns == ["data.frames", "data.stride"]


def test_values_as_overrides():
    given = {
        "a": "bn",
        "b": 8,
        "c": None,
        "d": [1, 2],
        "e": True,
        "f": 0.5,
        "g": "null",
        "h": "x: y",
        "i": "8",
        "j": "",
    }
    assert [as_override(key, value) for key, value in given.items()] == [
        *("a=bn", "b=8", "c=null", "d=[1, 2]", "e=true", "f=0.5", 'g="null"', 'h="x: y"', 'i="8"', 'j=""')
    ]


def test_commands_of_a_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(Path(), seeds=[4], grid={"model.blocks": [[1, 1, 1, 1]]}, rows=[], measure="test")
    study = load_study(path)
    assert commands(study, path, plan_runs(study, path, [], "out")) == [
        "python tools/train.py tiny.yaml 'model.blocks=[1, 1, 1, 1]' seed=4 output_dir=out/blocks=1-1-1-1/seed4"
        " && python tools/test.py out/blocks=1-1-1-1/seed4/checkpoints/last.pt"
    ]


# --- what is run ---


def test_finished_runs_are_not_run_again_and_one_failure_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    study, runs = plan(tmp_path, **{"seeds": [0]})
    pretend(runs[0], [80, 70])
    pretend(runs[1], [80])  # interrupted
    ran = []

    def train(config, ranks):
        ran.append(config)
        if config == runs[2].config:
            raise UserError("its disk is full")
        pretend(next(run for run in runs if run.config == config), [60, 50])

    monkeypatch.setattr(studies, "train", train)
    with pytest.raises(UserError, match=r"1 of 4 runs failed: norm=gn,clips_per_gpu=2 seed 0: its disk is full"):
        run_study(study, runs, tmp_path / "out")
    assert ran == [runs[1].config, runs[2].config, runs[3].config]
    captured = capsys.readouterr()
    assert "== run 2 of 4: norm=bn,clips_per_gpu=1 seed 0\n" in captured.err
    assert "== run 3 of 4: norm=gn,clips_per_gpu=2 seed 0, about 0 min to go" in captured.err
    assert "| bn | 70.0 (n=1) | 50.0 (n=1) |\n| gn | - | 50.0 (n=1) |" in captured.out

    ran.clear()
    with pytest.raises(UserError, match="1 of 4 runs failed"):
        run_study(study, runs, tmp_path / "out")
    assert ran == [runs[2].config]


@pytest.mark.parametrize("error", [WorkerLost("crashed", ["a.mp4"]), TooManyUnreadable("too many")])
def test_what_one_rank_alone_meets_ends_a_study_on_several(tmp_path, monkeypatch, error):
    """The others would wait for it in the training."""
    _, (run, *_) = plan(tmp_path, seeds=[0])

    def train(config, ranks):
        raise error

    monkeypatch.setattr(studies, "train", train)
    monkeypatch.setattr(World, "first", lambda self, call: call())
    assert studies._finish(run, "final", World(0, 1, torch.device("cpu"))) == str(error)
    with pytest.raises(type(error)):
        studies._finish(run, "final", World(1, 2, torch.device("cpu")))


def test_a_study_asks_for_its_test_once(tmp_path, monkeypatch):
    study, (run,) = plan(tmp_path, seeds=[0], measure="test", grid={"model.norm": ["gn"]})
    pretend(run, [60, 50])  # trained, not tested
    tested = []
    monkeypatch.setattr(studies, "train", lambda config, ranks: None)

    def test_checkpoint(path, overrides):
        tested.append((path, overrides))
        pretend_test(run)

    monkeypatch.setattr(studies, "test_checkpoint", test_checkpoint)
    run_study(study, [run], tmp_path / "out")
    run_study(study, [run], tmp_path / "out")
    ((path, overrides),) = tested
    assert path == run.folder / "checkpoints" / "last.pt"
    other = {"output_dir": "x", "data": {"test_list": "other.csv"}, "test": {"clips": 3}}  # as the checkpoint's may be
    assert parse_config(other, overrides) == run.config
    assert "| gn | 61.5 (n=1) |" in (tmp_path / "out" / "table.md").read_text()


def test_the_run_of_another_study_is_neither_counted_nor_touched(tmp_path, monkeypatch):
    (tmp_path / "before").mkdir()
    _, before = plan(tmp_path, "train.epochs=1", seeds=[0])
    pretend(before[0], [50])
    study, runs = plan(tmp_path, seeds=[0])
    monkeypatch.setattr(studies, "train", lambda config, ranks: pytest.fail() if config == runs[0].config else None)
    with pytest.raises(UserError, match=r"holds another experiment \(train.epochs: 1 -> 2\)"):
        run_study(study, runs, tmp_path / "out")
    text, problems = studies.write_report(study, runs, tmp_path / "out")
    assert "0 of 4 runs finished" in text and len(problems) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train_list=other.csv", "data.train_list: train.csv -> other.csv"),
        ("data.val_list=other.csv", "data.val_list: val.csv -> other.csv"),
        ("data.quarantine=bad.csv", "data.quarantine: None -> bad.csv"),
        ("data.root=elsewhere", None),  # another machine's
        ("data.test_list=other.csv", None),
        ("data.max_unreadable=99", None),
    ],
)
def test_a_run_on_other_lists_is_another_experiment(tmp_path, override, told):
    values = {"seeds": [0], "grid": {"model.norm": ["gn"]}}
    _, (before,) = plan(tmp_path, **values)
    pretend(before, [60, 50])
    study, runs = plan(tmp_path, override, **values)
    text, problems = studies.write_report(study, runs, tmp_path / "out")
    assert [told in problem for problem in problems] == ([] if told is None else [True])
    assert f"{0 if told else 1} of 1 runs finished" in text


@pytest.mark.parametrize(
    ("overrides", "values", "is_finished"),
    [
        ([], {}, True),
        (["data.root=elsewhere", "data.workers=7", "test.clips_per_batch=1", "test.max_unreadable=9"], {}, True),
        ([], {"videos_scored": 9}, True),  # the study's test.max_unreadable is 2
        ([], {"videos_scored": 8}, False),
        ([], {"step": 5}, False),
        ([], {"checkpoint": "best.pt"}, False),
        (["data.test_list=other.csv"], {}, False),
        (["test.short_side=48"], {}, False),
        (["data.frames=16"], {}, False),
        ([], {"name": "test_10-clip_center_32_val_8x2_0a1b2c3d.json"}, True),  # where the checkpoint's config is older
    ],
)
def test_a_test_counts_if_it_is_the_studys_and_whole(tmp_path, overrides, values, is_finished):
    fixed = {"test.max_unreadable": 2, "test.short_side": 40}
    study, (run,) = plan(tmp_path, seeds=[0], measure="test", grid={"model.norm": ["gn"]}, fixed=fixed)
    pretend(run, [60, 50])
    pretend_test(run, *overrides, **values)
    text, _ = studies.write_report(study, [run], tmp_path / "out")
    assert ("| gn | 61.5 (n=1) |" if is_finished else "| gn | - |") in text


def test_a_run_without_scored_videos_is_a_failure(tmp_path, monkeypatch):
    study, (run,) = plan(tmp_path, seeds=[0], grid={"model.norm": ["gn"]})
    monkeypatch.setattr(studies, "train", lambda config, ranks: pretend(run, [50, None]))
    with pytest.raises(UserError, match="no video was scored"):
        run_study(study, [run], tmp_path / "out")


def test_the_first_classes_of_the_embedded_data(tmp_path, monkeypatch):
    small = functools.partial(studies.write_dataset, num_frames=8, size=32, workers=1, progress=False)
    monkeypatch.setattr(studies, "write_dataset", small)
    render_motion(Motion(classes=2, train_videos=12, val_videos=3), tmp_path / "data")
    assert (tmp_path / "data" / "train_2.csv").read_text().splitlines() == [
        *("train/up/00000.mp4 0", "train/down/00001.mp4 1", "train/up/00010.mp4 0", "train/down/00011.mp4 1")
    ]
    assert (tmp_path / "data" / "val_2.csv").read_text() == "val/up/00000.mp4 0\nval/down/00001.mp4 1\n"


# --- the report ---


ERRORS = {  # (norm, clips, seed) -> validation errors of six epochs
    ("bn", 2, 0): [90, 50, 10, 30, 40, 20],  # the last 5 in order: 10 20 30 40 50
    ("bn", 2, 1): [90, 80, 70, 26, 16, 24],  # 16 24 26 70 80
    ("bn", 1, 0): [99, 95, 94, 93, 92, 91],
    ("gn", 2, 0): [90, 12, 12, 12, 12, 12],
    ("gn", 2, 1): [90, 18, 18, 18, 18, 18],
}


@pytest.fixture
def made_up(tmp_path):
    """A study of eight runs, three of them unfinished, in the folder made of a measure."""

    def make(measure: str) -> tuple[Study, list[Run]]:
        paper = [{"cell": {"model.norm": "gn", "train.clips_per_gpu": 1}, "value": 24.1}]
        study, runs = plan(tmp_path, "train.epochs=6", measure=measure, paper=paper)
        for run in runs:
            errors = ERRORS.get((run.config.model.norm, run.config.train.clips_per_gpu, run.seed))
            if errors:
                pretend(run, errors)
        pretend(runs[-1], [60, 50])  # going on
        return study, runs

    return make


@pytest.mark.parametrize(
    ("measure", "rows"),
    [
        # 20 and 24: deviation sqrt(((-2)^2 + 2^2) / 1) = 2.83. 12 and 18: sqrt(9 + 9) = 4.24.
        ("final", ["| bn | 22.0 ± 2.8 (n=2) | 91.0 (n=1) |", "| gn | 15.0 ± 4.2 (n=2) | - [24.1] |"]),
        # 30 and 26; of one seed, 93.
        ("median5", ["| bn | 28.0 ± 2.8 (n=2) | 93.0 (n=1) |", "| gn | 15.0 ± 4.2 (n=2) | - [24.1] |"]),
    ],
)
def test_table(made_up, tmp_path, measure, rows):
    study, runs = made_up(measure)
    text, problems = studies.write_report(study, runs, tmp_path / "out")
    assert problems == []
    assert text == (tmp_path / "out" / "table.md").read_text()
    assert "5 of 8 runs finished" in text
    lines = text.splitlines()
    assert lines[2:6] == ["| norm | clips_per_gpu 2 | clips_per_gpu 1 |", "| --- | --- | --- |", *rows]


def test_csv(made_up, tmp_path):
    studies.write_report(*made_up("final"), tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        header, *rows = csv.reader(file)
    measured = ["final_val_error", "median5_val_error", "test_top1"]
    assert header == ["model.norm", "train.clips_per_gpu", "seed", *measured, "folder"]
    assert [row[:-1] for row in rows] == [
        ["bn", "2", "0", "20", "30", ""],
        ["bn", "1", "0", "91", "93", ""],
        ["gn", "2", "0", "12", "12", ""],
        ["bn", "2", "1", "24", "26", ""],
        ["gn", "2", "1", "18", "18", ""],
    ]
    assert rows[1][-1] == str(tmp_path / "out" / "norm=bn,clips_per_gpu=1" / "seed0")


def test_a_study_of_one_row_stands_upright(tmp_path):
    study, runs = plan(tmp_path, grid={"model.norm": ["bn", "gn"]}, rows=[], seeds=[0])
    pretend(runs[0], [60, 50])
    text, _ = studies.write_report(study, runs, tmp_path / "out")
    assert text.splitlines()[2:6] == ["|  | error |", "| --- | --- |", "| norm bn | 50.0 (n=1) |", "| norm gn | - |"]


def test_rows_of_different_keys_are_named_by_them(tmp_path):
    """As Table 3: 16 groups are not 16 channels a group."""
    together = [{key: value} for key in ("model.groups", "model.channels_per_group") for value in (16, 8)]
    rows = ["model.groups", "model.channels_per_group"]
    paper = [{"cell": cell, "value": 20.0 + k} for k, cell in enumerate(together)]
    study, runs = plan(tmp_path, seeds=[0], grid={}, together=together, rows=rows, paper=paper)
    for run, error in zip(runs, (10, 20, 50, 60), strict=True):
        pretend(run, [90, error])
    text, _ = studies.write_report(study, runs, tmp_path / "out")
    assert text.splitlines()[4:8] == [
        "| groups 16 | 10.0 (n=1) [20.0] |",
        "| groups 8 | 20.0 (n=1) [21.0] |",
        "| channels_per_group 16 | 50.0 (n=1) [22.0] |",
        "| channels_per_group 8 | 60.0 (n=1) [23.0] |",
    ]


def test_figures(made_up, tmp_path, drawn):
    studies.write_report(*made_up("final"), tmp_path / "out")
    for name in ("errors.png", "epochs.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")

    by_batch, by_epoch = drawn
    (axis,) = by_batch.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "1"]
    assert axis.get_xlabel() == "clips_per_gpu"
    curves = {bars.get_label(): bars for bars in axis.containers}
    assert {name: (list(c[0].get_xdata()), list(c[0].get_ydata())) for name, c in curves.items()} == {
        "bn": ([0, 1], [22, 91]),
        "gn": ([0], [15]),
    }
    (bars,) = curves["bn"][2]  # segments from mean - deviation to mean + deviation; none for a single seed
    heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    assert heights == pytest.approx([2 * 8**0.5, 0])

    panels = {axis.get_title(): axis for axis in by_epoch.axes}
    assert {
        name: [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
        for name, axis in panels.items()
    } == {
        "bn": [
            ("clips_per_gpu 2", [1, 2, 3, 4, 5, 6], [90, 65, 40, 28, 28, 22]),
            ("clips_per_gpu 1", [1, 2, 3, 4, 5, 6], [99, 95, 94, 93, 92, 91]),
        ],
        "gn": [("clips_per_gpu 2", [1, 2, 3, 4, 5, 6], [90, 15, 15, 15, 15, 15])],
    }


# --- for real ---


def study_tool(monkeypatch, *arguments: str) -> None:
    """tools/study.py in this process."""
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "study.py"), run_name="__main__")


def test_one_cell_for_one_epoch(tmp_path, videos, capsys, monkeypatch):
    path = write_study(tmp_path, root=videos, seeds=[0], grid={"model.norm": ["gn"]}, measure="test")
    arguments = [str(path), f"--out={tmp_path / 'out'}", "train.epochs=1", "test.clips=2"]
    study_tool(monkeypatch, *arguments)
    printed = capsys.readouterr().out
    folder = tmp_path / "out" / "norm=gn" / "seed0"
    top1 = json.loads((folder / "test_2-clip_center_32.json").read_text())["top1"]
    assert f"| gn | {top1:.1f} (n=1) |" in printed
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("norm=gn", "table.md", "results.csv", "errors.png", "epochs.png")
    }
    study_tool(monkeypatch, *arguments, "--collect")
    assert capsys.readouterr().out == printed
    study_tool(monkeypatch, *arguments, "--dry-run")
    assert capsys.readouterr().out.count("python tools/train.py") == 1


def test_collect_prints_what_it_left_out(tmp_path, monkeypatch, capsys):
    path = write_study(tmp_path, seeds=[0])
    runs = plan_runs(load_study(path), path, ["train.epochs=1"], tmp_path / "out")
    pretend(runs[0], [50])
    with pytest.raises(SystemExit, match="2"):
        study_tool(monkeypatch, str(path), "--collect", "--out", str(tmp_path / "out"), "optim.lr=0.5")
    captured = capsys.readouterr()
    assert "0 of 4 runs finished" in captured.out
    assert "holds another experiment (optim.lr: 0.02 -> 0.5; train.epochs: 1 -> 2)" in captured.err


def test_a_place_that_cannot_hold_the_results(tmp_path):
    study, runs = plan(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written \(File exists\); give another --out"):
        studies.write_report(study, runs, tmp_path / "file")


def test_ranks_share_each_run(tmp_path, videos):
    values = {
        "seeds": [0],
        "grid": {"model.norm": ["gn", "none"]},
        "fixed": {"train.epochs": 1, "train.clips_per_gpu": 1},
        "measure": "test",
    }
    path = write_study(tmp_path, root=videos, **values)
    for process in launch(2, "tools/study.py", str(path), "--out", str(tmp_path / "out")):
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, err
    assert "2 of 2 runs finished" in (tmp_path / "out" / "table.md").read_text()
    facts = json.loads((tmp_path / "out" / "norm=none" / "seed0" / "environment.json").read_text())
    assert facts["derived"]["ranks"] == 2


def test_a_diverged_run_is_told_with_its_cell(tmp_path, videos):
    study, runs = plan(
        tmp_path,
        root=videos,
        seeds=[0],
        grid={"model.norm": ["none"]},
        fixed={"optim.lr": 1e6, "train.max_bad_steps": 0},
    )
    with pytest.raises(
        UserError, match="1 of 1 runs failed: norm=none seed 0: 1 steps with a loss or gradient that is not"
    ):
        run_study(study, runs, tmp_path / "out")


# --- the studies of configs/studies ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_study_is_whole(path):
    study = load_study(path)
    runs = plan_runs(study, path, [], Path("out"))
    assert len(runs) == len(study.cells()) * len(study.seeds)
    assert all((path.parent / study.config).exists() for _ in runs)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"tools/study.py configs/studies/{path.name}" in "\n".join(header)
    assert any("Hardware:" in line for line in header)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # The paper's Tables 1, 2, 3 and 8, its Figure 6 and ResNet-101, row by row.
        ("imagenet_table1", [23.6, 25.3, 28.4, 24.1]),
        ("imagenet_table2", [23.6, 23.7, 24.8, 27.3, 34.7, 24.1, 24.2, 24.0, 24.2, 24.1, 26.3]),
        (
            "imagenet_table3",
            [24.6, 24.1, 24.6, 24.4, 24.6, 24.7, 25.3, 24.4, 24.5, 24.2, 24.3, 24.8, 25.6, 28.4],
        ),
        ("imagenet_vgg16", [29.2, 28.0, 27.6]),
        ("imagenet_resnet101", [22.0, 31.9, 22.4, 23.0]),
        ("kinetics_table8", [73.3, 72.1, 73.3, 73.0, 72.8, 74.5]),
        ("motion_batch_size", [None] * 4),
    ],
)
def test_the_papers_figures(name, published):
    study = load_study(ROOT / "configs" / "studies" / f"{name}.yaml")
    assert [study.published(cell) for cell in study.cells()] == published


def test_the_motion_study_changes_the_norms_batch_alone():
    path = ROOT / "configs" / "studies" / "motion_batch_size.yaml"
    configs = [run.config for run in plan_runs(load_study(path), path, [], "out")]
    assert len(configs) == 12
    assert {(c.train.global_batch, c.optim.lr, c.train.epochs, c.model.num_classes) for c in configs} == {
        (8, 0.03, 12, 4)
    }


def test_table_8_is_two_rows_of_three_columns_from_the_norms_own_images(tmp_path):
    path = ROOT / "configs" / "studies" / "kinetics_table8.yaml"
    study = load_study(path)
    runs = plan_runs(study, path, [], "out")
    for run in runs:
        model = run.config.model
        assert model.init_from == f"runs/resnet50_{model.norm}_dense/checkpoints/last.pt"
    text, _ = studies.write_report(study, runs, tmp_path)
    _, _, head, _, bn, gn, *_ = text.splitlines()
    assert [cell.split(",")[0].strip() for cell in head.split("|")[2:-1]] == ["frames 32", "frames 32", "frames 64"]
    assert [cell.strip() for cell in bn.split("|")[2:-1]] == ["- [73.3]", "- [72.1]", "- [73.3]"]
    assert [cell.strip() for cell in gn.split("|")[2:-1]] == ["- [73.0]", "- [72.8]", "- [74.5]"]


def test_figure_6s_percentiles_are_logged_by_its_study():
    path = ROOT / "configs" / "studies" / "imagenet_vgg16.yaml"
    runs = plan_runs(load_study(path), path, [], "out")
    assert [(run.config.model.norm, run.config.train.percentiles_of) for run in runs] == [
        (norm, "conv.12") for norm in ("none", "bn", "gn")
    ]


def test_a_cell_of_the_motion_study_for_one_epoch(tmp_path, capsys):
    """The embedded study itself, on fewer videos: 16 of its four classes."""
    path = ROOT / "configs" / "studies" / "motion_batch_size.yaml"
    study = load_study(path)
    assert study.motion is not None
    study = study.model_copy(update={"motion": study.motion.model_copy(update={"train_videos": 40, "val_videos": 10})})
    overrides = [f"data.root={tmp_path / 'data'}", "train.epochs=1", "data.workers=0", "device=cpu"]
    runs = plan_runs(study, path, overrides, tmp_path / "out")
    run_study(study, runs[:1], tmp_path / "out")
    (epoch,) = (json.loads(line) for line in (runs[0].folder / "log.jsonl").read_text().splitlines() if "val/" in line)
    assert (epoch["epoch"], epoch["val/videos_scored"]) == (1, 4)
    assert f"{epoch['val/top1_error']:.1f} (n=1)" in capsys.readouterr().out
