"""This rank's batches: what training and validation are fed, and the check that all of it could be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from video_gn.config import Config
from video_gn.data.dataset import Clips, TrainBatches
from video_gn.data.lists import Record
from video_gn.data.loader import Batch, DeviceBatches, eval_loader, train_loader
from video_gn.data.sampling import MIXING, keyed_rng
from video_gn.distributed.precision import autocast_dtype
from video_gn.distributed.world import World
from video_gn.engine.datasets import mixing, train_dataset, val_dataset
from video_gn.engine.health import Unreadable
from video_gn.engine.optim import BatchPlan
from video_gn.errors import UserError
from video_gn.models import memory_format
from video_gn.tasks import Task


class Feed:
    """Batches on this rank's device, drawn from the training and the validation list."""

    def __init__(
        self,
        config: Config,
        plan: BatchPlan,
        world: World,
        task: Task,
        train_records: list[Record],
        val_records: list[Record],
    ) -> None:
        self.config, self.plan, self.world, self.task = config, plan, world, task
        self.train_clips = train_dataset(config, train_records)
        self.val_clips = val_dataset(config, val_records)
        self.mixing = mixing(config)
        self.mixes = bool(self.mixing.mixup or self.mixing.cutmix)
        self.unreadable = Unreadable(Path(config.output_dir) / "unreadable.txt", config.data.max_unreadable, world)
        self.memory_format = memory_format(config, world.device)

    def training(self, first_step: int, last_step: int) -> DeviceBatches:
        """Return this rank's micro-batches of the steps from `first_step` to before `last_step`."""
        plan, world, data = self.plan, self.world, self.config.data
        sampler = TrainBatches(
            plan.steps_per_epoch,
            first_step,
            last_step,
            clips_per_gpu=plan.clips_per_gpu,
            global_batch=plan.global_batch,
            rank=world.rank,
            ranks=world.size,
        )
        return self._on_device(train_loader(self.train_clips, sampler, data.workers, world.device, data.timeout))

    def validation(self) -> DeviceBatches:
        """Return this rank's share of the validation clips."""
        plan, world, data = self.plan, self.world, self.config.data
        loader = eval_loader(
            self.val_clips, plan.clips_per_gpu, data.workers, world.device, world.rank, world.size, data.timeout
        )
        return self._on_device(loader)

    def check(self, batch: Batch) -> None:
        """Count a training batch's unreadable videos.

        Raises:
            UserError: there are too many, or a clip is missing since the list is nearly unreadable.
        """
        self.unreadable.add(error for item in batch.items for error in item.unreadable)
        if len(batch.targets) < len(batch.items):
            raise UserError("no readable video was found for a clip; see unreadable.txt and check data.root")

    def mixed(self, batch: Batch, step: int, position: int) -> Batch:
        """Return a training batch with its clips mixed, and soft targets, where the config says so.

        `position`: of the micro-batch in the global batch of step number `step`.
        """
        rng = keyed_rng(self.config.seed, MIXING, step, position)
        mix = self.mixing.draw(rng, (batch.clips.shape[-2], batch.clips.shape[-1]))
        if mix is None:
            return batch
        clips, targets = mix(batch.clips, self.task.soft(batch.targets))
        return replace(batch, clips=clips, targets=targets)

    def clips(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Yield the clips of training batches only, unmixed, as the network takes them."""
        for batch in self.training(first_step, last_step):
            self.check(batch)
            yield batch.clips.contiguous(memory_format=self.memory_format)

    def paths(self, indices: Sequence[int]) -> list[str]:
        """Return the paths, as in the list, of training videos."""
        return [self.train_clips.records[index].path for index in indices]

    def _on_device(self, loader: Iterable[list[Clips]]) -> DeviceBatches:
        data, device = self.config.data, self.world.device
        dtype = autocast_dtype(self.config.train.precision, device)
        return DeviceBatches(loader, device, data.mean, data.std, self.config.dims, dtype, self.task.collate)
