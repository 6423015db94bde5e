"""Field-coded H.264 (PAFF), as AVCHD camcorders write it: each field is a packet with its own time. No encoder has it.

All macroblocks are I_PCM: the picture is written as it is, 32 x 32 pixels of one gray.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

SIDE, RATE = 32, 90_000


def luma(number: int) -> int:
    """The gray of frame `number`, of up to 40."""
    return 20 + 5 * number


class _Bits:
    def __init__(self) -> None:
        self.text = ""

    def u(self, bits: int, *values: int) -> None:
        self.text += "".join(f"{value:0{bits}b}" for value in values)

    def ue(self, *values: int) -> None:
        for value in values:
            digits = f"{value + 1:b}"
            self.text += "0" * (len(digits) - 1) + digits

    def align(self, stop: str = "") -> None:
        self.text += stop
        self.text += "0" * (-len(self.text) % 8)

    def unit(self, ref: int, kind: int) -> bytes:
        self.align("1")
        out, zeros = bytearray([ref << 5 | kind]), 0
        for byte in int(self.text, 2).to_bytes(len(self.text) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                out.append(3)  # emulation prevention
                zeros = 0
            out.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes(out)


def _parameter_sets() -> bytes:
    sequence = _Bits()
    sequence.u(8, 77, 0, 30)
    sequence.ue(0, 0, 0, 4, 1)  # 4 bits of frame_num, 8 of the order of output, one reference frame
    sequence.u(1, 0)
    sequence.ue(SIDE // 16 - 1, SIDE // 32 - 1)
    sequence.u(1, 0, 0, 1, 0, 0)  # frame_mbs_only_flag is 0
    picture = _Bits()
    picture.ue(0, 0)
    picture.u(2, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 4)
    return sequence.unit(3, 7) + picture.unit(3, 8)


def _slice(number: int, structure: str) -> bytes:
    """A frame, or a top or bottom field, of frame `number`."""
    bits, bottom = _Bits(), structure == "bottom"
    bits.ue(0, 7, 0)
    bits.u(4, 0)
    bits.u(1, int(structure != "frame"))
    if structure != "frame":
        bits.u(1, int(bottom))
    if not bottom:
        bits.ue(number % 2)  # idr_pic_id
    bits.u(8, int(bottom))  # pic_order_cnt_lsb
    bits.u(1, *([0] if bottom else [0, 0]))
    bits.ue(0, 1)
    for _ in range((SIDE // 16) ** 2 // (1 if structure == "frame" else 2)):
        bits.ue(25)
        bits.align()
        bits.u(8, *[luma(number)] * 256, *[128] * 128)
    return bits.unit(3, 1 if bottom else 5)


def packets_of(structures: Sequence[str]) -> list[tuple[bytes, int]]:
    """Packets and their times: frame i is "frame", "fields" (a packet each) or "pair" (one packet for both)."""
    packets = []
    for i, structure in enumerate(structures):
        time, head = i * RATE // 25, b"\0\0\0\1\x09\x10" + _parameter_sets()
        if structure == "frame":
            packets.append((head + _slice(i, "frame"), time))
        elif structure == "pair":
            packets.append((head + _slice(i, "top") + _slice(i, "bottom"), time))
        else:
            packets.append((head + _slice(i, "top"), time))
            packets.append((b"\0\0\0\1\x09\x10" + _slice(i, "bottom"), time + RATE // 50))
    return packets


def write(path: Path, structures: Sequence[str]) -> Path:
    """Write frames of these structures, at 25 frames per second; the suffix names the container."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=25)
        stream.width = stream.height = SIDE
        stream.codec_context.extradata = _parameter_sets()
        stream.time_base = Fraction(1, RATE)
        for data, time in packets_of(structures):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = RATE + time
            packet.is_keyframe = b"\x09\x10\0\0\0\1\x67" in data  # a sequence parameter set follows the delimiter
            out.mux(packet)
    return path
