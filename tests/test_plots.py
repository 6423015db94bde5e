"""Curves from a run's log alone."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import pytest

from video_gn import plots
from video_gn.errors import UserError


def write_run(folder, values):
    folder.mkdir()
    lines = [{"kind": "train", "step": 1, "epoch": 0.1, "train/loss": 1.0}]
    for epoch, (training, validation) in enumerate(values, 1):
        record = {"kind": "epoch", "step": epoch, "epoch": epoch, "epoch/train_top1_error": training}
        lines.append(record | ({"val/top1_error": validation} if validation is not None else {}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    return folder


def test_each_run_is_a_curve_of_its_epochs(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / "bn", [(90, 80), (70, None), (50, 40)]), write_run(tmp_path / "gn", [(60, 55)])]
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    out = plots.plot_curves(runs, tmp_path / "out" / "curves.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    training, validation = drawn[0].axes
    assert [(list(c.get_xdata()), list(c.get_ydata()), c.get_label()) for c in training.lines] == [
        ([1, 2, 3], [90, 70, 50], "bn"),
        ([1], [60], "gn"),
    ]
    assert [(list(c.get_xdata()), list(c.get_ydata())) for c in validation.lines] == [([1, 3], [80, 40]), ([1], [55])]


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match="no log.jsonl"):
        plots.plot_curves([tmp_path], tmp_path / "x.png")
    with pytest.raises(UserError, match="no epoch has ended yet"):
        plots.plot_curves([write_run(tmp_path / "young", [])], tmp_path / "x.png")


def test_percentiles_as_figure_6(tmp_path, monkeypatch):
    run = tmp_path / "vgg"
    run.mkdir()
    values = [{1: -3, 20: -1, 80: 1, 99: 3}, {1: -2, 20: -0.5, 80: 0.5, 99: 2}]
    lines = [
        {"kind": "epoch", "step": k, "epoch": k, **{f"percentiles/conv.12/p{p:02d}": v for p, v in row.items()}}
        for k, row in enumerate(values, 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    assert plots.plot_percentiles(run, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    curves = {c.get_label(): list(c.get_ydata()) for c in drawn[0].axes[0].lines}
    assert curves == {"1 %": [-3, -2], "20 %": [-1, -0.5], "80 %": [1, 0.5], "99 %": [3, 2]}
    with pytest.raises(UserError, match="no percentiles in its log"):
        plots.plot_percentiles(write_run(tmp_path / "other", [(90, 80)]), tmp_path / "x.png")
