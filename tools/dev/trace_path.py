"""The path of the data through the source, counted: files and changes of file per micro-batch and per test video.

    python tools/dev/trace_path.py [--root FOLDER] [key=value ...]

A trace holds the Python functions of this package that are called, in order (`sys.setprofile`, its `call` events only;
a generator that is resumed is a call of its function). Frames of other packages are ignored: where torch calls back
into this package, that is one call after the other. A **change of file** is a call whose code is in another file of
video_gn/ than the call before it; returning to a caller counts nothing by itself.

The room of decoders, data/decode/, counts as one file: which of its files are used depends on the container and on the
libraries that are installed. The numbers with each of them counted are printed too.

Three paths are traced, of the demo (configs/demo/demo.yaml) on a CPU without workers:

- `micro-batch`: one of 2 clips in `Trainer.step`, from its forward pass to the next one on the device;
- `step`: all of `Trainer.step` with one such micro-batch, what it does once for all its micro-batches included (the
  learning rate, the update, the agreement of the ranks);
- `test video`: one of the 10-clip test, from the call that reads it to its scores.

Each is traced when it is taken a second time: imports, and what is kept after the first time, are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run as a file, without installation

DEMO = ROOT / "configs" / "demo" / "demo.yaml"
SETTINGS = ["device=cpu", "data.workers=0", "train.clips_per_gpu=2", "train.global_batch=2", "test.clips=10"]
DECODERS = "data/decode/"


class Call(NamedTuple):
    """A call of a function of this package."""

    file: str
    """Relative to video_gn/."""
    function: str
    """Its name, behind those of the classes and functions that it is in."""


class Trace:
    """Calls in order.

    Attributes:
        legs: what is called in one place after the other: (place, functions); a place is a file, or the decoders' room.
        places: each place once, in the order in which the path meets them.
        changes: changes of place.
        strict: files, and changes of file, with each file of the decoders' room counted.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        self.calls = list(calls)
        self.legs: list[tuple[str, list[str]]] = []
        for file, function in self.calls:
            place = DECODERS if file.startswith(DECODERS) else file
            if not self.legs or self.legs[-1][0] != place:
                self.legs.append((place, []))
            self.legs[-1][1].append(function)
        self.places = list(dict.fromkeys(place for place, _ in self.legs))
        self.changes = len(self.legs) - 1
        files = [call.file for call in self.calls]
        self.strict = len(set(files)), sum(a != b for a, b in pairwise(files))

    def __str__(self) -> str:
        first = f"{len(self.places)} files, {self.changes} changes of file"
        strict = f"with each file of {DECODERS} counted {self.strict[0]} and {self.strict[1]}"
        return "\n".join([f"{first} ({strict})", *(f"  {place:<28} {_short(names)}" for place, names in self.legs)])


def _short(names: Sequence[str]) -> str:
    """Return function names, without those of comprehensions, each once and at most six."""
    names = list(dict.fromkeys(name.split(".<locals>")[0] for name in names))
    return " ".join(names[:6]) + (" ..." if len(names) > 6 else "")


def record(function: Callable[[], Any]) -> list[Call]:
    """Call a function and return what it calls of this package."""
    import video_gn

    home = str(Path(video_gn.__file__).parent) + "/"
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(home):
            name = getattr(code, "co_qualname", code.co_name)  # the former since Python 3.11
            calls.append(Call(code.co_filename.removeprefix(home), name))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def trace_training(root: str, overrides: Sequence[str] = ()) -> tuple[Trace, Trace]:
    """Return the traces of a micro-batch of 2 clips and of the training step with it; `root`: the demo's data."""
    from video_gn.config import load_config
    from video_gn.distributed.signals import Stop
    from video_gn.distributed.world import world
    from video_gn.engine.datasets import class_names, read_records, read_train_records
    from video_gn.engine.train import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(DEMO, [*SETTINGS, f"data.root={root}", f"output_dir={folder}/run", *overrides])
        with world("cpu") as ranks:
            names = class_names(config)
            records = read_train_records(config, ranks, names), read_records(config, config.data.val_list, ranks, names)
            trainer = Trainer(config, ranks, *records, names, Stop())
            trainer.saved_at = 0.0
            micro_batches = iter(trainer.feed.training(0, 3))
            trainer.prefetched = next(micro_batches)
            trainer.step(micro_batches, 0.0, trainer.window.metrics)
            calls = record(lambda: trainer.step(micro_batches, 0.1, trainer.window.metrics))
    functions = [call.function.rpartition(".")[2] for call in calls]
    return Trace(calls[functions.index("_forward_backward") : functions.index("_agree")]), Trace(calls)


def trace_test(root: str, overrides: Sequence[str] = ()) -> Trace:
    """Return the trace of one video of the 10-clip test of the demo's network; `root`: the demo's data."""
    from video_gn.config import load_config
    from video_gn.distributed.world import world
    from video_gn.engine.datasets import class_names, read_records
    from video_gn.engine.test import score_videos
    from video_gn.models import build_network

    config = load_config(DEMO, [*SETTINGS, f"data.root={root}", *overrides])
    with world("cpu") as ranks:
        records = read_records(config, config.data.val_list, ranks, class_names(config))[:2]
        model = build_network(config).eval()
        calls = record(lambda: score_videos(model, config, records, ranks))
    begin = max(i for i, call in enumerate(calls) if call.function == "TestClips.__getitem__")
    end = max(i for i, call in enumerate(calls) if call.file.startswith("tasks/"))
    return Trace(calls[begin : end + 1])


def write_demo(folder: str) -> None:
    """Render a small data set of the demo."""
    from video_gn.data.motion import write_dataset

    write_dataset(folder, train_videos=10, val_videos=10, workers=1, progress=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a data set of the demo; by default a small one is rendered")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.decoder=pyav")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            write_demo(folder)
        root = options.root or folder
        micro_batch, step = trace_training(root, options.overrides)
        print(f"micro-batch: {micro_batch}")
        print(f"step: {step}")
        print(f"test video: {trace_test(root, options.overrides)}")


if __name__ == "__main__":
    main()
