"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

# Before torch is imported anywhere: the suite runs two processes on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# cuDNN's float32 is TF32 by default, whose rounding turns a difference of 1e-7 into one of 1e-3.
torch.backends.cudnn.allow_tf32 = False
if not torch.cuda.is_available():  # before the kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

REQUIRE_CUDA = "VIDEO_GN_REQUIRE_CUDA"
"""Environment variable: 1 on a machine whose GPU must be tested."""
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real videos beside the checkout (VIDEO_GN_TEST_DATA); tests that need it skip without it."""
    folder = Path(os.environ.get("VIDEO_GN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}; set VIDEO_GN_TEST_DATA to a folder of them")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let a test marked `cuda` skip without a GPU, or fail where one is required."""
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get(REQUIRE_CUDA) == "1":
        pytest.fail(f"torch sees no GPU, and {REQUIRE_CUDA}=1", pytrace=False)
    pytest.skip(f"needs a GPU; {REQUIRE_CUDA}=1 makes this a failure")


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    """Leave the global random number generators as they were: no test depends on those that ran before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures, in the order in which the test writes them to files."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 22 and 11 tiny videos of the embedded motions."""
    from video_gn.data.motion import write_dataset  # here: kernels are imported after the setting above

    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder, train_videos=22, val_videos=11, num_frames=20, size=32, workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of 3 classes told apart by color."""
    from tests.helpers import smooth

    root = tmp_path_factory.mktemp("tree")
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "wasp and hornet")):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = smooth(50, 60, 100 * label + k).copy()
                pixels[..., label] = 250
                Image.fromarray(pixels).save(root / split / name / f"{k}.jpg", quality=95)
    return root
