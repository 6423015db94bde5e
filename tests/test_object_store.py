"""Videos in object stores: fsspec's memory, and a web server on this machine that goes wrong on demand."""

from __future__ import annotations

import http.server
import itertools
import pickle
import threading
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.numbered_videos import BACKENDS, backend, numbered, numbers, write
from video_gn.data import stores
from video_gn.data.dataset import Clips, TrainClips
from video_gn.data.decode import NotFetched, VideoError, open_video
from video_gn.data.lists import Record, check_files, find_list
from video_gn.data.sampling import ClipSpec
from video_gn.errors import UserError

fsspec = pytest.importorskip("fsspec")
av = pytest.importorskip("av")

FRAMES = 24


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `faults` are what happens to the next requests for a path, in turn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Iterator[str]] = {}
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        fault = next(self.server.faults.get(self.path, iter(())), "")
        data = self.server.files.get(self.path)
        if fault.isdigit() or data is None:
            self.send_error(int(fault or 404))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut":
            data = data[: len(data) // 2]
        if fault == "slow":
            self.wfile.write(data[:100])
            threading.Event().wait(0.1)
            data = data[100:]
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses made between attempts, none of which lasts."""
    made: list[float] = []
    monkeypatch.setattr(stores, "PAUSES", (1.0, 2.0, 3.0))
    monkeypatch.setattr(stores.time, "sleep", made.append)
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "b.mp4": write(folder / "b.mp4", map(numbered, range(FRAMES)), "libx264", {"g": "12", "bf": "3"}),
        "count.avi": write(folder / "count.avi", map(numbered, range(FRAMES)), "libx264", {"bf": "3"}),
    }


@pytest.fixture(scope="module")
def memory(videos) -> Iterator[str]:
    """The videos in fsspec's memory."""
    store = fsspec.filesystem("memory")
    for name, path in videos.items():
        store.pipe(f"/clips/{name}", path.read_bytes())
    yield "memory://clips"
    store.rm("/clips", recursive=True)


@pytest.mark.parametrize("decoder", [*BACKENDS, backend("decord")])
def test_a_url_reads_as_the_file(videos, memory, decoder) -> None:
    url = f"{memory}/b.mp4"
    with open_video(url, decoder) as video, open_video(videos["b.mp4"], decoder) as local:
        assert (video.path, video.num_frames, video.fps) == (url, FRAMES, local.fps)
        assert torch.equal(video.read([20, 3, 3]), local.read([20, 3, 3]))
        assert numbers(video.read(range(FRAMES))) == list(range(FRAMES))


def test_a_url_is_reopened_from_memory(memory) -> None:
    """A file without true timestamps is decoded from its start for each read."""
    with open_video(f"{memory}/count.avi") as video:
        assert video.decoder == "pyav"
        assert numbers(video.read([9])) == [9] and numbers(video.read([2])) == [2]
        assert numbers(torch.from_numpy(np.stack(list(video.frames())))) == list(range(FRAMES))


def test_a_download_that_is_slow_or_fails_at_first(videos, server, pauses) -> None:
    server.files["/b.mp4"] = videos["b.mp4"].read_bytes()
    server.faults["/b.mp4"] = iter(["500", "cut", "503", "slow"])
    with open_video(f"{server.url}/b.mp4") as video:
        assert numbers(video.read(range(FRAMES))) == list(range(FRAMES))
    assert server.requests["/b.mp4"] == 4 and pauses == [1, 2, 3]


@pytest.mark.parametrize(("fault", "words"), [("500", "500"), ("cut", "payload is not completed"), ("429", "429")])
def test_a_store_that_stays_faulty_is_not_blamed_on_the_file(videos, server, pauses, fault, words) -> None:
    server.files["/b.mp4"] = videos["b.mp4"].read_bytes()
    server.faults["/b.mp4"] = itertools.repeat(fault)
    with pytest.raises(NotFetched, match="not fetched in 4 attempts, which says nothing of the file") as caught:
        open_video(f"{server.url}/b.mp4")
    assert type(pickle.loads(pickle.dumps(caught.value))) is NotFetched
    assert words in caught.value.reason and "\n" not in caught.value.reason
    assert caught.value.path == f"{server.url}/b.mp4" and pauses == [1, 2, 3]


def test_what_no_further_attempt_changes(server, pauses) -> None:
    server.files["/private.mp4"] = b"x"
    server.faults["/private.mp4"] = iter(["403"])
    server.files["/empty.mp4"] = b""
    reasons = {"private.mp4": "403", "missing.mp4": "no such file", "empty.mp4": r"empty file \(0 bytes\)"}
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=reason) as caught:
            open_video(f"{server.url}/{name}")
        assert isinstance(caught.value, NotFetched) == (name == "private.mp4")
    assert pauses == [] and set(server.requests.values()) == {1}


def test_no_server(server, pauses) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as nobody:
        port = nobody.server_address[1]
    with pytest.raises(VideoError, match="not fetched in 4 attempts"):
        open_video(f"http://127.0.0.1:{port}/a.mp4")


def test_a_local_copy_spares_the_store(videos, server, pauses, tmp_path, monkeypatch) -> None:
    """A download that was cut leaves nothing that would be taken for the file."""
    monkeypatch.setenv("VIDEO_GN_COPIES", str(tmp_path / "copies"))
    server.files["/b.mp4"] = videos["b.mp4"].read_bytes()
    server.faults["/b.mp4"] = itertools.chain(["cut"] * 5, ["500"])
    with pytest.raises(VideoError, match="not fetched"):
        open_video(f"{server.url}/b.mp4")
    assert not (tmp_path / "copies").exists()
    for index in (5, 7, 9):
        with open_video(f"{server.url}/b.mp4") as video:
            assert numbers(video.read([index])) == [index]
    assert server.requests["/b.mp4"] == 4 + 3
    assert [path.read_bytes() for path in (tmp_path / "copies").iterdir()] == [server.files["/b.mp4"]]


def test_copies_leave_a_tenth_of_the_disk_free(memory, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VIDEO_GN_COPIES", str(tmp_path))
    size = len(stores.fetch_new(f"{memory}/b.mp4"))
    disk = types.SimpleNamespace(total=100 * size, free=11 * size)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda folder: disk)
    open_video(f"{memory}/b.mp4").close()
    assert list(tmp_path.iterdir()) == []
    disk.free += 1
    open_video(f"{memory}/b.mp4").close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_hold_copies(memory, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEO_GN_COPIES", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file: cannot make the folder .*; correct VIDEO_GN_COPIES"):
        open_video(f"{memory}/b.mp4")


def test_the_first_bytes_alone(memory) -> None:
    assert stores.fetch_new(f"{memory}/b.mp4", first=8)[4:] == b"ftyp"


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(UserError, match="cannot read no-such://host/a.mp4: .*no-such.*; correct data.root"):
        open_video("no-such://host/a.mp4")


@pytest.mark.parametrize(
    ("root", "path", "url"),
    [
        ("s3://bucket/k400/", "a b/ü#1?.mp4", "s3://bucket/k400/a b/ü#1?.mp4"),
        ("https://host/k400", "a b/ü#1?%.mp4", "https://host/k400/a%20b/%C3%BC%231%3F%25.mp4"),
    ],
)
def test_urls_of_entries(root, path, url) -> None:
    assert stores.is_url(root) and stores.join(root, path) == url


def test_odd_names_reach_the_server(videos, server) -> None:
    server.files["/a%20b/%C3%BC%231%3F.mp4"] = videos["b.mp4"].read_bytes()
    with open_video(stores.join(server.url, "a b/ü#1?.mp4")) as video:
        assert video.num_frames == FRAMES


def test_decoders_are_told_no_url(videos, memory, monkeypatch) -> None:
    """FFmpeg would open https:// itself, without the retries."""
    seen = []
    monkeypatch.setattr("os.path.abspath", lambda path: seen.append(path))
    for decoder in ("auto", "pyav"):
        open_video(f"{memory}/b.mp4", decoder).close()
    assert seen == []


def test_16_files_of_a_store_are_looked_for(server, pauses, capsys) -> None:
    server.files = {f"/{n}.mp4": b"x" for n in range(1000) if n != 500}
    records = [Record(f"{n}.mp4", 0, n + 1) for n in range(1000)]
    with pytest.raises(UserError, match=r"1 of 16 files are not there: line 501 \('500.mp4'\); correct data.root"):
        check_files(records, server.url, "train.csv")
    assert sum(server.requests.values()) == 16
    assert f"train.csv: of 1,000 files in {server.url}, 16 are looked for" in capsys.readouterr().err
    check_files(records[1:4], server.url, "train.csv")
    server.faults["/1.mp4"] = itertools.repeat("500")
    with pytest.raises(UserError, match=r"cannot reach .*/1.mp4: not fetched in 4 attempts.*500.*; check data.root"):
        check_files(records[1:4], server.url, "train.csv")


def test_a_list_is_a_file(memory) -> None:
    with pytest.raises(UserError, match="no file 'train.csv': there is neither train.csv; correct the path"):
        find_list("train.csv", memory)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_from_a_store(videos, server, workers) -> None:
    """Through the DataLoader's processes; the bytes and thus the clips are those of the files."""
    for name, path in videos.items():
        server.files[f"/{name}"] = path.read_bytes()
    spec = ClipSpec(frames=4, stride=2, crop=32, short_side=(40, 48))
    records = [Record(name, n) for n, name in enumerate(videos)]

    def clips(root: str) -> list[Clips]:
        data = TrainClips(records, root, "auto", spec, seed=0, max_unreadable=0)
        keys = [(epoch, n) for epoch in range(2) for n in range(len(records))]
        return list(torch.utils.data.DataLoader(data, None, sampler=keys, num_workers=workers))

    local = clips(str(videos["b.mp4"].parent))
    remote = clips(server.url)
    assert len(local) == len(remote) == 4
    for a, b in zip(local, remote, strict=True):
        assert a.target == b.target and a.unreadable == b.unreadable == () and torch.equal(a.frames, b.frames)
