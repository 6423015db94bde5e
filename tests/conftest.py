"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: the suite runs two processes on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():  # before the kernels are imported: Triton's interpreter runs them on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
