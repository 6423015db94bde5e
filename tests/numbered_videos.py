"""Videos whose frames carry their numbers, and ways to make odd ones of them."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from video_gn.data.decode import libraries

av = pytest.importorskip("av")

H, W, BARS = 64, 96, 8


def backend(name: str):
    """A parameter that skips where this decoder cannot be loaded."""
    return pytest.param(name, marks=pytest.mark.skipif(libraries.load(name) is None, reason=f"no {name}"))


BACKENDS = ["auto", backend("pyav"), backend("torchcodec")]


def numbered(i: int, height: int = H, width: int = W) -> np.ndarray:
    """An image with the binary digits of i as black and white bars."""
    digits = np.array([255 * (i >> bit & 1) for bit in range(BARS)], dtype=np.uint8)
    return np.broadcast_to(digits.repeat(width // BARS)[None, :, None], (height, width, 3)).copy()


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers that images (K, h, w, 3) carry."""
    middle = frames[:, frames.shape[1] // 2].float().mean(-1).reshape(len(frames), BARS, -1).mean(-1)
    return [sum(1 << bit for bit in range(BARS) if row[bit] > 128) for row in middle.tolist()]


def shaded(height: int = H, width: int = W) -> np.ndarray:
    """A smooth picture that no turn or mirror leaves as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 150 * x / width, 40 + 150 * y / height, 40 + 90 * (x / width + y / height)], -1).astype(
        np.uint8
    )


def write(path: Path, images, codec: str = "libx264", options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        for n, image in enumerate(images):
            if n == 0:
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def remux(source: Path, target: Path, change) -> Path:
    """Copy the packets that change(n, packet) returns (None drops one)."""
    with av.open(str(source)) as given_, av.open(str(target), "w") as out:
        video = given_.streams.video[0]
        stream = out.add_stream_from_template(video)
        for n, packet in enumerate(p for p in given_.demux(video) if p.size):
            if (packet := change(n, packet)) is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def without_frame(packet):
    """A packet of MPEG-4's P picture, made one that is not coded."""
    bits = "".join(f"{byte:08b}" for byte in bytes(packet)[4:10])
    assert bits[:2] == "01" and bits[2:4] == "01"  # a P picture; the same second, a marker
    bits = bits[:9] + "10" + "0"  # 5 bits of time, a marker, not coded; stuffing
    bits += "1" * (-len(bits) % 8)
    empty = av.Packet(bytes(packet)[:4] + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
    return empty


def turn(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write a display matrix into an mp4's track header: x' = a x + c y, y' = b x + d y."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44  # version 0; the matrix follows flags, times, id, layer, group and volume
    one = 1 << 16
    matrix = struct.pack(">9i", *(round(value * one) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


def shape_pixels(path: Path, container: tuple[int, int] | None = None) -> Path:
    """Write a video whose codec says 4:3 of its pixels, and whose MP4 container says `container` (None: 4:3, too)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = H, W, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shaded(), format="rgb24")))
        out.mux(stream.encode())
    if container is not None:
        data = path.read_bytes()
        at = data.index(b"pasp") + 4
        path.write_bytes(data[:at] + struct.pack(">II", *container) + data[at + 8 :])
    return path
