"""Clip starts and frame indices against values worked out by hand and the rules of the baseline."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_gn.data.sampling import clip_indices, keyed_rng, random_start, uniform_starts

RULE = settings(max_examples=50, deadline=None)
WORDS = st.integers(0, 2**32 - 1)  # the seeds that a config allows


@pytest.mark.parametrize(
    ("start", "frames", "stride", "num_frames", "expected"),
    [
        (0, 4, 1, 10, [0, 1, 2, 3]),
        (3, 4, 2, 20, [3, 5, 7, 9]),
        (7, 4, 2, 10, [7, 9, 1, 3]),  # wraps
        (0, 8, 2, 5, [0, 2, 4, 1, 3, 0, 2, 4]),  # short: repeated from its start, more than once
        (0, 4, 3, 12, [0, 3, 6, 9]),  # N == T s
        (5, 4, 0, 10, [5, 5, 5, 5]),  # one frame repeated
        (6, 1, 9, 7, [6]),
        (0, 3, 2, 1, [0, 0, 0]),  # a still
    ],
)
def test_clip_indices(start: int, frames: int, stride: int, num_frames: int, expected: list[int]) -> None:
    assert clip_indices(start, frames, stride, num_frames) == expected


@pytest.mark.parametrize(
    ("num_frames", "frames", "stride", "clips", "expected"),
    [
        (300, 32, 2, 10, [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]),  # k 236 / 9
        (300, 64, 1, 10, [0, 26, 52, 79, 105, 131, 157, 184, 210, 236]),  # the 64-frame clip spans as much
        (250, 8, 8, 3, [0, 93, 186]),
        (100, 8, 8, 2, [0, 36]),
        (64, 32, 2, 10, [0] * 10),  # N == T s: one valid start
        (65, 32, 2, 2, [0, 1]),
        (63, 32, 2, 10, [0, 6, 12, 18, 25, 31, 37, 44, 50, 56]),  # short: floor(6.3 k)
        (10, 32, 2, 3, [0, 3, 6]),
        (2, 32, 2, 5, [0, 0, 0, 1, 1]),
        (10, 8, 0, 4, [0, 3, 6, 9]),  # stride 0: every frame is a valid start
        (300, 32, 2, 1, [118]),  # one clip: the middle
        (301, 32, 2, 1, [118]),
        (64, 32, 2, 1, [0]),
        (10, 32, 2, 1, [0]),
        (1, 1, 1, 1, [0]),
    ],
)
def test_spread_starts(num_frames: int, frames: int, stride: int, clips: int, expected: list[int]) -> None:
    assert uniform_starts(num_frames, frames, stride, clips) == expected
    assert uniform_starts(num_frames, frames, stride, clips, "spread") == expected


@pytest.mark.parametrize(
    ("num_frames", "clips", "expected"),
    [
        (300, 10, [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]),
        (64, 10, [0, 6, 12, 19, 25, 32, 38, 44, 51, 57]),
        (7, 3, [0, 2, 4]),
        (3, 5, [0, 0, 1, 1, 2]),
        (300, 1, [0]),
    ],
)
@pytest.mark.parametrize(("frames", "stride"), [(32, 2), (8, 8), (8, 0)])
def test_baseline_starts(num_frames: int, clips: int, frames: int, stride: int, expected: list[int]) -> None:
    assert uniform_starts(num_frames, frames, stride, clips, "baseline") == expected


def test_the_baselines_last_clips_wrap() -> None:
    """Of 300 frames, clips 8 and 9 (starts 240 and 270) of 32 x 2 pass the end; a spread clip never does."""
    wraps = {
        mode: [max(indices := clip_indices(s, 32, 2, 300)) != indices[-1] for s in uniform_starts(300, 32, 2, 10, mode)]
        for mode in ("spread", "baseline")
    }
    assert wraps == {"spread": [False] * 10, "baseline": [False] * 8 + [True, True]}


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 9), st.integers(1, 12))
@RULE
def test_starts_follow_the_rule(num_frames: int, frames: int, stride: int, clips: int) -> None:
    """Spread starts are within half a frame of k (N - T s) / (K - 1), ends exact; short videos have floor k N / K."""
    starts = uniform_starts(num_frames, frames, stride, clips)
    valid = num_frames - frames * stride if stride else num_frames - 1
    if valid < 0:
        assert starts == [int(Fraction(k * num_frames, clips)) for k in range(clips)]
    elif clips == 1:
        assert abs(starts[0] - Fraction(valid, 2)) < 1
    else:
        assert (starts[0], starts[-1]) == (0, valid)
        assert all(abs(start - Fraction(k * valid, clips - 1)) <= Fraction(1, 2) for k, start in enumerate(starts))
    assert len(starts) == clips
    assert starts == sorted(starts)
    for start in starts:
        indices = clip_indices(start, frames, stride, num_frames)
        assert len(indices) == frames
        assert set(indices) <= set(range(num_frames))
        if valid >= 0:
            assert indices == [start + i * stride for i in range(frames)]  # no wrap


@pytest.mark.parametrize(
    ("num_frames", "frames", "stride", "last"),
    [
        (20, 4, 3, 8),
        (13, 4, 3, 1),
        (12, 4, 3, 0),
        (11, 4, 3, 0),
        (1, 4, 3, 0),
        (6, 4, 0, 5),
        (1, 4, 0, 0),
        (5, 1, 1, 4),
    ],
)
def test_random_starts_are_uniform_over_the_valid_ones(num_frames: int, frames: int, stride: int, last: int) -> None:
    """Every start of 0 ... N - T s is drawn, none beyond, each about equally often (5 standard deviations)."""
    rng = np.random.default_rng(0)
    draws = 300 * (last + 1)
    counts = Counter(random_start(num_frames, frames, stride, rng) for _ in range(draws))
    assert sorted(counts) == list(range(last + 1))
    assert all(abs(count - 300) < 5 * 300**0.5 for count in counts.values())
    assert all(type(start) is int for start in counts)


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 9), WORDS)
@RULE
def test_a_random_start_is_valid(num_frames: int, frames: int, stride: int, seed: int) -> None:
    start = random_start(num_frames, frames, stride, np.random.default_rng(seed))
    if num_frames <= frames * stride:
        assert start == 0
    else:
        assert start >= 0
        assert start + (frames - 1) * stride < num_frames
        assert start + frames * stride <= num_frames


@given(st.lists(WORDS, min_size=1, max_size=5))
@RULE
def test_a_key_gives_its_numbers_whatever_was_drawn_before(key: list[int]) -> None:
    first = keyed_rng(*key).random(4).tolist()
    np.random.seed(0)  # the global state has no say
    keyed_rng(7, 7, 7).random(100)
    assert keyed_rng(*key).random(4).tolist() == first


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(WORDS, min_size=n, max_size=n)] * 2)))
@RULE
def test_keys_of_one_length_differ_in_their_numbers(keys: tuple[list[int], list[int]]) -> None:
    one, other = keys
    same = keyed_rng(*one).integers(2**62) == keyed_rng(*other).integers(2**62)
    assert same == (one == other)


def test_neighbouring_keys_differ() -> None:
    """Any change of seed, epoch or video index gives other numbers, their order counts, and all are uniform."""
    keys = [(seed, epoch, index) for seed in range(5) for epoch in range(20) for index in range(20)]
    draws = np.array([keyed_rng(*key).random() for key in keys])
    assert len(set(draws.tolist())) == len(keys)
    # a mean of 2,000 uniform numbers has a standard deviation of 0.2887 / sqrt(2000) = 0.0065
    assert abs(draws.mean() - 0.5) < 0.03
    neighbours = draws.reshape(5, 20, 20)
    for axis in range(3):
        pairs = np.moveaxis(neighbours, axis, 0)
        assert abs(np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]) < 0.12  # 5 sd of no correlation


@pytest.mark.parametrize("key", [(5,), (5, 1), (5, 1, 2)])
def test_a_zero_more_is_another_key(key: tuple[int, ...]) -> None:
    assert keyed_rng(*key).integers(2**62) != keyed_rng(*key, 0).integers(2**62)


def test_the_numbers_of_a_key_never_change() -> None:
    """Golden: a run may be resumed after an update. numpy's PCG64 and SeedSequence are stable by its policy."""
    assert keyed_rng(0, 0, 0, 0).bit_generator.random_raw() == np.random.PCG64([4, 0, 0, 0, 0]).random_raw()
    assert keyed_rng(3, 0, 2, 5).bit_generator.random_raw() == np.random.PCG64([4, 3, 0, 2, 5]).random_raw()
