"""Which frames a clip has: pure index arithmetic, no video needed.

N is the number of frames of a video, T the frames of a clip, s its stride. A clip occupies T * s frames; indices wrap
modulo N, so a short video is repeated from its start (video-nonlocal-net, customized_video_io.cc:683-703).
"""

from __future__ import annotations

import numpy as np


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a generator, a pure function of its key, e.g. (seed, epoch, video index); no two keys share one."""
    return np.random.default_rng((len(key), *key))  # the length, since NumPy pads a key with zeros


def clip_indices(start: int, frames: int, stride: int, num_frames: int) -> list[int]:
    """Frame indices (start + i s) mod N for i < T.

    With N = 10, T = 4, s = 2 and start 5 (f: in the clip):

        frame   0 1 2 3 4 5 6 7 8 9
                . f . . . f . f . f     5, 7, 9, then 11 mod 10 = 1
    """
    return [(start + i * stride) % num_frames for i in range(frames)]


def random_start(num_frames: int, frames: int, stride: int, rng: np.random.Generator) -> int:
    """Training: uniform over 0 ... N - T s, ends included (stride 0: over all frames); 0 for a shorter video.

    With N = 10, T = 4, s = 2 the clip occupies 8 frames and starts at 0, 1 or 2 (f: in the clip, x: passed over):

        frame   0 1 2 3 4 5 6 7 8 9
        start 0 f x f x f x f x . .
        start 2 . . f x f x f x f x
    """
    last = num_frames - max(frames * stride, 1)
    return int(rng.integers(0, last, endpoint=True)) if last > 0 else 0


def uniform_starts(num_frames: int, frames: int, stride: int, clips: int, mode: str = "spread") -> list[int]:
    """Start frames of K test clips, regularly over the video.

    `spread`: round(k (N - T s) / (K - 1)) where N >= T s, from the first to the last valid start; else floor(k N / K).
    One clip starts at (N - T s) // 2. `baseline`: int(k N / K), whose last clips wrap.

    With N = 10, T = 2, s = 2, K = 3 (each clip occupies 4 frames):

        frame   0 1 2 3 4 5 6 7 8 9
        clip 0  f x f x . . . . . .     spread: starts 0, 3, 6
        clip 1  . . . f x f x . . .     baseline: starts 0, 3, 6 as well; with K = 4 its last is 7,
        clip 2  . . . . . . f x f x     which reads frames 7 and 9
    """
    if mode not in ("spread", "baseline"):
        raise ValueError(f"clip starts {mode!r} are not known; choose spread or baseline")
    last = num_frames - max(frames * stride, 1)
    if mode == "baseline" or last < 0:
        return [k * num_frames // clips for k in range(clips)]
    if clips == 1:
        return [last // 2]
    return [round(k * last / (clips - 1)) for k in range(clips)]
