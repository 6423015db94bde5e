"""What a run needs of this machine, tried out piece by piece: the work of ``tools/doctor.py``.

`CHECKS` lists the checks. Each is a generator of `Line`s that runs in a forked process of its own with a time limit,
so that a library which crashes or hangs costs one error line. Heavy imports are inside the checks: a torch that cannot
be imported is a finding, too.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from video_gn import limits
from video_gn.children import Parent, end_with
from video_gn.data.formats import IMAGE_SUFFIXES, SUFFIXES
from video_gn.errors import UserError
from video_gn.limits import GIB, MIB, size_text

if TYPE_CHECKING:
    from video_gn.config import Config
    from video_gn.data.lists import Record

Status = Literal["ok", "warning", "error"]

SLOW = 10e6  # bytes a second: a rule of thumb, some 20 videos of Kinetics at short side 256
SAMPLE = 64  # files of the data folder that are read
READ_LIMIT, WRITTEN = 64 * MIB, 32 * MIB
LOOKED_FOR = 1000  # files of a list; training looks for all of them
TYPICAL_VIDEO = (256, 340, 300)  # height, width, frames, where no video can be asked: Kinetics at short side 256


class Line(NamedTuple):
    """One finding."""

    status: Status
    name: str
    text: str
    remedy: str = ""
    """A sentence to act on; of an OK line a hint."""


class Target(NamedTuple):
    """What the checks are for."""

    data: Path
    output: Path
    config: Config | None = None


class Check(NamedTuple):
    """One entry of `CHECKS`."""

    name: str
    run: Callable[[Target], Iterable[Line]]
    seconds: float
    remedy: str
    """Where it raises, crashes or takes longer than `seconds`."""
    needs_torch: bool = True


def read_target(path: str | None, overrides: Sequence[str] = ()) -> Target:
    """What a command names: a config file with overrides, a folder of videos, or nothing (the current folder).

    Raises:
        UserError: the config is missing or malformed, or there are overrides and no config.
    """
    if path is not None and "=" in path and not os.path.exists(path):
        overrides, path = [path, *overrides], None
    if path is None or os.path.isdir(path):
        if overrides:
            raise UserError(f"{overrides[0]!r} overrides a value of a config and none is named; name one before it")
        return Target(Path(path or "."), Path("."))
    try:
        from video_gn.config import load_config
    except ImportError as error:
        raise UserError(f"cannot read a config here ({error}); run `pip install -e .`, or name no config") from None
    config = load_config(path, overrides)
    return Target(Path(config.data.root), Path(config.output_dir), config)


def examine(target: Target, checks: Sequence[Check] | None = None) -> Iterator[Line]:
    """The lines of all checks (default `CHECKS`), as they are found. Those that need torch are left out without it."""
    has_torch = True
    left_out = []
    for check in CHECKS if checks is None else checks:
        if check.needs_torch and not has_torch:
            left_out.append(check.name)
            continue
        for line in run_check(check, target):
            yield line
            has_torch &= (line.status, line.name) != ("error", "torch")
        if has_torch and check.name == "torch":
            import torch  # noqa: F401  once, for all the processes that are forked from here
    if left_out:
        yield Line("warning", "left out", ", ".join(left_out), "Mend torch first, then run this again.")


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def run_check(check: Check, target: Target) -> Iterator[Line]:
    """The lines of one check; an exception, a crash and a hang are an error line."""
    deadline = time.monotonic() + check.seconds
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as scratch:
        parent, pid = Parent.current(), os.fork()
        if pid == 0:
            end_with(parent)
            _child(check, target, sender, scratch)
        sender.close()
        with suppress(OSError):  # the child does so, too: whoever comes first
            os.setpgid(pid, pid)
        try:
            while receiver.poll(max(deadline - time.monotonic(), 0)):
                line = receiver.recv()
                if line is None:
                    return
                yield line
            yield Line("error", check.name, f"no answer within {check.seconds:g} s", check.remedy)
        except EOFError:
            yield Line("error", check.name, _last_words(_reap(pid), Path(scratch, "output")), check.remedy)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # with the processes that it started
            _reap(pid)
            receiver.close()


def _child(check: Check, target: Target, sender: Connection, scratch: str) -> NoReturn:
    """Run the check, send its lines and a None, and end without a return to the caller."""
    try:
        os.setpgid(0, 0)
        tempfile.tempdir = scratch  # emptied by the parent, whatever happens here
        output = os.open(os.path.join(scratch, "output"), os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            for line in check.run(target):
                sender.send(line)
        except UserError as error:
            sender.send(user_error_line(check.name, error))
        except Exception as error:
            sender.send(Line("error", check.name, _one_line(error), check.remedy))
        sender.send(None)
    finally:
        os._exit(0)


def _reap(pid: int, seconds: float = 2.0) -> int | None:
    """The exit code (negative: the signal); None if it has none yet, as when a dead network disk holds it."""
    deadline = time.monotonic() + seconds
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
    return None


def _last_words(code: int | None, output: Path) -> str:
    how = f"crashed ({signal.Signals(-code).name})" if code is not None and code < 0 else "ended without an answer"
    said = output.read_text(errors="replace").split("\n") if output.exists() else []
    last = next((line.strip() for line in reversed(said) if line.strip()), None)
    return f"{how}: {last:.160}" if last else how


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def user_error_line(name: str, error: UserError) -> Line:
    """An error line; the remedy is what follows the message's last semicolon."""
    text, semicolon, remedy = str(error).rpartition("; ")
    if not semicolon:
        return Line("error", name, str(error), "Correct the config or the list, then run this again.")
    return Line("error", name, text, f"{remedy[:1].upper()}{remedy[1:].rstrip('.')}.")


# ---------------------------------------------------------------------------------------------------------------------
# Packages


def floors() -> dict[str, str]:
    """Least version by package: those of setup.py, or of the installed copy; without the developers' ones."""
    setup = Path(__file__).parent.parent / "setup.py"
    if setup.is_file():
        text = setup.read_text(encoding="utf-8").partition('"dev"')[0]
    else:
        required = importlib.metadata.requires("video_gn") or []
        text = " ".join(line for line in required if '"dev"' not in line)
    return dict(re.findall(r"([A-Za-z][\w-]*)(?:<[\d.]+,)?>=([\d.]+)", text))


def versions(target: Target) -> Iterator[Line]:
    """One line for Python, torch and what decodes, one for all the rest that is well."""
    yield version_line("Python", "3.10", platform.python_version(), needed=True)
    others = []
    for package, floor in floors().items():
        optional = package in ("torchcodec", "decord")
        line = version_line(package, floor, _installed(package), needed=not optional or _asks_for(target, package))
        if line.status == "ok" and package not in ("torch", "torchvision", "torchcodec", "av", "decord"):
            others.append(f"{package} {line.text}")
        else:
            yield line
    yield Line("ok", "triton", _installed("triton") or "not installed; only kernels on a GPU need it")
    if others:
        yield Line("ok", "others", ", ".join(others))


def version_line(package: str, floor: str, version: str | None, needed: bool) -> Line:
    """Judge a version (None: not installed) against the least one."""
    bad: Status = "error" if needed else "warning"
    remedy = "Use a newer Python." if package == "Python" else f"Run `pip install '{package}>={floor}'`."
    if version is None and not needed:
        return Line("ok", package, f"not installed (optional; {floor} or newer)")
    if version is None:
        return Line("error", package, f"not installed; {floor} or newer is needed", remedy)
    if _numbers(version) < _numbers(floor):
        return Line(bad, package, f"{version} is older than {floor}", remedy)
    return Line("ok", package, version)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """2.15.0+cu132 -> [2, 15, 0]"""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def _asks_for(target: Target, decoder: str) -> bool:
    return target.config is not None and target.config.data.decoder == decoder


def torch_works(target: Target) -> Iterator[Line]:
    """Imports torch and computes with it; torchvision's operators, which a build for another torch lacks."""
    import torch

    error = conv3d_error(torch.device("cpu"), torch.float32)
    if not error <= 0.02:  # NaN is wrong, too
        yield Line("error", "torch", f"Conv3d is off by {error:.0%} on the CPU", TORCH_REMEDY)
    else:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
        yield Line("ok", "torch", f"computes; its build is {build}, {torch.get_num_threads()} CPU threads")
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        yield Line("ok", "torchvision ops", "work")
    except Exception as problem:
        remedy = f"Install it and torch {torch.__version__} with one command of pytorch.org's selector, as one build."
        yield Line("error", "torchvision ops", _one_line(problem), remedy)


def conv3d_error(device: Any, dtype: Any) -> float:
    """Largest difference of a small Conv3d from the CPU's in float64, as a fraction of the largest output."""
    import torch

    numbers = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 4, 28, 28, generator=numbers).to(memory_format=torch.channels_last_3d)
    weight = torch.randn(32, 16, 3, 3, 3, generator=numbers).to(memory_format=torch.channels_last_3d)
    clip, weight = (tensor.to(dtype) for tensor in (clip, weight))  # rounding the input is no fault of the device
    truth = torch.conv3d(clip.double(), weight.double(), padding=1)
    output = torch.conv3d(clip.to(device), weight.to(device), padding=1).double().cpu()
    return float((output - truth).abs().max() / truth.abs().max())


# ---------------------------------------------------------------------------------------------------------------------
# Decoders


def decoder(name: str, target: Target) -> Iterator[Line]:
    """Decodes a rendered clip, out of order, and compares each frame with all rendered ones."""
    from video_gn.data.decode import check_decoder, open_video

    needed = name in ("auto", "pyav") or _asks_for(target, name)
    title = f"decoder {name}"
    module = "av" if name in ("auto", "pyav") else name
    try:
        check_decoder(name)
    except UserError as error:
        line = user_error_line(title, error)
        if importlib.util.find_spec(module) is None and not needed:
            line = Line("ok", title, "not installed (optional)", line.remedy)
        yield line if needed or line.status == "ok" else line._replace(status="warning")
        return
    folder = Path(tempfile.mkdtemp())
    # In another process: PyAV, which writes, shall not be loaded beside the decoder that is tried.
    writer = multiprocessing.get_context("fork").Process(target=_write_clip, args=(Parent.current(), folder))
    writer.start()
    writer.join()
    if writer.exitcode != 0:
        yield Line("error" if needed else "warning", title, "not tried: PyAV cannot write a clip", DECODER_REMEDY)
        return
    import numpy as np

    truth = np.load(folder / "frames.npy")
    order = [len(truth) - 1, *range(0, len(truth) - 1, 3), 1]
    with open_video(folder / "clip.mp4", name) as video:
        counted, reader, decoded = video.num_frames, video.decoder, video.read(order).numpy()
    problem = frames_problem(decoded, truth, order) if counted == len(truth) else f"counts {counted} of {len(truth)}"
    if problem:
        yield Line("error" if needed else "warning", title, problem, DECODER_REMEDY)
    else:
        by = f" by {reader}" if name == "auto" else ""
        yield Line("ok", title, f"decodes H.264{by}; {len(order)} frames of {counted} are the rendered ones")


def _write_clip(parent: Parent, folder: Path) -> None:
    end_with(parent)
    import numpy as np

    from video_gn.data.motion import CLASSES, render, write_video

    frames = render(CLASSES.index("circle"), 0, num_frames=24, size=64)
    write_video(folder / "clip.mp4", frames)
    np.save(folder / "frames.npy", frames)


def frames_problem(decoded: Any, truth: Any, order: Sequence[int]) -> str | None:
    """What is wrong with frames `order` of a video, uint8 (n, H, W, 3), as decoded; `truth` holds all of them."""
    if decoded.shape[1:] != truth.shape[1:]:
        return f"frames of {decoded.shape[1]} x {decoded.shape[2]}, not {truth.shape[1]} x {truth.shape[2]}"
    distances = abs(decoded[:, None].astype("int16") - truth[None]).mean((2, 3, 4))
    for wanted, row in zip(order, distances, strict=True):
        if row[wanted] > 8:  # of 255; compression at this quality alters 1 or 2
            return f"frame {wanted} is off by {row[wanted]:.0f} of 255 on average"
        if row.argmin() != wanted:
            return f"gives frame {row.argmin()} for frame {wanted}"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# GPUs


def gpus(target: Target) -> Iterator[Line]:
    """Each GPU, tried with a Conv3d in fp32 and bf16; cuDNN."""
    import torch

    wanted = target.config is not None and target.config.device == "cuda"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        yield no_gpu_line(nvidia_smi("name"), torch.version.cuda, wanted)
    drivers = nvidia_smi("driver_version")
    for index in range(count):
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        about = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        text = f"{about.name}, {size_text(free)} of {size_text(total)} free, compute {about.major}.{about.minor}, "
        text += f"driver {drivers[0] if drivers else 'unknown'}, CUDA {torch.version.cuda}, "
        text += "bf16" if bf16 else "no bf16: trains in fp32"
        errors = {d: conv3d_error(device, d) for d in ([torch.float32, torch.bfloat16] if bf16 else [torch.float32])}
        wrong = [f"{str(d).removeprefix('torch.')} by {error:.0%}" for d, error in errors.items() if not error <= 0.02]
        if wrong:
            yield Line("error", f"GPU {index}", f"{text}; Conv3d is off in {', '.join(wrong)}", TORCH_REMEDY)
        elif free < 0.8 * total:
            yield Line("warning", f"GPU {index}", text, "End the other programs on it; `nvidia-smi` names them.")
        else:
            yield Line("ok", f"GPU {index}", text)
    yield cudnn_line(torch.__version__, torch.backends.cudnn.version(), count > 0)


def no_gpu_line(names: list[str], cuda: str | None, wanted: bool) -> Line:
    """Judge a torch (built for `cuda`, None: the CPU) that sees none of the GPUs that the driver names."""
    if names:
        build = f"built for CUDA {cuda}" if cuda else "built for the CPU alone"
        remedy = "Install a torch that fits the driver (pytorch.org's selector), and look at CUDA_VISIBLE_DEVICES."
        text = f"the driver sees {', '.join(names)}, torch ({build}) sees none"
        return Line("error" if wanted else "warning", "GPU", text, remedy)
    if wanted:
        return Line("error", "GPU", "none, and the config's device is cuda", "Set device=auto, or use a GPU's machine.")
    return Line("ok", "GPU", "none; runs use the CPU")


def nvidia_smi(field: str) -> list[str]:
    """A field of each GPU, as the driver tells it; empty without a driver."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def cudnn_line(torch_version: str, cudnn: int | None, has_gpu: bool) -> Line:
    """cuDNN and the torch version with a bad Conv3d. It is wrong, and not just slow, with cuDNN (91500: 9.15) below."""
    from video_gn.distributed.precision import conv3d_hazard

    name = "none" if cudnn is None else f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    hazard = conv3d_hazard(torch_version)
    if hazard is None:
        return Line("ok", "cuDNN", f"{name}; torch {torch_version} is not known for a bad Conv3d")
    if not has_gpu:
        return Line("ok", "cuDNN", f"{name}; torch {torch_version} has a bad Conv3d on GPUs alone")
    status: Status = "error" if cudnn is None or cudnn < 91500 else "warning"
    text = hazard.removeprefix("warning: ").partition("; ")[0]
    return Line(status, "cuDNN", f"{name}; {text}", "Install another torch than 2.9.")


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def lists(target: Target) -> Iterator[Line]:
    """The data folder; each list of the config, and whether some of its files are there."""
    if not target.data.is_dir() and not (target.config and "://" in target.config.data.root):
        yield Line("error", "data folder", f"{target.data}: no such folder", "Name the right one, as data.root=FOLDER.")
        return
    if target.config is None:
        return
    data = target.config.data
    for name in dict.fromkeys((data.train_list, data.val_list, data.test_list)):
        try:
            yield Line("ok", f"list {name}", _list_text(target.config, name))
        except UserError as error:
            yield user_error_line(f"list {name}", error)


def labels(target: Target) -> Iterator[Line]:
    """What is odd about the training and validation lists, where both can be read."""
    config = target.config
    if config is None:
        return
    from video_gn.engine.datasets import class_names, list_warnings, quarantine

    try:
        train, val = (_records(config, name) for name in (config.data.train_list, config.data.val_list))
        bad = quarantine(config)
        warnings = list_warnings([record for record in train if record.path not in bad], val, class_names(config))
    except UserError:
        return  # reported by `lists`
    for warning in warnings:
        line = user_error_line("labels", UserError(warning))
        yield line._replace(status="warning")


def _list_text(config: Config, name: str) -> str:
    from video_gn.data.lists import check_files
    from video_gn.engine.datasets import quarantine

    records = _records(config, name)
    if config.data.kind == "images":
        return f"{len(records):,} images"
    bad = quarantine(config)
    wanted = [record for record in records if record.path not in bad]
    some = wanted[:: max(math.ceil(len(wanted) / LOOKED_FOR), 1)]
    check_files(some, config.data.root, name)
    return f"{len(records):,} videos; {len(some):,} of them looked for and there"


def _records(config: Config, name: str) -> list[Record]:
    """Return the records of a list, without a look at its files."""
    from video_gn.data.images import read_image_folder
    from video_gn.data.lists import read_list
    from video_gn.engine.datasets import class_names

    data = config.data
    if data.kind == "images":
        return read_image_folder(name, data.root, config.model.num_classes)
    names = None if data.class_names is None else class_names(config)
    return read_list(name, data.root, config.model.num_classes, names, absolute_paths=data.absolute_paths)


def sample_files(target: Target) -> list[Path]:
    """Up to SAMPLE videos or images: of the training list, or else found in the data folder."""
    config = target.config
    suffixes = SUFFIXES
    if config is not None and config.data.kind == "images":
        suffixes = frozenset(IMAGE_SUFFIXES)
    elif config is not None:
        from video_gn.data.lists import video_path

        with suppress(UserError):
            records = _records(config, config.data.train_list)
            paths = [Path(video_path(record, config.data.root)) for record in records]
            return [path for path in paths[:: math.ceil(len(paths) / SAMPLE)] if path.is_file()]
    folders = islice(os.walk(target.data), 1000)
    files = (Path(folder, name) for folder, _, names in folders for name in sorted(names))
    return list(islice((path for path in files if path.suffix.lower() in suffixes), SAMPLE))


def read_speed(target: Target) -> Iterator[Line]:
    """Reads some of the data, or a temporary file where there is none."""
    if not target.data.is_dir():
        return  # said by `lists`
    files = sample_files(target)
    if files:
        begin = time.perf_counter()
        size = _read_files(files)
        seconds = time.perf_counter() - begin
        yield read_speed_line(str(target.data), f"{len(files)} files", size, seconds, len(files))
        return
    try:
        with tempfile.TemporaryFile(dir=target.data) as file:
            size = _write(file.fileno(), WRITTEN)
            begin = time.perf_counter()
            _read_files([Path(f"/proc/self/fd/{file.fileno()}")])
            seconds = time.perf_counter() - begin
        yield read_speed_line(str(target.data), "a temporary file, no video found", size, seconds, 1)
    except OSError as error:
        text = f"{target.data}: no video in it, nor room for a test of its speed ({error.strerror})"
        yield Line("warning", "data folder", text, "Name the folder of the videos, or a config.")


def _read_files(paths: Sequence[Path]) -> int:
    """Reads up to READ_LIMIT bytes, dropped from the page cache before where the system agrees; their number."""
    size = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            with suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while size < READ_LIMIT and (chunk := file.read(MIB)):
                size += len(chunk)
    return size


def _write(descriptor: int, size: int) -> int:
    """Writes random bytes through to the disk."""
    block = os.urandom(MIB)
    for _ in range(size // MIB):
        os.write(descriptor, block)
    os.fsync(descriptor)
    return size


def read_speed_line(folder: str, what: str, size: int, seconds: float, files: int) -> Line:
    """Judge `size` bytes of `files` files read in `seconds`: slow is few bytes and few files a second."""
    seconds = max(seconds, 1e-6)
    text = f"{folder}: {what}, {size / 1e6:.1f} MB at {size / seconds / 1e6:,.0f} MB/s"
    text += f", {files / seconds:,.0f} files/s" if files > 1 else ""
    if size / seconds < SLOW and files / seconds < 20:
        return Line("warning", "data folder", text, "Copy the data to a local disk: training will wait for it.")
    return Line("ok", "data folder", f"{text} (the page cache may flatter)")


def output_folder(target: Target) -> Iterator[Line]:
    """Whether the run's folder can be made, its space for the checkpoints, and the speed of writing."""
    place = target.output.absolute()
    while not place.exists():
        place = place.parent
    need = checkpoint_bytes(target.config) if target.config is not None else 0
    free = shutil.disk_usage(place).free
    text = f"{target.output}: {size_text(free)} free"
    if need:
        text += f", checkpoints take up to {size_text(need)}"
    if free < max(need, 2 * WRITTEN):
        yield Line("error", "output folder", text, "Free space there, or set output_dir to a folder on another disk.")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            begin = time.perf_counter()
            speed = _write(file.fileno(), WRITTEN) / (time.perf_counter() - begin)
    except OSError as error:
        text = f"{target.output}: cannot be written ({error.strerror})"
        yield Line("error", "output folder", text, "Set output_dir to a folder that you may write to.")
        return
    text += f", writes at {speed / 1e6:,.0f} MB/s"
    if free < max(2 * need, GIB):
        yield Line("warning", "output folder", text, "Free space there before a long run.")
    elif speed < SLOW:
        yield Line("warning", "output folder", text, "Set output_dir to a local disk: each checkpoint halts training.")
    else:
        yield Line("ok", "output folder", text)


def checkpoint_bytes(config: Config) -> int:
    """Of those that are kept, best.pt and the one that is being written: weights and SGD's momentum in fp32."""
    from video_gn.models import build_model

    model = build_model(config.model, config.dims)
    weights = sum(p.numel() for p in model.parameters())
    return 4 * (config.checkpoint.keep + 2) * (2 * weights + sum(b.numel() for b in model.buffers()))


# ---------------------------------------------------------------------------------------------------------------------
# The machine's limits


class Loading(NamedTuple):
    """What the decoding workers of all local ranks take."""

    ranks: int
    workers: int
    """Of one rank."""
    shared: int
    """Bytes in shared memory."""
    files: int
    """Open files of one process."""
    about: str
    """The video that was assumed."""

    @property
    def crew(self) -> str:
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'} x {self.workers} workers"


def machine(target: Target) -> Iterator[Line]:
    """Shared memory, open files, memory and cores, against what the config's workers need."""
    loading = None if target.config is None else _loading(target, target.config)
    if (space := limits.shared_memory()) is not None:
        yield shared_memory_line(space.free, loading)
    yield open_files_line(*resource.getrlimit(resource.RLIMIT_NOFILE), loading)
    group = cgroup_limits()
    kib = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text())}
    available, total = (min(1024 * kib[key], group.memory) for key in ("MemAvailable", "MemTotal"))
    yield memory_line(available, total, loading)
    yield cores_line(min(len(os.sched_getaffinity(0)), group.cores), loading)


def _loading(target: Target, config: Config) -> Loading:
    import torch

    from video_gn.data.decode import VideoError, open_video
    from video_gn.data.images import ImageReader

    ranks = 1 if config.device == "cpu" else max(torch.cuda.device_count(), 1)
    size, about = TYPICAL_VIDEO, "assumed {} x {}, {} frames"
    images = config.data.kind == "images"
    for path in sample_files(target)[:3] if target.data.is_dir() else []:
        with suppress(VideoError, UserError), ImageReader(str(path)) if images else open_video(path, "pyav") as video:
            size, about = (video.height, video.width, video.num_frames), f"{path.name}: {{}} x {{}}, {{}} frames"
            break
    return loading(config, ranks, *size, about.format(*size))


def loading(config: Config, ranks: int, height: int, width: int, num_frames: int, about: str = "") -> Loading:
    """What workers take for videos of one size. While a training run evaluates, it has two loaders, 2 batches ahead."""
    import numpy as np

    from video_gn.data.augment import area_reduction, cut, eval_views, reduction
    from video_gn.data.sampling import clip_indices, uniform_starts

    data, test = config.data, config.test
    clip_frames = 1 if data.stride == 0 else min(data.frames, num_frames)
    if data.area is not None:
        clip = clip_frames * 3 * height * width // area_reduction(height, width, data.crop, data.area) ** 2
    else:
        side = min(height, width) * data.crop / data.short_side[0] / reduction(height, width, data.short_side[1])
        clip = clip_frames * 3 * int(side * side)
    starts = uniform_starts(num_frames, data.frames, data.stride, test.clips, test.clip_starts)
    wanted = np.unique([clip_indices(start, data.frames, data.stride, num_frames) for start in starts])
    k = reduction(height, width, test.short_side)
    (_, _, box_height, box_width), _ = cut(eval_views(test.views, height // k, width // k, data.crop, test.short_side))
    clips = 2 * data.workers * 2 * config.train.clips_per_gpu
    shared = max(clips * clip, data.workers * len(wanted) * 3 * box_height * box_width)
    return Loading(ranks, data.workers, ranks * shared, 256 + clips, about)


def shared_memory_line(free: int, loading: Loading | None) -> Line:
    """Judge /dev/shm, through which workers hand over their clips; Docker's default is 64 MiB."""
    text = f"{size_text(free)} free in /dev/shm"
    if loading is None:
        return Line("ok" if free >= GIB else "warning", "shared memory", text, "" if free >= GIB else SHM_REMEDY)
    text += f", {loading.crew} take up to {size_text(loading.shared)} ({loading.about})"
    if free < loading.shared:
        return Line("error", "shared memory", text, SHM_REMEDY)
    return Line("ok", "shared memory", text)


def open_files_line(soft: int, hard: int, loading: Loading | None) -> Line:
    """Judge the limit of open files: a clip on its way from a worker holds one. All of them at once are rare."""
    need = 4096 if loading is None else loading.files
    soft, hard = (2**63 if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))
    text = "no limit" if soft == 2**63 else f"limit {soft:,}"
    raised = min(hard, limits.OPEN_FILES)
    if soft < raised:
        text += f", which a run raises to {raised:,}"
    text += "" if loading is None else f"; a run takes up to about {need:,}"
    if max(soft, raised) >= need:
        return Line("ok", "open files", text)
    remedy = f"Run `ulimit -n {need}` in the shell before."
    if hard < need:
        remedy = f"Have the administrator raise the hard limit, {hard:,}, or set data.workers lower."
    return Line("warning", "open files", text, remedy)


def memory_line(available: float, total: float, loading: Loading | None) -> Line:
    """Judge the memory against shared memory and, by rule of thumb, 2 GiB a rank."""
    need = 2 * GIB if loading is None else loading.shared + 2 * GIB * loading.ranks
    text = f"{size_text(available)} of {size_text(total)} available"
    if available < need:
        remedy = "Set data.workers or train.clips_per_gpu lower, or end other programs."
        return Line("warning", "memory", f"{text}, {size_text(need)} are wanted", remedy)
    return Line("ok", "memory", text)


def cores_line(cores: float, loading: Loading | None) -> Line:
    """Judge the cores against the number of decoding processes."""
    text = f"{cores:g} usable"
    if loading is None:
        return Line("ok", "cores", text)
    text += f", {loading.crew} decode"
    if loading.ranks * loading.workers > cores:
        remedy = f"Set data.workers={max(int(cores) // loading.ranks, 1)}: more only take turns."
        return Line("warning", "cores", text, remedy)
    return Line("ok", "cores", text)


class Limits(NamedTuple):
    """Of a control group; infinite where there is none."""

    memory: float
    cores: float


def cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """The least memory (bytes) and cores that this process' control groups (version 2 or 1) and those above allow."""
    memory, cores = [math.inf], [math.inf]
    for line in own.read_text().splitlines() if own.exists() else []:
        _, kinds, path = line.split(":", 2)
        top = root / kinds if kinds else root
        group = top / path.strip("/")
        for place in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
            memory += _read_numbers(place / ("memory.limit_in_bytes" if kinds else "memory.max"))[:1]
            if kinds:
                quota = _read_numbers(place / "cpu.cfs_quota_us") + _read_numbers(place / "cpu.cfs_period_us")
            else:
                quota = _read_numbers(place / "cpu.max")
            if len(quota) == 2 and quota[0] > 0:
                cores.append(quota[0] / quota[1])
    return Limits(min(memory), min(cores))


def _read_numbers(path: Path) -> list[float]:
    """Numbers of a control group's file; "max" is infinite."""
    try:
        return [math.inf if word == "max" else float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


# ---------------------------------------------------------------------------------------------------------------------
# Ranks


def all_reduce(backend: str, target: Target) -> Iterator[Line]:
    """Two ranks add up a tensor; NCCL's on two GPUs, left out where there are fewer."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parent = Parent.current()
    ranks = [context.Process(target=_rank, args=(parent, backend, rank, port, answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    title = f"all-reduce {backend}"
    remedy = NCCL_REMEDY if backend == "nccl" else GLOO_REMEDY
    if any(process.exitcode for process in ranks):
        codes = " and ".join(str(process.exitcode) for process in ranks)
        yield Line("error", title, f"the two ranks ended with {codes}", remedy)
        return
    found = [answers.get() for _ in ranks]
    if None in found:
        return
    wrong = [answer for answer in found if answer != 3.0]
    if wrong:
        yield Line("error", title, f"{wrong[0]}", remedy)
    else:
        yield Line("ok", title, "2 ranks on 127.0.0.1 agree")


def _rank(parent: Parent, backend: str, rank: int, port: int, answers: Any) -> None:
    """Put 1 + 2 = 3.0 as it was added up, or what went wrong, or None for too few GPUs."""
    end_with(parent)
    import torch
    import torch.distributed as dist

    device = "cpu"
    if backend == "nccl":
        if torch.cuda.device_count() < 2:
            return answers.put(None)
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    try:
        limit = datetime.timedelta(seconds=15)
        place = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(backend, init_method=place, rank=rank, world_size=2, timeout=limit)
        tensor = torch.full((1000,), rank + 1.0, device=device)
        dist.all_reduce(tensor)
        low, high = tensor.min().item(), tensor.max().item()
        answers.put(low if low == high else f"added up to {low} and {high}, not 3.0")
        dist.destroy_process_group()
    except Exception as error:
        answers.put(_one_line(error))
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Output


def text_of(line: Line, colour: bool) -> str:
    """A line for a person, with its remedy below."""
    word = {"ok": "OK", "warning": "warning", "error": "error"}[line.status].ljust(7)
    if colour:
        word = f"\x1b[{ ({'ok': 32, 'warning': 33, 'error': 31}[line.status]) }m{word}\x1b[0m"
    text = f"{word}  {line.name:<18}  {line.text}"
    return f"{text}\n{'':29}-> {line.remedy}" if line.remedy else text


def colours() -> bool:
    """Whether stdout takes them: a terminal, and no NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


TORCH_REMEDY = "Install torch anew, with the command that pytorch.org's selector gives for this driver."
DECODER_REMEDY = (
    "Run `pip install -e .` for a version that fits (INSTALL.md), or set data.decoder to one that is OK here."
)
DISK_REMEDY = "Try `ls` there: a network disk may hang; copy the data to a local one."
SHM_REMEDY = f"{limits.SHARED_MEMORY_REMEDY[:1].upper()}{limits.SHARED_MEMORY_REMEDY[1:]}."
GLOO_REMEDY = (
    "Let this machine's name resolve (/etc/hosts), allow 127.0.0.1, or set GLOO_SOCKET_IFNAME=lo for one node."
)
NCCL_REMEDY = "Run again with NCCL_DEBUG=INFO, which says why; NCCL_P2P_DISABLE=1 gets round bad links between GPUs."

CHECKS = (
    Check("versions", versions, 20, "Run `pip install -e .` in the checkout.", needs_torch=False),
    Check("torch", torch_works, 90, TORCH_REMEDY, needs_torch=False),
    Check("decoder auto", partial(decoder, "auto"), 60, DECODER_REMEDY),
    Check("decoder pyav", partial(decoder, "pyav"), 60, DECODER_REMEDY),
    Check("decoder torchcodec", partial(decoder, "torchcodec"), 60, DECODER_REMEDY),
    Check("decoder decord", partial(decoder, "decord"), 60, DECODER_REMEDY),
    Check("GPU", gpus, 120, "Look at `nvidia-smi`; reboot or update the driver if it fails, too."),
    Check("lists", lists, 120, DISK_REMEDY),
    Check("labels", labels, 120, DISK_REMEDY),
    Check("data folder", read_speed, 60, DISK_REMEDY, needs_torch=False),
    Check("output folder", output_folder, 60, "Set output_dir to a folder on a local disk."),
    Check("machine", machine, 60, SHM_REMEDY),
    Check("all-reduce gloo", partial(all_reduce, "gloo"), 40, GLOO_REMEDY),
    Check("all-reduce nccl", partial(all_reduce, "nccl"), 90, NCCL_REMEDY),
)
"""All checks, in the order of their lines."""
