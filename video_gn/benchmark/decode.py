"""`decode`: the CPU time of one random clip and of the 10 test clips, against the libraries' bare calls and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from video_gn.benchmark import others
from video_gn.benchmark.common import Call, Table, measure, select, skip
from video_gn.benchmark.videos import Video, find_videos
from video_gn.data.decode import check_decoder, open_video
from video_gn.data.sampling import clip_indices, keyed_rng, random_start, uniform_starts
from video_gn.errors import UserError

Read = Callable[[Video, list[int]], object]
"""Gets the clips that start at these frames."""

SLOWFAST = "PySlowFast, pyav"


def run(*, videos: Path | None, pyslowfast: Path | None, repeats: int, quick: bool) -> list[Table]:
    """Time reading the same clips of each video, whole frames: for each decoder a table of one clip and of several."""
    torch.set_num_threads(1)
    frames, stride, clips = (8, 2, 3) if quick else (32, 2, 10)
    files = find_videos(videos, quick)
    rng = keyed_rng(0)
    one = [[random_start(video.num_frames, frames, stride, rng)] for video in files]
    several = [uniform_starts(video.num_frames, frames, stride, clips) for video in files]
    decoders = [decoder for decoder in BARE if _loads(decoder)]

    reader = Reader(frames, stride, pyslowfast)
    reads: dict[str, Read] = {f"ours, {name}": partial(reader.ours, name) for name in decoders}
    reads |= {f"{name}, bare": partial(reader.bare, name) for name in decoders}
    elsewhere = [f"LabeledVideoDataset, {name}" for name in ("pyav", "decord")]
    reads |= {name: partial(reader.labeled, name.split()[-1]) for name in elsewhere}
    reads |= {SLOWFAST: reader.slowfast} if pyslowfast else {}
    each: dict[str, Read] = {f"ours, {name}, a decode a clip": partial(reader.each, name) for name in decoders}

    what = f"{frames} x {stride}, {len(files)} videos, a video"
    tables = []
    for title, starts, which in (("one clip", one, reads), (f"{clips} test clips", several, reads | each)):
        samples = measure({name: _over(files, starts, read) for name, read in which.items()}, repeats, what=title)
        for name in decoders:
            here = [f"ours, {name}", f"{name}, bare", f"ours, {name}, a decode a clip", *elsewhere, SLOWFAST]
            tables.append(Table(f"{title} of {what}: {name}", select(samples, here), by="cpu"))
    return tables


def _over(files: list[Video], starts: list[list[int]], read: Read) -> Call:
    def call() -> int:
        for video, its_starts in zip(files, starts, strict=True):
            read(video, its_starts)
        return len(files)

    return call


def _loads(decoder: str) -> bool:
    try:
        check_decoder(decoder)
    except UserError as error:
        skip(decoder, error)
        return False
    return True


class Reader:
    """Clips of `frames` frames at `stride`, got by one library or another."""

    def __init__(self, frames: int, stride: int, pyslowfast: Path | None) -> None:
        self.frames, self.stride, self.folder = frames, stride, pyslowfast

    def ours(self, decoder: str, video: Video, starts: list[int]) -> None:
        """All clips from one decode."""
        with open_video(video.path, decoder) as reader:
            reader.read(self._indices(video, starts))

    def each(self, decoder: str, video: Video, starts: list[int]) -> None:
        """Open and decode the file anew for each clip."""
        for start in starts:
            self.ours(decoder, video, [start])

    def bare(self, decoder: str, video: Video, starts: list[int]) -> None:
        BARE[decoder](video, self._indices(video, starts))

    def labeled(self, decoder: str, video: Video, starts: list[int]) -> None:
        seconds = self.frames * self.stride / video.fps
        dataset = others.labeled_videos([video], seconds, decoder, [starts], others.subsample(self.frames))
        with torch_bridge() if decoder == "decord" else nullcontext():
            list(dataset)

    def slowfast(self, video: Video, starts: list[int]) -> None:
        """Decode anew for each clip."""
        for start in starts:
            self._slowfast.clip(video.path, start, max(video.num_frames - self.frames * self.stride, 1))

    @cached_property
    def _slowfast(self) -> others.SlowFast:
        assert self.folder is not None
        return others.SlowFast(self.folder, self.frames, self.stride)

    def _indices(self, video: Video, starts: list[int]) -> list[int]:
        """Return the frames of these clips, each once, sorted."""
        return sorted({i for start in starts for i in clip_indices(start, self.frames, self.stride, video.num_frames)})


@contextmanager
def torch_bridge() -> Iterator[None]:
    """pytorchvideo has all of decord return torch tensors, for the whole process; the others want arrays."""
    import decord

    decord.bridge.set_bridge("torch")
    try:
        yield
    finally:
        decord.bridge.set_bridge("native")


def _torchcodec(video: Video, indices: list[int]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(video.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return decoder.get_frames_at(indices).data.numpy()


def _pyav(video: Video, indices: list[int]) -> np.ndarray:
    """Seek to the first frame, decode to the last, frames told apart by their time."""
    import av

    wanted, found = set(indices), []
    with av.open(video.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        begin, per_frame = stream.start_time or 0, 1 / (video.fps * float(stream.time_base))
        container.seek(begin + int(indices[0] * per_frame), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts - begin) / per_frame)
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number >= indices[-1]:
                break
    return np.stack(found)


def _decord(video: Video, indices: list[int]) -> np.ndarray:
    import decord

    return decord.VideoReader(video.path, num_threads=1).get_batch(indices).asnumpy()


# The libraries' bare calls: uint8 (len(indices), height, width, 3).
BARE = {"torchcodec": _torchcodec, "pyav": _pyav, "decord": _decord}
