"""File formats that the decoder reads, and the file names' suffixes that stand for them. Imports nothing."""

from __future__ import annotations

SUFFIXES_OF = {
    "mov": (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mj2", ".mp4v"),
    "matroska": (".mkv", ".mk3d", ".webm"),
    "avi": (".avi", ".divx"),
    "mpeg": (".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".mod"),
    "mpegts": (".ts", ".mts", ".m2ts", ".m2t", ".tod"),
    "mpegvideo": (".m1v", ".m2v", ".mpv"),
    "flv": (".flv",),
    "ogg": (".ogv", ".ogm"),  # .ogg is sound, nearly always
    "asf": (".wmv", ".asf"),
    "mxf": (".mxf",),
    "gif": (".gif",),
    "ivf": (".ivf",),
    "nut": (".nut",),
    "rm": (".rm", ".rmvb"),
    "dv": (".dv", ".dif"),
    "m4v": (),  # raw MPEG-4; .m4v is nearly always "mov"
    "h264": (".h264", ".264"),
    "hevc": (".hevc", ".h265", ".265"),
    "obu": (".obu",),
    "mp3": (),  # sound: read so far that the message says so
    "wav": (),
}
"""FFmpeg's names of the formats that `video_gn.data.decode` reads -> suffixes of videos in them, in small letters."""

SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
"""Suffixes by which a file of a folder is taken for a video, in any letter case."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
"""Suffixes of images, in small letters."""
