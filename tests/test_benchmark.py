"""tools/benchmark.py in small: what is measured, that all alternatives do the same work, and the arithmetic."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny_runs import tool
from video_gn.benchmark import decode, loader, norm, others, step
from video_gn.benchmark import test as ten_clips
from video_gn.benchmark.common import Sample, Table, host_sample, measure, report, select
from video_gn.benchmark.videos import find_videos, render_videos
from video_gn.data.decode import open_video
from video_gn.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return render_videos(tmp_path_factory.mktemp("videos"), 2, (96, 128, 80))


def names(tables: list[Table]) -> list[list[str]]:
    return [list(table.samples) for table in tables]


def test_table_gives_medians_spread_and_the_median_of_paired_ratios():
    ours = [Sample(1.0, 0.1), Sample(2.0, 0.1), Sample(4.0, 0.2)]
    other = [Sample(3.0, 0.1), Sample(4.0, 0.3), Sample(4.0, 0.2)]  # walls 3, 2 and 1 times ours: median 2
    table = Table("a title", {"ours": ours, "other": other}, columns={"GiB": {"other": 7.0}}, note="a note")
    first, second = table.rows()
    assert (first["wall_ms"], first["wall_min_ms"], first["wall_max_ms"], first["ratio"]) == (2000, 1000, 4000, 1)
    assert (second["wall_ms"], second["cpu_ms"], second["ratio"], second["GiB"]) == (4000, 200, 2, 7)
    assert Table("", {"ours": ours, "other": other}, by="cpu").rows()[1]["ratio"] == 1  # 1, 3 and 1
    lines = table.text().splitlines()
    assert lines[0] == "a title" and "wall ratio" in lines[1] and lines[-1] == "a note"
    assert lines[3].split()[-2:] == ["2.00", "7"] and lines[2].split()[-1] == "-"


def test_alternatives_run_in_turn_and_what_fails_is_left_out(capsys):
    order: list[str] = []

    def does(name):
        return lambda: order.append(name) or 1

    def missing():
        raise ImportError("No module named 'absent'\nmore")

    samples = measure({"ours": does("ours"), "gone": missing, "other": does("other")}, 4)
    assert order[:2] == ["ours", "other"]  # the warm-up
    assert [set(order[i : i + 2]) for i in range(2, 10, 2)] == [{"ours", "other"}] * 4
    assert order[2] != order[4]  # nobody always comes first
    assert {name: len(its) for name, its in samples.items()} == {"ours": 4, "other": 4}
    assert "gone: left out: ImportError: No module named 'absent'\n" in capsys.readouterr().err
    assert list(select(samples, ["other", "gone"])) == ["other"]
    with pytest.raises(ImportError):
        measure({"ours, too": missing}, 1)


def test_times_are_an_item_and_sleep_is_no_cpu_time():
    sample = host_sample(lambda: time.sleep(0.2) or 4)
    assert sample.wall >= 0.05
    assert sample.cpu < 0.04


def test_report_is_text_and_json(tmp_path):
    table = Table("title", {"ours": [Sample(1.0, 0.5)]})
    text = report("decode", [table], tmp_path / "new" / "figures.json")
    assert "torch 2" in text.splitlines()[0] and "title" in text
    content = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert content["command"] == "decode" and content["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert content["tables"][0]["rows"][0]["cpu_ms"] == 500


def test_a_report_that_cannot_be_written_is_still_printed(tmp_path, capsys):
    (tmp_path / "file").touch()
    table = Table("title", {"ours": [Sample(1.0, 0.5)]})
    with pytest.raises(UserError, match=r"--json .*file/x.json: cannot be written \(File exists\); name another file"):
        report("norm", [table], tmp_path / "file" / "x.json")
    assert "title" in capsys.readouterr().out


def test_videos_are_rendered_once_as_a_download_would_be(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sorted(path.name for path in before) == ["00.mp4", "01.mp4"]
    render_videos(folder, 2, (96, 128, 80))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    videos = find_videos(folder, quick=True)
    assert [(v.num_frames, v.fps) for v in videos] == [(80, 30), (80, 30)]
    av = pytest.importorskip("av")
    with av.open(videos[0].path) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec_context.name) == (128, 96, "h264")
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert sum(packet.is_keyframe for packet in packets) == 1  # 80 frames of a GOP of 250
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)  # B-frames


def test_a_folder_without_videos_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no readable video"):
        find_videos(tmp_path, quick=False)


@pytest.mark.parametrize("decoder", list(decode.BARE))
def test_bare_calls_read_our_frames(folder, decoder):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    video = find_videos(folder, quick=True)[0]
    indices = [30, 32, 33, 47, 79]
    with open_video(video.path, "pyav") as reader:
        ours = reader.read(indices).numpy().astype(float)
    bare = decode.BARE[decoder](video, indices).astype(float)
    assert bare.shape == ours.shape == (5, 96, 128, 3)
    # Grain makes a neighbour frame differ by far more.
    assert np.abs(bare - ours).mean(axis=(1, 2, 3)).max() < 1.5 < np.abs(ours[1] - ours[2]).mean()


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_labeled_video_dataset_cuts_the_same_clips(folder, decoder):
    pytest.importorskip("pytorchvideo")
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    video = find_videos(folder, quick=True)[0]
    with decode.torch_bridge() if decoder == "decord" else decode.nullcontext():
        dataset = others.labeled_videos([video] * 2, 16 / 30, decoder, [[0, 30], [64]], lambda sample: sample)
        clips = [sample["video"] for sample in dataset]
    assert [tuple(clip.shape) for clip in clips] == [(3, 16, 96, 128)] * 3
    with open_video(video.path, "pyav") as reader:
        for start, clip in zip((0, 30, 64), clips, strict=True):
            ours = reader.read(range(start, start + 16)).permute(3, 0, 1, 2).float()
            assert (clip - ours).abs().mean() < 1.5
    assert others.subsample(8)({"video": clips[0]})["video"].shape == (3, 8, 96, 128)


def test_transforms_of_the_others():
    clip = torch.full((3, 16, 96, 128), 255 * 0.45)
    for transform in (others.training_transform(8, 64, (72, 80)), others.test_transform(8, 64, 72)):
        result = transform({"video": clip})["video"]
        assert result.shape == (3, 8, 64, 64) and result.abs().max() < 1e-5


def test_decode(folder):
    pytest.importorskip("pytorchvideo")
    tables = decode.run(videos=folder, pyslowfast=folder, repeats=1, quick=True)  # a folder without PySlowFast
    assert len(tables) in (2, 4, 6)  # as many decoders as are here, for one clip and for several
    one, many = names(tables)[len(tables) // 2 - 1 :: len(tables) // 2]
    assert one[0].startswith("ours, ") and "LabeledVideoDataset, pyav" in one and decode.SLOWFAST not in one
    assert f"{many[0]}, a decode a clip" in many


def test_loader(folder):
    pytest.importorskip("pytorchvideo")
    (table,) = loader.run(videos=folder, pyslowfast=None, repeats=1, quick=True, workers=0)
    assert {"ours", "LabeledVideoDataset, pyav"} <= set(table.samples)
    assert set(table.columns["most clips/s"]) == set(table.samples)


def test_ten_clips_and_that_both_networks_say_the_same(folder):
    pytest.importorskip("pytorchvideo")
    decoding, network, whole = ten_clips.run(videos=folder, repeats=1, quick=True)
    assert list(network.samples) == ["ours, bn", "ours, gn", ten_clips.THEIRS]
    assert float(network.note.split(" by ")[1].split()[0]) < 1e-4
    assert len(whole.samples) == 3 and "ours" in decoding.samples


def test_norm_inputs_are_those_of_the_paper_net():
    cases = norm.norm_inputs(8, 32, 224)
    assert sum(cases.values()) == 53  # 1 + 16 blocks of 3 + 4 shortcuts
    assert sum(math.prod(c.shape) * n for c, n in cases.items()) == pytest.approx(8 * 70.4e6, rel=1e-3)
    assert cases[norm.Case("norm + ReLU", (8, 64, 16, 112, 112))] == 1  # conv1
    assert cases[norm.Case("norm + add + ReLU", (8, 2048, 4, 7, 7))] == 3
    assert cases[norm.Case("norm", (8, 256, 8, 55, 55))] == 1
    assert sum(n for case, n in cases.items() if case.kind == "norm + add + ReLU") == 16


def test_all_norm_alternatives_compute_a_norm():
    torch.manual_seed(0)
    x, residual = torch.randn(2, 2, 32, 2, 3, 3)
    expected = nn.functional.group_norm(x, 32)
    for name in ("ours", "nn.GroupNorm, contiguous"):
        way = norm.ALTERNATIVES[name]
        layer = way.norm(32)
        torch.testing.assert_close(way.apply(layer, x, relu=False, residual=None), expected)
        torch.testing.assert_close(way.apply(layer, x, relu=True, residual=residual), (expected + residual).relu())
    way = norm.ALTERNATIVES["BN, channels last"]
    expected = nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(way.apply(way.norm(32), x, relu=True, residual=None), expected.relu())


def test_norm():
    tables = norm.run(repeats=1, quick=True, device="cpu")
    assert len(tables) == 9
    assert all(list(table.samples) == list(norm.ALTERNATIVES) for table in tables[:8])
    everything = tables[0].samples["ours"][0].cpu
    assert everything == pytest.approx(sum(table.samples["ours"][0].cpu for table in tables[2:8:2]))
    assert len(tables[8].samples) == len(norm.norm_inputs(1, 8, 64))


def test_step():
    (table,) = step.run(repeats=1, quick=True, device="cpu")
    assert {"ours, GN", "ours, BN", "nn.GroupNorm, contiguous"} <= set(table.samples)
    assert not any("compiled" in name for name in table.samples)


def test_the_tool_prints_a_table_and_writes_json(tmp_path, folder):
    done = tool("tools/benchmark.py", "loader", "--quick", "--repeats", "1", "--videos", str(folder), "--workers", "0",
                "--json", str(tmp_path / "loader.json"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CPU ms" in done.stdout and "ours" in done.stdout
    assert json.loads((tmp_path / "loader.json").read_text())["tables"][0]["rows"][0]["name"] == "ours"


def test_too_few_repeats_are_a_line(tmp_path):
    done = tool("tools/benchmark.py", "norm", "--repeats", "0")
    assert done.returncode == 2 and done.stderr == "error: --repeats 0 is too few; give 1 or more\n"
