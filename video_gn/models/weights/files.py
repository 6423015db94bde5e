"""Files of weights, told apart by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from video_gn.errors import UserError
from video_gn.models.weights.unpickling import Refused, load_pickle, load_torch

FOREIGN = (
    (b"\x89HDF\r\n", "an HDF5 file, as of Keras; give a file of PyTorch"),
    (b"\x08", "a protocol buffer, as of ONNX or TensorFlow; give a file of PyTorch"),
    (b"\x1f\x8b", "compressed by gzip; unpack it and give the file in it"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file that it stands for; fetch that: git lfs pull"),
    (b"{", "JSON, such as the index of several files; give one file with all weights"),
    (b"<", "a web page or XML, as a failed download leaves it; get the file again"),
)
"""First bytes of what is often given in place of weights; no pickle begins with any."""
TAR = 257, b"ustar"


def read_file(path: Path) -> dict[Any, Any]:
    """Read a file of torch.save, a safetensors file or a pickle of arrays. No code of it is run.

    Raises:
        UserError: missing, damaged, or not weights by name.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the file of weights in it, such as model.safetensors or last.pt")
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; give a file, torchvision:NAME or timm:NAME")
    try:
        content = _read(path)
    except Refused as refused:
        raise UserError(f"{path}: {refused}") from None
    except UserError:
        raise
    except Exception as error:  # of many kinds, for a damaged file
        raise UserError(f"{path}: damaged, or not a file of weights ({reason(error)}); get it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name; save its state dict")
    return content


def reason(error: Exception) -> str:
    """Return the first line of what an error says, at most 160 characters."""
    return (str(error) or type(error).__name__).split("\n")[0][:160]


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(512)
    if _is_safetensors(start):
        return _read_safetensors(path)
    if start.startswith(b"PK") or torch.serialization.MAGIC_NUMBER.to_bytes(10, "little") in start[:32]:
        return load_torch(path)
    for magic, what in FOREIGN:
        if start.lstrip().startswith(magic):
            raise Refused(what)
    if start[TAR[0] :].startswith(TAR[1]):
        raise Refused("a tar archive; unpack it and give the file in it")
    return load_pickle(path)


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header, as safetensors limits it, and with JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load
    except ImportError:
        raise UserError(f"{path}: a safetensors file, which needs safetensors; pip install safetensors") from None
    return load(path.read_bytes())
