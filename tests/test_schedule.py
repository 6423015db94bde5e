"""The learning rate's schedule against literal values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.config import OptimConfig
from video_gn.engine.schedule import lr_factor

epochs_of_a_run = st.floats(0, 109, exclude_max=True)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1), (40.99, 1), (41, 0.1), (81.99, 0.1), (82, 0.01), (108.9, 0.01)],
)
def test_the_papers_steps(epoch: float, factor: float) -> None:
    assert lr_factor(OptimConfig(), epoch, 109) == pytest.approx(factor)


def test_other_steps() -> None:
    optim = OptimConfig(milestones=(0.5, 2, 2.25), decay=0.5)
    assert [lr_factor(optim, epoch, 3) for epoch in (0.49, 0.5, 2, 2.3)] == [1, 0.5, 0.25, 0.125]
    assert lr_factor(OptimConfig(milestones=()), 108, 109) == 1


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1), (5, (2 + math.sqrt(3)) / 4), (10, 0.75), (15, 0.5), (20, 0.25), (30, 0)],  # cos of 30, 60, 90, 120 degrees
)
def test_cosine(epoch: float, factor: float) -> None:
    assert lr_factor(OptimConfig(schedule="cosine"), epoch, 30) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 0.1), (1, 0.325), (2, 0.55), (3, 0.775), (4, 1), (41, 0.1)])
def test_warm_up(epoch: float, factor: float) -> None:
    assert lr_factor(OptimConfig(warmup_epochs=4), epoch, 109) == pytest.approx(factor)


def test_warm_up_multiplies_the_schedule() -> None:
    cosine = OptimConfig(schedule="cosine", warmup_epochs=8, warmup_start=0.5)
    assert lr_factor(cosine, 0, 12) == pytest.approx(0.5)
    assert lr_factor(cosine, 4, 12) == pytest.approx(0.75 * 0.75)
    assert lr_factor(cosine, 8, 12) == pytest.approx(0.25)
    steps = OptimConfig(milestones=(5,), warmup_epochs=10, warmup_start=0)
    assert lr_factor(steps, 4, 20) == pytest.approx(0.4)
    assert lr_factor(steps, 5, 20) == pytest.approx(0.05)


@settings(max_examples=50, deadline=None)
@given(schedule=st.sampled_from(["steps", "cosine"]), warmup=st.floats(0.01, 40), start=st.floats(0, 1))
def test_warm_up_ends_without_a_jump(schedule: str, warmup: float, start: float) -> None:
    optim = OptimConfig(schedule=schedule, warmup_epochs=warmup, warmup_start=start)
    before, after = (lr_factor(optim, warmup * (1 + side), 109) for side in (-1e-9, 1e-9))
    assert before == pytest.approx(after, rel=1e-6)
    assert after == pytest.approx(lr_factor(optim.model_copy(update={"warmup_epochs": 0.0}), warmup, 109), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(schedule=st.sampled_from(["steps", "cosine"]), early=epochs_of_a_run, late=epochs_of_a_run)
def test_the_rate_only_falls_and_stays_within_0_and_1(schedule: str, early: float, late: float) -> None:
    early, late = sorted((early, late))
    optim = OptimConfig(schedule=schedule)
    assert 1 >= lr_factor(optim, early, 109) >= lr_factor(optim, late, 109) >= 0
