"""Views, their boxes by hand, and their pixels against torchvision's."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from video_gn.config import parse_config
from video_gn.data import dataset
from video_gn.data.augment import (
    Change,
    ColorJitter,
    Flip,
    Lighting,
    RandomErasing,
    augmentations,
    gather_clips,
    render,
)
from video_gn.data.dataset import TrainClips, read_clips
from video_gn.data.decode import VideoReader
from video_gn.data.lists import Record
from video_gn.data.rand_augment import OPERATIONS, RandAugment
from video_gn.data.sampling import (
    Box,
    ClipSpec,
    View,
    area_reduction,
    cut,
    eval_views,
    keyed_rng,
    random_area_view,
    random_view,
    reduction,
    scaled,
)

RULE = settings(max_examples=50, deadline=None)
SIZES = st.one_of(st.integers(1, 700), st.integers(1, 8), st.integers(1, 8000))
SEEDS = st.integers(0, 2**32 - 1)
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.225, 0.25)  # unequal: channels must not be exchanged


def pixels(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Frames of noise, uint8 (count, height, width, 3)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def inside(box: Box, height: int, width: int) -> bool:
    top, left, box_height, box_width = box
    return (
        0 <= top < top + box_height <= height
        and 0 <= left < left + box_width <= width
        and all(type(value) is int for value in box)
    )


def boxes(views: list[View]) -> list[Box]:
    return [view.box for view in views]


@given(SIZES, SIZES, st.integers(1, 256), st.integers(0, 60), st.integers(0, 64), SEEDS)
@RULE
def test_a_random_view_lies_inside(height: int, width: int, crop: int, more: int, span: int, seed: int) -> None:
    low = crop + more
    view = random_view(height, width, crop, (low, low + span), np.random.default_rng(seed))
    assert inside(view.box, height, width)
    assert (view.height, view.width) == (crop, crop)
    # a square of the source, whose side is the crop's part of a short side of low ... low + span
    short = min(height, width)
    assert view.box[2] == view.box[3]
    assert view.box[2] <= max(crop * short / low + 0.5001, 1)
    assert view.box[2] >= crop * short / (low + span) - 0.5001


@given(SIZES, SIZES, st.sampled_from(["center", "three", "full"]), st.integers(1, 256), st.integers(0, 60))
@RULE
def test_test_views_lie_inside(height: int, width: int, kind: str, crop: int, more: int) -> None:
    views = eval_views(kind, height, width, crop, crop + more)
    assert len(views) == (3 if kind == "three" else 1)
    assert all(inside(view.box, height, width) for view in views)
    assert len({(view.height, view.width) for view in views}) == 1  # stackable


def test_the_scale_is_a_uniform_integer_ends_included() -> None:
    """In a huge source, the side crop * short / s of the box tells the scale s to the last digit."""
    rng = np.random.default_rng(0)
    short = 100_000
    views = [random_view(short, short, 224, (256, 320), rng) for _ in range(65 * 100)]
    counts = Counter(224 * short / view.box[2] for view in views)
    scales = Counter(round(value) for value in counts.elements())
    assert all(abs(value - round(value)) < 0.01 for value in counts)
    assert sorted(scales) == list(range(256, 321))
    assert all(abs(count - 100) < 5 * 10 for count in scales.values())


@pytest.mark.parametrize(("height", "width", "last"), [(256, 340, (32, 116)), (340, 256, (116, 32))])
def test_corners_are_uniform_ends_included(height: int, width: int, last: tuple[int, int]) -> None:
    """At the source's own scale: top in 0 ... 256 - 224 and left in 0 ... 340 - 224, or the other way round."""
    rng = np.random.default_rng(0)
    views = [random_view(height, width, 224, (256, 256), rng) for _ in range(6000)]
    assert {view.box[2:] for view in views} == {(224, 224)}
    for axis in (0, 1):
        counts = Counter(view.box[axis] for view in views)
        assert sorted(counts) == list(range(last[axis] + 1))
        expected = 6000 / (last[axis] + 1)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    tops, lefts = zip(*(view.box[:2] for view in views), strict=True)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.07  # drawn apart from each other


def test_the_scaled_window_reaches_every_edge_of_the_source() -> None:
    """A source of half the size: the box is 112 pixels, and its last corners are those of the last windows."""
    rng = np.random.default_rng(0)
    views = [random_view(128, 170, 224, (256, 256), rng) for _ in range(3000)]
    assert {view.box[2:] for view in views} == {(112, 112)}
    assert {view.box[0] for view in views} == set(range(17))
    assert {view.box[1] for view in views} == set(range(59))


@pytest.mark.parametrize(("height", "width", "axis"), [(45, 61, 1), (61, 45, 0)])
def test_rounding_never_leaves_the_source(height: int, width: int, axis: int) -> None:
    """61 at short side 38 of 45 is 52; the last of 32 at 20 is 23.68 + 37.89, in whole pixels 24 + 38 = 62."""
    rng = np.random.default_rng(0)
    views = [random_view(height, width, 32, (38, 38), rng) for _ in range(300)]
    assert all(inside(view.box, height, width) for view in views)
    assert {view.box[2:] for view in views} == {(38, 38)}
    assert max(view.box[axis] for view in views) == 61 - 38


def test_the_whole_short_side_may_be_the_crop() -> None:
    view = random_view(256, 340, 256, (256, 256), np.random.default_rng(0))
    assert (view.box[0], view.box[2], view.box[3]) == (0, 256, 256)


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (1.0, 1000, 1000), (0.5, 420, 580), (0.1, 50, 150)])
def test_flips_by_chance(flip: float, low: int, high: int) -> None:
    rng = np.random.default_rng(0)
    flips = [Flip(flip).draw(rng, (16, 16)) for _ in range(1000)]
    assert all(type(value) is bool for value in flips)
    assert low <= sum(flips) <= high


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (256, 340, (16, 58, 224, 224)),
        (340, 256, (58, 16, 224, 224)),
        # 129 -> 256 scales by 1.98450: 339 x 256, corners (57, 16) -> 28.72, 8.06, side 224 -> 112.9
        (129, 171, (8, 29, 113, 113)),
        (171, 129, (29, 8, 113, 113)),
        (512, 512, (32, 32, 448, 448)),
        (256, 256, (16, 16, 224, 224)),
    ],
)
def test_center_view(height: int, width: int, box: Box) -> None:
    assert eval_views("center", height, width, 224, 256) == [View(box, 224, 224)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        # 340 - 256 = 84: offsets 0, 42, 84 along the longer side
        (256, 340, [(0, 0, 256, 256), (0, 42, 256, 256), (0, 84, 256, 256)]),
        (340, 256, [(0, 0, 256, 256), (42, 0, 256, 256), (84, 0, 256, 256)]),
        # 85: offsets 0, 42, 84, one pixel short of the end
        (256, 341, [(0, 0, 256, 256), (0, 42, 256, 256), (0, 84, 256, 256)]),
        # 339 at short side 256: offsets 0, 41, 82 of the scaled frame are 0, 20.66, 41.32 of the source
        (129, 171, [(0, 0, 129, 129), (0, 21, 129, 129), (0, 41, 129, 129)]),
        (171, 129, [(0, 0, 129, 129), (21, 0, 129, 129), (41, 0, 129, 129)]),
        # 276 at short side 256: offsets 0, 10, 20 are 0, 11.76, 23.52; 24 + 301 would pass the end
        (324, 301, [(0, 0, 301, 301), (12, 0, 301, 301), (23, 0, 301, 301)]),
        (301, 324, [(0, 0, 301, 301), (0, 12, 301, 301), (0, 23, 301, 301)]),
        (300, 300, [(0, 0, 300, 300)] * 3),
        (512, 1024, [(0, 0, 512, 512), (0, 256, 512, 512), (0, 512, 512, 512)]),
    ],
)
def test_three_views(height: int, width: int, expected: list[Box]) -> None:
    assert eval_views("three", height, width, 224, 256) == [View(box, 256, 256) for box in expected]


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [
        (256, 340, (256, 340)),
        (340, 256, (340, 256)),
        (129, 171, (256, 339)),  # 171 * 256 / 129 = 339.35
        (171, 129, (339, 256)),
        (1080, 1920, (256, 455)),  # 455.11
        (3, 3, (256, 256)),
    ],
)
def test_full_view(height: int, width: int, scaled: tuple[int, int]) -> None:
    assert eval_views("full", height, width, 224, 256) == [View((0, 0, height, width), *scaled)]


@given(st.data(), st.integers(1, 30), st.integers(1, 30), st.integers(1, 4))
@RULE
def test_cut_views_address_the_same_pixels(data: st.DataObject, height: int, width: int, count: int) -> None:
    def draw_box() -> Box:
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        return top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))

    views = [View(draw_box(), 5, 6) for _ in range(count)]
    (top, left, box_height, box_width), moved = cut(views)
    frame = np.arange(height * width).reshape(height, width)
    enclosed = frame[top : top + box_height, left : left + box_width]
    touched = np.zeros_like(frame, dtype=bool)
    for view, relative in zip(views, moved, strict=True):
        (t, u, h, w), (rt, ru, rh, rw) = view.box, relative.box
        assert inside(relative.box, box_height, box_width)
        np.testing.assert_array_equal(enclosed[rt : rt + rh, ru : ru + rw], frame[t : t + h, u : u + w])
        assert (relative.height, relative.width) == (view.height, view.width)
        touched[t : t + h, u : u + w] = True
    rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    assert (top, top + box_height - 1) == (rows[0], rows[-1])  # and not more than they enclose
    assert (left, left + box_width - 1) == (columns[0], columns[-1])


def reference(frames: Tensor, view: View, flip: bool = False) -> Tensor:
    """The view by torchvision, float32 (U, height, width, 3)."""
    images = frames.permute(0, 3, 1, 2).float() / 255
    images = tv.resized_crop(images, *view.box, [view.height, view.width], antialias=True)
    if flip:
        images = tv.hflip(images)
    return tv.normalize(images, list(MEAN), list(STD)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 40, 52), (17, 23)),  # down: antialiased
        ((3, 7, 20, 31), (41, 60)),  # up
        ((5, 1, 30, 12), (10, 24)),  # both
        ((9, 9, 16, 16), (16, 16)),  # as it is
        ((9, 9, 16, 16), (16, 20)),  # one side as it is
        ((39, 51, 1, 1), (4, 4)),
    ],
)
def test_render_is_torchvisions_crop_resize_flip_and_normalize(box: Box, size: tuple[int, int], flip: bool) -> None:
    frames = pixels(3, 40, 52)
    view = View(box, *size)
    rendered = render(frames, [view], MEAN, STD, ((Flip(0.5), flip),))
    assert rendered.shape == (1, 3, *size, 3)
    assert rendered.dtype == torch.float32
    torch.testing.assert_close(rendered[0], reference(frames, view, flip), rtol=0, atol=2e-5)


def test_render_stacks_views_in_their_order() -> None:
    frames = pixels(2, 40, 52)
    views = [View((0, 0, 30, 30), 12, 12), View((4, 20, 30, 30), 12, 12), View((10, 0, 8, 8), 12, 12)]
    rendered = render(frames, views, MEAN, STD)
    torch.testing.assert_close(rendered, torch.stack([reference(frames, v) for v in views]), rtol=0, atol=2e-5)


def test_a_view_at_its_own_size_is_the_exact_pixels() -> None:
    frames = pixels(2, 9, 11)
    rendered = render(frames, [View((2, 3, 5, 6), 5, 6)], (0, 0, 0), (1 / 255,) * 3)
    assert torch.equal(rendered[0].round().to(torch.uint8), frames[:, 2:7, 3:9])
    torch.testing.assert_close(rendered[0], frames[:, 2:7, 3:9].float(), rtol=1e-6, atol=0)


def test_the_baselines_mean_and_deviation_are_of_255() -> None:
    """0.45 and 0.225 of [0, 1] are 114.75 and 57.375 of 255: level 172 is (172 - 114.75) / 57.375."""
    frames = torch.full((1, 2, 2, 3), 172, dtype=torch.uint8)
    rendered = render(frames, [View((0, 0, 2, 2), 2, 2)], (0.45,) * 3, (0.225,) * 3)
    torch.testing.assert_close(rendered, torch.full_like(rendered, 57.25 / 57.375))


def test_render_leaves_its_input_alone() -> None:
    frames = pixels(1, 6, 6)
    before = frames.clone()
    changes: list[Change] = [
        (Flip(1), True),
        (ColorJitter(1), (("contrast", 1.5), ("brightness", 0.5))),
        (Lighting(1), (0.1, 0.2, 0.3)),
        (RandAugment(2, 9), (("identity", 0.3), ("sharpness", 0.3))),
        (RandomErasing(1, MEAN), (1, 2, 3, 3)),
    ]
    render(frames, [View((0, 0, 6, 6), 6, 6)] * 2, MEAN, STD)
    for change in changes:
        render(frames, [View((0, 0, 6, 6), 6, 6)], MEAN, STD, [change])
    assert torch.equal(frames, before)


def test_three_views_of_a_wide_frame_show_what_the_baseline_crops() -> None:
    """Resize the frame, then crop at {0, 1, 2} * ((L - 256) // 2): the same as cropping first, up to rounding.

    On a smooth picture: the order of crop and resize only moves a view by half a source pixel.
    """
    y, x = torch.meshgrid(torch.linspace(0, 1, 200), torch.linspace(0, 1, 300), indexing="ij")
    frame = torch.stack([x, y, (x + y) / 2], -1).mul(255).round().to(torch.uint8)[None]
    scaled = tv.resize(frame.permute(0, 3, 1, 2).float() / 255, [64, 96], antialias=True)
    rendered = render(frame, eval_views("three", 200, 300, 56, 64), (0, 0, 0), (1, 1, 1))
    for view, left in zip(rendered[:, 0], (0, 16, 32), strict=True):
        expected = scaled[0, :, :, left : left + 64].permute(1, 2, 0)
        torch.testing.assert_close(view, expected, rtol=0, atol=0.01)


def test_gather_clips_layout_and_content() -> None:
    """Clip n = v K + k has frames[v, indices[k, t], y, x, c] at [n, c, t, y, x]."""
    frames = torch.arange(2 * 5 * 3 * 4 * 3, dtype=torch.float32).reshape(2, 5, 3, 4, 3)
    indices = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4], [3, 0, 3, 1]])
    clips = gather_clips(frames, indices)
    assert clips.shape == (6, 3, 4, 3, 4)
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)
    expected = np.stack([frames.numpy()[v, indices[k].numpy()] for v in range(2) for k in range(3)])
    np.testing.assert_array_equal(clips.numpy(), np.moveaxis(expected, -1, 1))


def test_gather_one_clip_is_channels_last_too() -> None:
    clips = gather_clips(torch.randn(1, 2, 5, 6, 3), torch.tensor([[1, 0]]))
    assert clips.shape == (1, 3, 2, 5, 6)
    assert clips.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    ("height", "width", "short_side", "k"),
    [
        (256, 340, 256, 1),
        (384, 700, 256, 1),  # 1.5 times: bit-equal
        (512, 999, 256, 1),
        (999, 513, 256, 2),
        (720, 1280, 320, 2),
        (1080, 1920, 256, 4),
        (2160, 3840, 256, 8),
        (3840, 2160, 320, 6),
        (100, 100, 256, 1),
    ],
)
def test_frames_are_reduced_above_twice_the_short_side(height: int, width: int, short_side: int, k: int) -> None:
    assert reduction(height, width, short_side) == k


@given(SIZES, SIZES, st.integers(8, 256), st.floats(0.05, 1), SEEDS)
@RULE
def test_no_area_view_is_enlarged_by_the_reduction(height: int, width: int, crop: int, low: float, seed: int) -> None:
    k = area_reduction(height, width, crop, (low, 1.0))
    view = random_area_view(height, width, crop, (low, 1.0), np.random.default_rng(seed))
    small = scaled(view, 1 / k, 1 / k)
    assert inside(small.box, -(-height // k), -(-width // k))
    assert k == 1 or min(small.box[2:]) >= crop - 1
    assert area_reduction(1080, 1920, 112, (0.25, 1.0)) == 5  # sqrt(0.25 * 1080 * 1920 * 3 / 4) = 623.5 = 5.57 * 112


class Video(VideoReader):
    """Frames of any size, of a smooth picture that moves; counts the bytes it is asked to hold."""

    decoder, path, fps = "memory", "video", 25.0

    def __init__(self, height: int, width: int, num_frames: int = 40) -> None:
        self.height, self.width, self.num_frames = height, width, num_frames

    def image(self, index: int) -> np.ndarray:
        y, x = np.mgrid[: self.height, : self.width]
        waves = [np.sin(6 * y / self.height + k + index / 9) + np.cos(5 * x / self.width - k) for k in range(3)]
        return (np.stack(waves, -1) * 60 + 127).round().astype(np.uint8)

    def _decode(self, indices, crop, out) -> None:
        for target, index in zip(out, indices, strict=True):
            target[:] = crop(self.image(index))

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", ["center", "three", "full"])
def test_a_large_video_shows_the_same_and_holds_no_more_than_its_views_need(kind: str) -> None:
    spec = ClipSpec(2, 1, 56, (64, 80))
    video = Video(541, 903)  # 8 times 64, and no multiple
    clips, box = read_clips(video, [0, 30], spec, kind, 64)
    assert clips.frames.shape[0] == 4
    assert clips.frames[0].numel() < 4 * 3 * 64 * 2 * 64  # 2 x 2 for each of the views' pixels
    top, left, height, width = box
    assert 0 <= top < top + height <= 541 and 0 <= left < left + width <= 903  # of the source
    whole = torch.from_numpy(np.stack([video.image(i) for i in (0, 1, 30, 31)]))
    direct = render(whole, eval_views(kind, 541, 903, 56, 64), (0, 0, 0), (1 / 255,) * 3)
    got = render(clips.frames, clips.views, (0, 0, 0), (1 / 255,) * 3)
    assert got.shape == direct.shape
    assert (got - direct).abs().mean() < 2  # of 255; boxes move by half a reduced pixel at most


def test_up_to_twice_the_short_side_nothing_is_reduced() -> None:
    spec = ClipSpec(2, 1, 56, (64, 80))
    video = Video(96, 170)  # 1.5 times
    clips, box = read_clips(video, [3], spec, "full", 64)
    assert box == (0, 0, 96, 170)
    assert np.array_equal(clips.frames.numpy(), np.stack([video.image(3), video.image(4)]))


@pytest.mark.parametrize("area", [None, (0.25, 1.0)])
def test_a_training_clip_of_a_large_video_is_the_same_whatever_it_is_read_with(monkeypatch, area) -> None:
    """Clips of one video that are fetched together share a decode and a cut; their pixels must not."""
    monkeypatch.setattr(dataset, "open_file", lambda path, decoder: Video(541, 903))
    spec = ClipSpec(2, 3, 32, (40, 60), area=area)
    clips = TrainClips([Record("a", 0)], ".", "pyav", spec, seed=0, max_unreadable=0, clips_per_video=4)
    together = clips.__getitems__([(0, position) for position in range(4)])
    for position, item in enumerate(together):
        single = clips[0, position]
        assert torch.equal(item.frames, single.frames) and item.views == single.views
        assert max(item.frames.shape[1:3]) < (200 if area else 66)  # 541 / 9 is 61; 902 / 7 is 129


# --- augmentations ---


def before(frames: Tensor, view: View, flip: bool, factors: tuple, shift: tuple) -> Tensor:
    """Pixels (U, height, width, 3) in [0, 255] by the lines that were here before augmentations were values."""
    top, left, height, width = view.box
    pixels = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
    if (height, width) != (view.height, view.width):
        pixels = F.interpolate(pixels, (view.height, view.width), mode="bilinear", antialias=True)
    pixels = (pixels.flip(-1) if flip else pixels).permute(0, 2, 3, 1)
    for name, factor in factors:
        if name == "brightness":
            pixels = pixels * factor
        else:
            gray = pixels @ torch.tensor((0.299, 0.587, 0.114))
            pixels = pixels * factor + (1 - factor) * (gray.mean() if name == "contrast" else gray[..., None])
    return pixels + 255 * torch.tensor(shift)


@given(SEEDS, st.sampled_from([1, 3, 31, 32]), st.booleans(), st.sampled_from([(0, 0), (0.4, 0), (0, 0.1), (1, 0.1)]))
@RULE
def test_flipped_pixels_are_bit_equal_to_earlier_ones_and_colors_nearly(
    seed: int, count: int, flip: bool, strengths: tuple[float, float]
) -> None:
    """Colors within 1e-4 of 255: gray is summed from Python numbers now, which need no copy to the device."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 60, 2).tolist()
    box = (1, 2, height - 3, width - 4)
    view = View(box, *(box[2:] if rng.random() < 0.3 else rng.integers(4, 40, 2).tolist()))
    frames = pixels(count, height, width, seed)
    got = render(frames, [view], MEAN, STD, ((Flip(0.5), flip),))[0]
    mean, std = (torch.tensor(values) * 255 for values in (MEAN, STD))
    assert torch.equal(got, (before(frames, view, flip, (), (0.0, 0.0, 0.0)) - mean) / std)
    half = render(frames, [view], MEAN, STD, ((Flip(0.5), flip),), torch.bfloat16)[0]
    assert torch.equal(half, got.bfloat16())
    jitter, lighting = ColorJitter(strengths[0]), Lighting(strengths[1])
    factors, shift = jitter.draw(rng, (8, 8)), lighting.draw(rng, (8, 8))
    changes: list[Change] = [(Flip(0.5), flip), (jitter, factors), (lighting, shift)]
    got = render(frames, [view], (0, 0, 0), (1 / 255,) * 3, changes)[0]
    torch.testing.assert_close(got, before(frames, view, flip, factors, shift), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("flip", "digest"), [(False, "a20bd9dcf410c6d8"), (True, "5c6c288bdbad9458")])
def test_pixels_of_the_code_before_augmentations_were_values(flip: bool, digest: str) -> None:
    """Without a resize, whose last bits may depend on the processor."""
    frames = pixels(40, 9, 11)
    changes = ((Flip(0.5), flip),)
    rendered = render(frames, [View((2, 3, 5, 6), 5, 6)], (0.4, 0.45, 0.5), (0.2, 0.225, 0.25), changes)
    assert hashlib.sha256(rendered.numpy().tobytes()).hexdigest()[:16] == digest


def test_contrast_is_that_of_the_complete_clip() -> None:
    """Of more frames than are scaled at once: dark ones first, then bright ones."""
    frames = torch.cat([torch.full((40, 2, 2, 3), 20), torch.full((40, 2, 2, 3), 220)]).byte()
    changes = ((ColorJitter(1), (("contrast", 0.0),)),)
    got = render(frames, [View((0, 0, 2, 2), 2, 2)], (0, 0, 0), (1 / 255,) * 3, changes)
    torch.testing.assert_close(got, torch.full_like(got, 120), rtol=0, atol=1e-3)


def test_the_config_chooses_augmentations_and_their_order() -> None:
    """Color jitter and lighting are both drawn where either is on; validation has what Figure 7's has."""

    def chosen(*overrides: str, validation: bool = False) -> list[str]:
        data = parse_config({"output_dir": "x", "data": {"flip": 0}}, overrides).data
        return [type(augmentation).__name__ for augmentation in augmentations(data, validation=validation)]

    assert chosen() == ["Flip"]
    assert chosen("data.color_jitter=0.4") == chosen("data.lighting=0.1") == ["Flip", "ColorJitter", "Lighting"]
    everything = ["data.random_erasing=0.25", "data.rand_augment=[2,9]", "data.lighting=0.1", "data.mixup=0.2"]
    assert chosen(*everything) == ["Flip", "ColorJitter", "Lighting", "RandAugment", "RandomErasing"]
    assert chosen(*everything, validation=True) == ["Flip", "ColorJitter", "Lighting"]


TORCHVISION = {
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateX",
    "translate y": "TranslateY",
    "saturation": "Color",
    "autocontrast": "AutoContrast",
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
def test_rand_augment_has_torchvisions_operations_and_ranges(name: str, magnitude: int) -> None:
    """Bit-equal where they are torchvision's own; our affine maps and sharpness within the rounding of a level."""
    theirs = v2.RandAugment()
    their_name = TORCHVISION.get(name, name.capitalize())
    values, signed = theirs._AUGMENTATION_SPACE[their_name]
    assert signed == OPERATIONS[name][1] and len(theirs._AUGMENTATION_SPACE) == len(OPERATIONS)
    smooth = torch.from_numpy(np.stack([Video(37, 53).image(index) for index in (0, 5)])).permute(0, 3, 1, 2)
    exact = name not in ("shear x", "shear y", "rotate", "sharpness")
    for sign in (1, -1) if signed else (1,):
        strengths = values(31, 37, 53)
        value = 0.0 if strengths is None else sign * round(float(strengths[magnitude]), 5)  # 0.27, not float32's
        expected = theirs._apply_image_or_video_transform(
            smooth, their_name, value, interpolation=v2.InterpolationMode.BILINEAR, fill={torch.Tensor: None}
        )
        changed = RandAugment(1, magnitude).apply(smooth.float(), ((name, sign * magnitude / 30),))
        assert changed.dtype == torch.float32
        if exact:
            assert torch.equal(changed, expected.float())
        else:
            difference = (changed - expected.float()).abs()
            assert difference.max() <= 1 and difference.mean() < 0.02


def test_rand_augment_draws_each_operation_with_either_sign() -> None:
    drawn = [RandAugment(2, 15).draw(keyed_rng(k), (8, 8)) for k in range(1000)]
    counts = Counter(one for pair in drawn for one in pair)
    assert {name for name, _ in counts} == set(OPERATIONS)
    for name, (_, signed) in OPERATIONS.items():
        assert {strength for found, strength in counts if found == name} == ({0.5, -0.5} if signed else {0.5})
        assert abs(sum(counts[name, strength] for strength in (0.5, -0.5)) - 2000 / 14) < 5 * 12
    assert RandAugment(2, 15).draw(keyed_rng(3), (8, 8)) == drawn[3]


def test_all_frames_get_the_same_operations() -> None:
    """A still clip stays one, and its frames are what the frame is by itself."""
    still = pixels(1, 24, 30).permute(0, 3, 1, 2).float().expand(3, -1, -1, -1)
    for augmentation in (RandAugment(2, 9), RandomErasing(1, MEAN), ColorJitter(0.4), Lighting(0.1), Flip(0.5)):
        for k in range(15):
            params = augmentation.draw(keyed_rng(k), (24, 30))
            changed = augmentation.apply(still, params)
            assert torch.equal(changed, changed[:1].expand_as(changed))
            torch.testing.assert_close(changed[:1], augmentation.apply(still[:1], params), rtol=0, atol=1e-4)


def test_erased_rectangles_are_torchvisions_kind() -> None:
    """2 to 33 % of the area, sides of 0.3 to 3.3, inside the frame, with the wanted probability."""
    drawn = [RandomErasing(0.25, MEAN).draw(keyed_rng(k), (60, 100)) for k in range(4000)]
    boxes = [box for box in drawn if box is not None]
    assert 900 < len(boxes) < 1100
    assert all(inside(box, 60, 100) for box in boxes)
    shares = np.array([box[2] * box[3] / 6000 for box in boxes])
    aspects = np.array([box[2] / box[3] for box in boxes])
    assert 0.018 < shares.min() < 0.03 and 0.3 < shares.max() < 0.34
    assert 0.28 < aspects.min() < 0.4 and 2 < aspects.max() < 3.5
    assert RandomErasing(0, MEAN).draw(keyed_rng(0), (60, 100)) is None


def test_an_erased_rectangle_is_zero_to_the_network() -> None:
    box = (1, 2, 3, 4)
    rendered = render(pixels(2, 9, 11), [View((0, 0, 9, 11), 9, 11)], MEAN, STD, ((RandomErasing(1, MEAN), box),))[0]
    plain = render(pixels(2, 9, 11), [View((0, 0, 9, 11), 9, 11)], MEAN, STD)[0]
    assert (rendered[:, 1:4, 2:6] == 0).all()
    plain[:, 1:4, 2:6] = 0
    assert torch.equal(rendered, plain)


def test_what_was_done_in_words() -> None:
    assert Flip(0.5).describe(True) == "flipped" and not Flip(0.5).describe(False)
    assert ColorJitter(0.4).describe((("contrast", 1.2),)) == Lighting(0.1).describe((0.1, 0, 0)) == "colors changed"
    assert not ColorJitter(0).describe(()) and not Lighting(0).describe((0.0, 0.0, 0.0))
    assert RandAugment(2, 9).describe((("rotate", -0.3), ("equalize", 0.3))) == "rotate -0.3, equalize"
    assert RandomErasing(1, MEAN).describe((1, 2, 3, 4)) == "4 x 3 px erased"


@pytest.mark.cuda
def test_no_line_waits_for_the_gpu() -> None:
    """Beyond the first clip, which copies mean and standard deviation."""
    frames = pixels(40, 60, 80).cuda()
    view = View((3, 4, 50, 60), 32, 32)
    drawn = [(RandAugment(1, 9), ((name, 0.3),)) for name in OPERATIONS]
    changes: list[Change] = [
        (Flip(1), True),
        (ColorJitter(1), (("saturation", 1.5), ("contrast", 1.5), ("brightness", 0.5))),
        (Lighting(1), (0.1, 0.2, 0.3)),
        *drawn,
        (RandomErasing(1, MEAN), (1, 2, 3, 3)),
    ]
    first = render(frames, [view], MEAN, STD, changes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = render(frames, [view], MEAN, STD, changes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)
    for change in changes:  # one by one, since rounding to levels in between may go either way
        on_cpu = render(frames.cpu(), [view], (0, 0, 0), (1 / 255,) * 3, [change])
        on_gpu = render(frames, [view], (0, 0, 0), (1 / 255,) * 3, [change]).cpu()
        assert (on_gpu - on_cpu).abs().mean() < 0.5, change
