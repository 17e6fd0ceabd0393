"""The pre-training loop, in one visible function, and what it saves.

Distributed:
    ``train`` is collective. BN running statistics differ between processes during an epoch, because nothing in training
    reads them; they are averaged before each checkpoint, so that every process ends with the same state.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.two_views import normalize
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import average_tensors, get_world_size, is_main_process, mean_over_processes
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import StopRequest
from ..runtime.seed import seed_everything

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "moco_transfer.pretrain/1"


@dataclass
class Pretraining:
    """Everything a run consists of; ``build.py`` makes it from a config.

    Attributes:
        model: MoCo or Supervised, on ``device``.
        wrapped: The same in DistributedDataParallel, or the model itself in one process.
        optimizer: SGD; its lr is set in each iteration.
        scaler: Loss scaling for fp16, disabled otherwise.
        device: Where the model is.
        amp_dtype: Autocast type, None for fp32.
        channels_last: Memory format of the images.
        lr_at: (epoch, step) -> effective learning rate.
        iterations_per_epoch: Iterations in an epoch.
        epochs: Length of the run.
        pixel_mean, pixel_std: RGB, 0-255.
        seed: The run's seed.
        header: What every checkpoint says about itself: format, mechanism, arch, pixels, config.
        num_images: Pictures in the folder; the share of unreadable ones is taken of it.
        max_unreadable: Share beyond which the run stops.
        iteration: Iterations finished.
        unreadable: Paths that could not be decoded so far.
        monitor: Called after each finished epoch; returns what to write into metrics.json, nothing when nothing is due.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    amp_dtype: torch.dtype | None
    channels_last: bool
    lr_at: Callable[[int, int], float]
    iterations_per_epoch: int
    epochs: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    seed: int
    header: dict[str, Any]
    num_images: int
    max_unreadable: float
    iteration: int = 0
    unreadable: set[str] = field(default_factory=set)
    monitor: Callable[[Pretraining], dict[str, float]] | None = None

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole run."""
        return self.epochs * self.iterations_per_epoch

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds; all of it loads with ``weights_only=True``."""
        return self.header | {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.iteration // self.iterations_per_epoch,
            "iteration": self.iteration,
            "iterations_per_epoch": self.iterations_per_epoch,
            "unreadable": sorted(self.unreadable),
            "world_size": get_world_size(),
        }


def train(
    run: Pretraining,
    batches: Iterable[dict[str, Any]],
    *,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
    log_period: int,
    checkpoint_period_epochs: int,
    checkpoint_period_iters: int,
) -> bool:
    """Train to the end, from wherever ``run.iteration`` stands.

    Args:
        run: Model, optimiser and schedule; its ``iteration`` moves.
        batches: From ``data.two_views.collate_views``, one per remaining iteration.
        checkpoints: Where rank 0 saves.
        metrics: Where rank 0 writes its measurements, None on the other processes.
        log_period: Iterations per log line.
        checkpoint_period_epochs: Epochs per checkpoint; the last epoch always has one.
        checkpoint_period_iters: Iterations per additional checkpoint; 0 for none.

    Returns:
        True when the run is complete, False when it was told to stop (SIGTERM) and has saved.

    Raises:
        FloatingPointError: If the loss is not finite; names the iteration and the last checkpoint.
        InputError: If more pictures are unreadable than allowed.
    """
    run.wrapped.train()
    meter = _Meter(run, log_period)
    batch_iterator = iter(batches)
    bar = tqdm(total=run.max_iterations, initial=run.iteration, desc="pre-training", unit="it", disable=None if is_main_process() else True)
    with StopRequest() as stop:
        while run.iteration < run.max_iterations:
            waited_since = time.perf_counter()
            batch = next(batch_iterator)
            meter.waited_sec += time.perf_counter() - waited_since
            _count_unreadable(run, batch)
            epoch, step = divmod(run.iteration, run.iterations_per_epoch)
            seed_everything(run.seed, "iteration", run.iteration)
            for group in run.optimizer.param_groups:
                group["lr"] = run.lr_at(epoch, step)

            loss, measured = _forward(run, batch)
            run.optimizer.zero_grad(set_to_none=True)
            run.scaler.scale(loss).backward()
            run.scaler.step(run.optimizer)
            run.scaler.update()

            run.iteration += 1
            meter.add(loss.detach(), measured, len(batch["label"]))
            if run.iteration % log_period == 0 or run.iteration == run.max_iterations:
                meter.report(metrics, checkpoints, bar)
            bar.update()
            stopping = stop.agreed(run.device)
            if stopping or _is_due(run, checkpoint_period_epochs, checkpoint_period_iters):
                if meter.count:
                    meter.means(checkpoints)  # raises rather than save a model whose loss is not finite
                save(run, checkpoints)
            if stopping and run.iteration < run.max_iterations:
                bar.close()
                logger.warning("Told to stop (SIGTERM): saved after iteration %d. Continue with --resume.", run.iteration)
                return False
            if run.iteration % run.iterations_per_epoch == 0:
                _monitor(run, metrics, meter)
    bar.close()
    return True


def _forward(run: Pretraining, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and what is worth logging, all on the device so that the host need not wait."""
    views = batch["views"].to(run.device, non_blocking=True)
    images = [normalize(view, run.pixel_mean, run.pixel_std) for view in views]
    if run.channels_last:
        images = [image.to(memory_format=torch.channels_last) for image in images]
    with torch.autocast(run.device.type, dtype=run.amp_dtype, enabled=run.amp_dtype is not None):
        if len(images) == 1:
            logits, target = run.wrapped(images[0]), batch["label"].to(run.device)
        else:
            logits, target = run.wrapped(*images)
    loss = F.cross_entropy(logits, target)
    with torch.no_grad():
        correct = (logits.argmax(1) == target).float().mean() * 100
        if len(images) == 1:
            return loss, {"acc1": correct}
        temperature = run.model.temperature
        cosines = {"cos_positive": logits[:, 0].mean() * temperature, "cos_negative": logits[:, 1:].mean() * temperature}
    return loss, {"contrast_acc1": correct} | cosines


def _monitor(run: Pretraining, metrics: MetricsFile | None, meter: _Meter) -> None:
    """Let the monitor look at the finished epoch; its time does not count as training time. Collective."""
    since = time.perf_counter()
    row = run.monitor(run) if run.monitor is not None else {}
    if row and metrics is not None:
        metrics.write(run.iteration, {"epoch": run.iteration // run.iterations_per_epoch - 1} | row)
    meter.since += time.perf_counter() - since


def _is_due(run: Pretraining, period_epochs: int, period_iters: int) -> bool:
    epoch, step = divmod(run.iteration, run.iterations_per_epoch)
    if step == 0 and (epoch % period_epochs == 0 or epoch == run.epochs):
        return True
    return period_iters > 0 and run.iteration % period_iters == 0


def save(run: Pretraining, checkpoints: CheckpointFolder) -> None:
    """Average the BN statistics over the processes and write a checkpoint on rank 0. Collective."""
    average_tensors(b for name, b in run.model.named_buffers() if name.endswith(("running_mean", "running_var")))
    if is_main_process():
        epoch, step = divmod(run.iteration, run.iterations_per_epoch)
        path = checkpoints.save(run.state(), f"{epoch:04d}" + (f"_iter{run.iteration:08d}" if step else ""))
        logger.info("saved %s (%d of %d epochs)", path, epoch, run.epochs)


def _count_unreadable(run: Pretraining, batch: dict[str, Any]) -> None:
    for path in set(batch["unreadable"]) - run.unreadable:
        logger.warning("skipped unreadable picture %s (%d so far)", path, len(run.unreadable) + 1)
        run.unreadable.add(path)
    if batch["given_up"] or len(run.unreadable) > run.max_unreadable * run.num_images:
        raise InputError(
            f"{len(run.unreadable)} of {run.num_images} pictures cannot be read, more than DATA.MAX_UNREADABLE {run.max_unreadable:g} allows; "
            f"the first is {min(run.unreadable)}. Repair or remove them, or raise DATA.MAX_UNREADABLE."
        )


class _Meter:
    """Sums of one log period."""

    def __init__(self, run: Pretraining, period: int) -> None:
        self.run = run
        self.period = period
        self.smoothed_sec: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.waited_sec = 0.0
        self.images = 0
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.since = time.perf_counter()

    def add(self, loss: Tensor, measured: dict[str, Tensor], images: int) -> None:
        for name, value in ({"loss": loss} | measured).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.images += images
        self.count += 1

    def means(self, checkpoints: CheckpointFolder) -> dict[str, float]:
        """Return the means since the last report, over all processes. Collective.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        means = mean_over_processes({name: float(total) / self.count for name, total in self.sums.items()}, self.run.device)
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"The loss is {means['loss']} at iteration {self.run.iteration} ({means}). Last checkpoint: {checkpoints.last() or 'none yet'}. "
                f"Lower SOLVER.BASE_LR, or use TRAIN.PRECISION bf16 or fp32."
            )
        return means

    def report(self, metrics: MetricsFile | None, checkpoints: CheckpointFolder, bar: tqdm) -> None:
        """Log the means of the period and start a new one. Collective."""
        run = self.run
        means = self.means(checkpoints)
        elapsed = time.perf_counter() - self.since
        epoch = (run.iteration - 1) // run.iterations_per_epoch
        row = {"epoch": epoch, **means, "lr": run.optimizer.param_groups[0]["lr"]}
        if hasattr(run.model, "queue"):
            row["chance"] = math.log(run.model.queue_size + 1)
        row |= {
            "images_per_sec": self.images * get_world_size() / elapsed,
            "data_wait_share": min(1.0, self.waited_sec / elapsed),
            "time": elapsed / self.count,
        }
        if metrics is not None:
            metrics.write(run.iteration, row)
            self._log(row, epoch, bar)
        self._reset()

    def _log(self, row: dict[str, float], epoch: int, bar: tqdm) -> None:
        run = self.run
        step = (run.iteration - 1) % run.iterations_per_epoch + 1
        chance = f" (chance ln(K+1) {row['chance']:.3f})" if "chance" in row else ""
        name = "contrast_acc1" if "contrast_acc1" in row else "acc1"
        left = time.strftime("%H:%M:%S", time.gmtime((run.max_iterations - run.iteration) * row["time"]))
        memory = f" mem {torch.cuda.max_memory_allocated() / 2**20:.0f}MB" if run.device.type == "cuda" else ""
        logger.info(
            f"epoch {epoch + 1}/{run.epochs} iter {step}/{run.iterations_per_epoch} loss {row['loss']:.3f}{chance} {name} {row[name]:.1f} "
            f"lr {row['lr']:.5f} {row['images_per_sec']:.0f} images/s data {100 * row['data_wait_share']:.0f}%{memory} eta {left}"
        )
        bar.set_postfix_str(f"loss {row['loss']:.3f}{chance}, {name} {row[name]:.1f}, {row['images_per_sec']:.0f} images/s")
