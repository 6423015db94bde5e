"""Reading a video's packets without decoding them: the frames' times, and whether each packet is exactly one frame.

Packets are not frames. A field-coded picture of H.264 comes in two packets, AVIs with packed B-frames and MPEG-4 with
dropped frames have packets without a frame, VP8 has frames that are never shown. So the headers in each packet are
read, and where they do not show one frame per packet, or a codec's headers are not read here, the file counts as not
proven: only decoding can count its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}  # their SPS tells the chroma format
_FRAME, _TOP, _BOTTOM = range(3)
_ONE_PICTURE = ([_FRAME], [_TOP, _BOTTOM], [_BOTTOM, _TOP])


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream."""

    pts: list[int] = field(default_factory=list)
    """Sorted presentation timestamps of the packets that are shown; empty where packets do not bear true ones."""
    keyframes: list[int] = field(default_factory=list)
    """Sorted timestamps of the packets at which decoding can begin."""
    unreferenced: frozenset[int] = frozenset()
    """Timestamps of H.264's pictures that no other refers to, as far as known."""
    proven: bool = False
    """Whether each packet holds one frame, so that `pts` are the times of the frames."""


def index_packets(container: Any, stream: Any, references: bool = False) -> PacketIndex:
    """Read all packets of PyAV's video stream, from its start; `references`: look for `unreferenced` ones too."""
    context = stream.codec_context
    one_frame = _one_frame_of(context)
    h264 = one_frame if isinstance(one_frame, _H264) else None
    shown, keyframes, unreferenced, proven = [], [], set(), True
    for packet in container.demux(stream):
        if not packet.size:  # the last one only flushes
            continue
        if packet.pts is None:
            proven = False
            continue
        if not packet.is_discard:
            shown.append(packet.pts)
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        late = packet.dts is not None and packet.pts < packet.dts  # to be shown before it is decoded
        proven = proven and not late and one_frame(packet)
        if references and h264 and h264.bytes_of_size and is_unreferenced(packet, h264.bytes_of_size):
            unreferenced.add(packet.pts)
    pts = sorted(set(shown))
    if len(pts) < len(shown):
        return PacketIndex()
    b_frames = h264.b_frames if h264 else context.has_b_frames
    if len(pts) > 1 and pts == shown and b_frames:
        proven = False  # B-frames are not stored in the order shown: these may be times of decoding
    return PacketIndex(pts, sorted(keyframes), frozenset(unreferenced), proven)


def is_unreferenced(packet: Any, bytes_of_size: int) -> bool:
    """Return whether no other frame refers to this packet's: H.264's nal_ref_idc (7.4.1) is 0 in all its units.

    Each unit follows its size (ISO/IEC 14496-15). False where the sizes do not add up.
    """
    data, at = memoryview(packet), 0
    while at + bytes_of_size < len(data):
        start = at + bytes_of_size
        if data[start] & 0x60:
            return False
        at = start + int.from_bytes(data[at:start], "big")
    return at == len(data)


def _one_frame_of(context: Any) -> Callable[[Any], bool]:
    """Return the test of a packet of this codec: whether it holds exactly one frame that is shown."""
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    if codec == "h264":
        return _H264(extradata)
    if codec == "hevc":
        return _HEVC(extradata)
    tests = {"mpeg4": _mpeg4, "mpeg1video": _mpeg2, "mpeg2video": _mpeg2, "vp8": _vp8, "vp9": _vp9}
    if codec == "av1" or context.codec.intra_only:  # AV1: a packet is a temporal unit, which shows one frame
        return lambda packet: True
    return tests.get(codec, lambda packet: False)


def _units(packet: Any, bytes_of_size: int) -> Iterator[Any]:
    """Yield the units of a packet of H.264 or HEVC, by their sizes or (0) by start codes."""
    if bytes_of_size:
        data, at = memoryview(packet), 0
        while at + bytes_of_size < len(data):
            start = at + bytes_of_size
            at = start + int.from_bytes(data[at:start], "big")
            yield data[start:at]
    else:
        yield from bytes(packet).split(b"\0\0\1")[1:]


class _Bits:
    """The bits of a unit of H.264, without its emulation prevention. Raises ValueError at the end."""

    def __init__(self, unit: Any) -> None:
        data = bytes(unit).replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise ValueError("the unit has no more bits")
        return self._value >> self._left & ((1 << bits) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -code // 2


class _H264:
    """Tests packets of H.264: one frame, or both fields of one. Section numbers are those of ITU-T H.264."""

    def __init__(self, extradata: bytes) -> None:
        self.bytes_of_size = 0
        self.b_frames = False
        self._sequences: dict[int, tuple[int, int] | None] = {}
        self._fields = True  # may occur, as far as known
        self._pictures: dict[int, int] = {}
        if extradata[:1] == b"\1":  # avcC (ISO/IEC 14496-15, 5.3.3.1), as MP4 and Matroska have it
            self.bytes_of_size = (extradata[4] & 3) + 1
            at = 5
            for mask in (0x1F, 0xFF):  # of the number of SPS, then of PPS
                count, at = (extradata[at] & mask if at < len(extradata) else 0), at + 1
                for _ in range(count):
                    size = int.from_bytes(extradata[at : at + 2], "big")
                    self._learn(extradata[at + 2 : at + 2 + size])
                    at += 2 + size
        else:
            for unit in _units(extradata, 0):
                self._learn(unit)

    def __call__(self, packet: Any) -> bool:
        pictures = []
        for unit in _units(packet, self.bytes_of_size):
            if len(unit) < 2:
                continue
            kind = unit[0] & 31
            if kind in (7, 8):
                self._learn(unit)
            elif kind in (1, 2, 5) and unit[1] & 0x80:  # a picture's first slice: first_mb_in_slice is 0
                pictures.append(self._structure(unit) if self._fields else _FRAME)
                self.b_frames = self.b_frames or _slice_type(unit) in (1, 6)
        return pictures in _ONE_PICTURE

    def _learn(self, unit: Any) -> None:
        """Take note of a sequence (7.3.2.1.1) or picture (7.3.2.2) parameter set."""
        try:
            bits = _Bits(unit)
            kind = bits.u(8) & 31
            if kind == 8:
                picture = bits.ue()
                self._pictures[picture] = bits.ue()
            elif kind == 7:
                self._learn_sequence(bits)
        except ValueError:
            pass  # a slice that refers to it is not proven

    def _learn_sequence(self, bits: _Bits) -> None:
        profile, _, number, planes = bits.u(8), bits.u(16), bits.ue(), 0
        if profile in _HIGH_PROFILES:
            chroma = bits.ue()
            planes = bits.u(1) if chroma == 3 else 0
            bits.ue(), bits.ue(), bits.u(1)
            if bits.u(1):
                for i in range(12 if chroma == 3 else 8):
                    if bits.u(1):
                        _skip_scaling_list(bits, 16 if i < 6 else 64)
        to_skip = 2 * planes  # bits of colour_plane_id
        frame_num_bits = bits.ue() + 4
        order = bits.ue()
        if order == 0:
            bits.ue()
        elif order == 1:
            bits.u(1), bits.ue(), bits.ue()
            for _ in range(bits.ue()):
                bits.ue()
        bits.ue(), bits.u(1), bits.ue(), bits.ue()
        self._sequences[number] = None if bits.u(1) else (to_skip, frame_num_bits)  # frame_mbs_only_flag
        self._fields = any(self._sequences.values())

    def _structure(self, unit: Any) -> int | None:
        """Return whether a slice (7.3.3) is of a frame or a field; None where that is not known."""
        try:
            bits = _Bits(unit[1:32])
            _, _, picture = bits.ue(), bits.ue(), bits.ue()
            sequence = self._sequences[self._pictures[picture]]
            if sequence is None:
                return _FRAME
            bits.u(sum(sequence))
            return (_BOTTOM if bits.u(1) else _TOP) if bits.u(1) else _FRAME
        except (ValueError, KeyError):
            return None


def _slice_type(unit: Any) -> int:
    """Return the type of a picture's first slice, which follows the bit of first_mb_in_slice (7.4.3)."""
    bits = (unit[1] << 8 | (unit[2] if len(unit) > 2 else 0)) & 0x7FFF
    zeros = 15 - bits.bit_length()
    return (bits >> max(14 - 2 * zeros, 0)) - 1


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last, following = 8, 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


class _HEVC:
    """Tests packets of HEVC: one picture of the base layer, in none of the cases in which pictures are not output."""

    def __init__(self, extradata: bytes) -> None:
        sized = extradata[:1] == b"\1" and len(extradata) > 21  # hvcC (ISO/IEC 14496-15, 8.3.3.1)
        self._bytes_of_size = (extradata[21] & 3) + 1 if sized else 0
        self._begun = False

    def __call__(self, packet: Any) -> bool:
        pictures = 0
        for unit in _units(packet, self._bytes_of_size):
            if len(unit) < 3:
                continue
            kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
            if layer:
                continue
            if 16 <= kind <= 18 or kind in (36, 37):  # after a broken link or an end, leading pictures are left out
                return False
            if kind < 32 and unit[2] & 0x80:  # first_slice_segment_in_pic_flag
                pictures += 1
                if kind >= 16 and unit[2] & 0x40 and self._begun:  # no_output_of_prior_pics_flag
                    return False
        self._begun = True
        return pictures == 1


def _mpeg4(packet: Any) -> bool:
    """Return whether MPEG-4's packet holds one picture, with room for macroblocks: vop_coded may be 0 in 8 bytes."""
    data = bytes(packet)
    at = data.find(b"\0\0\1\xb6")
    return at >= 0 and len(data) - at > 12 and data.find(b"\0\0\1\xb6", at + 4) < 0


def _mpeg2(packet: Any) -> bool:
    """Return whether the packet of MPEG-1 or -2 holds one frame, or both its fields (13818-2, 6.2.3.1)."""
    data = bytes(packet)
    if data.count(b"\0\0\1\0") == 1 and b"\0\0\1\xb5" not in data:
        return True  # MPEG-1
    structures, at = [], data.find(b"\0\0\1\xb5")
    while at >= 0 and at + 6 < len(data):
        if data[at + 4] >> 4 == 8:  # a picture coding extension
            structures.append({1: _TOP, 2: _BOTTOM, 3: _FRAME}.get(data[at + 6] & 3))
        at = data.find(b"\0\0\1\xb5", at + 4)
    return structures in _ONE_PICTURE and data.count(b"\0\0\1\0") == len(structures)


def _vp8(packet: Any) -> bool:
    return bool(memoryview(packet)[0] & 0x10)  # show_frame (RFC 6386, 9.1)


def _vp9(packet: Any) -> bool:
    """Return whether one of the packet's frames is shown (VP9's bitstream, 6.2 and annex B)."""
    data = memoryview(packet)
    starts, mark = [0], data[-1]
    if mark & 0xE0 == 0xC0:
        count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
        index = len(data) - 2 - count * width
        if index >= 0 and data[index] == mark:
            sizes = [int.from_bytes(data[index + 1 + i * width :][:width], "little") for i in range(count)]
            starts = [sum(sizes[:i]) for i in range(count) if sizes[i]]
    return sum(map(_vp9_shows, (data[start] for start in starts if start < len(data)))) == 1


def _vp9_shows(byte: int) -> bool:
    """From a frame's first byte: show_existing_frame or show_frame, which profile 3 has a bit later."""
    return bool(byte & (0x05 if byte & 0x30 == 0x30 else 0x0A))
