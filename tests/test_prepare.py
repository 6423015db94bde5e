"""Prepared videos: the same frames at the same index, whatever the list, the file or the end of a run."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import runpy
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import HANG, session, wait_until
from tests.numbered_videos import numbered, numbers, shaded, shape_pixels, turn, write
from video_gn.data.decode import VideoError, open_video
from video_gn.data.lists import Record, read_list
from video_gn.data.prepare import check, check_list, in_children, prepare_list, read_report
from video_gn.data.prepare.folder import open_folder
from video_gn.data.prepare.names import new_list, plan
from video_gn.data.prepare.video import X264, encode_video, frame_rate, prepared_size
from video_gn.errors import UserError
from video_gn.files.atomic import temporary_path

av = pytest.importorskip("av")
ROOT = Path(__file__).parent.parent
FRAMES = 40


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video whose frames bear their numbers; B-frames, one GOP."""
    return write(tmp_path_factory.mktemp("source") / "a.mp4", map(numbered, range(FRAMES)), "libx264", {"bf": "3"})


@pytest.fixture
def root(tmp_path: Path, source: Path) -> Path:
    """Folder of a.mp4, b.avi (Motion JPEG), "c d, é.mkv" and three bad files, with list.csv."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(source.read_bytes())
    write(folder / "sub" / "b.avi", map(numbered, range(7)), "mjpeg")
    write(folder / "sub" / "c d, é.mkv", map(numbered, range(5)))
    (folder / "cut.mp4").write_bytes(source.read_bytes()[:900])
    (folder / "empty.mp4").touch()
    lines = ["# a comment", "a.mp4 3", "sub/b.avi,0", '"sub/c d, é.mkv"\t1', "cut.mp4 2", "empty.mp4 2", "gone.mp4 2"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


# ---- one video ----


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_frame_i_is_frame_i(tmp_path, source, decoder):
    row = encode_video(str(source), tmp_path / "out.mp4", 256)
    with open_video(tmp_path / "out.mp4", decoder) as video:
        assert numbers(video.read(range(FRAMES))) == list(range(FRAMES))
    data = (tmp_path / "out.mp4").read_bytes()
    assert (row["frames"], row["fps"], row["width"], row["height"]) == (FRAMES, 25.0, 96, 64)
    assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_what_is_in_the_file(tmp_path, source):
    """By PyAV: H.264 4:2:0, a keyframe at most every 16 frames, nothing reordered, no sound, the index at its front."""
    encode_video(str(source), tmp_path / "out.mp4", 32)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert len(file.streams) == 1
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.start_time) == (48, 32, 0)
        packets = [packet for packet in file.demux(stream) if packet.size]
        assert [p.pts * stream.time_base for p in packets] == [Fraction(n, 25) for n in range(FRAMES)]
        assert all(p.pts == p.dts for p in packets)
        assert {0, 16, 32} <= {n for n, p in enumerate(packets) if p.is_keyframe}
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_encoding_is_deterministic(tmp_path, source):
    first, second = (encode_video(str(source), tmp_path / f"{n}.mp4", 256)["sha256"] for n in range(2))
    assert first == second


@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 180, 60), (30, 40, 210), (0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_colours_stay(tmp_path, colour, decoder):
    """Plain images in a lossless source, so that a wrong matrix or range would show (it moves these by 10 and more)."""
    image = np.full((64, 96, 3), colour, dtype=np.uint8)
    write(tmp_path / "in.mkv", [image] * 3, "libx264", {"qp": "0"})
    with open_video(tmp_path / "in.mkv", decoder) as video:
        before = video.read([1])[0, 20, 20].int()
    encode_video(str(tmp_path / "in.mkv"), tmp_path / "out.mp4", 256)
    with open_video(tmp_path / "out.mp4", decoder) as video:
        after = video.read([1])[0, 20, 20].int()
    assert (after - torch.tensor(colour)).abs().max() <= 5
    assert (after - before).abs().max() <= 4


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (256, 340, 256, (256, 340)),
        (240, 320, 256, (240, 320)),
        (1080, 1920, 256, (256, 456)),  # 455.1
        (568, 320, 256, (454, 256)),  # 454.4
        (129, 171, 256, (128, 170)),
        (129, 171, 64, (64, 84)),  # 84.8
        (1, 7, 256, (2, 6)),
    ],
)
def test_sizes(height, width, short_side, expected):
    assert prepared_size(height, width, short_side) == expected


@given(st.integers(2, 4000), st.integers(2, 4000), st.integers(8, 300).map(lambda n: 2 * n))
def test_sizes_are_even_and_never_larger(height, width, short_side):
    new = prepared_size(height, width, short_side)
    assert new[0] % 2 == new[1] % 2 == 0
    assert 2 <= new[0] <= height and 2 <= new[1] <= width
    assert min(new) == 2 * (min(height, width, short_side) // 2)
    scale = min(new) / min(height, width)
    assert abs(max(new) - scale * max(height, width)) <= 1 + max(height, width) / min(height, width)


def test_rates():
    assert frame_rate(29.97002997) == Fraction(30000, 1001)
    assert frame_rate(30.0) == 30
    assert [frame_rate(fps) for fps in (None, 0.0, float("nan"), float("inf"), 90000.0)] == [25] * 5


@pytest.mark.parametrize("where", ["lost", "cut off"])
def test_a_short_read_is_told(tmp_path, source, where):
    """Packet 20 of 40 is zeros, or the last thing in the file: what decodes is not prepared as if it were all."""
    with av.open(str(source)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][20]
        start, size = packet.pos, packet.size
    data = source.read_bytes()
    damaged = data[:start] + bytes(size) + data[start + size :] if where == "lost" else data[:start]
    (tmp_path / "bad.mp4").write_bytes(damaged)
    with pytest.raises(VideoError):
        encode_video(str(tmp_path / "bad.mp4"), tmp_path / "out.mp4", 256)
    assert not (tmp_path / "out.mp4").exists()


# ---- paths ----


def paths(*entries: str, root: str = "/data/root") -> list[str]:
    return [video.path for video in plan([Record(entry, 0) for entry in entries], root)]


def test_paths_of_prepared_videos():
    assert paths("a.avi", "x/b.mp4", "x y/c.d.webm", "noext") == ["a.mp4", "x/b.mp4", "x y/c.d.mp4", "noext.mp4"]
    assert paths("/data/root/x/a.mkv", "/elsewhere/b.mkv") == ["x/a.mp4", "elsewhere/b.mp4"]
    assert paths("../b.mkv", "x/../../../etc/c.mkv") == ["data/b.mp4", "etc/c.mp4"]
    assert paths("a.avi", "a.mkv", "b.mp4", "b.MP4") == ["a.avi.mp4", "a.mkv.mp4", "b.mp4", "b.MP4.mp4"]
    assert paths("a.avi", "./a.avi", "x/../a.avi") == ["a.mp4"] * 3
    with pytest.raises(UserError, match="would both become a.avi.mp4"):
        paths("a.avi", "a.mkv", "a.avi.mp4")


@given(st.lists(st.text("ab./é ", min_size=1, max_size=12), unique=True, max_size=6))
def test_no_path_leaves_the_folder(entries):
    try:
        found = paths(*entries)
    except UserError:
        return
    for path in found:
        assert path.endswith(".mp4")
        assert os.path.normpath(os.path.join("/out", path)) == os.path.join("/out", path) != "/out/.mp4/.."
    places = {entry: os.path.abspath(os.path.join("/data/root", entry)) for entry in entries}
    assert len(set(found)) == len(set(places.values()))  # one file for each source


# ---- lists ----


@given(st.lists(st.text("ab./é ,\"#\t'", min_size=1, max_size=9), unique=True, min_size=1, max_size=6), st.booleans())
def test_a_new_list_reads_as_its_paths(tmp_path_factory, entries, windows):
    folder = tmp_path_factory.mktemp("lists")
    lines = ['"' + entry.replace('"', '""') + f'" , {label}' for label, entry in enumerate(entries)]
    text = ("\ufeff" if windows else "") + ("\r\n" if windows else "\n").join(["path label", *lines])
    (folder / "old.csv").write_bytes(text.encode("utf-8"))
    records = read_list(str(folder / "old.csv"), ".", 99, absolute_paths=True)
    try:
        videos = plan(records, "/data/root")
    except UserError:
        return
    bad = {records[0].path: "bad"} if len(records) > 1 else {}
    new = new_list(folder / "old.csv", records, videos, bad)
    (folder / "new.csv").write_bytes(new.encode("utf-8"))
    found = read_list(str(folder / "new.csv"), ".", 99, absolute_paths=True)
    kept = [(video.path, r.target) for video, r in zip(videos, records, strict=True) if r.path not in bad]
    assert [(os.path.normpath(r.path), r.target) for r in found] == [(os.path.normpath(p), n) for p, n in kept]


def test_a_list_with_bad_videos(root, tmp_path):
    out = tmp_path / "out"
    text, bad = prepare_list(str(root / "list.csv"), out, str(root), short_side=32, jobs=2)
    assert text.startswith("3 done, 0 skipped (done before), 3 bad; ")
    assert bad == {row["path"]: row["reason"] for row in table(out / "quarantine.csv")}
    assert bad.keys() == {"cut.mp4", "empty.mp4", "gone.mp4"}
    assert (bad["empty.mp4"], bad["gone.mp4"]) == ("empty file (0 bytes)", "no such file")
    new = '# a comment\na.mp4 3\nsub/b.mp4,0\n"sub/c d, é.mp4"\t1\n'
    assert (out / "list.csv").read_text(encoding="utf-8") == new
    rows = {row["path"]: row for row in table(out / "manifest.csv")}
    assert {path: row["frames"] for path, row in rows.items()} == {
        "a.mp4": str(FRAMES),
        "sub/b.mp4": "7",
        "sub/c d, é.mp4": "5",
    }
    assert rows["sub/b.mp4"]["source"] == "sub/b.avi"
    for path, row in rows.items():
        assert hashlib.sha256((out / path).read_bytes()).hexdigest() == row["sha256"]
    assert not list(out.rglob(".*"))
    assert read_report(out / "quarantine.csv") == bad


def test_again_and_with_another_list(root, tmp_path):
    out = tmp_path / "out"
    (root / "list.csv").write_text("a.mp4 3\nempty.mp4 0\n")
    arguments = (str(root / "list.csv"), out, str(root))
    prepare_list(*arguments, short_side=32)
    written = (out / "a.mp4").stat().st_mtime_ns
    (root / "val.csv").write_text("./a.mp4,1\nsub/b.avi,1\nsub/../sub/b.avi,0\n")
    text, bad = prepare_list(str(root / "val.csv"), out, str(root), short_side=32)
    assert text.startswith("1 done, 1 skipped (done before), 0 bad") and not bad
    assert (out / "val.csv").read_text() == "a.mp4,1\nsub/b.mp4,1\n./sub/b.mp4,0\n"  # encoded once, listed twice
    assert [record.target for record in read_list(str(out / "val.csv"), str(out), 2)] == [1, 1, 0]
    assert [row["path"] for row in table(out / "quarantine.csv")] == ["empty.mp4"]  # of the first list
    assert (out / "a.mp4").stat().st_mtime_ns == written

    write(root / "a.mp4", map(numbered, range(3)))  # a new source, a lost file, a mended one
    (out / "sub" / "b.mp4").unlink()
    write(root / "empty.mp4", map(numbered, range(2)))
    assert prepare_list(*arguments, short_side=32)[0].startswith("2 done, 0 skipped")
    assert prepare_list(str(root / "val.csv"), out, str(root), short_side=32)[0].startswith("1 done, 1 skipped")
    rows = {row["path"]: row["frames"] for row in table(out / "manifest.csv")}
    assert rows == {"a.mp4": "3", "sub/b.mp4": "7", "empty.mp4": "2"}
    assert table(out / "quarantine.csv") == []

    (root / "a.mp4").write_bytes(b"damaged since")
    assert prepare_list(*arguments, short_side=32)[1].keys() == {"a.mp4"}
    assert not (out / "a.mp4").exists()  # not the old one under a list that leaves it out
    assert (out / "list.csv").read_text() == "empty.mp4 0\n"


def test_kinetics_csv(root, tmp_path, source):
    (root / "abcdefghijk_000001_000011.mp4").write_bytes(source.read_bytes())
    text = "label,youtube_id,time_start,time_end,split\nyoga,abcdefghijk,1,11,val\narchery,gone_______,1,11,val\n"
    (root / "k.csv").write_text(text)
    _, bad = prepare_list(str(root / "k.csv"), tmp_path / "out", str(root))
    assert bad == {"gone________000001_000011.mp4": "no such file"}
    assert (tmp_path / "out" / "k.csv").read_text() == "\n".join(text.splitlines()[:2]) + "\n"


def test_mistakes(root, tmp_path):
    file, out = str(root / "list.csv"), tmp_path / "out"
    (root / "list.csv").write_text("a.mp4 0\n")
    prepare_list(file, out, str(root), short_side=32)
    for words, arguments in {
        "was prepared with": {"short_side": 64},
        "an even number from 16": {"short_side": 33},
        "holds the originals": {"out": root},
        "holds other files": {"out": tmp_path},
        "none of the 1 videos": {"root": str(tmp_path)},
        "0 jobs": {"jobs": 0, "out": tmp_path / "fresh"},
    }.items():
        with pytest.raises(UserError, match=words):
            prepare_list(**{"list_path": file, "out": out, "root": str(root), "short_side": 32, **arguments})
    settings = {"short_side": 32, "x264": X264}
    with open_folder(out, Path(file), str(root), settings), pytest.raises(UserError, match="another run"):
        prepare_list(file, out, str(root), short_side=32)
    (root / "manifest.csv").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match="rename the list"):
        prepare_list(str(root / "manifest.csv"), out, str(root), short_side=32)


# ---- what may happen to a child ----


def test_crashes_and_hangs_cost_one_video():
    """The children evaluate these. Only the one that sleeps meets the limit."""
    expected = {
        "__import__('os').kill(__import__('os').getpid(), 11)": "the process that read it crashed (SIGSEGV)",
        "__import__('os')._exit(3)": "the process that read it crashed (exit code 3)",
        "1 / 0": "ZeroDivisionError: division by zero",
        "6 * 7": 42,
        "not 1": False,
    }
    calls = [(text,) for text in expected]
    results = {calls[n][0]: result for n, result in in_children(eval, calls, 2, HANG)}
    assert {text: getattr(result, "reason", result) for text, result in results.items()} == expected
    assert {result.path for result in results.values() if isinstance(result, VideoError)} == set(list(expected)[:3])
    ((_, late),) = in_children(eval, [("__import__('time').sleep(1000)",)], 1, 1)
    assert late.reason == "took longer than the limit of 1 s"


@pytest.mark.parametrize(
    ("bug", "error"),
    [("len(1)", TypeError), ("''.no", AttributeError), ("no", NameError), ("__import__('no')", ImportError)],
)
def test_a_bug_is_not_a_bad_video(bug, error):
    with pytest.raises(error):
        list(in_children(eval, [(bug,), ("1",)], 1, HANG))


HOLDS_THE_LOCK = "__import__('ctypes').PyDLL(None).sleep(1000)"
IS_STOPPED = "__import__('os').kill(__import__('os').getpid(), 19)"


@pytest.mark.parametrize("what", [HOLDS_THE_LOCK, IS_STOPPED], ids=["holds the lock", "is stopped"])
def test_no_child_outlives_a_killed_parent(what):
    """Nor does the fork server. Such a child runs no thread that could notice: the kernel must end it."""
    code = f"from video_gn.data.prepare import in_children\nlist(in_children(eval, [({what!r},)] * 2, 2, 1000))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as process:
        wait_until(lambda: len(session(process.pid)) == 5)  # itself, a resource tracker, the fork server, two children
        process.kill()
    wait_until(lambda: not session(process.pid))


def test_what_cannot_be_written_ends_the_run(root, tmp_path):
    (root / "list.csv").write_text("sub/b.avi 0\n")
    out = tmp_path / "out"
    (root / "a.csv").write_text("a.mp4 0\n")
    prepare_list(str(root / "a.csv"), out, str(root))
    (out / "sub").touch()  # where a folder has to be
    with pytest.raises(UserError, match=r"sub/b\.mp4: cannot be written \(File exists\); give another folder"):
        prepare_list(str(root / "list.csv"), out, str(root))
    assert not (out / "list.csv").exists()


def test_check(root):
    os.mkfifo(root / "pipe.mp4")
    with open(root / "list.csv", "a", encoding="utf-8") as file:
        file.write("pipe.mp4 0\n")
    text, bad = check_list(str(root / "list.csv"), None, str(root), jobs=2, time_limit=5)
    rows = table(root / "list.report.csv")
    assert list(rows[0]) == ["path", "frames", "fps", "width", "height", "duration", "problem"]
    assert list(rows[0].values()) == ["a.mp4", "40", "25.0", "96", "64", "1.6", ""]
    assert [(row["path"], row["frames"]) for row in rows[1:3]] == [("sub/b.avi", "7"), ("sub/c d, é.mkv", "5")]
    assert bad == read_report(root / "list.report.csv") == {row["path"]: row["problem"] for row in rows[3:]}
    assert [bad[name] for name in ("empty.mp4", "gone.mp4", "pipe.mp4")] == [
        "empty file (0 bytes)",
        "no such file",
        "is a pipe; give a file",
    ]
    assert text.startswith("3 good, 4 with problems; ")
    with pytest.raises(UserError, match="no columns path and problem"):
        read_report(root / "list.csv")
    with pytest.raises(UserError, match="cannot read .*; make it with tools.prepare.py --check"):
        read_report(root / "absent.csv")


def test_an_interrupted_check_goes_on(root, monkeypatch):
    """Good files that have not changed are not decoded again; what had a problem is."""
    checked = []

    def in_turn(work, calls, jobs, seconds, until=10**6):
        for index, call in enumerate(calls):
            if len(checked) == until:
                raise KeyboardInterrupt
            checked.append(Path(call[0]).name)
            try:
                yield index, work(*call)
            except VideoError as error:
                yield index, error

    arguments = str(root / "list.csv"), None, str(root)
    monkeypatch.setattr(check, "in_children", in_turn)
    check_list(*arguments)
    whole, all_names = table(root / "list.report.csv"), checked[:]
    assert not list(root.glob(".*"))
    (root / "list.report.csv").unlink()

    checked.clear()
    monkeypatch.setattr(check, "in_children", functools.partial(in_turn, until=4))
    with pytest.raises(KeyboardInterrupt):
        check_list(*arguments)
    (journal,) = root.glob(".*")
    with open(journal, "a", encoding="utf-8") as file:
        file.write("half a l")  # cut by a kill
    good = [row["path"] for row in whole[:4] if not row["problem"]]
    assert 2 <= len(good) < 4
    os.utime(root / good[0], (1, 1))  # changed since

    checked.clear()
    monkeypatch.setattr(check, "in_children", in_turn)
    text, _ = check_list(*arguments)
    assert sorted(checked) == sorted(set(all_names) - {Path(path).name for path in good[1:]})
    assert f"({len(good) - 1} of them before)" in text
    assert table(root / "list.report.csv") == whole
    assert not list(root.glob(".*"))


# ---- the tool ----


def test_a_kill_loses_only_what_was_in_flight(tmp_path, source):
    """SIGKILL in the middle, then the same command: what was done stays as it was, all is done in the end."""
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    names = [f"{n:03d}.mp4" for n in range(30)]
    for name in names:
        os.link(source, root / name)
    (root / "list.csv").write_text("".join(f"{name} 0\n" for name in names))
    arguments = [
        sys.executable,
        "tools/prepare.py",
        "list.csv",
        out,
        "--root",
        root,
        "--short-side",
        "32",
        "--jobs",
        "2",
    ]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not (out / "manifest.csv").exists():
            time.sleep(0.01)
        while process.poll() is None and (out / "manifest.csv").read_bytes().count(b"\n") < 4:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = {row["path"]: (out / row["path"]).stat().st_mtime_ns for row in table(out / "manifest.csv")}
    assert 3 <= len(before) < 30 and not (out / "list.csv").exists()
    with open(out / "manifest.csv", "a") as manifest:
        manifest.write("029.mp4,029.mp4,12")  # a row cut by the kill

    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{30 - len(before)} done, {len(before)} skipped (done before), 0 bad; ")
    assert {path: (out / path).stat().st_mtime_ns for path in before} == before
    rows = {row["path"]: row for row in table(out / "manifest.csv")}
    assert sorted(rows) == names
    assert len({row["sha256"] for row in rows.values()}) == 1  # of one source, so also the two that were in flight
    assert hashlib.sha256((out / "029.mp4").read_bytes()).hexdigest() == rows["029.mp4"]["sha256"]
    assert (out / "list.csv").read_text() == (root / "list.csv").read_text()
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*names, "list.csv", "manifest.csv", "quarantine.csv", "prepare.json"]
    )


def test_bad_videos_are_exit_code_2(root, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools" / "prepare.py"), run_name="__main__")
        return end.value.code

    assert run("prepare.py", "list.csv", tmp_path / "report.csv", "--check", "--root", root) == 2
    said = capsys.readouterr()
    assert said.out.startswith("3 good, 3 with problems; ") and str(tmp_path / "report.csv") in said.out
    assert said.err.splitlines()[-1].startswith("error: 3 videos are bad, such as cut.mp4 (")
    assert run("prepare.py", "list.csv", "--root", root) == 2
    assert "OUT is needed" in capsys.readouterr().err


# ---- real videos ----


@pytest.mark.parametrize(
    ("name", "short_side", "size"),
    [
        ("nineteen_frames_0.68s.mp4", 256, (19, 256, 340)),
        ("rotated_90.mov", 256, (3, 454, 256)),
        ("TrumanShow_wave_f_nm_np1_fr_med_26.avi", 240, (48, 240, 432)),
        ("av1.mkv", 256, (60, 256, 340)),
    ],
)
def test_real_videos(shared_data, tmp_path, name, short_side, size):
    source, target = shared_data / "odd_videos" / name, tmp_path / "out.mp4"
    encode_video(str(source), target, short_side)
    with open_video(source) as before, open_video(target) as after:
        assert (after.num_frames, after.height, after.width) == size
        indices = range(0, size[0], 3)
        old, new = before.read(indices).float(), after.read(indices).float()
        if old.shape != new.shape:
            old = torch.nn.functional.interpolate(old.permute(0, 3, 1, 2), size[1:], mode="bilinear", antialias=True)
            old = old.permute(0, 2, 3, 1)
        assert (old - new).abs().mean() < 5
        assert (old.mean((1, 2)) - new.mean((1, 2))).abs().max() < 3  # of each colour in each frame: no other range


# ---- displayed pixels ----


@pytest.mark.parametrize(
    ("matrix", "ratio", "size", "change"),
    [
        ((-1, 0, 0, 1), (1, 1), (64, 96), lambda x: x[:, ::-1]),
        ((0, 1, 1, 0), (1, 1), (96, 64), lambda x: x.transpose(1, 0, 2)),
        ((1, 0, 0, 1), (3, 2), (64, 144), lambda x: shaded(64, 144)),  # 96 pixels 3:2
        ((0, -1, 1, 0), (2, 1), (192, 64), lambda x: np.rot90(shaded(64, 192))),
        ((0, 0, 0, 0), (1, 1000), (64, 96), lambda x: x),
    ],
)
def test_orientation_and_ratio_are_baked_in(tmp_path, matrix, ratio, size, change):
    path = shape_pixels(tmp_path / "video.mp4", ratio)
    turn(path, *matrix)
    row = encode_video(str(path), tmp_path / "out.mp4", 256)
    assert (row["height"], row["width"]) == size
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (frame.height, frame.width) == size and (stream.sample_aspect_ratio or 1) == 1  # square
        assert not len(frame.side_data) or "DISPLAYMATRIX" not in frame.side_data
        assert np.abs(frame.to_ndarray(format="rgb24").astype(float) - change(shaded())).mean() < 4


@pytest.mark.parametrize("name", ["t" * 251 + ".mp4", "ü" * 126 + ".ts"])
def test_names_of_255_bytes_get_temporary_and_prepared_ones_that_fit(name: str) -> None:
    (video,) = plan([Record(f"a/{name}", 0)], "videos")
    target = Path("out") / video.path
    assert target.parent == Path("out/a") and target.suffix == ".mp4"
    for path in (target, temporary_path(target)):
        assert len(os.fsencode(path.name)) <= 255
    assert len(name.encode()) == 255
