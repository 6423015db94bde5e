"""Every config in configs/ is whole, and its network has the expected size."""

from __future__ import annotations

from pathlib import Path

import pytest

from video_gn.config import load_config
from video_gn.engine.optim import plan_batches
from video_gn.models.info import describe

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.name != "base.yaml" and p.parent.name != "studies")

# Parameters and GMACs. Those of the 3D ResNet-50 are known from elsewhere (28.04 M; 32.8 and 65.7 GMAC).
GOLDEN = {
    "kinetics400/i3d_r50_bn_32x2_8clips": (28_043_472, 32.83),
    "kinetics400/i3d_r50_gn_32x2_8clips": (28_043_472, 32.83),
    "kinetics400/i3d_r50_bn_32x2_4clips": (28_043_472, 32.83),
    "kinetics400/i3d_r50_gn_32x2_4clips": (28_043_472, 32.83),
    "kinetics400/i3d_r50_bn_64x1_4clips": (28_043_472, 65.66),
    "kinetics400/i3d_r50_gn_64x1_4clips": (28_043_472, 65.66),
    **{f"imagenet/resnet50_{norm}": (25_557_032, 4.09) for norm in ("bn", "gn", "ln", "in", "brn")},
    **{f"imagenet/resnet101_{norm}": (44_549_160, 7.8) for norm in ("bn", "gn")},
    "imagenet/vgg16_none": (138_357_544, 15.47),
    # Without the 4,224 biases of the convolutions, with gamma and beta for each of their channels.
    **{f"imagenet/vgg16_{norm}": (138_357_544 + 4_224, 15.47) for norm in ("bn", "gn")},
    "demo/demo": (541_914, 0.09),
    "custom/small_gn": (741_984, 0.26),
    "custom/motion_multilabel": (541_914, 0.09),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def test_the_table_lists_every_config():
    assert {name(path) for path in CONFIGS} == set(GOLDEN)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_size(path):
    config = load_config(path)
    info = describe(config)
    assert (info["parameters"], round(info["gmacs"], 2)) == GOLDEN[name(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_opens_with_command_hardware_and_result(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "tools/train.py" in text or "make demo" in text
    assert "Hardware:" in text
    assert "Expected:" in text or "Measured:" in text


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "kinetics400"], ids=name)
def test_the_papers_batches_and_rates(path):
    """8 GPUs; rate 0.01 for 64 clips a step, scaled linearly; 8 ranks never accumulate, one rank takes 8 passes."""
    config = load_config(path)
    clips = int(path.stem.rsplit("_", 1)[1].removesuffix("clips"))
    frames, stride = map(int, path.stem.split("_")[3].split("x"))
    assert (config.data.frames, config.data.stride, config.train.clips_per_gpu) == (frames, stride, clips)
    for ranks, passes in ((8, 1), (1, 8)):
        plan = plan_batches(config, 234_643, ranks)
        assert (plan.global_batch, plan.accumulation_steps, plan.lr) == (
            8 * clips,
            passes,
            pytest.approx(0.01 * clips / 8),
        )
    assert config.model.norm == path.stem.split("_")[2]
    assert config.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "imagenet"], ids=name)
def test_the_imagenet_recipe(path):
    """Section 4.1: 0.1 N / 32 for N images on each of 8 GPUs; 100 epochs, / 10 at 30, 60, 90."""
    config = load_config(path)
    assert (config.train.epochs, config.optim.milestones, config.optim.decay) == (100, (30, 60, 90), 0.1)
    assert config.optim.norm_weight_decay == config.optim.weight_decay == 1e-4
    for images in (32, 16, 2):
        plan = plan_batches(load_config(path, [f"train.clips_per_gpu={images}"]), 1_281_167, 8)
        assert (plan.accumulation_steps, plan.lr) == (1, pytest.approx(0.1 * images / 32))
    assert path.stem == f"{config.model.arch}_{config.model.norm}"
