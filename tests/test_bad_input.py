"""Whatever is read from a file gives what it should or a UserError of one line: no traceback, no code execution."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from video_gn.config import load_config, parse_config
from video_gn.data.lists import read_class_names, read_list
from video_gn.data.prepare import read_report
from video_gn.errors import UserError
from video_gn.models.weights import read_weights
from video_gn.run import checkpoint as ckpt

RULE = settings(max_examples=60, deadline=None)


def outcome(read: Callable[[Path], Any], content: bytes) -> Any:
    """What `read` makes of a file with this content; None for a UserError, which must be one printable line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        try:
            return read(path)
        except UserError as error:
            assert str(error).strip() and len(str(error).splitlines()) == 1
            str(error).encode()
            return None


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with some of its bytes changed, left out or doubled, or cut."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1)) if data else 0
        end = at + draw(st.sampled_from([1, 1, 2, 7, 100]))
        piece = draw(st.sampled_from(["change", "leave out", "double", "cut"]))
        if piece == "change":
            data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
        elif piece == "leave out":
            del data[at:end]
        elif piece == "double":
            data[at:at] = data[at:end]
        else:
            del data[at:]
    return bytes(data)


def saved(content: Any, **options: Any) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


# ---- checkpoints ----

MODEL = torch.nn.Linear(3, 2)
STATE = {"model": MODEL.state_dict(), "config": {"output_dir": "x", "seed": 3}, "step": 7, "lists": {"train": "ab"}}
CHECKPOINT = saved(STATE)


@RULE
@given(damaged(CHECKPOINT) | st.binary(max_size=99))
def test_a_damaged_checkpoint_is_noticed_or_whole(content: bytes) -> None:
    """Changes that the archive does not cover, such as its padding, leave the tensors bit by bit."""
    if (state := outcome(ckpt.load, content)) is not None:
        assert state["step"] == 7 and state["config"] == STATE["config"]
        assert all(torch.equal(state["model"][name], value) for name, value in MODEL.state_dict().items())


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=5) | st.just(torch.zeros(2, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
configs = st.fixed_dictionaries(
    {"output_dir": plain | st.just("x")}, optional={"model": plain, "data": plain, "train": plain, "seed": plain}
)
tensors = st.sampled_from([torch.zeros(2, 3), torch.zeros(2)])
weights = st.dictionaries(st.sampled_from(["weight", "bias", "c"]), tensors | plain, max_size=3)


@RULE
@given(st.fixed_dictionaries({"config": plain | configs, "step": plain, "model": plain | weights}) | plain)
def test_a_foreign_checkpoint_is_refused(content: Any) -> None:
    """A sound file of torch.save with anything plain in it."""

    def read(path: Path) -> None:
        state = ckpt.load(path)
        parse_config(state["config"], ["seed=1"], source=str(path))
        ckpt.load_model(MODEL, state, str(path))

    outcome(read, saved(content))


# ---- pickles and files of torch.save to convert ----


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ARRAYS = {f"conv{n}_w": np.full((2, n), n, np.float32) for n in range(1, 4)}
PICKLE = pickle.dumps({"blobs": ARRAYS}, protocol=2)


def read_any_weights(path: Path) -> Any:
    return read_weights(str(path))


@RULE
@given(damaged(PICKLE) | damaged(saved(ARRAYS | {"a": torch.zeros(5)}, _use_new_zipfile_serialization=False)))
def test_damaged_weights_are_refused(content: bytes) -> None:
    """None of these is a network, whole or not."""
    assert outcome(read_any_weights, content) is None


opcodes = st.sampled_from(
    [bytes([code]) for code in b"(.0125FINJKMRSTUVXabcdehijlopqrstuv}]){\x80\x81\x85\x86\x87\x88\x8c\x93"]
)
globals_ = st.sampled_from([b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"])
globals_ |= st.sampled_from(
    [b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n", b"\x8c\x02os\x8c\x06system\x93"]
)
words = st.sampled_from([b"K\x01", b"U\x01a", b"X\x01\x00\x00\x00b", b"N", b"}", b"(", b"t", b"R", b"b", b"s", b"\x85"])


@settings(RULE, max_examples=200)
@given(st.sampled_from([b"", b"\x80\x02"]), st.lists(opcodes | globals_ | words, max_size=25).map(b"".join))
@example(b"", b"cos\nsystem\n(S'echo'\ntR.")
@example(b"\x80\x02", b"}" * 9 + b".")
def test_any_opcodes_are_refused(start: bytes, code: bytes) -> None:
    assert outcome(read_any_weights, start + code + b".") is None


@pytest.mark.parametrize("torch_file", [None, True, False])
@pytest.mark.parametrize("read", [ckpt.load, read_any_weights])
def test_no_code_runs(tmp_path: Path, read: Callable[[Path], Any], torch_file: bool | None) -> None:
    """A call in a pickle, alone and in either format of torch.save, is not made. (pickle itself makes it.)"""
    mark = tmp_path / "mark"
    content = {**STATE, "model": Call(os.mkdir, str(mark))}
    data = pickle.dumps(content) if torch_file is None else saved(content, _use_new_zipfile_serialization=torch_file)
    assert outcome(read, data) is None
    assert not mark.exists()
    pickle.loads(pickle.dumps(content))
    assert mark.exists()


# ---- text files ----

LIST = '# videos\npath,label\na b.mp4 1\n"c, d" 0\nü.mp4\t2\n'.encode()
CONFIG = b"base: b.yaml\nseed: 3\nmodel: {blocks: [1, 1, 1, 1], norm: gn}\ndata:\n  crop: 64\n  area: null\n"
REPORT = b'path,frames,fps,width,height,duration,problem\na.mp4,3,25,8,8,0.12,\n"b, c.mp4",,,,,cut\n'


@RULE
@given(damaged(LIST) | damaged(REPORT) | st.binary(max_size=60))
def test_any_text(content: bytes) -> None:
    """Lists, class names, configs and reports of prepare: records, names and problems, or a UserError."""
    records = outcome(lambda path: read_list(str(path), path.parent.as_posix(), 3), content)
    assert all(record.path and 0 <= record.target < 3 for record in records or [])
    names = outcome(lambda path: read_class_names(str(path), ".", 2), content)
    assert names is None or (len(set(names)) == 2 and all(names))
    problems = outcome(read_report, content)
    assert all(isinstance(text, str) and text for each in (problems or {}).items() for text in each)
    outcome(load_config, content)


@RULE
@given(damaged(CONFIG))
def test_damaged_configs(content: bytes) -> None:
    config = outcome(load_config, content)
    assert config is None or config.output_dir == "runs/file" or b"output_dir" in content


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system", "!!python/module:os"]
)
def test_yaml_runs_no_code(tmp_path: Path, tag: str) -> None:
    mark = tmp_path / "mark"
    assert outcome(load_config, f"seed: {tag.format(mark)}\n".encode()) is None
    with pytest.raises(UserError):
        parse_config({"output_dir": "x"}, [f"seed={tag.format(mark)}"])
    assert not mark.exists()
