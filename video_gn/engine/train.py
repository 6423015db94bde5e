"""Training: from a config to a run folder. `Trainer.step` is the training step."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from video_gn.config import Config
from video_gn.console import say
from video_gn.data.dataset import DROPOUT, Clips
from video_gn.data.decode import check_decoder
from video_gn.data.lists import Record
from video_gn.data.loader import Batch, DeviceBatches, TrainBatches, eval_loader, train_loader
from video_gn.data.sampling import keyed_rng
from video_gn.distributed.precision import autocast, autocast_dtype, share_cores
from video_gn.distributed.profile import trace
from video_gn.distributed.signals import Stop, stop_signals
from video_gn.distributed.world import World
from video_gn.engine.datasets import (
    class_names,
    decoder,
    fingerprint,
    list_warnings,
    memory_format,
    other_classes,
    read_records,
    read_train_records,
    train_dataset,
    trained_classes,
    val_dataset,
)
from video_gn.engine.health import Unreadable, check_in_flight, keep_in_flight
from video_gn.engine.metrics import Averages, Meter
from video_gn.engine.optim import build_optimizer, plan_batches
from video_gn.engine.percentiles import find_layer, percentiles_of
from video_gn.engine.precise_bn import average_running_statistics, update_precise_bn
from video_gn.engine.schedule import rate_factor
from video_gn.errors import Preempted, UserError
from video_gn.models import Network, build_model
from video_gn.models.freeze import parts_to_freeze
from video_gn.models.inflate import HEAD, initialize
from video_gn.models.info import describe, frozen_in_words, table
from video_gn.models.resnet import ResNet
from video_gn.models.weights import read_weights
from video_gn.norm.roles import precise_norms
from video_gn.run import checkpoint as ckpt
from video_gn.run.folder import open_run, save_last
from video_gn.run.lock import hold_on_rank0
from video_gn.run.log import Writers, read_log


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
    """State of a training run; `run` trains to the end.

    A checkpoint is exact at any step without the state of a random number generator or of a sampler: clips are drawn
    by functions of (seed, epoch, position), dropout by one of (seed, step, pass), and nothing else is random. Nor is
    there a gradient scaler: bf16 has fp32's range.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        train_records: list[Record],
        val_records: list[Record],
        class_names: list[str],
        stop: Stop,
    ) -> None:
        self.config = config
        self.world = world
        self.stop = stop
        self.folder = Path(config.output_dir)
        self.plan = plan_batches(config, len(train_records), world.size)
        self.lists = {"train": fingerprint(train_records), "val": fingerprint(val_records)}
        self.class_names = class_names
        self.unreadable = Unreadable(self.folder / "unreadable.txt", config.data.max_unreadable, world)
        share_cores(world.device, config.data.workers)

        torch.manual_seed(config.seed)
        self.memory_format = memory_format(config)
        self.model: Network = build_model(config.model, config.dims).to(world.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.model.freeze(parts_to_freeze(self.model, config.optim))
        if config.train.percentiles_of is not None:
            find_layer(self.model, config.train.percentiles_of)
        if isinstance(self.model, ResNet):
            self.model.checkpoint_stages = config.train.checkpoint_stages
        self.optimizer = build_optimizer(self.model, config.optim, self.plan.lr)
        self.autocast = autocast(config.train.precision, world.device)

        self.train_clips = train_dataset(config, train_records)
        self.val_clips = val_dataset(config, val_records)

        self.step_done = 0
        self.epochs_done = 0  # evaluation and log line included
        self.log_lines = 0
        self.bad_steps = 0
        self.best_error = math.inf
        self.interval = Interval(world.device)
        self.epoch_meter = Meter(world.device)
        self.parallel = parallel(self.model) if world.size > 1 else self.model
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.parallel) if config.train.compile else self.parallel
        )
        self._resume()  # after DDP has given rank 0's running statistics to all ranks

    @property
    def last_step(self) -> int:
        return self.config.train.epochs * self.plan.steps_per_epoch

    def run(self, writers: Writers | None) -> None:
        """Train from `step_done` to the end of the last epoch; rank 0 passes `writers`."""
        config, plan = self.config, self.plan
        if self.world.is_main:
            self._announce(writers)
        batches = self._train_batches(self.step_done, self.last_step)
        passes = iter(batches)
        self.ahead = next(passes, None)
        self.saved_at = time.monotonic()
        self.interval.waited = batches.waited
        self.interval.restart()
        traced = config.profile and self.world.is_main
        with self._progress_bar() as bar, trace(self.folder / "profile", self.world.device, traced) as step_traced:
            while self.epochs_done < config.train.epochs:
                if self.step_done == (self.epochs_done + 1) * plan.steps_per_epoch:
                    self._end_epoch(writers)
                    self.interval.restart()
                    continue
                stop, due = self.step(passes, self.step_done / plan.steps_per_epoch, self.interval.meter)
                self.step_done += 1
                bar.update()
                step_traced()
                end_of_epoch = self.step_done % plan.steps_per_epoch == 0
                if end_of_epoch or self.step_done % config.train.log_every == 0:
                    self._log_interval(batches, writers)
                if stop:
                    self._stop(writers)
                if due and not end_of_epoch:
                    self._save(writers)

    def step(self, passes: Iterator[Batch], epoch: float, meter: Meter) -> tuple[bool, bool]:
        """One optimizer step: the forward and backward passes of this rank's share of the global batch.

        A step with a loss or gradient that is not finite changes nothing, on no rank.

        Returns whether the run shall stop, and whether a checkpoint is due: the same on all ranks.
        """
        self.lr = self.plan.lr * rate_factor(self.config.optim, epoch, self.config.train.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        before, measured = self._copy_of_buffers(), Meter(self.world.device)
        losses: list[Tensor] = []
        videos: list[list[str]] = []
        for index in range(self.plan.passes):
            batch = self.ahead
            assert batch is not None
            self._check_read(batch)
            # Dropout's randomness is keyed by the pass's place in the global batch, whichever rank runs it.
            place = index * self.world.size + self.world.rank
            torch.manual_seed(int(keyed_rng(self.config.seed, DROPOUT, self.step_done, place).integers(2**62)))
            last = index == self.plan.passes - 1
            with contextlib.nullcontext() if last else self._no_sync():
                with self.autocast():
                    logits = self.forward(batch.clips.contiguous(memory_format=self.memory_format))
                loss = F.cross_entropy(logits.float(), batch.labels)
                (loss / self.plan.passes).backward()
            measured.add(logits, batch.labels, loss)
            losses.append(loss.detach())
            videos.append([self.train_clips.records[item.index].path for item in batch.items])
            self.ahead = next(passes, None)  # on its way to the device while the host waits in _agree
        bad, stop, due = self._agree(losses)
        if bad:
            self._set_buffers(before)
            self._tell_bad_step(losses, videos)
        else:
            self.optimizer.step()
            meter.sums += measured.sums
        return stop, due

    def _agree(self, losses: list[Tensor]) -> tuple[bool, bool, bool]:
        """Over all ranks: whether a loss or gradient is not finite, whether to stop, whether a checkpoint is due."""
        largest = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None], math.inf)
        bad = ~torch.stack([*losses, largest]).isfinite().all()
        minutes = self.config.checkpoint.every_minutes
        due = self.world.is_main and minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        # Filled on the device: a copy of host memory would be a sync point of its own.
        asked = [torch.full((), float(flag), device=self.world.device) for flag in (self.stop.requested, due)]
        flags = self.world.sum(torch.stack([bad.float(), *asked])).tolist()  # sync point: once a step
        return bool(flags[0]), bool(flags[1]), bool(flags[2])

    def _tell_bad_step(self, losses: list[Tensor], videos: list[list[str]]) -> None:
        """Name the videos of a step that is not applied, on all ranks together; too many such steps end the run."""
        self.bad_steps += 1
        mine = list(zip(torch.stack(losses).tolist(), videos, strict=True))
        passes = [each for share in self.world.all_gather(mine) for each in share]
        bad = [each for each in passes if not math.isfinite(each[0])]
        what = f"its loss is {bad[0][0]}" if bad else "its gradient is not finite"
        named = ", ".join(name for _, names in bad or passes for name in names)
        if self.world.is_main:
            say(f"step {self.step_done + 1} is not applied, {what}; its videos: {named}")
        if self.bad_steps > self.config.train.max_bad_steps:
            raise UserError(
                f"{self.bad_steps} steps with a loss or gradient that is not finite, more than train.max_bad_steps "
                f"{self.config.train.max_bad_steps}; lower optim.lr, add optim.warmup_epochs or look at the videos"
            )

    def _copy_of_buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    @torch.no_grad()
    def _set_buffers(self, values: dict[str, Tensor]) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(values[name])

    @torch.no_grad()
    def evaluate(self) -> tuple[Averages, int]:
        """The monitored error: one clip a video under training augmentation, on all ranks together.

        Returns the averages and the number of videos that could not be read (named on the console). Raises Preempted,
        on all ranks, when one was asked to stop.
        """
        loader = eval_loader(
            self.val_clips,
            self.plan.clips_per_gpu,
            self.config.data.workers,
            self.world.device,
            self.world.rank,
            self.world.size,
            self.config.data.timeout,
        )
        self.model.eval()
        meter = Meter(self.world.device)
        unread = 0
        batches = self._on_device(loader)
        for batch in tqdm(batches, "validating", len(loader), leave=False, disable=self._quiet):
            if self.stop.requested:
                break
            for item in batch.items:
                for error in item.unreadable:
                    unread += 1
                    say(f"validation video not scored: {error}")
            if len(batch.labels):
                with self.autocast():
                    logits = self.model(batch.clips.contiguous(memory_format=self.memory_format))
                meter.add(logits, batch.labels)
        self.world.sum(meter.sums)
        unread, stop = self.world.sum(torch.tensor([unread, self.stop.requested], device=self.world.device)).tolist()
        if stop:
            raise Preempted
        return Averages.of(meter.sums), unread

    def _check_read(self, batch: Batch) -> None:
        """Count the unreadable videos of a training batch; a batch is short only when the list is nearly unreadable."""
        self.unreadable.add(error for item in batch.items for error in item.unreadable)
        if len(batch.labels) < len(batch.items):
            raise UserError("no readable video was found for a clip; see unreadable.txt and check data.root")

    def _readable(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The clips of training batches, as the network takes them."""
        for batch in batches:
            self._check_read(batch)
            yield batch.clips.contiguous(memory_format=self.memory_format)

    def _no_sync(self) -> contextlib.AbstractContextManager:
        return (
            self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else contextlib.nullcontext()
        )

    def _train_batches(self, first_step: int, last_step: int) -> DeviceBatches:
        plan, world, config = self.plan, self.world, self.config
        sampler = TrainBatches(
            plan.steps_per_epoch,
            first_step,
            last_step,
            clips_per_gpu=plan.clips_per_gpu,
            global_batch=plan.global_batch,
            rank=world.rank,
            ranks=world.size,
        )
        loader = train_loader(self.train_clips, sampler, config.data.workers, world.device, config.data.timeout)
        return self._on_device(loader)

    def _on_device(self, loader: Iterable[list[Clips]]) -> DeviceBatches:
        data = self.config.data
        dtype = autocast_dtype(self.config.train.precision, self.world.device)
        return DeviceBatches(loader, self.world.device, data.mean, data.std, self.config.dims, dtype)

    def _log_interval(self, batches: DeviceBatches, writers: Writers | None) -> None:
        """Average over the steps since the last log line and begin anew."""
        interval = self.interval
        self.unreadable.share()
        self.world.sum(interval.meter.sums)
        self.epoch_meter.sums += interval.meter.sums
        averages = Averages.of(interval.meter.sums)  # sync point: once an interval
        seconds = time.perf_counter() - interval.begin
        values = {
            "train/loss": averages.loss,
            "train/top1_error": averages.top1_error,
            "train/lr": self.lr,
            "system/clips_per_second": (averages.clips - interval.clips_before) / seconds,
            "system/data_wait": (batches.waited - interval.waited) / seconds,
            "system/memory_gib": peak_memory_gib(self.world.device),
            "system/bad_steps": self.bad_steps,
        }
        self.interval = Interval(self.world.device, waited=batches.waited)
        epoch = self.step_done / self.plan.steps_per_epoch
        if writers is not None:
            writers.write("train", self.step_done, epoch, values)
            say(
                f"epoch {epoch:6.2f}  step {self.step_done}  loss {averages.loss:.3f}  "
                f"train error {averages.top1_error:5.1f} %  lr {values['train/lr']:.2g}  "
                f"{values['system/clips_per_second']:.1f} clips/s  data wait {100 * values['system/data_wait']:.0f} %"
            )

    def _end_epoch(self, writers: Writers | None) -> None:
        """Evaluate, log and write checkpoints, where they are due. The next start does it again if it was cut short."""
        config = self.config
        epoch = self.epochs_done + 1
        last = epoch == config.train.epochs
        due = last or epoch % config.train.eval_every == 0
        save = last or epoch % config.checkpoint.every_epochs == 0
        training = Averages.of(self.epoch_meter.sums)
        values = {"epoch/train_loss": training.loss, "epoch/train_top1_error": training.top1_error}
        better = False
        before = self._copy_of_buffers()
        if due or save:
            self._prepare_norms()
        if due:
            try:
                with percentiles_of(self.model, config.train.percentiles_of) as percentiles:
                    averages, unread = self.evaluate()
            except Preempted:
                self._set_buffers(before)
                self._stop(writers)
            values |= {
                "val/loss": averages.loss,
                "val/top1_error": averages.top1_error,
                "val/top5_error": averages.top5_error,
                "val/videos_scored": averages.clips,
                "val/videos_unreadable": unread,
                **percentiles,
            }
            better = averages.top1_error < self.best_error
            self.best_error = min(self.best_error, averages.top1_error)
            if writers is not None:
                top5 = "-" if math.isnan(averages.top5_error) else f"{averages.top5_error:.1f} %"
                say(
                    f"epoch {epoch:6.2f}  1-clip augmented: val error {averages.top1_error:.1f} % (top-5 {top5}) "
                    f"on {averages.clips} of {len(self.val_clips)} videos"
                )
        if writers is not None:
            writers.write("epoch", self.step_done, epoch, values)
            if last:
                self._summarize(writers)
        self.epochs_done = epoch
        self.epoch_meter = Meter(self.world.device)
        if save or better:
            self._save(writers, last=save, best=better)

    def _summarize(self, writers: Writers) -> None:
        """The figure that section 4.1 reports: the median of the last 5 epochs' errors."""
        epochs = [record for record in read_log(self.folder) if record["kind"] == "epoch"]
        errors = [record["val/top1_error"] for record in epochs if record.get("val/top1_error") is not None][-5:]
        if not errors:
            say("no evaluation has an error: no validation video was scored, or the loss was not finite")
            return
        median = statistics.median(errors)
        writers.write("summary", self.step_done, self.config.train.epochs, {"summary/val_top1_error_median": median})
        say(f"val error, median of the last {len(errors)} evaluations: {median:.2f} %")

    def _prepare_norms(self) -> None:
        """Set statistics for evaluation and checkpoints: the same on all ranks, precise ones of Batch Norm."""
        number = min(self.config.train.precise_bn_batches, self.plan.steps_per_epoch * self.plan.passes)
        average_running_statistics(self.model, self.world)
        if number and precise_norms(self.model):
            steps = math.ceil(number / self.plan.passes)
            batches = self._train_batches(self.step_done, self.step_done + steps)
            clips = self._readable(batches)
            update_precise_bn(self.model, clips, number, self.autocast, self._quiet, self.world)

    def _stop(self, writers: Writers | None) -> NoReturn:
        self._save(writers)
        raise Preempted(f"{self.folder}: stopped after step {self.step_done} of {self.last_step}, with a checkpoint")

    def _save(self, writers: Writers | None, *, last: bool = True, best: bool = False) -> None:
        """Write last.pt or best.pt or both, on all ranks together. Each rank's running statistics are its own."""
        self.unreadable.share()
        buffers = {name: buffer.cpu() for name, buffer in self.model.named_buffers()}
        ranks = self.world.gather({"interval": self.interval.meter.sums.cpu(), "buffers": buffers})
        self.world.first(lambda: self._write(ranks, writers, last, best))
        if last:
            self.saved_at = time.monotonic()

    def _write(self, ranks: list[dict[str, Any]], writers: Writers | None, last: bool, best: bool) -> None:
        assert writers is not None
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_done,
            "best_error": self.best_error,
            "config": self.config.model_dump(mode="json"),
            "class_names": self.class_names,
            "lists": self.lists,
            "loop": {
                "epochs_done": self.epochs_done,
                "log_lines": writers.lines,
                "bad_steps": self.bad_steps,
                "epoch": self.epoch_meter.sums.cpu(),
                "ranks": ranks,
            },
        }
        writers.sync()
        if best:  # first: a kill before last.pt does this epoch's end again, one after it would leave best.pt behind
            ckpt.save(self.folder / "checkpoints" / ckpt.BEST, state)
        if last:
            save_last(self.folder, state, self.config.checkpoint.keep)

    def _resume(self) -> None:
        """Open the run folder on rank 0 and take its last checkpoint, if any, on all ranks; else `model.init_from`."""
        if not self.world.first(lambda: ckpt.exists(self.folder / "checkpoints")):
            self._initialize()  # first, so that weights which do not fit leave no folder behind
        self._check_classes(str(self.folder / "checkpoints" / ckpt.LAST), "choose another output_dir")
        state = self.world.first(lambda: open_run(self.config, self.lists, asdict(self.plan)))
        if state is None:
            return
        ckpt.load_model(self.model, state, str(self.folder))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_done, self.best_error = state["step"], state["best_error"]
        loop = state["loop"]
        self.epochs_done, self.log_lines, self.bad_steps = (
            loop[name] for name in ("epochs_done", "log_lines", "bad_steps")
        )
        self.epoch_meter.sums += loop["epoch"].to(self.world.device)
        # Of another number of ranks, each share still counts once; the running statistics are then some rank's.
        shares, rank = loop["ranks"], self.world.rank
        self._set_buffers(shares[rank % len(shares)]["buffers"])
        for share in shares[rank :: self.world.size]:
            self.interval.meter.sums += share["interval"].to(self.world.device)
        self.interval.clips_before = sum(int(share["interval"][3]) for share in shares)

    def _initialize(self) -> None:
        """Weights of `model.init_from`, read on rank 0, and what became of each."""
        source = self.config.model.init_from
        if source is None:
            return
        weights, what = self.world.first(lambda: read_weights(source))
        report = initialize(self.model, weights, drop=self.config.model.init_drop)
        if any(key.startswith(HEAD) for key in report.copied):
            self._check_classes(source, f"set model.init_drop=['{HEAD}*']")
        if self.world.is_main:
            say(f"{source}: {what}\n{report}")

    def _check_classes(self, checkpoint: str, remedy: str) -> None:
        """Raise UserError where a checkpoint, if it is there, has a classifier of other classes than this run."""
        names = self.world.first(lambda: trained_classes(checkpoint))
        source = self.config.data.class_names or f"the folder of {self.config.data.train_list}"
        if (problem := other_classes(names, self.class_names, source)) is not None:
            raise UserError(f"{checkpoint}: {problem}; correct the names, or for other classes {remedy}")

    @property
    def _quiet(self) -> bool | None:
        """tqdm's `disable`: off on other ranks; None shows a bar on a terminal alone."""
        return None if self.world.is_main else True

    def _progress_bar(self) -> tqdm:
        return tqdm(
            desc="training",
            total=self.last_step,
            initial=self.step_done,
            unit="step",
            disable=self._quiet,
            smoothing=0.05,
        )

    def _announce(self, writers: Writers | None) -> None:
        config = self.config
        info = describe(config)
        net = f"{config.model.arch} {config.model.temporal} {config.model.norm}"
        say(f"run {self.folder}: {net}, {info['parameters']:,} parameters{frozen_in_words(info)}")
        say(f"{len(self.train_clips)} training and {len(self.val_clips)} validation videos; {self.plan}")
        if self.step_done:
            say(f"resuming after step {self.step_done} of {self.last_step}")
        if writers is not None:
            writers.text("config", f"```\n{(self.folder / 'config.yaml').read_text()}\n```\n{self.plan}")
            writers.text("model", f"```\n{table(info)}\n```")


def parallel(model: nn.Module) -> nn.Module:
    """The model in DDP. Running statistics are averaged over ranks before they are used: DDP need not send them."""
    # The gradient of a 1 x 1 x 1 kernel lies in memory as the kernel does; only the strides of its sides of length 1
    # differ, of which DDP warns.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    with warnings.catch_warnings():  # the new name, forward_sync_buffers, is of torch 2.13
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


class Interval:
    """What is measured between two log lines."""

    def __init__(self, device: torch.device, waited: float = 0.0) -> None:
        self.meter = Meter(device)
        self.clips_before = 0  # of `meter`, on all ranks: those of the process that this one goes on from
        self.waited = waited
        self.restart()

    def restart(self) -> None:
        self.begin = time.perf_counter()


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this rank has held so far, GiB: of the GPU's allocator, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
