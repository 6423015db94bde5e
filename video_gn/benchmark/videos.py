"""The videos of a benchmark: a folder's, or the embedded motions at Kinetics' size, rendered when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from video_gn.console import say
from video_gn.data import motion
from video_gn.data.decode import VideoError, open_video
from video_gn.data.formats import SUFFIXES
from video_gn.errors import UserError
from video_gn.files import h264
from video_gn.files.atomic import replacing

CACHE = Path("data/benchmark")
GRAIN, DETAIL = (
    5.0,
    20.0,
)  # of 255: noise a frame, and standing texture; 10 s then take about as many bytes as Kinetics'


@dataclass(frozen=True)
class Video:
    """A file and what its container says."""

    path: str
    num_frames: int
    fps: float


def find_videos(folder: Path | None, quick: bool) -> list[Video]:
    """Return the videos under a folder, without unreadable ones, which are named; without a folder, rendered ones.

    Raises UserError where there is none.
    """
    if folder is None:
        folder = render_videos(CACHE / "quick", 2, (96, 128, 80)) if quick else render_videos(CACHE / "kinetics_size")
    videos = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        try:
            with open_video(path) as video:
                videos.append(Video(str(path.absolute()), video.num_frames, video.fps or 30.0))
        except VideoError as error:
            say(f"left out: {error}")
    if not videos:
        raise UserError(
            f"--videos {folder} holds no readable video ({' '.join(sorted(SUFFIXES))}); name another folder"
        )
    return videos


def render_videos(folder: Path, count: int = 8, size: tuple[int, int, int] = (256, 340, 300)) -> Path:
    """Write `count` videos of `size` (height, width, frames), 30 fps, but those that are there. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:02d}.mp4" for seed in range(count)]
    missing = [seed for seed, path in enumerate(paths) if not path.exists()]
    if missing:
        say(f"rendering {len(missing)} videos of {size[1]}x{size[0]}, {size[2]} frames, into {folder}")
    for seed in tqdm(missing, "rendering", disable=None):
        _write(paths[seed], seed, *size)
    return folder


def _write(path: Path, seed: int, height: int, width: int, num_frames: int) -> None:
    """Write a motion of motion.py over moving texture with grain, H.264 as by x264's defaults (crf 23, GOP 250)."""
    rng = np.random.default_rng(seed)
    side = max(height, width)
    look = motion.draw_look(rng, side)
    track = motion.draw_track(seed % len(motion.CLASSES), rng, num_frames)
    texture = _texture(rng, side)
    shake = np.cumsum(rng.normal(0, 1, (num_frames, 2)), 0).round().astype(int)

    def draw() -> Iterator[np.ndarray]:
        for index in range(num_frames):
            (image,) = motion.draw_frames(motion.Track(*(values[index : index + 1] for values in track)), look)
            ground = np.roll(texture, shake[index], (0, 1)) + GRAIN * rng.standard_normal((side, side), np.float32)
            yield (image + ground[..., None])[:height, :width].clip(0, 255).astype(np.uint8)

    with replacing(path, durable=False) as partial:
        h264.encode(partial, draw(), 30, {"preset": "medium", "crf": "23"})


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Detail with the spectrum of photographs, amplitude 1 / frequency: float32 (side, side), deviation DETAIL."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / frequency).real
    return (DETAIL * texture / texture.std()).astype(np.float32)
