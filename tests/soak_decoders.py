"""How much the memory of a process grows over many decodes of mixed videos.

python tests/soak_decoders.py pyav torchcodec FOLDER --decodes 10000     # 10 to 20 minutes a decoder

Opens the videos of FOLDER, also those that cannot be read, in random order, and reads 4 random frames of each. Each
decoder has a process of its own. Prints its resident memory after a warm-up and at the end; exit code 1 where it has
grown by 5 % or more. Not part of the test suite.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

WARM_UP, LIMIT = 500, 0.05
SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov"}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(decoder: str, videos: list[Path], decodes: int, seed: int = 0) -> tuple[float, float, int]:
    """Resident memory after the warm-up and at the end, MiB; how many of the decodes failed."""
    import torch

    from video_gn.data.decode import VideoError, open_video

    torch.set_num_threads(1)
    rng = random.Random(seed)
    before, failed = 0.0, 0
    for n in range(decodes):
        if n == WARM_UP:
            before = resident_mib()
        try:
            with open_video(rng.choice(videos), decoder) as video:
                video.read([rng.randrange(video.num_frames) for _ in range(4)])
        except VideoError:
            failed += 1
    return before, resident_mib(), failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoders", nargs="+", metavar="DECODER", help="auto, torchcodec, pyav, decord")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="searched for videos, with all its subfolders")
    parser.add_argument("--decodes", type=int, default=10_000)
    args = parser.parse_args()
    videos = sorted(path for path in args.folder.rglob("*") if path.suffix in SUFFIXES)
    worst = 0.0
    for decoder in args.decoders:
        begun = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, after, failed = pool.apply(soak, (decoder, videos, args.decodes))
        grown = after / before - 1
        worst = max(worst, grown)
        print(
            f"{decoder}: {args.decodes:,} decodes of {len(videos)} videos ({failed:,} failed), {before:.0f} MiB after "
            f"{WARM_UP}, {after:.0f} MiB at the end: {100 * grown:+.1f} %, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return int(worst >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
