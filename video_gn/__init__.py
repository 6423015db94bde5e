"""video_gn: 3D ConvNets with Group Normalization, trained and tested on video.

Importing the package imports nothing heavy, so that every tool's ``--help`` answers at once: `video_gn.load` (see
`video_gn.inference`) is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_gn.inference import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from video_gn.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
