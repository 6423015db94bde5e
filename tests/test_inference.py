"""A checkpoint as a classifier: the test's own scores, Grad-CAM by its definition, what tools/predict.py writes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn

import video_gn
from tests.bad_videos import number_of, remux, write
from tests.numbered_videos import without_frame
from tests.tiny_runs import tool
from tests.untrained import write_untrained
from video_gn import inference, predict
from video_gn.data.decode import VideoError, open_video, packets
from video_gn.data.motion import CLASSES
from video_gn.distributed.world import World
from video_gn.draw.text import BAR, panel, shorten, write_video
from video_gn.engine.datasets import read_records
from video_gn.engine.test import score_videos
from video_gn.errors import UserError
from video_gn.inference import Classifier, Gradcam, Timeline, gradcam
from video_gn.models.resnet import ResNet
from video_gn.norm import norm_factory
from video_gn.run import checkpoint as ckpt

SPAN, FRAMES = 16, 40  # of TINY's clips: 8 frames, stride 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The checkpoint of an untrained net whose scores differ; its videos are in ../videos."""
    folder = tmp_path_factory.mktemp("saved")
    overrides = ["test.clips=4", "data.class_names=classes.txt"]
    return write_untrained(folder, overrides, std=0.1, train_videos=1, val_videos=3, size=48)


@pytest.fixture(scope="module")
def classifier(saved) -> Classifier:
    return video_gn.load(saved, device="cpu")


@pytest.fixture(scope="module")
def videos(saved) -> list[str]:
    folder = saved.parent / "videos"
    return [str(folder / line.split()[0]) for line in (folder / "val.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def frames(videos) -> torch.Tensor:
    with open_video(videos[0]) as video:
        return video.read(range(FRAMES))


def test_the_package_is_lazy():
    code = "import sys, video_gn; assert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert video_gn.load is inference.load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        video_gn.lode  # noqa: B018


@pytest.mark.parametrize("views", ["center", "three", "full"])
def test_scores_are_those_of_the_test(saved, videos, views):
    classifier = video_gn.load(saved, "cpu", [f"test.views={views}", "test.short_side=40", "test.clips_per_batch=4"])
    alone = World(0, 1, torch.device("cpu"))
    records = read_records(classifier.config, "val.csv", alone)
    expected = score_videos(classifier.model, classifier.config, records, alone).rows
    assert len(expected) == 3 and not np.array_equal(expected[0], expected[1])
    for index, path in enumerate(videos):
        scores = classifier.scores(path)
        assert (scores.dtype, scores.shape) == (np.float32, (10,))
        np.testing.assert_array_equal(scores, expected[index])


def test_frames_are_as_good_as_their_file(classifier, videos, frames):
    expected = classifier.scores(videos[0])
    np.testing.assert_array_equal(classifier.scores(frames), expected)
    np.testing.assert_array_equal(classifier.scores(frames.numpy()), expected)
    assert 0.02 < expected.max() < 0.98
    assert not np.allclose(classifier.scores(frames.flip(-1)), expected, atol=1e-3)  # BGR is another video


def test_predictions_are_sorted_and_named(classifier, videos, frames):
    ranked = classifier.ranked(np.array([0.1, 0.3, 0, 0, 0, 0, 0, 0.6, 0, 0], np.float32), 2)
    assert [(p.label, p.name, round(p.score, 6)) for p in ranked] == [(7, CLASSES[7], 0.6), (1, CLASSES[1], 0.3)]
    one = classifier.predict(videos[0])
    assert len(one) == 5 and one == classifier.ranked(classifier.scores(videos[0]))
    both = classifier.predict([Path(videos[1]), frames], top=10)
    assert [len(each) for each in both] == [10, 10]
    assert both[1][:5] == one
    assert sum(p.score for p in both[0]) == pytest.approx(1, abs=1e-5)


def test_the_checkpoint_knows_its_classes(saved, tmp_path, capsys):
    """Where their file is gone, too; another file may be named, and must be there."""
    state = ckpt.load(saved)
    state["config"]["data"]["class_names"] = "gone.txt"
    names = [f"class {label}" for label in range(10)]
    ckpt.save(tmp_path / "named.pt", {**state, "class_names": names})
    assert video_gn.load(tmp_path / "named.pt", "cpu").names == names
    assert "warning: label 0 is 'class 0' to the network and 'up' in" in capsys.readouterr().err  # beside its list
    (tmp_path / "other.txt").write_text("".join(f"Class_{label}\n" for label in range(10)))
    other = video_gn.load(tmp_path / "named.pt", "cpu", [f"data.class_names={tmp_path / 'other.txt'}"])
    assert other.names == [f"Class_{label}" for label in range(10)]
    for found in (names[::-1], names[1:], ["class 0", "x", *names[2:]]):  # another order, fewer, another name
        (tmp_path / "other.txt").write_text("".join(f"{name}\n" for name in found))
        with pytest.raises(
            UserError, match=r"label \d is 'class \d' to the network and .* in .*other.txt: its classes"
        ):
            video_gn.load(tmp_path / "named.pt", "cpu", [f"data.class_names={tmp_path / 'other.txt'}"])
    numbers = video_gn.load(tmp_path / "named.pt", "cpu", ["data.class_names=null"])
    assert numbers.names == [str(label) for label in range(10)]
    with pytest.raises(UserError, match="absent.txt"):
        video_gn.load(tmp_path / "named.pt", "cpu", ["data.class_names=absent.txt"])


def test_mistakes(classifier, saved, frames, tmp_path):
    for bad in (frames.float(), frames[0], frames.permute(0, 3, 1, 2), frames[:0], frames.numpy().astype(np.int16)):
        with pytest.raises(UserError, match=r"must be uint8 RGB \(T, H, W, 3\)"):
            classifier.predict(bad)
    with pytest.raises(VideoError, match="no such file"):
        classifier.predict(tmp_path / "absent.mp4")
    with pytest.raises(UserError, match="no such checkpoint"):
        video_gn.load(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="device 'gpu' is not known"):
        video_gn.load(saved, "gpu")
    with pytest.raises(UserError, match="device mps is not supported; use auto, cpu or cuda"):
        video_gn.load(saved, "mps")
    with pytest.raises(UserError, match="label 10 is outside 0 to 9"):
        classifier.gradcam(frames, 10)
    with pytest.raises(UserError, match="choose one of stem, res2, pool2, res3, res4, res5"):
        classifier.gradcam(frames, 1, "res6")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [str(inference._device(name)) for name in ("cuda", "cuda:0", "auto")] == ["cuda", "cuda:0", "cuda"]
    with pytest.raises(UserError, match="device cuda:1: GPUs count from 0, and this torch sees 1; use a lower number"):
        inference._device("cuda:1")


@pytest.mark.parametrize("views", ["center", "three"])
def test_a_timeline_scores_each_stretch_of_the_video(saved, frames, views):
    settings = [f"test.views={views}", "test.clips=1", "test.clips_per_batch=6"]
    classifier = video_gn.load(saved, "cpu", settings)
    line = classifier.timeline(frames)
    assert line.starts.tolist() == [0, 4, 8, 12, 16, 20, 24]  # a quarter of 16 apart, to 40 - 16
    assert line.middles.tolist() == [8, 12, 16, 20, 24, 28, 32]
    for start, scores in zip(line.starts.tolist(), line.scores, strict=True):
        np.testing.assert_allclose(scores, classifier.scores(frames[start : start + SPAN]), atol=1e-6)
    short = classifier.timeline(frames[:10])
    assert (short.starts.tolist(), short.middles.tolist(), short.scores.shape) == ([0], [5], (1, 10))
    odd = classifier.timeline(frames[: SPAN + 5])
    assert odd.starts.tolist() == [0, 4, 5]


def test_the_top_of_a_timeline_has_every_peak():
    scores = np.array([[0.5, 0.0, 0.3, 0.2], [0.5, 0.4, 0.0, 0.1]], np.float32)
    line = Timeline(np.array([0, 4]), 16, scores, 20, 25.0)
    assert line.top(2) == [0, 1]
    assert line.top(9) == [0, 1, 2, 3]
    rows = list(csv.reader(io.StringIO(predict.timeline_csv(line, ["a", "b, c", "d", "e"]))))
    assert rows == [
        ["first_frame", "last_frame", "seconds", "score_a", "score_b, c", "score_d", "score_e"],
        ["0", "15", "0.320", "0.5", "0", "0.3", "0.2"],
        ["4", "19", "0.480", "0.5", "0.4", "0", "0.1"],
    ]


def small_net(norm: str = "gn") -> ResNet:
    torch.manual_seed(0)
    net = ResNet(5, norm_factory(norm, groups=4), blocks=(1, 1, 1, 1), width=8, dropout=0.5).eval()
    for parameter in net.norm_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    nn.init.normal_(net.head.fc.weight)
    return net.double().requires_grad_(False)


def test_gradcam_at_res5_is_the_class_activation_map():
    """Above res5 the net is linear: with n cells, logit = sum over cells of W_k . A / n + b, the terms of the map."""
    net, clips = small_net(), torch.randn(2, 3, 16, 64, 32, dtype=torch.float64)
    features = net.features(clips)
    n = features[0, 0].numel()
    assert features.shape[2:] == (2, 2, 1)
    for label in range(5):
        terms = torch.einsum("c,ncthw->nthw", net.head.fc.weight[label], features) / n
        torch.testing.assert_close(terms.sum((1, 2, 3)) + net.head.fc.bias[label], net(clips)[:, label])
        torch.testing.assert_close(gradcam(net, clips, label), terms.relu().float())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("layer", ["res3", "res4"])
def test_gradcam_weights_are_the_slopes_of_the_logit(layer):
    """mean over cells of dy/dA_c is the slope of y when the whole channel c is raised, over the number of cells."""
    net, clips, label, eps = small_net(), torch.randn(1, 3, 16, 32, 32, dtype=torch.float64), 3, 1e-5
    kept: list[torch.Tensor] = []

    def raise_each_channel(_, __, output):
        """A batch of 2 C: each channel raised, then each lowered."""
        kept.append(output)
        steps = eps * torch.eye(output.shape[1], dtype=torch.float64)
        return output + torch.cat([steps, -steps])[..., None, None, None]

    hook = list(net.get_submodule(layer).children())[-1].register_forward_hook(raise_each_channel)
    up, down = net(clips)[:, label].chunk(2)
    hook.remove()
    (features,) = kept
    weights = (up - down) / (2 * eps) / features[0, 0].numel()
    expected = torch.einsum("c,ncthw->nthw", weights, features).relu().float()
    torch.testing.assert_close(gradcam(net, clips, label, layer), expected, rtol=1e-4, atol=1e-7)
    assert expected.max() > 0


def test_gradcam_is_where_the_thing_is():
    """Without norms and biases nothing is nothing: a net fed zeros and a patch has a map in the patch's reach alone."""
    net = small_net("none")
    assert not net.head.fc.bias.any()
    for row, column in ((0, 1), (1, 0)):
        clips = torch.zeros(1, 3, 8, 256, 256, dtype=torch.float64)
        top, left = row * 224, column * 224
        clips[..., top : top + 32, left : left + 32] = torch.randn(3, 8, 32, 32, dtype=torch.float64)
        label = int(net(clips).argmax())
        for layer, cells in (("res5", 8), ("res4", 16)):
            heat = gradcam(net, clips, label, layer)[0].sum(0)
            assert heat.shape == (cells, cells) and heat.sum() > 0
            half = cells // 2
            quarters = heat.reshape(2, half, 2, half).sum((1, 3))
            assert quarters[row, column] == quarters.sum()


def test_gradcam_of_a_video(classifier, frames):
    cam = classifier.gradcam(frames)
    assert cam.label == classifier.scores(frames).argmax()
    assert (cam.starts.tolist(), cam.span, cam.box) == ([0, 16, 24], 16, (0, 0, 48, 48))
    assert cam.maps.shape == (3, 1, 1, 1)  # 8 x 32 x 32 at an eighth, a thirty-second and a thirty-second
    assert classifier.gradcam(frames, 2, "res3").maps.shape == (3, 1, 4, 4)
    assert classifier.gradcam(frames[:9]).starts.tolist() == [0]
    assert all(parameter.grad is None for parameter in classifier.model.parameters())


def test_heat_is_the_map_on_the_source():
    maps = np.zeros((2, 1, 2, 2), np.float32)
    maps[0, 0, 0, 1], maps[1, 0, 1, 0] = 4, 2
    cam = Gradcam(np.array([0, 8]), 8, (3, 5, 20, 40), maps, 0)
    heat = cam.heat(0)
    assert heat.shape == (8, 20, 40)
    assert heat[0, 0, 39] == 1 and heat[7, 19, 0] == 0  # each end of the map, and one scale for all clips:
    assert cam.heat(1)[3, 19, 0] == 0.5
    assert not Gradcam(np.array([0]), 8, (0, 0, 4, 4), 0 * maps[:1], 0).heat(0).any()


def test_heated_frames():
    frame = np.full((2, 2, 3), (30, 60, 90), np.uint8)
    heat = np.array([[0, 0.5], [1, 1]], np.float32)
    warm = predict.heated(frame, heat)
    assert warm[0, 0].tolist() == [60, 60, 60]
    assert warm[1, 0, 0] > warm[1, 0, 2]  # the hottest is red


def test_a_panel_draws_scores_to_scale():
    def blue(image: np.ndarray) -> int:
        return int((image == BAR).all(-1).sum())

    areas = [blue(panel("title", [("a name", score)], 400)) for score in (0, 0.5, 1)]
    assert areas[0] == 0 and areas[1] / areas[2] == pytest.approx(0.5, abs=0.02)
    two = panel("title", [("x" * 300, 0.2), ("ünïcode", 0.3)], 400)
    assert two.shape[1] == 400 and two.dtype == np.uint8
    assert shorten("a/long/path.mp4", 1000, 12) == "a/long/path.mp4"
    assert shorten("a/long/path.mp4", 60, 12).startswith("…") and shorten("a/long/path.mp4", 60, 12).endswith(".mp4")


def test_a_written_video_has_its_frames(tmp_path):
    ramp = np.linspace(0, 255, 45).astype(np.uint8)
    frames = [np.broadcast_to(ramp[None, :, None] // 2 + 20 * k, (31, 45, 3)) for k in range(4)]
    write_video(tmp_path / "x.mp4", frames, 12.5)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12.5)
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [image.shape for image in read] == [(32, 46, 3)] * 4
    for image, frame in zip(read, frames, strict=True):
        assert np.abs(image[:31, :45].astype(int) - frame).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_a_timeline_is_drawn(classifier, videos, tmp_path, drawn):
    line = classifier.timeline(videos[0])
    predict.plot_timeline(classifier, videos[0], line, tmp_path / "x.png", classes=3)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    curves = drawn[0].axes[1].lines
    assert [curve.get_label() for curve in curves] == [CLASSES[label] for label in line.top(3)]
    np.testing.assert_allclose(curves[0].get_xdata(), (line.starts + 8) / 30)
    np.testing.assert_array_equal(curves[0].get_ydata(), line.scores[:, line.top(1)[0]])
    assert len(drawn[0].axes[0].child_axes) == 8  # frames of the video


def test_lines_on_stdout(classifier, videos, capsys):
    predict.predict_videos(classifier, videos[:2], top=2)
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[:2] for line in lines] == [[videos[0], "1"], [videos[0], "2"], [videos[1], "1"], [videos[1], "2"]]
    best = classifier.predict(videos[0])[0]
    assert lines[0][2:] == [best.name, f"{best.score:.4f}"]
    assert err == ""
    with pytest.raises(UserError, match="files of one name"):
        predict.predict_videos(classifier, ["a/x.mp4", "b/x.avi"], overlay=True)


def test_odd_names(classifier, videos, tmp_path, monkeypatch, capsys, caplog):
    """A name that is no formula, and one that is not UTF-8."""
    caplog.set_level("ERROR")  # torchcodec cannot open it, which is logged by name, and xdist cannot send that name
    line = classifier.timeline(videos[0])
    monkeypatch.setattr(classifier, "names", [f"$_{label}$" for label in range(10)])
    for name in (b"v_$1_vs_$1000.mp4", b"caf\xe9.mp4"):
        path = str(tmp_path / os.fsdecode(name))
        shutil.copy(videos[0], path)
        predict.plot_timeline(classifier, path, line, tmp_path / "x.png")
        predict.predict_videos(classifier, [path], top=1, as_json=True)
    written = [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()]
    assert written == [str(tmp_path / "v_$1_vs_$1000.mp4"), str(tmp_path / "caf\udce9.mp4")]
    predict.predict_videos(classifier, [path], top=1)
    assert "caf\\udce9.mp4\t1\t$_" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(classifier, videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot make the folder \(File exists\); give another --out"):
        predict.predict_videos(classifier, videos, timeline=True, out=tmp_path / "file")


def test_what_cannot_be_read_stops_no_other_prediction(classifier, videos, tmp_path, capsys):
    """A URL of an unknown kind, a folder, an empty name, a file that is not there and one that may not be named so."""
    bad = ["rtsp://127.0.0.1:8554/cam", "nosuch://host/a.mp4", str(tmp_path), "", "absent.mp4", "x" * 300 + ".mp4"]
    with pytest.raises(UserError, match="6 of 7 videos cannot be read, such as rtsp:"):
        predict.predict_videos(classifier, [*bad, videos[0]], top=1)
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [videos[0]]
    assert err.count("not predicted: ") == 6 and "data.root" not in err
    assert "not predicted: rtsp://127.0.0.1:8554/cam: Protocol not known: rtsp" in err


def test_files_of_long_names_are_written_under_shortened_ones(classifier, videos, tmp_path):
    """251 bytes, two of one beginning, in letters of two bytes."""
    (tmp_path / "in").mkdir()
    names = ["u" * 242, "t" * 246 + "a", "t" * 246 + "b", "é" * 123]
    paths = [str(tmp_path / "in" / f"{name}.mp4") for name in names]
    for path in paths:
        shutil.copy(videos[0], path)
    predict.predict_videos(classifier, paths, timeline=True, overlay=True, out=tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(written) == 12 and all(len(name.encode()) <= 255 for name in written)
    assert f"{names[0]}.timeline.csv" in written  # 255 bytes: fits


@pytest.mark.parametrize("lost", [47, 71])
def test_all_frames_of_a_video_that_has_one_less(tmp_path, lost, monkeypatch):
    """A packet holds no frame: found out in the middle of the video, and in what is read last."""
    index = packets.index_packets
    monkeypatch.setattr(packets, "index_packets", lambda *args, **kwargs: replace(index(*args, **kwargs), proven=True))
    source = write(tmp_path / "source.mkv", range(80), "mpeg4", codec_options={"g": "12", "bf": "0"})
    path = tmp_path / "lost.avi"
    remux(source, path, lambda n, packet: without_frame(packet) if n == lost else packet)
    with open_video(path) as reader:
        assert reader.num_frames == 80
        frames = list(predict._all_frames(reader, "all"))
    assert [number for number, _ in frames] == list(range(79))
    assert [number_of(frame) for _, frame in frames] == [number for number in range(80) if number != lost]


def test_the_tool_writes_all_its_files(saved, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    arguments = [str(saved), videos[0], str(bad), videos[1], "--json", "--top", "3", "--out", str(tmp_path / "out")]
    done = tool("tools/predict.py", *arguments, "--timeline", "--overlay", "--gradcam", "--layer", "res4")
    assert done.returncode == 2
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["video"] for answer in answers] == [videos[0], str(bad), videos[1]]
    assert [len(answer.get("predictions", ())) for answer in answers] == [3, 0, 3]
    assert "error" in answers[1] and done.stderr.splitlines()[-1].startswith("error: 1 of 3 videos cannot be read")
    files = answers[0]["files"]
    assert sorted(files) == ["gradcam", "overlay", "timeline_csv", "timeline_png"]
    assert len(Path(files["timeline_csv"]).read_text().splitlines()) == 8
    for kind, width in (("overlay", 384), ("gradcam", 768)):
        with av.open(files[kind]) as container:
            shapes = {(frame.width, frame.height > 384) for frame in container.decode(video=0)}
            assert shapes == {(width, True)} and container.streams.video[0].frames == FRAMES
    assert len(list((tmp_path / "out").iterdir())) == 8
