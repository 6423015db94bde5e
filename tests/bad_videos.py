"""A corpus of damaged and odd videos. `make` writes it, with the number that each frame of each file must bear.

Run `python -m tests.bad_videos FOLDER` to have it on the disk.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from video_gn.data.decode import VideoError, open_video

H, W, BARS, N = 48, 80, 8, 40
SHORT_GOPS = {"g": "10", "bf": "0", "sc_threshold": "0"}
B_FRAMES = {"g": "10", "bf": "2", "b-adapt": "0", "sc_threshold": "0"}


@dataclass(frozen=True)
class Truth:
    """What a reader must make of a file."""

    frames: list[int]
    """The number that frame i bears; none where the file must be refused."""
    damaged: bool = False
    """Frames may be refused, and the last ones not announced; those that are read bear these numbers."""
    gaps: bool = False
    """Frames may be missing without a trace: the numbers rise."""
    concealed: bool = False
    """A decoder may repair pictures by guessing: any numbers."""


WHOLE = Truth(list(range(N)))
REFUSED = Truth([])
DAMAGED = Truth(list(range(N)), damaged=True)


def image(number: int, height: int = H, width: int = W) -> np.ndarray:
    """The binary digits of a number as black and white bars, uint8 (height, width, 3)."""
    bars = np.arange(width) * BARS // width
    row = 255 * (number >> bars & 1).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    """The number that an image bears."""
    height, width = picture.shape[:2]
    centres = ((np.arange(BARS) + 0.5) * width / BARS).astype(int)
    return sum(1 << bit for bit, x in enumerate(centres) if picture[height // 2, x].mean() > 128)


def make(folder: Path) -> dict[str, Truth]:
    """Write the corpus into an empty folder. Returns the truth by file name."""
    truths: dict[str, Truth] = {}
    whole = write(folder / "whole.mp4", codec_options=SHORT_GOPS)
    truths["whole.mp4"] = WHOLE
    truths |= _odd(folder, whole) | _streams(folder) | _no_videos(folder, whole) | _damaged(folder, whole)
    return truths


# ---- odd, but sound: every frame must be there ----


def _odd(folder: Path, whole: Path) -> dict[str, Truth]:
    write(folder / "one_frame.mp4", [0])
    write(folder / "odd_size.mkv", size=(51, 99), pix_fmt="yuv444p")
    write(folder / "small.mkv", size=(18, 34))
    write(folder / "ten_bit.mkv", pix_fmt="yuv420p10le")
    write(folder / "vp9.webm", codec="libvpx-vp9", codec_options={"deadline": "realtime", "cpu-used": "8"})
    write(folder / "b_frames.avi", codec_options=B_FRAMES)
    write(folder / "b_frames.mpg", codec="mpeg2video", codec_options={"g": "10", "bf": "2"})
    write(folder / "b_frames.ts", codec_options=B_FRAMES)
    write(folder / "no_times.h264", codec_options=B_FRAMES)
    write(folder / "intra.mov", codec="mjpeg", pix_fmt="yuvj420p")
    write(folder / "ünï, code 'n' \"blanks\".mp4")

    def shift(ticks: Callable[[int], int]) -> Callable[[int, Any], Any]:
        def change(n: int, packet: Any) -> Any:
            packet.pts += ticks(n)
            packet.dts += ticks(n)
            return packet

        return change

    tick = 512  # of a frame, in the 1/12800 s of a 25 fps mp4
    remux(whole, folder / "late_start.mp4", shift(lambda n: 250 * tick))
    remux(whole, folder / "variable_rate.mp4", shift(lambda n: n * n * 37))
    remux(whole, folder / "variable_rate.mkv", shift(lambda n: n * n * 37))
    remux(whole, folder / "gap.mp4", shift(lambda n: 125 * tick * (n >= 17)))
    remux(whole, folder / "edit_list.mp4", shift(lambda n: -13 * tick))
    remux(whole, folder / "lost_frames.mkv", lambda n, packet: None if n in (9, 29) else packet)  # no other needs them
    names = ["odd_size.mkv", "small.mkv", "ten_bit.mkv", "vp9.webm", "b_frames.avi", "b_frames.mpg", "b_frames.ts"]
    names += ["no_times.h264", "intra.mov", "ünï, code 'n' \"blanks\".mp4", "late_start.mp4", "variable_rate.mp4"]
    names += ["variable_rate.mkv", "gap.mp4"]
    (folder / "tail.mp4").write_bytes(whole.read_bytes() + random.Random(0).randbytes(5000))
    (folder / "link.mp4").symlink_to(whole)
    turned = bytearray(whole.read_bytes())
    at = turned.index(b"tkhd") + 44  # the matrix of an mp4's track: half a turn, so the bars stand in reverse
    for place, value in ((at, -1 << 16), (at + 16, -1 << 16)):
        turned[place : place + 4] = value.to_bytes(4, "big", signed=True)
    (folder / "upside_down.mp4").write_bytes(turned)
    return {name: WHOLE for name in [*names, "tail.mp4", "link.mp4"]} | {
        "one_frame.mp4": Truth([0]),
        "edit_list.mp4": Truth(list(range(13, N))),
        "lost_frames.mkv": Truth([n for n in range(N) if n not in (9, 29)]),
        "upside_down.mp4": Truth([int(f"{n:08b}"[::-1], 2) for n in range(N)]),
    }


def _streams(folder: Path) -> dict[str, Truth]:
    """Files of several streams: the best video is read."""
    with av.open(str(folder / "two_videos.mkv"), "w") as out:
        other, best = out.add_stream("libx264", rate=25), out.add_stream("libx264", rate=25)
        other.disposition, best.disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for stream, (height, width) in ((other, (32, 48)), (best, (H, W))):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for n in range(N):
            for stream in (other, best):
                picture = image(n if stream is best else 200, stream.height, stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in (other, best):
            out.mux(stream.encode(None))
    with av.open(str(folder / "with_sound.mp4"), "w") as out:
        video, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=8000)
        video.height, video.width, video.pix_fmt = H, W, "yuv420p"
        for n in range(N):
            out.mux(video.encode(av.VideoFrame.from_ndarray(image(n), format="rgb24")))
        _noise(out, sound)
        out.mux(video.encode(None))
    return {"two_videos.mkv": WHOLE, "with_sound.mp4": WHOLE}


def _noise(out: Any, stream: Any) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (1, 1024)).astype(np.float32)
    for n in range(12):
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 1024 * n
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


# ---- no videos: each must be refused ----


def _no_videos(folder: Path, whole: Path) -> dict[str, Truth]:
    data = whole.read_bytes()
    index = data.index(b"moov") - 4  # at the end, as PyAV writes it
    contents = {
        "empty.mp4": b"",
        "one_byte.mp4": b"\0",
        "text.mp4": b"This is not a video.\n" * 200,
        "web_page.mp4": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20,
        "random.mp4": random.Random(1).randbytes(20_000),
        "zeros.mp4": bytes(20_000),
        "head_alone.mp4": data[:200],
        "no_index.mp4": data[:index],
        "index_alone.mp4": data[:8] + data[index:],
        "no_index.mkv": write(folder / "w.mkv").read_bytes()[:300],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "w.mkv").unlink()
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "gone")
    with av.open(str(folder / "sound_alone.mp4"), "w") as out:
        _noise(out, out.add_stream("aac", rate=8000))
    with av.open(str(folder / "no_frames.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        out.start_encoding()
    names = ["folder.mp4", "loop.mp4", "dangling.mp4", "gone.mp4", "sound_alone.mp4", "no_frames.mkv"]
    return dict.fromkeys([*contents, *names], REFUSED)


# ---- damaged: what is read must be right, and what is announced must be there or be refused ----


def _damaged(folder: Path, whole: Path) -> dict[str, Truth]:
    rng = random.Random(2)
    front = write(folder / "w.mp4", codec_options=SHORT_GOPS, options={"movflags": "+faststart"}).read_bytes()
    mkv = write(folder / "w.mkv", codec_options=SHORT_GOPS).read_bytes()
    ts = (folder / "b_frames.ts").read_bytes()
    avi = (folder / "b_frames.avi").read_bytes()
    with av.open(str(whole)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    contents = {
        "announces_more.mp4": front[: len(front) * 6 // 10],  # its index is whole
        "cut.mkv": mkv[: len(mkv) * 6 // 10],
        "cut.ts": ts[: len(ts) * 6 // 10],
        "cut.avi": avi[: len(avi) * 6 // 10],
        "last_byte.mp4": front[:-1],
    }
    for name, (first, last) in {
        "zeroed_frame.mp4": (14, 15),
        "zeroed_group.mp4": (10, 20),
        "zeroed_end.mp4": (39, 40),
    }.items():
        damaged = bytearray(whole.read_bytes())
        for at, size in packets[first:last]:
            damaged[at : at + size] = bytes(size)
        contents[name] = bytes(damaged)
    contents["zeroed_middle.mkv"] = mkv[: len(mkv) // 2] + bytes(800) + mkv[len(mkv) // 2 + 800 :]
    truths = dict.fromkeys(contents, DAMAGED)
    truths["cut.ts"] = Truth(list(range(N)), damaged=True, gaps=True)  # a B-frame is stored after a later frame
    for name, flips in (("a_flipped_bit.mp4", 1), ("flipped_bits.mp4", 9), ("many_flipped_bits.mp4", 200)):
        flipped = bytearray(whole.read_bytes())
        for at, size in rng.choices(packets, k=flips):
            flipped[at + rng.randrange(size)] ^= 1 << rng.randrange(8)
        contents[name] = bytes(flipped)
        truths[name] = Truth(list(range(N)), damaged=True, concealed=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "w.mp4").unlink()
    (folder / "w.mkv").unlink()
    return truths


# ---- writing and reading ----


def write(
    path: Path,
    numbers: Iterable[int] = range(N),
    codec: str = "libx264",
    size: tuple[int, int] = (H, W),
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of these numbers at 25 frames a second."""
    with av.open(str(path), "w", options=options or {}) as out:
        stream: Any = out.add_stream(codec, rate=25, options=codec_options or {})
        (stream.height, stream.width), stream.pix_fmt = size, pix_fmt
        for number in numbers:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image(number, *size), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, change: Callable[[int, Any], Any]) -> None:
    """Copy the packets that change(n, packet) returns; None drops one."""
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for n, packet in enumerate(p for p in given.demux(video=0) if p.size):
            if (changed := change(n, packet)) is not None:
                changed.stream = stream
                out.mux(changed)


Look = tuple[int, dict[int, int | str]]


def look(path: Path, decoder: str) -> Look:
    """The number of frames announced, and what each bears or why it cannot be read.

    All are read at once; where that fails, each by itself, of long videos 40 or a few less.
    """
    with open_video(path, decoder) as video:
        announced = video.num_frames
        try:
            return announced, dict(enumerate(map(number_of, video.read(range(announced)).numpy())))
        except VideoError:
            pass
        found: dict[int, int | str] = {}
        for i in range(0, announced, (announced - 1) // 40 + 1):
            try:
                found[i] = number_of(video.read([i])[0].numpy())
            except (VideoError, IndexError) as error:  # an index that decoding has shown to be outside
                found[i] = str(error)
        return announced, found


def look_at_all(folder: str, names: list[str], decoder: str, progress: str) -> dict[str, Look | str]:
    """`look` at each file, or why it cannot be opened. The file `progress` names the one at hand."""
    looks: dict[str, Look | str] = {}
    for name in names:
        Path(progress).write_text(name, encoding="utf-8")
        try:
            looks[name] = look(Path(folder) / name, decoder)
        except VideoError as error:
            looks[name] = error.reason
    return looks


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for name in make(target):
        print(target / name)
