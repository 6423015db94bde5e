"""Training: from a config to a run folder. `Trainer.step` is the training step."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from video_gn.config import Config
from video_gn.console import say
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record
from video_gn.data.loader import Batch, DeviceBatches
from video_gn.data.sampling import dropout_seeds
from video_gn.distributed.precision import autocast, share_cores
from video_gn.distributed.profile import trace
from video_gn.distributed.signals import Stop, stop_signals
from video_gn.distributed.world import World
from video_gn.engine import state
from video_gn.engine.datasets import (
    class_names,
    decoder,
    fingerprint,
    list_warnings,
    read_records,
    read_train_records,
)
from video_gn.engine.feed import Feed
from video_gn.engine.graph import GraphedPass, Pass, records
from video_gn.engine.health import SkippedSteps, check_in_flight, keep_in_flight
from video_gn.engine.optim import build_optimizer, plan_batches
from video_gn.engine.percentiles import find_layer, percentiles_of
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn
from video_gn.engine.progress import LogWindow, announce, peak_memory_gib, progress_bar, summarize, training_line
from video_gn.engine.schedule import lr_factor
from video_gn.engine.validate import validate
from video_gn.errors import Preempted
from video_gn.models import Network, build_network, memory_format
from video_gn.norm.roles import precise_norms
from video_gn.run.lock import hold_on_rank0
from video_gn.run.log import Writers
from video_gn.tasks import Metrics, build_task


def train(config: Config, world: World) -> None:
    """Train as `config` says, from the run folder's last checkpoint if there is one.

    Raises:
        UserError: the config, the lists, the videos or the run folder do not allow it.
        Preempted: SIGTERM or SIGUSR1 came to a rank; there is a checkpoint of the step that it was in.
    """
    check_decoder(config.data.decoder)
    names = world.first(lambda: class_names(config))
    train_records = read_train_records(config, world, names)
    val_records = read_records(config, config.data.val_list, world, names)
    for text in list_warnings(train_records, val_records, names) if world.is_main else ():
        say(f"warning: {text}")
    with stop_signals() as stop, hold_on_rank0(Path(config.output_dir), world):
        check_in_flight(Path(config.output_dir), config.data.root, decoder(config), config.data.timeout, world)
        world.share(stop)
        trainer = Trainer(config, world, train_records, val_records, names, stop)
        if trainer.epochs_done >= config.train.epochs:
            if world.is_main:
                say(f"{trainer.folder}: already trained for all {config.train.epochs} epochs; nothing to do")
            return
        log = Writers(trainer.folder, trainer.log_lines) if world.is_main else contextlib.nullcontext()
        with log as writers, keep_in_flight(trainer.folder):
            trainer.run(writers)


class Trainer:
    """State of a training run; `run` trains to the end, `state.py` says what of it a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        world: World,
        train_records: list[Record],
        val_records: list[Record],
        class_names: list[str],
        stop: Stop,
    ) -> None:
        self.config, self.world, self.stop = config, world, stop
        self.folder = Path(config.output_dir)
        self.plan = plan_batches(config, len(train_records), world.size)
        self.lists = {"train": fingerprint(train_records), "val": fingerprint(val_records)}
        self.class_names = class_names
        self.task = build_task(config)
        share_cores(world.device, config.data.workers)

        # What computes: the network, its average, and what updates them.
        torch.manual_seed(config.seed)
        self.memory_format = memory_format(config, world.device)
        self.model: Network = build_network(config).to(world.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if config.train.percentiles_of is not None:
            find_layer(self.model, config.train.percentiles_of)
        self.optimizer = build_optimizer(self.model, config.optim, self.plan.lr, fused=world.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.ema = averaged(self.model, config.optim.ema_decay)
        self.autocast = autocast(config.train.precision, world.device)

        # What it computes on.
        self.feed = Feed(config, self.plan, world, self.task, train_records, val_records)
        self.skipped = SkippedSteps(config.train.max_bad_steps, world)

        # How far it is.
        self.step_done = 0
        self.epochs_done = 0  # evaluation and log line included
        self.log_lines = 0
        self.best_error = math.inf
        self.window = LogWindow(self.task.metrics(world.device))
        self.epoch_metrics = self.task.metrics(world.device)
        self.graphed = records(config, world)
        self.parallel = parallel(self.model) if world.size > 1 and not self.graphed else self.model
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.parallel, dynamic=False) if config.train.compile else self.parallel
        )
        self.forward_backward: Pass = self._forward_backward
        if self.graphed:
            self.forward_backward = GraphedPass(
                self._forward_backward, self.model.parameters(), strict=config.train.cuda_graph is True
            )
        state.begin(self)  # after DDP has given rank 0's running statistics to all ranks

    @property
    def last_step(self) -> int:
        return self.config.train.epochs * self.plan.steps_per_epoch

    @property
    def evaluated(self) -> Network:
        """The network whose weights are validated and tested: the average, where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    def run(self, writers: Writers | None) -> None:
        """Train from `step_done` to the end of the last epoch; rank 0 passes `writers`."""
        config, plan = self.config, self.plan
        if self.world.is_main:
            announce(self, writers)
        batches = self.feed.training(self.step_done, self.last_step)
        micro_batches = iter(batches)
        self.prefetched = next(micro_batches, None)
        self.saved_at = time.monotonic()
        self.window.waited = batches.waited
        self.window.restart()
        traced = config.profile and self.world.is_main
        with (
            progress_bar(self.step_done, self.last_step, self._quiet) as bar,
            trace(self.folder / "profile", self.world.device, traced) as step_traced,
        ):
            while self.epochs_done < config.train.epochs:
                # The end of an epoch, also of one that a kill cut short after its last step.
                if self.step_done == (self.epochs_done + 1) * plan.steps_per_epoch:
                    self.end_epoch(writers)
                    self.window.restart()
                    continue
                # One optimizer step.
                stop, due = self.step(micro_batches, self.step_done / plan.steps_per_epoch, self.window.metrics)
                self.step_done += 1
                bar.update()
                step_traced()
                # What the step made due: a log line, the end of the process, a checkpoint.
                end_of_epoch = self.step_done % plan.steps_per_epoch == 0
                if end_of_epoch or self.step_done % config.train.log_every == 0:
                    self._log(batches, writers)
                if stop:
                    self._stop(writers)
                if due and not end_of_epoch:
                    state.save(self, writers)

    def step(self, micro_batches: Iterator[Batch], epoch: float, metrics: Metrics) -> tuple[bool, bool]:
        """Take one optimizer step on this rank's share of the global batch, and add what it measured to `metrics`.

        A step with a loss or gradient that is not finite changes nothing, on no rank.

        Returns whether the run shall stop, and whether a checkpoint is due: the same on all ranks.
        """
        self.lr = self.plan.lr * lr_factor(self.config.optim, epoch, self.config.train.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        before, measured = state.copy_of_buffers(self.model), self.task.metrics(self.world.device)
        losses: list[Tensor] = []
        videos: list[list[int]] = []
        # Dropout and mixing are keyed by the micro-batch's position in the global batch, whichever rank runs it.
        positions = range(self.world.rank, self.plan.accumulation_steps * self.world.size, self.world.size)
        seeds = dropout_seeds(self.config.seed, self.step_done, positions)
        for index, position in enumerate(positions):
            # The micro-batch that was prepared beside the one before.
            batch = self.prefetched
            assert batch is not None
            if any(item.unreadable for item in batch.items):
                self.feed.check(batch)
            torch.manual_seed(seeds[index])
            if self.feed.mixes:
                batch = self.feed.mixed(batch, self.step_done, position)
            # Forward and backward; ranks add their gradients in the last micro-batch only.
            last = index == self.plan.accumulation_steps - 1
            with contextlib.nullcontext() if last else self._no_sync():
                logits, loss = self.forward_backward(
                    batch.clips.contiguous(memory_format=self.memory_format), batch.targets
                )
            # What is known of it, and the next one on its way to the device while the host waits in _agree.
            measured.update(logits, batch.targets, loss)
            losses.append(loss.clone())
            videos.append(batch.indices)
            self.prefetched = next(micro_batches, None)
        if self.graphed:  # without DDP, which does it otherwise
            self.world.average([p.grad for p in self.model.parameters() if p.grad is not None])
        self.scaler.unscale_(self.optimizer)
        bad_loss, bad_gradient, stop, due = self._agree(losses)
        if bad_loss or bad_gradient:
            state.set_buffers(self.model, before)
            if bad_loss or not self._lower_loss_scale():
                self.skipped.report(self.step_done + 1, losses, [self.feed.paths(indices) for indices in videos])
        else:
            self._update()
            metrics.state += measured.state
        return stop, due

    def _forward_backward(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and loss of a micro-batch, and add its share to the gradients. On a GPU nothing here waits."""
        with self.autocast():
            logits = self.forward(clips)
        loss = self.task.loss(logits.float(), targets, training=True)
        self.scaler.scale(loss / self.plan.accumulation_steps).backward()
        return logits.detach(), loss.detach()

    def _update(self) -> None:
        """Apply the gradients."""
        if (limit := self.config.optim.clip_norm) is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _lower_loss_scale(self) -> bool:
        """With fp16, halve the scale of a loss whose gradient overflowed; whether there was a scale to lower."""
        if not self.scaler.is_enabled() or self.scaler.get_scale() <= 1:
            return False
        self.scaler.update()
        return True

    def _agree(self, losses: list[Tensor]) -> tuple[bool, bool, bool, bool]:
        """Over all ranks: is a loss not finite, is a gradient not finite, to stop, is a checkpoint due."""
        largest = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None], math.inf)
        bad = [~torch.stack(losses).isfinite().all(), ~largest.isfinite()]
        minutes = self.config.checkpoint.every_minutes
        due = self.world.is_main and minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        # Filled on the device: a copy of host memory would be a sync point of its own.
        asked = [torch.full((), float(flag), device=self.world.device) for flag in (self.stop.requested, due)]
        flags = self.world.sum(torch.stack([*(flag.float() for flag in bad), *asked])).tolist()  # sync point: per step
        return bool(flags[0]), bool(flags[1]), bool(flags[2]), bool(flags[3])

    def end_epoch(self, writers: Writers | None) -> None:
        """Evaluate, log and write checkpoints, where they are due. The next start does it again if it was cut short."""
        config, task = self.config, self.task
        epoch = self.epochs_done + 1
        last = epoch == config.train.epochs
        due = last or epoch % config.train.eval_every == 0
        save = last or epoch % config.checkpoint.every_epochs == 0
        training = self.epoch_metrics.compute()
        values = {f"epoch/train_{key}": training[key] for key in task.training}
        better = False
        # Statistics for evaluation go into the checkpoint, too; a stop puts back those of training.
        before = state.copy_of_buffers(self.evaluated)
        if due or save:
            self._prepare_norms()
        if due:
            try:
                with percentiles_of(self.evaluated, config.train.percentiles_of) as percentiles:
                    found, unreadable = self.evaluate()
            except Preempted:
                state.set_buffers(self.evaluated, before)
                self._stop(writers)
            scored = int(found.pop("clips"))
            values |= {f"val/{key}": value for key, value in found.items()}
            values |= {"val/videos_scored": scored, "val/videos_unreadable": unreadable, **percentiles}
            error = found[task.monitored.key]
            error = 100 - error if task.monitored.higher_is_better else error
            better = error < self.best_error
            self.best_error = min(self.best_error, error)
            if writers is not None:
                of = f"on {scored} of {len(self.feed.val_clips)} videos"
                say(f"epoch {epoch:6.2f}  1-clip augmented: val {task.describe(found)} {of}")
        # The log before the checkpoint that counts its lines.
        if writers is not None:
            writers.write("epoch", self.step_done, epoch, values)
            if last:
                summarize(self.folder, task, self.step_done, config.train.epochs, writers)
        self.epochs_done = epoch
        self.epoch_metrics = task.metrics(self.world.device)
        if save or better:
            state.save(self, writers, last=save, best=better)

    def evaluate(self) -> tuple[dict[str, float], int]:
        """Score the validation list by the evaluated network. Returns and raises as `validate`."""
        return validate(
            self.evaluated,
            self.feed.validation(),
            self.task,
            self.world,
            self.stop,
            autocast=self.autocast,
            memory_format=self.memory_format,
            quiet=self._quiet,
        )

    def _no_sync(self) -> contextlib.AbstractContextManager:
        return (
            self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else contextlib.nullcontext()
        )

    def _prepare_norms(self) -> None:
        """Set statistics for evaluation and checkpoints: the same on all ranks, precise ones of Batch Norm."""
        model, plan = self.evaluated, self.plan
        number = min(self.config.train.precise_bn_batches, plan.steps_per_epoch * plan.accumulation_steps)
        average_running_statistics(model, self.world)
        if number and precise_norms(model):
            steps = math.ceil(number / plan.accumulation_steps)
            clips = self.feed.clips(self.step_done, self.step_done + steps)
            update_precise_bn(model, clips, number, self.autocast, self._quiet, self.world)

    def _log(self, batches: DeviceBatches, writers: Writers | None) -> None:
        """Average over the steps since the last log line and begin a new window."""
        window, device = self.window, self.world.device
        self.feed.unreadable.share()
        window.metrics.reduce(self.world)
        self.epoch_metrics.state += window.metrics.state
        measured = window.metrics.compute()  # sync point: once per log line
        shown = {key: measured[key] for key in self.task.training}
        values = {f"train/{key}": value for key, value in shown.items()} | {
            "train/lr": self.lr,
            **window.speed(measured["clips"], batches.waited),
            "system/memory_gib": peak_memory_gib(device),
            "system/bad_steps": self.skipped.count,
        }
        self.window = LogWindow(self.task.metrics(device), waited=batches.waited)
        epoch = self.step_done / self.plan.steps_per_epoch
        if writers is not None:
            writers.write("train", self.step_done, epoch, values)
            say(training_line(epoch, self.step_done, values, self.task.describe(shown)))

    def _stop(self, writers: Writers | None) -> NoReturn:
        state.save(self, writers)
        raise Preempted(f"{self.folder}: stopped after step {self.step_done} of {self.last_step}, with a checkpoint")

    @property
    def _quiet(self) -> bool | None:
        """tqdm's `disable`: other ranks show no bar; None shows one on a terminal only."""
        return None if self.world.is_main else True


def parallel(model: nn.Module) -> nn.Module:
    """Wrap the model in DDP, which need not send running statistics: ranks average them before they are used."""
    # The gradient of a 1 x 1 x 1 kernel lies in memory as the kernel does; only the strides of its sides of length 1
    # differ, of which DDP warns.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    with warnings.catch_warnings():  # the new name, forward_sync_buffers, is of torch 2.13
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return the exponential moving average of a model's weights, which `update_parameters` moves; None without."""
    return None if decay is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
