"""Image folders: records, JPEGs decoded no larger than needed, section 4.1's crops and colors, training and test."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.models import vgg
from torchvision.transforms.v2 import functional as tv

from tests.helpers import smooth
from tests.networks import speak
from tests.tiny_runs import ROOT, TINY_IMAGES, run
from video_gn.config import load_config
from video_gn.data import augment, dataset, sampling
from video_gn.data.dataset import TrainClips
from video_gn.data.decode import VideoError
from video_gn.data.images import ImageReader, image_classes, read_image_folder, rgb_pixels
from video_gn.data.sampling import ClipSpec, keyed_rng
from video_gn.engine.datasets import val_dataset
from video_gn.engine.test import test_checkpoint as score_checkpoint
from video_gn.engine.train import Trainer
from video_gn.errors import UserError
from video_gn.models import build_model
from video_gn.models.inflate import initialize
from video_gn.models.vgg import VGG
from video_gn.run.plots import plot_percentiles
from video_gn.study import load_study, plan_runs


def test_records_are_those_of_image_folder(tree):
    records = read_image_folder("train", str(tree), 3)
    assert [(str(tree / r.path), r.target) for r in records] == ImageFolder(str(tree / "train")).samples


def test_the_classes_are_those_that_were_trained(tree, tmp_path):
    names = ["ant", "bee", "wasp and hornet"]
    assert image_classes("train", str(tree)) == names
    assert len(read_image_folder("val", str(tree), 3, names)) == 9
    with pytest.raises(UserError, match=r"val has 'bee' as class 1, the net was trained with 'cat'"):
        read_image_folder("val", str(tree), 3, ["ant", "cat", "wasp and hornet"])


def test_what_a_file_is_called_does_not_choose_its_format(tmp_path):
    """Pillow would run a program for PostScript."""
    image = Image.fromarray(smooth(8, 8, 0))
    image.save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "eps.jpg")
    image.save(tmp_path / "tiff.jpg", format="TIFF")
    for name in ("eps.jpg", "tiff.jpg"):
        with pytest.raises(VideoError, match="not a readable image"):
            ImageReader(str(tmp_path / name))
    image.save(tmp_path / "png.jpg", format="PNG")  # as one image of ImageNet
    assert ImageReader(str(tmp_path / "png.jpg")).width == 8


def test_a_name_that_is_not_utf8(tree, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    shutil.copy(tree / "train" / "ant" / "0.jpg", os.fsencode(tmp_path / "train" / "a") + b"/\xff.jpg")
    with pytest.raises(UserError, match="not UTF-8 text; rename the file"):
        read_image_folder("train", str(tmp_path), 1)


def test_what_is_not_a_tree(tree, tmp_path):
    with pytest.raises(UserError, match="3 class folders, model.num_classes is 1000"):
        read_image_folder("train", str(tree), 1000)
    with pytest.raises(UserError, match="no folder 'absent'"):
        read_image_folder("absent", str(tree), 3)
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="empty"):
        read_image_folder("train", str(tmp_path), 1)


@pytest.mark.parametrize(("side", "scale"), [(200, 1), (128, 2), (100, 2), (64, 4), (60, 4), (30, 8), (8, 8)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(tmp_path, side, scale):
    """The views' content stays: within the JPEG's own error of the picture cut and scaled by PIL."""
    pixels = smooth(400, 512, 7)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=98)
    with ImageReader(str(tmp_path / "a.jpg")) as image:
        assert (image.height, image.width, image.num_frames) == (400, 512, 1)
        (view,) = image.shrink([sampling.View((72, 128, 256, 256), side, side)])
        assert (image.height, image.width) == (400 // scale, 512 // scale)
        assert view.box == tuple(v // scale for v in (72, 128, 256, 256))
        box, views = sampling.cut([view])
        frames = image.read([0], box)
    got = augment.render(frames, views, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))[0, 0]
    whole = Image.fromarray(pixels).crop((128, 72, 384, 328)).resize((side, side), Image.Resampling.BILINEAR)
    assert np.abs(got.numpy() - np.asarray(whole, dtype=np.float32)).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_color_mode_becomes_rgb(tmp_path, mode):
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(smooth(20, 30, 1)).convert(mode).save(name)
    with ImageReader(str(name)) as image:
        assert image.read([0]).shape == (1, 20, 30, 3)


MODES = {  # what a pixel is in a mode of Pillow, and in RGB
    "1": (1, (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "LA": ((77, 9), (77, 77, 77)),  # opacity is left out
    "La": ((50, 128), (99, 99, 99)),  # 50 of 128 is 99.6 of 255; Pillow rounds down
    "PA": ((3, 255), (9, 8, 7)),
    "P": (3, (9, 8, 7)),
    "RGB": ((9, 8, 7), (9, 8, 7)),
    "RGBA": ((9, 8, 7, 0), (9, 8, 7)),
    "RGBa": ((50, 0, 128, 128), (99, 0, 255)),
    "RGBX": ((9, 8, 7, 66), (9, 8, 7)),
    "CMYK": ((255, 0, 0, 0), (0, 255, 255)),
    "YCbCr": ((76, 85, 255), (254, 0, 0)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "I": (257 * 99, (99, 99, 99)),
    "I;16": (257 * 200 + 127, (200, 200, 200)),
    "I;16L": (65535, (255, 255, 255)),
    "I;16B": (257 * 3, (3, 3, 3)),
    "I;16N": (257 * 40 - 128, (40, 40, 40)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_becomes_rgb(mode):
    value, rgb = MODES[mode]
    image = Image.new(mode, (3, 2), 0)
    if mode in ("P", "PA"):
        image.putpalette([0] * 9 + [9, 8, 7])
    if mode.startswith("I;16"):
        order = ">" if mode == "I;16B" else "<"
        image = Image.frombytes(mode, (3, 2), np.full((2, 3), value, f"{order}u2").tobytes())
    else:
        image.paste(value, (0, 0, 3, 2))
    pixels = rgb_pixels(image)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 3), np.uint8)
    assert np.abs(pixels.astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_what_has_no_range_is_refused(mode):
    image = Image.new("F", (3, 2), 0.5) if mode == "F" else Image.new(mode, (3, 2), 70000 if mode == "I" else 0)
    if mode == "LAB":
        image.convert = lambda *_: (_ for _ in ()).throw(ValueError("conversion from LAB to RGB not supported"))
    with pytest.raises(ValueError, match=rf"mode {mode}\b"):
        rgb_pixels(image)


def test_16_bit_files(tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16, 1).repeat(3, -1)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    (tmp_path / "deep.ppm").write_bytes(b"P5 16 16 65535\n" + levels.astype(">u2").tobytes())  # a PGM: 16 bit, mode I
    (tmp_path / "ten.ppm").write_bytes(b"P5 16 16 1023\n" + (levels // 64).astype(">u2").tobytes())
    for name in ("deep.png", "deep.ppm", "ten.ppm"):
        with ImageReader(str(tmp_path / name)) as image:
            got = image.read([0], (2, 3, 10, 11))[0].numpy()
        assert np.abs(got - expected[2:12, 3:14]).max() <= 1, name
    (tmp_path / "float.ppm").write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes())
    with pytest.raises(VideoError, match=r"floating-point numbers \(mode F\).*save it as 8-bit RGB"):
        ImageReader(str(tmp_path / "float.ppm")).read([0])


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for transparency in (1, b"\xff\x40"):
        image.save(tmp_path / "a.png", transparency=transparency)
        with ImageReader(str(tmp_path / "a.png")) as reader:
            assert reader.read([0])[0, 1, 1].tolist() == [200, 100, 50]


def test_unreadable_images(tmp_path):
    Image.fromarray(smooth(200, 300, 1)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, content in (("empty.jpg", b""), ("text.jpg", b"no image"), ("half.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError) as caught, ImageReader(str(tmp_path / name)) as image:
            image.read([0])
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match="no such file"):
        ImageReader(str(tmp_path / "absent.jpg"))


@pytest.mark.parametrize("error", [TypeError, AttributeError, NameError, ImportError])
@pytest.mark.parametrize("step", ["PIL.Image.open", "PIL.JpegImagePlugin.JpegImageFile.load"])
def test_a_bug_or_another_pillow_is_not_a_bad_image(tmp_path, monkeypatch, step, error):
    def fail(*_, **__):
        raise error("unexpected keyword argument")

    Image.fromarray(smooth(20, 30, 1)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(step, fail)
    with pytest.raises(error), ImageReader(str(tmp_path / "a.jpg")) as image:
        image.read([0])


def test_random_area_views():
    """8 to 100 % of the area, aspect 3/4 to 4/3, inside the image, anywhere."""
    views = [sampling.random_area_view(300, 400, 224, (0.08, 1.0), keyed_rng(k)) for k in range(2000)]
    for top, left, height, width in (view.box for view in views):
        assert 0 <= top <= top + height <= 300
        assert 0 <= left <= left + width <= 400
        assert 0.078 <= height * width / 120_000 <= 1
        assert 0.73 <= width / height <= 1.36
    shares = np.array([v.box[2] * v.box[3] / 120_000 for v in views])
    assert shares.min() < 0.1
    assert shares.max() > 0.8
    thin = sampling.random_area_view(10, 1000, 224, (0.9, 1.0), keyed_rng(0))
    assert thin.box == (0, 495, 10, 10)  # nothing fits in ten tries: the centered square


def test_colors_are_torchvisions():
    image = torch.rand(1, 3, 6, 7) * 100 + 60  # far enough from 0 and 255 that torchvision clamps nothing
    for name, function in (
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ):
        got = augment.ColorJitter(0.4).apply(image, ((name, 1.3),))
        expected = function(image / 255, 1.3) * 255
        torch.testing.assert_close(got, expected, atol=0.1, rtol=1e-3)  # its gray weights have 4 digits
    shifted = augment.Lighting(0.1).apply(image, (0.1, 0.0, -0.1))
    expected = torch.tensor([25.5, 0.0, -25.5])[:, None, None].expand_as(image)
    torch.testing.assert_close(shifted - image, expected, atol=1e-4, rtol=0)


def test_random_colors():
    """Factors within 1 +- jitter, all orders; lighting's covariance is axes diag(std^2) axes^T x 0.01."""
    jitters = [augment.ColorJitter(0.4).draw(keyed_rng(k), (8, 8)) for k in range(3000)]
    assert len({tuple(name for name, _ in jitter) for jitter in jitters}) == 6
    factors = np.array([factor for jitter in jitters for _, factor in jitter])
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    shifts = np.array([augment.Lighting(0.1).draw(keyed_rng(k), (8, 8)) for k in range(3000)])
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = 0.01 * axes @ np.diag(np.square([0.2175, 0.0188, 0.0045])) @ axes.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=3e-5)


def test_an_image_is_a_clip_of_one_frame(tree):
    records = read_image_folder("train", str(tree), 3)
    chosen = (augment.Flip(0.5), augment.ColorJitter(0.4), augment.Lighting(0.1))
    spec = ClipSpec(1, 1, 32, (40, 40), chosen, area=(0.08, 1.0))
    clips = TrainClips(records, str(tree), "image", spec, seed=0, max_unreadable=0)
    first, again, later = clips[0, 3], clips[0, 3], clips[1, 3]
    assert torch.equal(first.frames, again.frames) and (first.views, first.changes) == (again.views, again.changes)
    assert first.changes != later.changes
    assert first.clip_indices.tolist() == [[0]]
    center = dataset.TestClips(
        records, str(tree), "image", spec, views="center", clips=1, clip_starts="spread", short_side=40
    )[0]
    assert center.changes == ()
    (view,) = center.views
    assert (view.height, view.width, view.box[2:]) == (32, 32, (40, 40))  # 32 of 40, of a 50 pixel short side


@pytest.mark.parametrize("change", [[], ["model.norm=bn"], ["model.arch=vgg16", "model.blocks=null", "optim.lr=0.01"]])
def test_the_same_tools_train_and_score_images(tree, tmp_path, change):
    (tmp_path / "tiny.yaml").write_text(TINY_IMAGES.format(out=tmp_path / "run", root=tree))
    folder = run(load_config(tmp_path / "tiny.yaml", change))
    epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [r for r in epochs if r["kind"] == "epoch"][-1]
    result = score_checkpoint(folder / "checkpoints" / "last.pt")
    assert (result.protocol, result.videos_scored, result.videos_listed) == ("1-crop center 32", 9, 9)
    assert result.scores["top1"] == pytest.approx(
        100 - last["val/top1_error"], abs=1e-3
    )  # the monitored error is the center crop's
    if not change:
        assert result.scores["top1"] >= 66  # chance is 33


def test_the_reported_figure_is_the_median_of_the_last_5_epochs(tree, tmp_path, monkeypatch, capsys):
    errors = [0.0, 70.0, 20.0, 60.0, 5.0, 10.0]
    given = iter(errors)
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self: ({"loss": 1.0, "top1_error": next(given), "top5_error": 0.0, "clips": 9}, 0)
    )
    (tmp_path / "tiny.yaml").write_text(TINY_IMAGES.format(out=tmp_path / "run", root=tree))
    folder = run(load_config(tmp_path / "tiny.yaml", ["train.epochs=6"]))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [r["val/top1_error"] for r in log if r["kind"] == "epoch"] == errors
    assert [r["summary/val_top1_error_median"] for r in log if r["kind"] == "summary"] == [20]
    assert "median of the last 5 evaluations: 20.00 %" in capsys.readouterr().err


CONFIGS = sorted(p for p in (ROOT / "configs" / "imagenet").glob("*.yaml") if p.name != "base.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_section_4_1_and_fb_resnet_torch_to_the_letter(path):
    """Batches, rates and epochs are in test_configs.py."""
    config = load_config(path)
    data, optim, test = config.data, config.optim, config.test
    assert (data.area, data.crop, data.flip) == ((0.08, 1.0), 224, 0.5)
    assert (data.color_jitter, data.lighting) == (0.4, 0.1)
    assert (optim.momentum, optim.nesterov, optim.schedule, optim.warmup_epochs) == (0.9, True, "steps", 0)
    assert optim.weight_decay == optim.norm_weight_decay == 1e-4
    assert (test.views, test.short_side, test.clips, config.train.eval_every) == ("center", 256, 1, 1)
    assert config.train.precise_bn_batches == 0  # the running averages, as PyTorch has them
    vgg = config.model.arch == "vgg16"
    assert config.model.dropout == (0.5 if vgg else 0)
    assert config.train.percentiles_of == ("conv.12" if vgg else None)  # Figure 6, conv5_3


@torch.no_grad()
@pytest.mark.parametrize("norm", ["none", "bn", "gn"])
def test_vgg16_is_torchvisions_with_a_norm_after_each_convolution(norm):
    """The same numbers in torchvision's layers, in the order of its VGG-16; its own class is 64 channels wide."""
    torch.manual_seed(0)
    make = {"none": nn.Identity, "bn": nn.BatchNorm2d, "gn": lambda channels: nn.GroupNorm(4, channels)}[norm]
    ours = speak(VGG(7, make, width=8)).eval()
    assert len(ours.conv) == 13 and all((c.bias is None) == (norm != "none") for c in ours.conv)
    pools = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    features = vgg.make_layers(pools, batch_norm=norm != "none")
    for index, layer in enumerate(features):
        if isinstance(layer, nn.BatchNorm2d) and norm == "gn":
            features[index] = nn.GroupNorm(4, layer.num_features)
    theirs = vgg.VGG(features, num_classes=7, init_weights=False).eval()
    theirs.classifier = nn.Sequential(ours.fc[0], nn.ReLU(), ours.fc[1], nn.ReLU(), ours.head)
    convs = [layer for layer in theirs.features if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in theirs.features if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm))]
    for conv, layer in zip(convs, ours.conv, strict=True):
        conv.load_state_dict({"bias": torch.zeros(conv.out_channels)} | layer.state_dict())
    for theirs_norm, layer in zip(norms, ours.norm if norms else [], strict=True):
        theirs_norm.load_state_dict(layer.state_dict())
    images = torch.randn(2, 3, 224, 224)
    expected = theirs(images)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()
    torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-4)


def test_a_group_norm_net_from_a_batch_norm_nets_weights_says_what_it_leaves(tree, tmp_path, capsys):
    """What fits nowhere ends the run at its start unless model.init_drop names it; then it is listed."""
    (tmp_path / "tiny.yaml").write_text(TINY_IMAGES.format(out=tmp_path / "bn", root=tree))
    last = run(load_config(tmp_path / "tiny.yaml", ["model.norm=bn", "train.epochs=1"])) / "checkpoints" / "last.pt"
    options = ["train.epochs=1", f"model.init_from={last}"]
    with pytest.raises(UserError, match="fit nowhere: 34 .stem.norm.running_mean"):  # of 1 + 4 x 4 norms, 2 each
        run(load_config(tmp_path / "tiny.yaml", [*options, f"output_dir={tmp_path / 'refused'}"]))
    capsys.readouterr()
    drop = 'model.init_drop=["*.running_*"]'
    run(load_config(tmp_path / "tiny.yaml", [*options, drop, f"output_dir={tmp_path / 'gn'}"]))
    told = {line.split()[0]: line.split()[1] for line in capsys.readouterr().err.splitlines() if line}
    assert (told["inflated"], told["copied"], told["new"], told["dropped"]) == ("0", "53", "0", "51")


def test_config_rules_of_images(tmp_path, tree):
    (tmp_path / "tiny.yaml").write_text(TINY_IMAGES.format(out=tmp_path / "run", root=tree))
    for change, words in (
        ("data.frames=8", "frames is 8"),
        ("test.views=full", "test.views center"),
    ):
        with pytest.raises(UserError, match=words):
            load_config(tmp_path / "tiny.yaml", [change])


def test_percentiles_of_a_layer_are_logged(tree, tmp_path):
    """Of VGG-16's last convolution; checked against NumPy on the same images through the checkpoint's own net."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "tiny.yaml").write_text(TINY_IMAGES.format(out=tmp_path / "run", root=tree))
    options = ["model.arch=vgg16", "train.epochs=1", "train.percentiles_of=conv.12", "train.clips_per_gpu=4"]
    config = load_config(tmp_path / "tiny.yaml", options)
    folder = run(config)
    last = [r for r in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if r["kind"] == "epoch"][-1]
    model = build_model(config.model, 2)
    model.load_state_dict(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"])
    outputs = []
    model.eval().conv[12].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    clips = val_dataset(config, read_image_folder("val", str(tree), 3))
    items = [clips[k] for k in range(4)]  # the first batch of 4
    batch = torch.cat([augment.render(i.frames, i.views, (0.45,) * 3, (0.225,) * 3)[:, 0] for i in items])
    with torch.no_grad():
        model(batch.permute(0, 3, 1, 2))
    expected = np.percentile(outputs[0].numpy(), [1, 20, 80, 99])
    got = [last[f"percentiles/conv.12/p{p}"] for p in ("01", "20", "80", "99")]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    events = EventAccumulator(str(folder)).Reload()
    shown = [events.Scalars(f"percentiles/conv.12/p{p}")[0].value for p in ("01", "20", "80", "99")]
    np.testing.assert_allclose(shown, got, rtol=1e-6)
    assert plot_percentiles(folder, tmp_path / "figure6.png").stat().st_size > 0
    with pytest.raises(UserError, match="no such layer"):
        run(load_config(tmp_path / "tiny.yaml", [*options, f"output_dir={tmp_path / 'b'}", "train.percentiles_of=con"]))


# --- docs/pretraining.md: from ImageNet to a cell of Table 8 ---


def commands_of(document: str) -> list[list[str]]:
    """[tool, argument, ...] of each command in a document's code blocks, lines joined."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [block for _, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    lines = (line for block in blocks for line in block.splitlines() if "tools/" in line)
    return [shlex.split(line[line.index("tools/") :]) for line in lines]


def test_the_commands_from_imagenet_to_table_8_fit_together():
    runs, tools = [], []
    for name, *arguments in commands_of("pretraining.md"):
        tools.append(name)
        if name == "tools/train.py":
            config = load_config(ROOT / arguments[0], arguments[1:])
            source = config.model.init_from
            assert source is None or source in [f"{done}/checkpoints/last.pt" for done in runs]
            runs += [config.output_dir, "runs/demo"]  # the demo's, by make demo
        elif name == "tools/study.py":
            for planned in plan_runs(load_study(ROOT / arguments[0]), ROOT / arguments[0], arguments[1:], "out"):
                assert planned.config.model.init_from.replace("_bn_", "_gn_").startswith(runs[0])
        else:
            assert arguments[0].removesuffix("/checkpoints/last.pt") in runs
    assert set(tools) == {f"tools/{name}.py" for name in ("train", "test", "study", "plot_curves")}


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_the_images_net_fits_into_the_clips_net(norm):
    """At full size, with the overrides of docs/pretraining.md: all is inflated or copied but the head."""
    of_images = load_config(ROOT / f"configs/imagenet/resnet50_{norm}.yaml", ["model.stem=dense"])
    of_clips = load_config(ROOT / f"configs/kinetics400/i3d_r50_{norm}_32x2_8clips.yaml")
    with torch.device("meta"):
        report = initialize(build_model(of_clips.model, 3), build_model(of_images.model, 2).state_dict())
    assert (report.new, report.dropped, len(report.inflated)) == (["head.fc.weight", "head.fc.bias"], [], 53)


def test_the_demos_net_fits_into_that_of_own_videos():
    configs = ROOT / "configs"
    source = build_model(load_config(configs / "demo" / "demo.yaml").model)
    target = build_model(load_config(configs / "custom" / "small_gn.yaml", ["model.num_classes=6"]).model)
    report = initialize(target, source.state_dict())
    assert (report.new, report.dropped) == (["head.fc.weight", "head.fc.bias"], [])
