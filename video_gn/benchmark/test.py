"""`test`: the 10-clip test of R50 I3D on the CPU, against pytorchvideo's i3d_r50 run as its documents do."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from video_gn.benchmark import others
from video_gn.benchmark.common import Call, Table, measure, skip
from video_gn.benchmark.videos import Video, find_videos
from video_gn.config import Config, parse_config
from video_gn.data.augment import network_input
from video_gn.data.dataset import Clips
from video_gn.data.lists import Record
from video_gn.data.sampling import uniform_starts
from video_gn.engine.datasets import test_dataset
from video_gn.engine.test import score_video
from video_gn.models import Network, build_model, memory_format
from video_gn.models.inflate import initialize
from video_gn.models.weights import convert

THEIRS = "pytorchvideo i3d_r50"


@torch.inference_mode()
def run(*, videos: Path | None, repeats: int, quick: bool) -> list[Table]:
    """Three tables, of the first video: decoding, the network on the same clips, the whole test. Random weights."""
    config = _config(quick)
    video = find_videos(videos, quick)[0]
    dataset = test_dataset(config, [Record(video.path, 0)])
    item = dataset[0]
    clips = _render(item, config)
    nets = {norm: _net(config, norm) for norm in ("bn", "gn")}

    decoding: dict[str, Call] = {"ours": lambda: len([dataset[0]])}
    for decoder in ("pyav", "decord"):
        decoding[f"LabeledVideoDataset, {decoder}"] = partial(_one, _their_clips, video, config, decoder)
    network: dict[str, Call] = {
        f"ours, {name}": partial(_one, _scores, net, item, config) for name, net in nets.items()
    }
    whole: dict[str, Call] = {
        f"ours, {name}": lambda net=net: _one(_scores, net, dataset[0], config)  # type: ignore[misc]
        for name, net in nets.items()
    }
    note = ""
    theirs = _theirs(config)
    if theirs is not None:
        initialize(nets["bn"], convert(theirs.state_dict(), THEIRS)[0])
        ours_say, they_say = _scores(nets["bn"], item, config), _their_scores(theirs, clips)
        apart = float((ours_say - they_say).abs().max() / they_say.max())
        note = f"ours, bn has the weights of {THEIRS}; their scores differ by {apart:.1g} of the largest, at most"
        network[THEIRS] = partial(_one, _their_scores, theirs, clips)
        whole[f"{THEIRS}, LabeledVideoDataset, pyav"] = lambda: _one(
            _their_scores, theirs, _their_clips(video, config, "pyav")
        )
    what = f"{config.test.clips} clips of {config.data.frames} x {config.data.stride} at {config.data.crop}, a video"
    parts = {"decoding (theirs: and transforms)": decoding, "network (ours: and transforms)": network, "all": whole}
    return [
        Table(f"{title}: {what}", measure(calls, repeats, what=title), by="cpu", note=note if calls is network else "")
        for title, calls in parts.items()
    ]


def _one(work: object, *arguments: object) -> int:
    """Do the work on one video."""
    work(*arguments)  # type: ignore[operator]
    return 1


def _config(quick: bool) -> Config:
    """pytorchvideo's architecture, center crops, fp32."""
    model = {"stem": "slowfast", **({"width": 8, "groups": 8} if quick else {})}
    data = {"frames": 8, "stride": 2 if quick else 8, "crop": 64 if quick else 224}
    test = {"views": "center", "clips": 3 if quick else 10, "short_side": 72 if quick else 256}
    return parse_config({"output_dir": "", "model": model, "data": data, "test": test, "train": {"precision": "fp32"}})


def _net(config: Config, norm: str) -> Network:
    torch.manual_seed(0)
    net = build_model(config.model.model_copy(update={"norm": norm}))
    return net.to(memory_format=memory_format(config, torch.device("cpu"))).eval()


def _theirs(config: Config) -> nn.Module | None:
    try:
        from pytorchvideo.models.hub import i3d_r50
    except ImportError as error:
        skip(THEIRS, error)
        return None
    torch.manual_seed(0)
    side = config.data.crop // 32
    return i3d_r50(stem_dim_out=config.model.width, head_pool_kernel_size=(4, side, side)).eval()


def _scores(net: Network, item: Clips, config: Config) -> Tensor:
    """(K, classes): our test of a video, from its uint8 frames on."""
    return score_video(net, item, config, torch.device("cpu"))


def _their_scores(net: nn.Module, clips: Tensor) -> Tensor:
    """(K, classes): one clip per forward pass, contiguous, as in pytorchvideo's tutorial."""
    return torch.cat([net(clip[None]).softmax(-1) for clip in clips])


def _render(item: Clips, config: Config) -> Tensor:
    """float32 (K, 3, T, H, W), contiguous: what our network sees of a video."""
    return next(network_input(item, torch.device("cpu"), config.data.mean, config.data.std)).contiguous()


def _their_clips(video: Video, config: Config, decoder: str) -> Tensor:
    """Return the same clips by LabeledVideoDataset and the transforms of pytorchvideo's tutorial."""
    data = config.data
    starts = uniform_starts(video.num_frames, data.frames, data.stride, config.test.clips)
    transform = others.test_transform(data.frames, data.crop, config.test.short_side)
    seconds = data.frames * data.stride / video.fps
    dataset = others.labeled_videos([video], seconds, decoder, [starts], transform)
    return torch.stack([sample["video"] for sample in dataset])
