"""Exported files: the logits of the net by runtimes that know nothing of this package, at untraced sizes too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import files_up_to, read_only
from tests.tiny_runs import tool
from tests.untrained import write_untrained
from video_gn import export, inference
from video_gn.data.motion import CLASSES
from video_gn.errors import UserError
from video_gn.export import export_checkpoint
from video_gn.run import checkpoint as ckpt

FRAMES, CROP, SIDE = 16, 32, 48


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint of an untrained net whose scores differ, and its videos, which need no resize."""
    folder = tmp_path_factory.mktemp("exported")
    overrides = [f"data.frames={FRAMES}", f"test.short_side={SIDE}", "data.class_names=classes.txt"]
    return write_untrained(folder, overrides, train_videos=10, val_videos=1, size=SIDE)


@pytest.fixture(scope="module")
def onnx_file(trained) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export_checkpoint(trained, trained.with_name("net.onnx")).path


@torch.no_grad()
def logits(trained: Path, clips: torch.Tensor) -> np.ndarray:
    classifier = inference.load(trained, "cpu")
    return classifier.model(clips).numpy()


@pytest.mark.parametrize(("count", "frames"), [(1, 16), (4, 27), (2, 40)])
def test_onnx_gives_the_logits_at_any_batch_and_length(trained, onnx_file, count, frames):
    import onnxruntime

    clips = torch.randn(count, 3, frames, CROP, CROP)
    session = onnxruntime.InferenceSession(onnx_file)
    assert session.get_inputs()[0].shape == ["batch", 3, "frames", CROP, CROP]
    theirs = session.run(["logits"], {"input": clips.numpy()})[0]
    np.testing.assert_allclose(theirs, logits(trained, clips), atol=1e-4, rtol=1e-5)


def test_onnx_has_standard_operators_alone_and_says_how_to_be_fed(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    facts = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert facts["class_names"] == list(CLASSES)
    assert (facts["mean"], facts["std"]) == ([0.45] * 3, [0.225] * 3)
    assert [facts[key] for key in ("crop", "short_side", "frames", "stride", "clips")] == [CROP, SIDE, FRAMES, 2, 10]
    assert (facts["protocol"], facts["step"]) == (f"10-clip center {CROP}", 3)


def test_the_example_of_the_docs_scores_a_video_as_we_do(trained, onnx_file, root):
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "export.md").read_text(), flags=re.DOTALL)
    example = next(block for block in blocks if "onnxruntime" in block)
    assert "video_gn" not in example and len([line for line in example.splitlines() if line]) <= 20
    video = trained.parent / "videos" / (trained.parent / "videos" / "val.csv").read_text().split()[0]
    done = subprocess.run(
        [sys.executable, "-c", example, onnx_file, video],
        cwd=trained.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    ours = inference.load(trained, "cpu").predict(video)
    assert [name for name, _ in lines] == [prediction.name for prediction in ours]
    np.testing.assert_allclose(
        [float(score) for _, score in lines], [prediction.score for prediction in ours], atol=1e-4
    )


def test_torch_export_by_the_tool_and_the_example(trained, root, tmp_path, monkeypatch):
    done = tool("tools/export.py", str(trained), str(tmp_path / "demo.pt2"))
    assert done.returncode == 0, done.stderr
    assert "batch x 3 x frames x 32 x 32" in done.stdout
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "export.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(next(block for block in blocks if "torch.export.load" in block), names)
    assert names["logits"].shape == (2, 10) and names["meta"]["class_names"] == list(CLASSES)
    for count, frames in ((1, 16), (4, 27)):
        clips = torch.randn(count, 3, frames, CROP, CROP)
        np.testing.assert_allclose(names["net"](clips).detach(), logits(trained, clips), atol=1e-4)


def test_a_fixed_length(trained, tmp_path):
    done = export_checkpoint(trained, tmp_path / "net.pt2", frames=8)
    assert done.shape == ("batch", 3, 8, CROP, CROP)
    clips = torch.randn(3, 3, 8, CROP, CROP)
    net = torch.export.load(tmp_path / "net.pt2").module()
    np.testing.assert_allclose(net(clips).detach(), logits(trained, clips), atol=1e-4)


def test_a_sparse_stem_is_free_from_4_frames_on(trained, tmp_path):
    state = ckpt.load(trained)
    state["config"]["model"]["stem"] = "sparse"  # has the same weights
    ckpt.save(tmp_path / "sparse.pt", state)
    export_checkpoint(tmp_path / "sparse.pt", tmp_path / "net.pt2")
    net = torch.export.load(tmp_path / "net.pt2").module()
    for frames in (4, 7, 16):
        clips = torch.randn(1, 3, frames, CROP, CROP)
        np.testing.assert_allclose(net(clips).detach(), logits(tmp_path / "sparse.pt", clips), atol=1e-4)


def test_a_file_whose_logits_differ_is_not_kept(trained, tmp_path, monkeypatch):
    save = torch.export.save

    def save_another(program, path, **options):
        program.state_dict["head.fc.bias"] = nn.Parameter(program.state_dict["head.fc.bias"] + 0.1)
        save(program, path, **options)

    (tmp_path / "net.pt2").write_text("an older file")
    monkeypatch.setattr(torch.export, "save", save_another)
    with pytest.raises(UserError, match="differ from PyTorch's by .*nothing is kept"):
        export_checkpoint(trained, tmp_path / "net.pt2", frames=8)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_text() == "an older file"


def test_mistakes(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"end it in \.onnx \(ONNX\) or \.pt2"):
        export_checkpoint(trained, tmp_path / "net.pth")
    with pytest.raises(UserError, match="no folder .*absent"):
        export_checkpoint(trained, tmp_path / "absent" / "net.pt2")
    with pytest.raises(UserError, match="--frames 7 is too short for this network: at least 8"):
        export_checkpoint(trained, tmp_path / "net.pt2", frames=7)
    monkeypatch.setattr(export, "NEEDED", ("onnx_that_nobody_has",))
    with pytest.raises(UserError, match="onnx_that_nobody_has missing.*pip install onnx_that_nobody_has"):
        export_checkpoint(trained, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said_before_the_work(trained, tmp_path, monkeypatch):
    """Its clean-up, too, which a read-only disk refuses."""
    monkeypatch.setattr(export, "_program", None)
    with read_only(tmp_path), pytest.raises(UserError, match=r": cannot be written \(.*\); choose another place"):
        export_checkpoint(trained, tmp_path / "net.pt2")
    with files_up_to(4096), pytest.raises(UserError, match=r"\(File too large\); free space or choose another place"):
        export_checkpoint(trained, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_is_one_line(trained, tmp_path):
    size = sum(tensor.numel() * 4 for tensor in ckpt.load(trained)["model"].values())
    with (
        files_up_to(size + 1000),
        pytest.raises(UserError, match=r"net.pt2: cannot be written \(File too large\); free"),
    ):
        export_checkpoint(trained, tmp_path / "net.pt2", frames=8)
    assert not list(tmp_path.iterdir())
