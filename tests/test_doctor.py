"""The doctor: what it says of faked machines, of checks that crash or hang, and of this machine."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import HANG, children, is_running, wait_until
from tests.tiny_runs import tool
from video_gn import doctor
from video_gn.config import Config, load_config, parse_config
from video_gn.doctor import Check, Line, Target, capacity, decoders, folders, gpu, packages, ranks, run_check
from video_gn.doctor.capacity import Loading
from video_gn.errors import UserError

GIB = 2**30
HERE = Target(Path("."), Path("."))
SENTENCE = r"[A-Z`].*\.$"


def config(**data) -> Config:
    return parse_config({"output_dir": "unused", "data": data})


def of_check(run, seconds=HANG) -> list[Line]:
    """The lines of a check run as the tool runs it; `run` is its generator function."""
    return list(run_check(Check("sick", run, seconds, "Do this."), HERE))


# Checks that go wrong


def test_lines_come_as_they_were_found():
    lines = [Line("ok", "a", "x"), Line("warning", "b", "y", "Do.")]
    assert of_check(lambda target: iter(lines)) == lines
    assert of_check(lambda target: []) == []


def dies(target):
    yield Line("ok", "first", "found before")
    faulthandler.disable()
    os.write(2, b"about to\nfail badly\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_segfault_is_an_error_line_with_the_last_words():
    first, crash = of_check(dies)
    assert first == Line("ok", "first", "found before")
    assert crash == Line("error", "sick", "crashed (SIGSEGV): fail badly", "Do this.")


def hangs(pid_file: Path, target):
    child = subprocess.Popen(["sleep", "1000"])
    pid_file.write_text(str(child.pid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(100)
    yield


def test_a_hang_is_an_error_line_and_leaves_no_process(tmp_path):
    assert of_check(partial(hangs, tmp_path / "pid"), 3.0) == [
        Line("error", "sick", "no answer within 3 s", "Do this.")
    ]
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_check_outlives_a_killed_doctor(tmp_path, number):
    def doctor_of_a_hang():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        of_check(partial(hangs, tmp_path / "pid"))

    process = multiprocessing.get_context("fork").Process(target=doctor_of_a_hang)
    process.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    (check,) = children(process.pid)
    os.kill(process.pid, number)
    process.join()
    wait_until(lambda: not is_running(check))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # the `sleep` that this check had started


def raises(error, target):
    raise error
    yield


def test_an_exception_is_an_error_line():
    assert of_check(partial(raises, ValueError("two\nlines"))) == [
        Line("error", "sick", "ValueError: two lines", "Do this.")
    ]
    mistake = UserError("no file 'a.csv'; it is not there; set data.root")
    assert of_check(partial(raises, mistake)) == [
        Line("error", "sick", "no file 'a.csv'; it is not there", "Set data.root.")
    ]
    assert of_check(lambda target: os._exit(0))[0].text == "ended without an answer"


def test_without_torch_what_needs_it_is_left_out():
    torch_fails = Check("torch", partial(raises, ImportError("libcudart.so")), 10, "Install it.", needs_torch=False)
    other = Check("decoders", lambda target: [Line("ok", "never", "said")], 10, "")
    last = Check("plain", lambda target: [Line("ok", "plain", "said")], 10, "", needs_torch=False)
    lines = list(doctor.examine(HERE, [torch_fails, other, last]))
    assert [(line.status, line.name) for line in lines] == [
        ("error", "torch"),
        ("ok", "plain"),
        ("warning", "left out"),
    ]
    assert lines[2].text == "decoders"


# Faked machines


@pytest.mark.parametrize(
    ("version", "floor", "needed", "status"),
    [
        ("2.15.0+cu132", "2.7", True, "ok"),
        ("2.7", "2.7", True, "ok"),
        ("2.6.1", "2.7", True, "error"),
        ("0.10.0", "0.11", False, "warning"),
        (None, "0.11", False, "ok"),
        (None, "17", True, "error"),
    ],
)
def test_versions(version, floor, needed, status):
    line = packages.version_line("name", floor, version, needed)
    assert line.status == status
    assert line.remedy == ("" if status == "ok" else f"Run `pip install 'name>={floor}'`.")


def test_floors_are_those_of_setup_py():
    floors = packages.floors()
    assert {"torch", "torchvision", "av", "numpy", "pydantic", "torchcodec", "decord"} <= floors.keys()
    assert floors["torch"] == "2.7"
    assert "pytest" not in floors


def test_floors_of_an_installed_copy(monkeypatch, tmp_path):
    """Where there is no setup.py; packaging has sorted the limits."""
    required = ["torch>=2.7", "av<20,>=17", 'torchcodec>=0.11; extra == "torchcodec"', 'mkdocs<2,>=1.6; extra == "dev"']
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda package: required)
    monkeypatch.setattr(packages, "__file__", str(tmp_path / "video_gn" / "doctor" / "packages.py"))
    assert packages.floors() == {"torch": "2.7", "av": "17", "torchcodec": "0.11"}


def test_a_missing_decoder_matters_where_the_config_asks_for_it(monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda package: None if package == "decord" else "99")
    asking = HERE._replace(config=config(decoder="decord"))
    for target, status in ((HERE, "ok"), (asking, "error")):
        assert {line.name: line.status for line in packages.versions(target)}["decord"] == status
    monkeypatch.setattr("video_gn.data.decode.libraries.load", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [line.status for line in decoders.decoder("decord", HERE)] == ["ok"]
    (line,) = decoders.decoder("decord", asking)
    assert line.status == "error"
    assert line.remedy.startswith("`pip install decord`")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "installed, and broken")
    assert [line.status for line in decoders.decoder("decord", HERE)] == ["warning"]
    assert [line.status for line in decoders.decoder("pyav", HERE)] == ["error"]


@pytest.mark.parametrize("name", ["auto", "pyav"])
def test_a_pyav_with_another_api(monkeypatch, name):
    """The clip is written; opening it meets an argument that this PyAV does not have."""
    import av

    def open_of_another_version(file, mode="r", **options):
        if mode == "r" and options:
            raise TypeError("open() got an unexpected keyword argument")
        return original(file, mode, **options)

    original = av.open
    monkeypatch.setattr(av, "open", open_of_another_version)
    (check,) = (check for check in doctor.CHECKS if check.name == f"decoder {name}")
    (line,) = run_check(check, HERE)
    assert line.status == "error"
    assert line.text.startswith("TypeError: ") and "unexpected keyword argument" in line.text
    assert "pip install -e ." in line.remedy


def test_torchvision_of_another_build(monkeypatch):
    def fail(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", fail)
    works, ops = packages.torch_works(HERE)
    assert (works.status, ops.status) == ("ok", "error")
    assert "nms does not exist" in ops.text


def test_conv3d_that_is_wrong(monkeypatch):
    assert packages.conv3d_error(torch.device("cpu"), torch.float32) < 1e-5
    assert 1e-4 < packages.conv3d_error(torch.device("cpu"), torch.bfloat16) < 0.02
    right = torch.conv3d  # the truth is computed in float64
    monkeypatch.setattr("torch.conv3d", lambda x, w, **k: right(x, w, **k) * (1 if x.dtype == torch.float64 else 2))
    assert packages.conv3d_error(torch.device("cpu"), torch.float32) == pytest.approx(1, abs=1e-4)
    assert next(iter(packages.torch_works(HERE))).status == "error"


def test_frames_that_are_wrong():
    truth = np.stack([np.full((4, 6, 3), 10 * i, np.uint8) for i in range(5)])
    order = [4, 0, 2]
    assert decoders.frames_problem(truth[order] + 2, truth, order) is None
    assert decoders.frames_problem(truth[[4, 1, 2]] - 3, truth, order) == "gives frame 1 for frame 0"
    assert decoders.frames_problem(truth[[4, 3, 2]], truth, order) == "frame 0 is off by 30 of 255 on average"
    assert decoders.frames_problem(truth[order][:, :2], truth, order) == "frames of 2 x 6, not 4 x 6"


@pytest.mark.parametrize(
    ("names", "cuda", "wanted", "status", "words"),
    [
        ([], "13.2", False, "ok", "use the CPU"),
        ([], "13.2", True, "error", "device is cuda"),
        (["H200"], None, False, "warning", "built for the CPU only"),
        (["H200"], "13.2", True, "error", "built for CUDA 13.2"),
    ],
)
def test_no_gpu(names, cuda, wanted, status, words):
    line = gpu.no_gpu_line(names, cuda, wanted)
    assert line.status == status
    assert words in line.text


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "has_gpu", "status", "words"),
    [
        ("2.15.0", 92600, True, "ok", "9.26.0"),
        ("2.9.1+cu130", 91500, True, "warning", "slow"),
        ("2.9.1+cu130", 91401, True, "error", "9.14.1"),
        ("2.9.1", None, False, "ok", "none"),
    ],
)
def test_cudnn(torch_version, cudnn, has_gpu, status, words):
    line = gpu.cudnn_line(torch_version, cudnn, has_gpu)
    assert (line.status, bool(line.remedy)) == (status, status != "ok")
    assert words in line.text


def test_what_workers_take():
    values = {"frames": 8, "stride": 2, "crop": 224, "short_side": [256, 320], "workers": 3}
    tree = {"output_dir": "x", "model": {"stem": "sparse"}, "data": values, "train": {"clips_per_gpu": 4}}
    tree["test"] = {"views": "full", "clips": 2, "short_side": 256}
    long = capacity.loading(parse_config(tree), 2, 512, 1000, 300)
    # Training: 8 frames of 448 x 448, 2 loaders x 3 workers x 2 batches x 4 clips; more than a test's 16 whole frames.
    assert long.shared == 2 * (2 * 3 * 2 * 4) * (8 * 448 * 448 * 3)
    assert long.files == 256 + 48
    tree["train"] = {"clips_per_gpu": 1}
    tree["test"]["clips"] = 30
    # Testing: 3 workers x 1 video, all 239 frames that are in 30 clips of 8, wherever they repeat.
    frames = {s + 2 * i for k in range(30) for s in [round(k * 284 / 29)] for i in range(8)}
    assert capacity.loading(parse_config(tree), 1, 512, 1000, 300).shared == 3 * len(frames) * 512 * 1000 * 3
    # 4K: each 8 x 8 pixels become one.
    assert capacity.loading(parse_config(tree), 1, 2160, 3840, 300).shared == 3 * len(frames) * 270 * 480 * 3
    tree["data"]["workers"] = 0
    assert capacity.loading(parse_config(tree), 1, 512, 1000, 300)[2:4] == (0, 256)


def test_judgements_of_limits():
    load = Loading(ranks=2, workers=4, shared=3 * GIB, files=2000, about="a video")
    cases = [
        (capacity.shared_memory_line(64 * 2**20, None), "warning"),
        (capacity.shared_memory_line(GIB, None), "ok"),
        (capacity.shared_memory_line(GIB, load), "error"),
        (capacity.shared_memory_line(4 * GIB, load), "ok"),
        (capacity.open_files_line(1024, 4096, None), "ok"),
        (capacity.open_files_line(1024, 4000, None), "warning"),
        (capacity.open_files_line(1024, 1024, load), "warning"),
        (capacity.open_files_line(-1, -1, load), "ok"),
        (capacity.memory_line(6 * GIB, 8 * GIB, load), "warning"),
        (capacity.memory_line(8 * GIB, 8 * GIB, load), "ok"),
        (capacity.cores_line(7.5, load), "warning"),
        (capacity.cores_line(8, load), "ok"),
        (folders.read_speed_line("d", "1 file", 10**6, 1.0, 1), "warning"),
        (folders.read_speed_line("d", "64 files", 10**6, 1.0, 64), "ok"),
        (folders.read_speed_line("d", "1 file", 10**8, 1.0, 1), "ok"),
    ]
    for line, status in cases:
        assert line.status == status, line
        assert bool(line.remedy) == (status != "ok"), line
    assert cases[4][0].text == "limit 1,024, which a run raises to 4,096"
    assert "hard limit, 4,000" in cases[5][0].remedy
    assert "hard limit, 1,024" in cases[6][0].remedy
    assert "data.workers=3" in cases[10][0].remedy


def test_control_groups(tmp_path):
    def limits(own, files):
        for name, text in {"own": own, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return capacity.cgroup_limits(tmp_path / "fs", tmp_path / "own")

    assert capacity.cgroup_limits(tmp_path / "fs", tmp_path / "absent") == (float("inf"), float("inf"))
    assert limits("0::/\n", {}) == (float("inf"), float("inf"))
    assert limits("0::/job/step\n", {"fs/job/memory.max": "1000\n", "fs/job/step/memory.max": "max\n"})[0] == 1000
    assert limits("0::/job/step\n", {"fs/cpu.max": "150000 100000", "fs/job/cpu.max": "max 100000"}) == (1000, 1.5)
    first = {"fs/memory/a/memory.limit_in_bytes": "77"}
    first |= {"fs/cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "fs/cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert limits("4:memory:/a\n3:cpu,cpuacct:/a\n", first) == (77, 0.5)
    first["fs/cpu,cpuacct/a/cpu.cfs_quota_us"] = "-1"
    assert limits("4:memory:/a\n3:cpu,cpuacct:/a\n", first) == (77, float("inf"))


def test_checkpoints_of_the_papers_net(root):
    net = load_config(root / "configs/kinetics400/i3d_r50_gn_32x2_8clips.yaml")
    assert folders.checkpoint_bytes(net) == 4 * 2 * 4 * 28_043_472  # 4 files of weights and momentum; GN has no buffers


# Folders


def test_data_folder(tmp_path):
    missing = tmp_path / "absent"
    (line,) = folders.lists(Target(missing, tmp_path))
    assert (line.status, str(missing) in line.text) == ("error", True)
    assert list(folders.read_speed(Target(missing, tmp_path))) == []
    (line,) = folders.read_speed(Target(tmp_path, tmp_path))
    assert "a temporary file, no video found" in line.text
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    for name in ("a/x.MP4", "y.webm", "z.txt"):
        (tmp_path / name).write_bytes(bytes(500_000))
    (line,) = folders.read_speed(Target(tmp_path, tmp_path))
    assert "2 files, 1.0 MB" in line.text


def test_lists(tmp_path):
    (tmp_path / "x.mp4").touch()
    (tmp_path / "train.csv").write_text("x.mp4 0\n")
    (tmp_path / "val.csv").write_text("x.mp4 0\nabsent.mp4 1\n")
    tree = config(root=str(tmp_path), test_list="test.csv")
    train, val, test = folders.lists(Target(tmp_path, tmp_path, tree))
    assert (train.status, train.text) == ("ok", "1 videos; 1 of them looked for and there")
    assert (val.status, "absent.mp4" in val.text) == ("error", True)
    assert (test.status, test.remedy) == ("error", "Correct the path or set data.root.")
    assert folders.sample_files(Target(tmp_path, tmp_path, tree)) == [tmp_path / "x.mp4"]


def test_lists_without_what_is_in_quarantine(tmp_path):
    """As in training: those videos may be missing, and the quarantine file may not."""
    (tmp_path / "x.mp4").touch()
    (tmp_path / "train.csv").write_text("x.mp4 0\nabsent.mp4 1\n")
    (tmp_path / "val.csv").write_text("absent.mp4 1\n")
    target = Target(tmp_path, tmp_path, config(root=str(tmp_path), test_list="train.csv", quarantine="bad.csv"))
    missing, *_ = folders.lists(target)
    assert (missing.status, "bad.csv" in missing.text) == ("error", True)
    (tmp_path / "bad.csv").write_text("path,reason\nabsent.mp4,damaged\n")
    train, val = folders.lists(target)
    assert (train.status, train.text) == ("ok", "2 videos; 1 of them looked for and there")
    assert (val.status, val.text) == ("ok", "1 videos; 0 of them looked for and there")


def test_labels(tmp_path):
    """Said as training says it: a class that nothing teaches, videos of both lists."""
    (tmp_path / "train.csv").write_text("x.mp4 1\ny.mp4 2\n")
    (tmp_path / "val.csv").write_text("z.mp4 0\n./y.mp4 2\n")
    target = Target(tmp_path, tmp_path, parse_config({"output_dir": "x", "data": {"root": str(tmp_path)}}))
    config = parse_config({"output_dir": "x", "data": {"root": str(tmp_path)}, "model": {"num_classes": 3}})
    begin, shared = folders.labels(target._replace(config=config))
    assert begin.status == shared.status == "warning" and "labels begin at 0" in begin.text
    assert begin.remedy == "Subtract 1 from each and set model.num_classes=2."
    assert "1 of 2 validation videos are in the training list" in shared.text
    (tmp_path / "val.csv").unlink()
    assert list(folders.labels(target)) == []  # `lists` says so


def test_output_folder(tmp_path, monkeypatch):
    target = Target(tmp_path, tmp_path / "runs" / "new")
    (line,) = folders.output_folder(target)
    assert "free, writes at" in line.text
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 2**20}))
    assert next(iter(folders.output_folder(target))).status == "error"
    monkeypatch.undo()
    (tmp_path / "runs").touch()
    (line,) = folders.output_folder(target)
    assert (line.status, "cannot be written" in line.text) == ("error", True)


# The tool


def test_every_remedy_is_a_sentence():
    for check in doctor.CHECKS:
        assert check.remedy[0].isupper() and check.remedy.endswith("."), check.name


def test_a_decoder_that_segfaults(monkeypatch):
    def open_video(*_):
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr("video_gn.data.decode.open_video", open_video)
    (check,) = (check for check in doctor.CHECKS if check.name == "decoder pyav")
    (line,) = run_check(check, HERE)
    assert (line.status, line.text) == ("error", "crashed (SIGSEGV)")


def test_ranks_that_disagree(monkeypatch):
    monkeypatch.setattr(
        ranks, "_rank", lambda parent, backend, rank, port, answers: answers.put([3.0, "ConnectError: no"][rank])
    )
    (line,) = ranks.all_reduce("gloo", HERE)
    assert (line.status, line.text) == ("error", "ConnectError: no")
    monkeypatch.setattr(ranks, "_rank", lambda *_: os._exit(7))
    assert next(iter(ranks.all_reduce("gloo", HERE))).text == "the two ranks ended with 7 and 7"


def test_what_a_command_names(tmp_path, root):
    assert doctor.read_target(None) == HERE
    assert doctor.read_target(str(tmp_path)) == Target(tmp_path, Path("."))
    target = doctor.read_target(str(root / "configs/custom/small_gn.yaml"), ["data.root=videos", "output_dir=x"])
    assert (target.data, target.output) == (Path("videos"), Path("x"))
    for arguments in ((None, ["data.root=x"]), ("data.root=x", []), (str(tmp_path), ["data.root=x"])):
        with pytest.raises(UserError, match="'data.root=x' overrides .* none is named"):
            doctor.read_target(*arguments)
    with pytest.raises(UserError, match="check its path"):
        doctor.read_target(str(tmp_path / "absent.yaml"))


def test_lines_for_a_person(monkeypatch):
    line = Line("warning", "cores", "2 usable", "Get more.")
    assert doctor.text_of(line, False) == f"warning  cores               2 usable\n{' ' * 29}-> Get more."
    assert doctor.text_of(line, True).startswith("\x1b[33mwarning\x1b[0m  cores")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert doctor.colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not doctor.colours()


def test_the_whole_tool_on_this_machine_with_a_wrong_data_folder(root, tmp_path):
    arguments = [f"data.root={tmp_path / 'absent'}", f"output_dir={tmp_path / 'run'}", "data.workers=1", "--json"]
    done = tool("tools/doctor.py", str(root / "configs/demo/demo.yaml"), *arguments)
    assert (done.returncode, done.stderr) == (2, "")
    report = json.loads(done.stdout)
    lines = {line["name"]: line for line in report["lines"]}
    assert lines["data folder"]["status"] == "error"
    assert lines["data folder"]["remedy"] == "Name the right one, as data.root=FOLDER."
    assert report["errors"] == sum(line["status"] == "error" for line in report["lines"])
    names = {
        "Python",
        "torch",
        "decoder auto",
        "decoder pyav",
        "cuDNN",
        "output folder",
        "open files",
        "all-reduce gloo",
    }
    assert names <= lines.keys()
    assert lines["decoder pyav"]["status"] == lines["all-reduce gloo"]["status"] == "ok"
    assert not list(tmp_path.iterdir())


def test_exit_code_0_without_an_error(tmp_path, root):
    code = "import runpy, sys; from video_gn import doctor; sys.argv = ['doctor']\n"
    code += "doctor.CHECKS = [doctor.Check('a', lambda t: [doctor.Line('{}', 'a', 'b', 'C.')], 10, '', False)]\n"
    code += "runpy.run_path('tools/doctor.py', run_name='__main__')"
    for status, exit_code in (("warning", 0), ("error", 2)):
        done = tool("-c", code.format(status))
        assert done.returncode == exit_code, done.stderr
        assert done.stdout.splitlines()[1:] == [
            f"{' ' * 29}-> C.",
            f"errors: {exit_code // 2}, warnings: {1 - exit_code // 2}",
        ]
