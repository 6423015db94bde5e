"""Files of other people without their code: torch's archives, and pickles of which only plain data is made."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from video_gn.files import digest

SAVE = "torch.save(model.state_dict(), 'weights.pt')"
LOOKED_UP = re.compile(r"GLOBAL (\S+)")
"""How torch names what a pickle asks for and does not get."""


class Refused(Exception):
    """A sound file that does not hold weights as data. The message says what it holds and the remedy."""


def load_torch(path: Path) -> Any:
    """Read a file of torch.save onto the CPU, checksums included. No code of the file is run.

    Raises:
        Refused: it holds TorchScript, a network as objects, or other objects.
        Exception: of many kinds, for a damaged file.
    """
    _check_kind(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *STAND_INS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols, which are refused below
            return _load_checked(path)
    except pickle.UnpicklingError as error:  # torch's text recommends to load it unsafely
        if (found := LOOKED_UP.search(str(error))) is not None:
            raise refusal(path, found[1]) from None
        if "Unsupported operand" in str(error):
            raise refusal(path, "a pickle of another protocol than torch.save's own") from None
        raise ValueError(str(error).rpartition("error: ")[2]) from None


def load_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, strings, numbers and arrays of numbers (as `Array`). No code of it is run.

    Raises:
        Refused: it holds something else.
        Exception: of many kinds, for a damaged file.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()  # latin1: Python 2 wrote an array's bytes as a string
    except _NotPlain as error:
        raise refusal(path, str(error)) from None


def refusal(path: Path, found: str) -> Refused:
    """Say what a file holds in which `found`, which is not data, was met."""
    if any(name.startswith("torch.nn.modules.") for name in _globals_in(path)):
        return Refused(
            "holds a complete network as pickled objects (torch.save(model)), which only its own code can load; with "
            f"that code, save its weights: {SAVE}"
        )
    if found.startswith(("torch._utils.", "torch.storage.")):
        return Refused(f"holds tensors written by pickle.dump ({found}), not by torch.save; save its weights: {SAVE}")
    return Refused(f"holds more than arrays and plain values ({found}); save only its weights: {SAVE}")


def _load_checked(path: Path) -> Any:
    # A file that is older than torch 1.6 is no zip archive, and has neither checksums nor a digest.
    return digest.load(path) if _is_zip(path) else torch.load(path, map_location="cpu", weights_only=True)


def _is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive, intact or not."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _check_kind(path: Path) -> None:
    """Raise Refused where a zip archive is not torch.save's."""
    if not _is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    members = {name.partition("/")[2] for name in names}  # torch writes into one folder
    if "constants.pkl" in members:
        raise Refused(
            "a TorchScript archive (torch.jit.save), a program; save its weights: "
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pt')"
        )
    if "models/model.json" in members or "serialized_exported_program.json" in names:
        raise Refused(
            "a program of torch.export; save its weights: "
            f"torch.save(dict(torch.export.load('{path.name}').state_dict), 'weights.pt')"
        )
    if "data.pkl" not in members:
        some = ", ".join(names[:3]) or "nothing"
        raise Refused(f"a zip archive of other files ({some}), not one of torch.save; give a file of weights")


def _globals_in(path: Path) -> set[str]:
    """Names that the pickles of a file would look up, by their opcodes; nothing is looked up or made."""
    if not _is_zip(path):
        with path.open("rb") as file:
            return _globals_of(file)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        with archive.open(name) as file:
            return _globals_of(file)  # type: ignore[arg-type]


def _globals_of(file: BinaryIO) -> set[str]:
    names: set[str] = set()
    strings: list[str] = []
    try:
        for _ in range(5):  # torch's old format: magic number, protocol, system, objects, keys of the storages
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # the end of the file, or damage; the names are for a message only
        pass
    return names


class _NotPlain(pickle.UnpicklingError):
    """What was asked for."""


class _Unpickler(pickle.Unpickler):
    """Makes dicts, lists, strings, numbers and arrays of numbers. All that a pickle can call are these stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        known = {path: stand_in for stand_in, path in STAND_INS}
        known |= {"collections.OrderedDict": dict, "_codecs.encode": _encode}
        if (path := f"{module}.{name}") not in known:
            raise _NotPlain(path)
        return known[path]


class _DType:
    """Stands in for `numpy.dtype` of numbers."""

    def __init__(self, code: str, *_flags: object) -> None:
        if not re.fullmatch("[fiub][1-8]", code):
            raise _NotPlain(f"an array of dtype {code}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        if byte_order in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(byte_order)


class Array:
    """Stands in for `numpy.core.multiarray._reconstruct`; what it makes is filled by `__setstate__`."""

    tensor: Tensor | None = None

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, columns_first, data = state
        self.fill(data, dtype, shape, "F" if columns_first else "C")

    def fill(self, data: Any, dtype: _DType, shape: tuple[int, ...], order: Any) -> None:
        """Make the tensor of an array's bytes; Python 2's come as a string."""
        raw = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(raw, dtype.numpy).reshape(shape, order=order)
        self.tensor = torch.from_numpy(array.astype(dtype.numpy.newbyteorder("="), order="C"))


def _from_buffer(data: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> Array:
    """Stand in for `numpy.core.numeric._frombuffer`, of pickle protocol 5."""
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


def _scalar(dtype: _DType, data: Any) -> Array:
    return _from_buffer(data, dtype, (), "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise _NotPlain(f"the encoding {encoding}")
    return text.encode("latin1")


class _Unused:
    """Stands in for `numpy.ndarray`, an argument of `_reconstruct` that is not looked at."""


STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (_Unused, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    *(
        (stand_in, f"numpy.{core}.{name}")
        for core in ("core", "_core")  # its name since NumPy 2
        for stand_in, name in (
            (Array, "multiarray._reconstruct"),
            (_scalar, "multiarray.scalar"),
            (_from_buffer, "numeric._frombuffer"),
        )
    ),
]
"""What is called where a file names NumPy: (function, name)."""
