"""The report: its statistics against published figures, its parts against runs written by hand, its page against text
that tries to break out of it."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import report as tool
from video_gn import cli, report
from video_gn.config import load_config, parse_config, to_yaml
from video_gn.errors import UserError
from video_gn.report.scoring import table8_cell
from video_gn.tasks.intervals import bootstrap_mean_class, wilson

ROOT = Path(__file__).parent.parent
EVIL = "<script>alert(1)</script> & \"'$x^"


class Page(HTMLParser):
    """Checks that tags close in order; collects tags, attributes and, by section, the cells of tables."""

    VOID = {"meta", "br"}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.section = ""
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.tags.add(name)
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href", "action", "data")]
        if name not in self.VOID:
            self.open.append(name)
        if name == "section":
            self.section = dict(attributes)["id"]
        if name == "tr":
            self.rows.setdefault(self.section, []).append([])
        if name in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_startendtag(self, name, attributes):
        self.tags.add(name)
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += ("|" if self.open[-1] == "small" else "") + data


def write_run(folder, config, /, *, pairs=None, classes=(), epochs=(), environment=None, suffix="", **result):
    """A run's folder; `pairs` are (label, predicted) of its test, `result` what else its JSON says."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text(json.dumps(environment or {"torch": "2.15", "derived": {"lr": 0.1}}))
    records = []
    for k, error in enumerate(epochs, 1):
        system = {"system/clips_per_second": 10 * k, "system/data_wait": 0.1, "system/memory_gib": k}
        records.append({"kind": "train", "step": k, "epoch": k, "time": 3600 * k, **system})
        values = {"epoch/train_top1_error": 50, "val/top1_error": error, "val/top5_error": 0, "val/videos_scored": 20}
        records.append({"kind": "epoch", "step": k, "epoch": k, "time": 3600 * k, **values})
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if pairs is not None:
        hits = np.mean([a == b for a, b in pairs])
        known = {"protocol": "10-clip center 56", "top1": 100 * hits, "top5": 100.0, "mean_class_accuracy": 50.0}
        counted = {"videos_scored": len(pairs), "videos_listed": len(pairs) + 1, "unreadable": {EVIL: "cut"}}
        known |= counted | {"clips_per_second": 7.5, "checkpoint": "last.pt", "step": 3}
        content = known | {"config": config.model_dump(mode="json")} | result
        name = folder / f"test_{content['protocol'].replace(' ', '_')}{suffix}.json"
        name.write_text(json.dumps(content))
        with name.with_suffix(".csv").open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["path", "label", "predicted", "problem", *(f"score_{c}" for c in classes)])
            rows.writerows([f"{k}.mp4", a, b, "", *[0] * len(classes)] for k, (a, b) in enumerate(pairs))
            rows.writerow([EVIL, 0, "", "cut", *[""] * len(classes)])
    return folder


def small_config(**values):
    base = {"output_dir": "runs/x", "model": {"num_classes": 3}, "train": {"epochs": 2}}
    return parse_config(base, [f"{key.replace('__', '.')}={value}" for key, value in values.items()])


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_as_newcombe_1998_table_1(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=0.006)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_equation(n, data):
    """Its ends are the shares p with |hits / n - p| = z sqrt(p (1 - p) / n)."""
    hits = data.draw(st.integers(0, n))
    for end in wilson(hits, n):
        p = end / 100
        assert abs(hits / n - p) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / n), abs=1e-7)


def test_bootstrap_of_mean_class_accuracy():
    rng = np.random.default_rng(1)
    videos = [np.repeat([1, 0], [15, 5]), np.repeat([1, 0], [30, 70])]  # hits of two classes; a third has no video
    means = [np.mean([rng.choice(v, len(v)).mean() for v in videos]) for _ in range(4000)]
    matrix = np.array([[15, 5, 0], [60, 30, 10], [0, 0, 0]])
    assert bootstrap_mean_class(matrix) == pytest.approx(100 * np.percentile(means, (2.5, 97.5)), abs=1.0)
    assert bootstrap_mean_class(np.diag([4, 9])) == (100, 100)


LIST = {"test_list": "mine.csv", "list_sha256": "0a1b2c3d" * 8}


def test_top_5_of_6_classes_and_scores_of_other_lists(tmp_path):
    """A score on other videos than the run's own stands in a row of its own, and names its list and checkpoint."""
    config = small_config(model__num_classes=6)
    run = write_run(tmp_path / "run", config, pairs=[(0, 0)] * 4, classes="abcdef", test_list="val.csv")
    best = {"suffix": "_mine", "checkpoint": "best.pt"} | LIST
    other = write_run(tmp_path / "other", config, pairs=[(0, 1)], classes="abcdef", **best)
    for path in other.glob("test_*"):
        path.rename(run / path.name)
    rows = Page(report.write_report([run], tmp_path / "r.html").read_text()).rows["scores"][1:]
    assert [row[1].split("|")[1].split(", ") for row in rows] == [
        ["val.csv", "32 x 2", "short side 256", "last.pt", "step 3"],
        ["mine.csv (0a1b2c3d)", "32 x 2", "short side 256", "best.pt", "step 3"],
    ]
    assert [row[2].split("|")[0] for row in rows] == ["100.00", "0.00"]
    assert rows[0][3] == "100.00|51.0 to 100.0"  # Wilson's of 4 of 4


def test_what_the_page_says(tmp_path):
    pairs = [(0, 0)] * 8 + [(0, 1)] * 2 + [(1, 1)] * 7 + [(1, 2)] * 3
    one = write_run(
        tmp_path / "one", small_config(seed=0), pairs=pairs, classes=["a", "b", "c"], epochs=[40, 30], **LIST
    )
    two = write_run(tmp_path / "two", small_config(seed=5, optim__lr=0.02), environment={"torch": "2.11"})
    page = Page(report.write_report([one, two], tmp_path / "out" / "r.html").read_text())
    assert page.rows["scores"][1][:4] == [
        "one",
        "10-clip center 56|mine.csv (0a1b2c3d), 32 x 2, short side 256, last.pt, step 3",
        "75.00|53.1 to 88.8",  # Wilson's of 15 of 20
        "-",  # three classes
    ]
    assert page.rows["scores"][1][5] == "20 of 21"
    assert page.rows["scores"][2][:3] == [
        "one",
        "1-clip augmented|validation after epoch 2 of 2",
        "70.00|48.1 to 85.5",
    ]
    confused = [["b", "c", "3", "30 %"], ["a", "b", "2", "20 %"]]
    assert page.rows["classes"][1:3] == confused
    assert [(row[0], row[1], row[3]) for row in page.rows["classes"][4:6]] == [
        ("b", "70.0", "7 of 10"),
        ("a", "80.0", "8 of 10"),
    ]  # worst first; c has no video
    assert page.rows["classes"][-1] == [EVIL, "cut"]
    assert page.rows["throughput"][1][:4] == ["one", "15.0", "10.0 %", "2.00"]
    assert page.rows["throughput"][1][5:] == ["1.00", "7.5"]
    assert page.rows["config"][:3] == [["", "one", "two"], ["seed", "0", "5"], ["optim.lr", "0.01", "0.02"]]
    assert ["model.num_classes", "3"] in page.rows["config"]
    assert page.rows["environment"][:3] == [["", "one", "two"], ["torch", "2.15", "2.11"], ["derived.lr", "0.1", "-"]]
    assert "No epoch in the log of two" in page.text
    assert "table-8" not in page.rows


def test_text_of_runs_stays_text_and_nothing_is_fetched(tmp_path):
    classes = [EVIL, "b"]
    environment = {"command": ["tools/train.py", EVIL], EVIL: EVIL}
    config = small_config()
    run = write_run(
        tmp_path / "<img src=x>", config, pairs=[(0, 1), (1, 1)], classes=classes, epochs=[50], environment=environment
    )
    text = report.write_report([run], tmp_path / "r.html").read_text()
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object"} & page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    urls = set(re.findall(r"https?://[^\"' ]+", text))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of namespaces
    assert page.text.count(EVIL) >= 4  # confused pair, class, environment, the matrix's axis
    assert page.rows["scores"][1][0] == "<img src=x>"
    assert text.count("<svg class=") == 4 and "currentColor" in text  # curves, matrix, two bars
    assert "DejaVuSans-" not in text  # letters are text, not outlines
    assert "#010203" not in text and "#040506" not in text
    assert not re.search(r"url\((?!#)", text)


def test_table_8_beside_the_paper(tmp_path):
    kinetics = ROOT / "configs" / "kinetics400"
    config = load_config(kinetics / "i3d_r50_gn_64x1_4clips.yaml")
    facts = {"top1": 74.25, "top5": 91.5, "protocol": "10-clip full 256", "videos_listed": 19_906, "step": 109}
    whole = {"pairs": [(0, 0)], "classes": "ab", "epochs": [90] * 109} | facts
    other_clips = load_config(kinetics / "i3d_r50_gn_32x2_4clips.yaml").model_dump(mode="json")
    three_clips = parse_config(config.model_dump(mode="json"), ["test.clips=3"]).model_dump(mode="json")
    runs = [
        write_run(tmp_path / "gn64", config, **whole),
        write_run(tmp_path / "going_on", config, **whole | {"epochs": [90] * 60, "step": 60}),
        write_run(tmp_path / "before_the_end", config, **whole | {"step": 60}),
        write_run(tmp_path / "other_clips", config, **whole, config=other_clips),
        write_run(tmp_path / "three_clips", config, **whole, config=three_clips),
        write_run(tmp_path / "training_list", config, **whole, suffix="_train_64x1_0a1b2c3d", test_list="train.csv"),
    ]
    page = Page(report.write_report(runs, tmp_path / "r.html").read_text())
    assert [[cell.replace("\xa0", " ") for cell in row] for row in page.rows["table-8"]] == [
        ["clip (frames x stride)", "32 x 2", "32 x 2", "64 x 1"],
        ["batch size (clips per GPU)", "8", "4", "4"],
        ["BN", "-", "-", "-"],
        ["BN, the paper", "73.3 / 90.7", "72.1 / 90.0", "73.3 / 90.8"],
        ["GN", "-", "-", "74.2 / 91.5|gn64, from scratch, 10-clip full 256, 1 of 19,906 videos"],
        ["GN, the paper", "73.0 / 90.6", "72.8 / 90.6", "74.5 / 91.7"],
    ]


def test_every_cell_of_table_8_has_its_config_and_other_runs_have_none():
    kinetics = ROOT / "configs" / "kinetics400"
    cells = {path.stem: table8_cell(load_config(path)) for path in kinetics.glob("i3d_*.yaml")}
    order = ("32x2_8clips", "32x2_4clips", "64x1_4clips")
    assert cells == {f"i3d_r50_{norm}_{clip}": (norm, k) for norm in ("bn", "gn") for k, clip in enumerate(order)}
    config = kinetics / "i3d_r50_gn_32x2_8clips.yaml"
    for other in (
        *("model.width=32", "model.num_classes=101", "model.norm=ln", "model.stem=sparse", "model.groups=16"),
        *("model.channels_per_group=16", "data.crop=112", "train.clips_per_gpu=2", "train.epochs=30"),
        "train.global_batch=32",
    ):
        assert table8_cell(load_config(config, [other])) is None
    assert table8_cell(load_config(config, ["train.global_batch=64", "seed=3"])) == ("gn", 0)
    bn = load_config(kinetics / "i3d_r50_bn_32x2_8clips.yaml", ["model.groups=16"])  # which BN does not have
    assert table8_cell(bn) == ("bn", 0)


def test_a_tested_checkpoint_on_its_own(tmp_path):
    run = write_run(tmp_path / "zoo", small_config(), pairs=[(2, 2)], classes="abc")
    for name in ("config.yaml", "environment.json", "log.jsonl"):
        (run / name).unlink()
    page = Page(report.write_report([run], tmp_path / "r.html").read_text())
    assert page.rows["scores"][1][0] == "zoo" and "environment" not in page.rows
    assert "No video is taken for another class." in page.text


def test_percentiles_are_drawn_where_they_were_logged(tmp_path):
    run = write_run(tmp_path / "vgg", small_config(), epochs=[80, 60])
    assert "percentiles of" not in report.page([report.read_run(run, "vgg")])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines[-1]["percentiles/conv.12/p99"] = 3  # with train.eval_every 2 the first epoch has none
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.page([report.read_run(run, "the name")])
    assert 'aria-label="percentiles of the name"' in page and "output of conv.12" in page
    assert page.count(">the name</text>") == 3  # in the legends of both curves, above the percentiles


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / k / "demo", small_config(), epochs=[1]) for k in "ab"]
    page = Page(report.write_report(runs, tmp_path / "r.html").read_text())
    assert [row[0] for row in page.rows["scores"][1:]] == [str(run) for run in runs]


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("environment.json", "{", "environment.json: not readable as JSON"),
        ("test_10-clip_center_56.json", "{}", "has no config"),
        ("test_10-clip_center_56.csv", "path,label,predicted,problem,score_a\nx,7,0,,1\n", "not a table of scores"),
        ("test_10-clip_center_56.csv", "", "not a table of scores"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text, rule):
    run = write_run(tmp_path / "run", small_config(), pairs=[(0, 0)], classes="abc")
    (run / name).write_text(text)
    with pytest.raises(UserError, match=rule):
        report.write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_tool(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", small_config(), epochs=[20])
    monkeypatch.setattr(sys, "argv", ["report.py", str(run)])
    cli.run(tool.main)
    assert capsys.readouterr() == (f"{run / 'report.html'}\n", "")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        cli.run(tool.main)
    assert re.fullmatch(r"error: .*no config.yaml.*\n", capsys.readouterr().err)
