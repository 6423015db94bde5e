"""Curves from a run's log alone."""

from __future__ import annotations

import json

import pytest

from video_gn.config import parse_config, to_yaml
from video_gn.errors import UserError
from video_gn.run import plots
from video_gn.run.log import Writers


def write_run(folder, values):
    folder.mkdir()
    lines = [{"kind": "train", "step": 1, "epoch": 0.1, "train/loss": 1.0}]
    for epoch, (training, validation) in enumerate(values, 1):
        record = {"kind": "epoch", "step": epoch, "epoch": epoch, "epoch/train_top1_error": training}
        lines.append(record | ({"val/top1_error": validation} if validation is not None else {}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    return folder


def test_each_run_is_a_curve_of_its_epochs(tmp_path, drawn):
    runs = [write_run(tmp_path / "bn", [(90, 80), (70, None), (50, 40)]), write_run(tmp_path / "gn", [(60, 55)])]
    out = plots.plot_curves(runs, tmp_path / "out" / "curves.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    training, validation = drawn[0].axes
    assert [(list(c.get_xdata()), list(c.get_ydata()), c.get_label()) for c in training.lines] == [
        ([1, 2, 3], [90, 70, 50], "bn"),
        ([1], [60], "gn"),
    ]
    assert [(list(c.get_xdata()), list(c.get_ydata())) for c in validation.lines] == [([1, 3], [80, 40]), ([1], [55])]


@pytest.mark.filterwarnings("error")
def test_a_run_without_a_validation_yet_is_drawn_without_a_warning(tmp_path):
    """matplotlib's, about a legend of nothing."""
    plots.plot_curves([write_run(tmp_path / "gn", [(90, None)])], tmp_path / "curves.png")


def write_events(folder, errors, **settings):
    """A run of which TensorBoard's files are left. `settings`: keys of the config, with _ for the dot."""
    tree = {"output_dir": str(folder), "seed": settings.pop("seed", 0)}
    for key, value in settings.items():
        section, name = key.split("_", 1)
        tree.setdefault(section, {})[name] = value
    with Writers(folder) as writers:
        writers.text("config", f"```\n{to_yaml(parse_config(tree))}\n```")
        for epoch, error in enumerate(errors, 1):
            values = {"epoch/train_top1_error": 50.0} | ({} if error is None else {"val/top1_error": error})
            writers.write("epoch", 100 * epoch, epoch, values)
    (folder / "log.jsonl").unlink()
    return folder


def test_figure_7_from_the_event_files_alone(tmp_path, drawn):
    """Section 4.3: BN left, GN right, a curve for 8 and one for 4 clips/GPU; here some cells have two seeds."""
    cells = {
        ("bn", 4, 0): [70, None, 50],
        ("gn", 4, 0): [61.5, 40.25, 28.75],
        ("gn", 8, 0): [62, 41, 29],
        ("gn", 8, 1): [64, 43, None],
        ("bn", 8, 0): [60, 40, 30],
    }
    runs = []
    for (norm, clips, seed), errors in cells.items():
        folder = tmp_path / f"{norm}{clips}_{seed}"
        folder.mkdir()
        settings = {"model_norm": norm, "train_clips_per_gpu": clips, "seed": seed}
        runs.append(write_events(folder, errors, **settings))
    assert plots.plot_by_norm(runs, tmp_path / "figure7.png").read_bytes().startswith(b"\x89PNG")
    curves = {
        axis.get_title(): {c.get_label(): (list(c.get_xdata()), list(c.get_ydata())) for c in axis.lines}
        for axis in drawn[0].axes
    }
    assert list(curves) == ["bn", "gn"]
    assert list(curves["gn"]) == ["8 clips/GPU", "4 clips/GPU"]
    assert curves["bn"] == {"8 clips/GPU": ([1, 2, 3], [60, 40, 30]), "4 clips/GPU": ([1, 3], [70, 50])}
    assert curves["gn"] == {"8 clips/GPU": ([1, 2], [63, 42]), "4 clips/GPU": ([1, 2, 3], [61.5, 40.25, 28.75])}


def test_runs_of_one_cell_that_differ_are_no_seeds(tmp_path, drawn):
    runs = []
    for k, frames in enumerate((32, 64, 32)):
        (folder := tmp_path / str(k)).mkdir()
        runs.append(write_events(folder, [10.0 + k], data_frames=frames, train_clips_per_gpu=4, seed=k))
    plots.plot_by_norm(runs, tmp_path / "x.png")
    curves = {c.get_label(): list(c.get_ydata()) for c in drawn[0].axes[0].lines}
    assert curves == {"4 clips/GPU, data.frames 32": [11.0], "4 clips/GPU, data.frames 64": [11.0]}


def test_runs_on_other_lists_are_no_seeds(tmp_path, drawn):
    runs = []
    for k, (name, root) in enumerate((("train.csv", "/a"), ("few.csv", "/a"), ("train.csv", "/b"))):
        (folder := tmp_path / str(k)).mkdir()
        lists = {"data_train_list": name, "data_root": root, "data_test_list": f"{k}.csv"}
        runs.append(write_events(folder, [10.0 + k], seed=k, **lists))
    plots.plot_by_norm(runs, tmp_path / "x.png")
    curves = {c.get_label(): list(c.get_ydata()) for c in drawn[0].axes[0].lines}
    assert curves == {
        "8 clips/GPU, data.train_list train.csv": [11.0],
        "8 clips/GPU, data.train_list few.csv": [11.0],
    }


def test_runs_of_one_name_are_told_apart(tmp_path, drawn):
    runs = []
    for folder in ("a/run", "b/run", "b/other"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        runs.append(write_run(tmp_path / folder, [(90, 80)]))
    plots.plot_curves(runs, tmp_path / "x.png")
    plots.plot_curves(runs, tmp_path / "x.png", ["1", "2", "3"])
    legends = [[text.get_text() for text in figure.axes[0].get_legend().get_texts()] for figure in drawn]
    assert legends == [[str(runs[0]), str(runs[1]), "other"], ["1", "2", "3"]]


def test_many_names_stand_below_the_curves(tmp_path, drawn):
    runs = [write_run(tmp_path / f"run{k}", [(90, 80)]) for k in range(12)]
    plots.plot_curves(runs, tmp_path / "x.png")
    (figure,) = drawn
    assert [axis.get_legend() for axis in figure.axes] == [None, None]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"run{k}" for k in range(12)]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 < min(axis.get_tightbbox().y0 for axis in figure.axes)


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="no log.jsonl"):
        plots.plot_curves([tmp_path], tmp_path / "x.png")
    with pytest.raises(UserError, match="no epoch has ended yet"):
        plots.plot_curves([write_run(tmp_path / "young", [])], tmp_path / "x.png")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/x.png", r"file/x\.png: cannot be written \(File exists\); give another --out"),
        ("folder.png", r"folder\.png: cannot be written \(Is a directory\); move that folder away or"),
        ("x.xyz", r"x\.xyz: not the name of a figure's file; end it in \.png"),
        ("x", r"x: not the name of a figure's file; end it in \.png"),
    ],
)
def test_a_place_that_cannot_hold_the_figure(tmp_path, out, words):
    run = write_run(tmp_path / "run", [(90, 80)])
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=words):
        plots.plot_curves([run], tmp_path / out)
    assert not list(tmp_path.glob("x*"))


def test_percentiles_as_figure_6(tmp_path, drawn):
    run = tmp_path / "vgg"
    run.mkdir()
    values = [{1: -3, 20: -1, 80: 1, 99: 3}, {1: -2, 20: -0.5, 80: 0.5, 99: 2}]
    lines = [
        {"kind": "epoch", "step": k, "epoch": k, **{f"percentiles/conv.12/p{p:02d}": v for p, v in row.items()}}
        for k, row in enumerate(values, 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plots.plot_percentiles(run, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    curves = {c.get_label(): list(c.get_ydata()) for c in drawn[0].axes[0].lines}
    assert curves == {"1 %": [-3, -2], "20 %": [-1, -0.5], "80 %": [1, 0.5], "99 %": [3, 2]}
    with pytest.raises(UserError, match="no percentiles in its log"):
        plots.plot_percentiles(write_run(tmp_path / "other", [(90, 80)]), tmp_path / "x.png")
