"""Checkpoints: kills, damage, full disks and foreign files."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from video_gn.errors import UserError
from video_gn.files.atomic import temporary_path
from video_gn.models.weights import read_weights
from video_gn.run import checkpoint as ckpt

NAMES = {"last.pt", "previous.pt"}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code may catch it."""


def state(step: int, size: int = 3) -> ckpt.Checkpoint:
    optimizer = {"state": {0: {"momentum_buffer": torch.full((size,), step / 2)}}, "param_groups": [{"lr": 0.1}]}
    weights = {"weight": torch.full((size,), float(step))}
    return {"model": weights, "optimizer": optimizer, "step": step, "best_error": 50.0, "config": {"seed": 0}}


def last_step(folder: Path) -> int:
    """Step of what a run resumes from, after checking that it is intact."""
    loaded = ckpt.load_last(folder, warn=lambda text: None)
    assert loaded is not None
    assert loaded["model"]["weight"].tolist() == [loaded["step"]] * 3
    return loaded["step"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let the kernel refuse to make files larger than `size` bytes, as it does when a disk is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    ckpt.save(tmp_path / "best.pt", state(7))
    loaded = ckpt.load(tmp_path / "best.pt")
    assert (loaded["step"], loaded["best_error"], loaded["config"]) == (7, 50.0, {"seed": 0})
    assert loaded["model"]["weight"].tolist() == [7, 7, 7]
    assert loaded["optimizer"]["state"][0]["momentum_buffer"].tolist() == [3.5, 3.5, 3.5]
    assert names(tmp_path) == {"best.pt"}


def test_keys_that_have_been_renamed_have_their_present_names(tmp_path: Path) -> None:
    """A checkpoint outlives them, and its run resumes."""
    ckpt.save(tmp_path / "old.pt", {"model": {}, "step": 1, "config": {"data": {"colour_jitter": 0.4, "flip": 0.5}}})
    assert ckpt.load(tmp_path / "old.pt")["config"] == {"data": {"color_jitter": 0.4, "flip": 0.5}}


def test_save_last_keeps_the_one_before(tmp_path: Path) -> None:
    assert ckpt.load_last(tmp_path, warn=pytest.fail) is None
    for step in (1, 2, 3):
        ckpt.save_last(tmp_path, state(step))
        assert last_step(tmp_path) == step
    assert names(tmp_path) == NAMES
    assert ckpt.load(tmp_path / "previous.pt")["step"] == 2


def steps_of(folder: Path) -> dict[str, int]:
    return {path.name: ckpt.load(path)["step"] for path in folder.iterdir()}


def test_as_many_stay_as_asked_for(tmp_path: Path) -> None:
    for step in range(1, 7):
        ckpt.save_last(tmp_path, state(step), keep=4)
    assert steps_of(tmp_path) == {"last.pt": 6, "previous.pt": 5, "previous_2.pt": 4, "previous_3.pt": 3}
    ckpt.save_last(tmp_path, state(7), keep=2)
    assert steps_of(tmp_path) == {"last.pt": 7, "previous.pt": 6}


def test_the_newest_whole_one_of_many_is_found(tmp_path: Path) -> None:
    for step in range(1, 13):
        ckpt.save_last(tmp_path, state(step), keep=12)
    for name in ("last.pt", "previous.pt", "previous_2.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    assert last_step(tmp_path) == 9
    ckpt.save_last(tmp_path, state(13), keep=4)
    names = ["last.pt", "previous_3.pt"] + [f"{name}.pt.damaged" for name in ("last", "previous", "previous_2")]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert last_step(tmp_path) == 13


def test_a_kill_between_the_moves_leaves_all_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fatal in range(4):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        for step in (1, 2, 3):
            ckpt.save_last(folder, state(step), keep=4)
        calls = [0]

        def dying(source: Path, target: Path, fatal: int = fatal, calls: list[int] = calls) -> None:
            if calls[0] == fatal:
                raise Killed
            calls[0] += 1
            Path(source).rename(target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", dying)
            ckpt.save_last(folder, state(4), keep=4)
        assert last_step(folder) == 3
        assert sorted(steps_of_whole(folder)) == [1, 2, 3]


def steps_of_whole(folder: Path) -> list[int]:
    return [ckpt.load(path)["step"] for path in folder.glob("*.pt") if not path.name.startswith(".")]


@pytest.mark.parametrize(("call", "found"), [("fsync 1", 2), ("replace 1", 2), ("replace 2", 2), ("fsync 2", 3)])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, found: int, after: bool
) -> None:
    """A kill right before or right after each step that makes something durable."""
    ckpt.save_last(tmp_path, state(1))
    ckpt.save_last(tmp_path, state(2))
    counts = {"fsync": 0, "replace": 0}

    def dying(name: str, real: Callable[..., object]) -> Callable[..., None]:
        def function(*arguments: Any) -> None:
            counts[name] += 1
            fatal = call == f"{name} {counts[name]}"
            if fatal and not after:
                raise Killed
            real(*arguments)
            if fatal:
                raise Killed

        return function

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying("fsync", os.fsync))
        patch.setattr(os, "replace", dying("replace", os.replace))
        with pytest.raises(Killed):
            ckpt.save_last(tmp_path, state(3))
    if call == "replace 2" and after:
        found = 3
    assert last_step(tmp_path) == found
    ckpt.save_last(tmp_path, state(4))
    assert last_step(tmp_path) == 4
    assert ckpt.load(tmp_path / "previous.pt")["step"] == found
    assert names(tmp_path) == NAMES


def test_a_kill_while_writing(tmp_path: Path) -> None:
    ckpt.save_last(tmp_path, state(1))
    whole = (tmp_path / "last.pt").read_bytes()

    class Fatal:
        def __reduce__(self) -> Any:
            raise Killed

    with pytest.raises(Killed):
        ckpt.save_last(tmp_path, {**state(2), "extra": Fatal()})
    assert (tmp_path / "last.pt").read_bytes() == whole
    ckpt.save_last(tmp_path, state(3))
    assert last_step(tmp_path) == 3
    assert names(tmp_path) == NAMES


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def pickled(path: Path) -> None:
    bomb = {**state(9), "model": Bomb(path.parent / "ran")}
    path.write_bytes(pickle.dumps(bomb, protocol=2))  # torch's own protocol


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte lost": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "random": lambda path: path.write_bytes(bytes(7 * i * i % 251 for i in range(3000))),
    "text": lambda path: path.write_text("<html>404</html>"),
    "code": pickled,
    "code in torch's format": lambda path: torch.save({**state(9), "model": Bomb(path.parent / "ran")}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "no step": lambda path: torch.save({"model": {}, "config": {}}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    ckpt.save_last(tmp_path, state(1))
    ckpt.save_last(tmp_path, state(2))
    DAMAGES[damage](tmp_path / "last.pt")
    warnings: list[str] = []
    loaded = ckpt.load_last(tmp_path, warnings.append)
    assert loaded is not None
    assert loaded["step"] == 1
    assert len(warnings) == 2
    assert warnings[0].startswith(f"warning: {tmp_path / 'last.pt'}: ")
    assert warnings[1] == "going on from previous.pt, after step 1"
    assert "\n" not in warnings[0]
    assert not (tmp_path / "ran").exists()

    DAMAGES[damage](tmp_path / "previous.pt")
    with pytest.raises(UserError, match="no checkpoint is intact; start again in another output_dir"):
        ckpt.load_last(tmp_path, warnings.append)
    assert not (tmp_path / "ran").exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    ckpt.save_last(tmp_path, state(1, size=1000))
    whole = bytearray((tmp_path / "last.pt").read_bytes())
    whole[len(whole) // 2] ^= 1  # inside the tensor: torch.load alone reads past it
    (tmp_path / "last.pt").write_bytes(whole)
    with pytest.raises(UserError, match="does not match its SHA-256"):
        ckpt.load(tmp_path / "last.pt")


def test_a_bit_of_the_zip_directory_is_noticed(tmp_path: Path) -> None:
    """It calls a tensor's member a folder: no CRC covers it, and torch.load returns uninitialized memory."""
    for name, write in (("with.pt", ckpt.save), ("without.pt", lambda path, content: torch.save(content, path))):
        write(tmp_path / name, state(1))
        data = bytearray((tmp_path / name).read_bytes())
        member = data.index(b"/data/0", data.index(b"PK\1\2"))
        header = data.rindex(b"PK\1\2", 0, member)
        data[header + 38] ^= 0x10
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"(does not match its SHA-256|/data/0 is not a plain file)\)"):
            ckpt.load(tmp_path / name)
        with pytest.raises(UserError, match="damaged"):
            read_weights(str(tmp_path / name))


def test_the_digest_is_a_comment_that_others_ignore(tmp_path: Path) -> None:
    """SHA-256 of all bytes before it; torch.load, zipfile and struct read the file as any other."""
    path = tmp_path / "last.pt"
    ckpt.save(path, state(1))
    data = path.read_bytes()
    comment = b"video_gn sha256 " + hashlib.sha256(data[:-80]).hexdigest().encode()
    assert data[-80:] == comment
    assert struct.unpack("<H", data[-82:-80]) == (80,)
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == comment
        assert archive.testzip() is None
    for mmap in (False, True):
        assert repr(torch.load(path, weights_only=True, mmap=mmap)) == repr(state(1))


def test_a_checkpoint_without_a_digest_is_loaded(tmp_path: Path) -> None:
    """Versions before 2026-11-25 wrote none."""
    torch.save(state(3), tmp_path / "last.pt")
    assert last_step(tmp_path) == 3
    weights, _ = read_weights(str(tmp_path / "last.pt"))
    assert weights["weight"].tolist() == [3, 3, 3]


def loaded_or_refused(path: Path, data: bytes) -> list[str | None]:
    """What `load` and `read_weights` make of a file of these bytes; None where they refuse it."""
    path.write_bytes(data)
    results: list[str | None] = []
    for read in (ckpt.load, read_weights):
        try:
            results.append(repr(read(path) if read is ckpt.load else read(str(path))[0]))  # type: ignore[operator]
        except UserError:
            results.append(None)
    return results


@pytest.mark.parametrize(("flips", "cuts"), [(100, 20), pytest.param(1000, 200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("with_digest", [True, False])
def test_no_flipped_bit_and_no_cut_changes_what_is_loaded(
    tmp_path: Path, flips: int, cuts: int, with_digest: bool
) -> None:
    """Wherever it is, a file with a digest is refused, and one without it is refused or the same bit for bit."""
    path, rng = tmp_path / "last.pt", random.Random(0)
    content = state(1) | {"model": {f"w{k}": torch.arange(40.0) + k for k in range(12)}}
    if with_digest:
        ckpt.save(path, content)
    else:
        torch.save(content, path)
    intact = path.read_bytes()
    expected = [repr(content), repr(content["model"])]
    assert loaded_or_refused(path, intact) == expected
    refused = 0
    for bit in rng.sample(range(8 * len(intact)), flips):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        for found, right in zip(loaded_or_refused(path, flipped), expected, strict=True):
            assert found in ((None,) if with_digest else (None, right)), bit
            refused += found is None
    assert refused > flips
    for size in [0, 1, 22, len(intact) - 80, len(intact) - 1, *rng.sample(range(len(intact)), cuts)]:
        if with_digest or size < len(intact) - 22:
            assert loaded_or_refused(path, intact[:size]) == [None, None], size


def test_a_damaged_last_one_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    for step in (1, 2):
        ckpt.save_last(tmp_path, state(step))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert last_step(tmp_path) == 1
    ckpt.save_last(tmp_path, state(3))
    assert ckpt.load(tmp_path / "previous.pt")["step"] == 1
    assert (tmp_path / "last.pt.damaged").read_bytes() == b"damaged"


def test_the_bomb_works(tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    pickled(tmp_path / "bomb.pt")
    pickle.loads((tmp_path / "bomb.pt").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("older", [True, False])
def test_a_dangling_link_is_named(tmp_path: Path, older: bool) -> None:
    """It stands for a checkpoint that was moved away: neither an older one nor a start from scratch goes unsaid."""
    if older:
        ckpt.save(tmp_path / "previous.pt", state(1))
    (tmp_path / "last.pt").symlink_to("/absent/last.pt")
    assert ckpt.exists(tmp_path)
    said: list[str] = []
    if not older:
        with pytest.raises(UserError, match="no checkpoint is intact"):
            ckpt.load_last(tmp_path, said.append)
    else:
        loaded = ckpt.load_last(tmp_path, said.append)
        assert loaded is not None and loaded["step"] == 1
        assert said.pop() == "going on from previous.pt, after step 1"
        assert os.readlink(tmp_path / "last.pt.damaged") == "/absent/last.pt"
    assert said == [
        f"warning: {tmp_path / 'last.pt'}: a link to /absent/last.pt, which is missing; "
        "use another checkpoint of the run"
    ]


def test_a_missing_last_one_is_named(tmp_path: Path) -> None:
    ckpt.save(tmp_path / "previous.pt", state(1))
    said: list[str] = []
    ckpt.load_last(tmp_path, said.append)
    assert said == [f"{tmp_path / 'last.pt'} is missing; going on from previous.pt, after step 1"]


def test_names_that_a_run_does_not_write_are_left_alone(tmp_path: Path) -> None:
    stray = [
        "previous_old.pt",
        "previous_1.pt",
        "previous_02.pt",
        "previous (copy).pt",
        "previous_².pt",
        "previousx.pt",
    ]
    for name in stray:
        (tmp_path / name).write_bytes(b"notes")
    assert not ckpt.exists(tmp_path)
    for step in range(1, 5):
        ckpt.save_last(tmp_path, state(step))
        assert last_step(tmp_path) == step
    assert names(tmp_path) == {*NAMES, *stray}


@pytest.mark.parametrize("name", ["best.pt", "previous.pt"])
def test_a_folder_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    ckpt.save_last(tmp_path, state(1))
    (tmp_path / name / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}: cannot be written \(Is a directory\); move that folder away or"):
        ckpt.save(tmp_path / name, state(2)) if name == "best.pt" else ckpt.save_last(tmp_path, state(2))
    assert last_step(tmp_path) == 1
    assert names(tmp_path) == {"last.pt", name}


def test_what_a_kill_leaves_of_a_checkpoint_goes_with_the_next(tmp_path: Path) -> None:
    """Else each kill would leave a file of that size."""
    left = [temporary_path(tmp_path / name) for name in ("last.pt", "best.pt", "mine.pt")]
    others = [path.with_name(path.name.replace(f".{os.getpid()}.", ".7.")) for path in left]
    for path in others:
        path.write_bytes(b"PK half")
    ckpt.save_last(tmp_path, state(1))
    assert names(tmp_path) == {"last.pt", others[2].name}


def test_after_a_kill_the_one_before_alone_is_found(tmp_path: Path) -> None:
    ckpt.save_last(tmp_path, state(1))
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    (tmp_path / ".0123456789ab.7.tmp.pt").write_bytes(b"PK half")
    assert last_step(tmp_path) == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.pt: no such checkpoint; .*runs/NAME/checkpoints/"):
        ckpt.load(tmp_path / "best.pt")


@pytest.mark.parametrize("part", [0, 0.01, 0.1, 0.5, 0.999])
def test_a_full_disk_while_writing(tmp_path: Path, part: float) -> None:
    """torch.save turns a write that fails in the middle into a RuntimeError: that is a full disk as well."""
    ckpt.save_last(tmp_path, state(1, size=100_000))
    before = (tmp_path / "last.pt").read_bytes()
    with files_up_to(int(part * len(before))), pytest.raises(UserError) as caught:
        ckpt.save_last(tmp_path, state(2, size=100_000))
    assert "last.pt: cannot be written" in str(caught.value)
    assert "free space" in str(caught.value)
    assert names(tmp_path) == {"last.pt"}
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_full_disk_at_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt.save(tmp_path / "best.pt", state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"best\.pt: cannot be written \(No space left on device\); free space"):
            ckpt.save(tmp_path / "best.pt", state(2))
    assert names(tmp_path) == {"best.pt"}
    assert ckpt.load(tmp_path / "best.pt")["step"] == 1


def test_weights_are_loaded() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    ckpt.load_model(target, {"model": source.state_dict()}, "best.pt")
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "(bias is missing in the checkpoint)"),
        ({"gamma": torch.ones(2)}, "(gamma is missing in the configured model)"),
        ({"weight": torch.ones(2, 4)}, "(weight is [2, 4], configured [2, 3])"),
        ({"weight": torch.ones(3)}, "(weight is [3], configured [2, 3])"),
    ],
)
def test_weights_of_another_network(change: dict[str, torch.Tensor | None], message: str) -> None:
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {"weight": torch.ones(2, 3), "bias": torch.ones(2), **change}
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(UserError) as caught:
        ckpt.load_model(model, {"model": weights}, "best.pt")
    assert str(caught.value) == f"best.pt: weights of another network {message}; match the model section"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
