"""The decoders' libraries, imported when one is first used."""

from __future__ import annotations

import functools
import importlib
import logging
import re
import sys
from typing import Any

from video_gn.errors import UserError

logger = logging.getLogger(__name__)

DECODERS = ("auto", "torchcodec", "pyav", "decord")

_MODULES = {"torchcodec": "torchcodec.decoders", "pyav": "av", "decord": "decord"}
_REMEDIES = {
    "torchcodec": "`pip install torchcodec` and install FFmpeg's shared libraries (`apt install ffmpeg`)",
    "pyav": "`pip install av`",
    "decord": "`pip install decord` (it has no wheel for arm64)",
}


def check_decoder(decoder: str) -> None:
    """Raise UserError if `decoder` is not one of DECODERS or cannot be loaded. Cheap after the first call."""
    if decoder not in DECODERS:
        raise UserError(f"decoder {decoder!r} is unknown; choose one of {', '.join(DECODERS)}")
    module = "pyav" if decoder == "auto" else decoder
    if load(module) is None:
        raise UserError(f"decoder {module!r} cannot be loaded here; {_REMEDIES[module]}")


@functools.cache
def load(decoder: str) -> Any:
    """Return the decoder's module, or None where it cannot be loaded; tried once per process."""
    try:
        module = importlib.import_module(_MODULES[decoder])
        package = importlib.import_module(_MODULES[decoder].partition(".")[0])
    except (ImportError, RuntimeError, OSError) as error:
        logger.info("%s cannot be loaded: %s", decoder, error)
        return None
    if decoder == "torchcodec":
        version = tuple(int(part) for part in re.findall(r"\d+", package.__version__)[:2])
        # Before 0.11 it does not rotate; newer versions can be imported without FFmpeg, and then read no video.
        if version < (0, 11) or getattr(package, "ffmpeg_major_version", 0) is None:
            logger.info("torchcodec %s cannot be used", package.__version__)
            return None
    return module


def loaded() -> dict[str, str]:
    """Return the versions of the decoders' packages that have been imported."""
    packages = [sys.modules.get(module.partition(".")[0]) for module in _MODULES.values()]
    return {package.__name__: str(getattr(package, "__version__", "?")) for package in packages if package is not None}
