"""The protocol of a decoder: one open video."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch

from video_gn.data.decode.display import Crop, reduced
from video_gn.data.decode.errors import CountCorrected

if TYPE_CHECKING:
    from video_gn.data.sampling import View

CHUNK = 32  # frames per batch of torchcodec or decord, fewer where they are large
_HELD_BYTES = 128 << 20  # of full frames, while boxes are cut or all of a video are read


class VideoReader(AbstractContextManager["VideoReader"]):
    """One open video; a context manager.

    Attributes:
        path: the file, as it was given.
        decoder: what really reads it: "torchcodec", "pyav" or "decord".
        num_frames: N, the frames shown; corrected, with CountCorrected, if decoding proves it wrong.
        height, width: as displayed, in square pixels.
        fps: average frame rate, None where the file does not tell.
    """

    path: str
    decoder: str
    num_frames: int
    height: int
    width: int
    fps: float | None
    shrinks = False
    """Whether `shrink` chooses the scale at which it is read; else a reduction does."""

    def shrink(self, views: Sequence[View]) -> list[View]:
        """Choose the smallest scale at which no view is enlarged, for reading from now on; return the views at it."""
        return list(views)

    def read(
        self, indices: Sequence[int], box: tuple[int, int, int, int] | None = None, reduction: int = 1
    ) -> torch.Tensor:
        """Decode frames, each distinct one once.

        Args:
            indices: frame numbers in [0, num_frames), in any order, repeats allowed.
            box: (top, left, height, width) to cut out, in displayed pixels after the reduction; None is the full frame.
            reduction: k, from 1: each block of k x k displayed pixels, from the top left corner on, becomes one pixel,
                its mean. A frame has ceil(height / k) x ceil(width / k) of them: those at the edge may be smaller.
                Full frames are held at most 128 MiB at a time, at least one.

        Returns:
            uint8 RGB of shape (len(indices), height, width, 3), in the order of `indices`.

        Raises:
            VideoError: if any of these frames cannot be decoded.
            CountCorrected: if num_frames was wrong; it is corrected.
            IndexError: if an index is outside the video.
            ValueError: if the box is empty or not inside the frame, or the reduction is below 1.
        """
        indices = [operator.index(i) for i in indices]
        outside = [i for i in indices if not 0 <= i < self.num_frames]
        if outside:
            raise IndexError(f"{self.path}: index {outside[0]} is not in [0, {self.num_frames}), its frames")
        if reduction < 1:
            raise ValueError(f"{self.path}: reduction {reduction} must be at least 1")
        full = reduced(self.height, reduction), reduced(self.width, reduction)
        top, left, height, width = box = box or (0, 0, *full)
        bottom, right = top + height, left + width
        if not (0 <= top < bottom <= full[0] and 0 <= left < right <= full[1]):
            size = f"{full[0]} x {full[1]}"
            raise ValueError(f"{self.path}: box {box} (top, left, height, width) must be inside {size}")
        wanted = sorted(set(indices))
        frames = torch.empty(len(wanted), height, width, 3, dtype=torch.uint8)
        if wanted:
            announced = self.num_frames
            self._decode(wanted, Crop(box, reduction), frames.numpy())
            self._check_count(announced)
        if wanted == indices:
            return frames
        row = {index: n for n, index in enumerate(wanted)}
        return frames[[row[i] for i in indices]]

    def frames(self) -> Iterator[np.ndarray]:
        """Yield all frames in order, uint8 RGB (height, width, 3). Nothing may be read until the iterator is done.

        At most 128 MiB of frames are held.

        Raises:
            VideoError: if a frame cannot be decoded.
            CountCorrected: if there are others than num_frames announced.
        """
        announced = self.num_frames
        chunk = self._held_frames()
        for start in range(0, announced, chunk):
            yield from self.read(range(start, min(start + chunk, announced))).numpy()

    def _held_frames(self) -> int:
        return max(1, _HELD_BYTES // (self.height * self.width * 3))

    def _check_count(self, announced: int) -> None:
        if self.num_frames != announced:
            raise CountCorrected(self.path, f"announces {announced} frames, and {self.num_frames} can be decoded")

    @abstractmethod
    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        """Fill out (len(indices), h, w, 3) with the crops of these frames: sorted, distinct, at least one."""

    @abstractmethod
    def close(self) -> None:
        """Free the decoder; reading is over."""

    def __exit__(self, *_: object) -> None:
        self.close()
