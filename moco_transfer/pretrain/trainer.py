"""The pre-training loop, in one visible function, and what it saves.

Distributed:
    ``train`` is collective. BN running statistics differ between processes during an epoch, because
    nothing in training reads them; they are averaged before each checkpoint, so that every process
    ends with the same state.
"""

from __future__ import annotations

import contextlib
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

from ..data.views.loading import to_device
from ..data.views.view_batch import finish
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import (
    all_gather_rows,
    average_bn_statistics,
    get_world_size,
    is_main_process,
)
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import Stopped, StopRequest
from ..runtime.seed import seed_everything
from .info_nce import info_nce
from .measures import Watch
from .memory_bank import MemoryBank
from .meter import Meter
from .supervised import Supervised
from .unreadable import note_unreadable, share_unreadable

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = "moco_transfer.pretrain/1"


@dataclass
class Pretraining:
    """Everything a run consists of; ``build.py`` makes it from a config.

    Attributes:
        model: MoCo, MemoryBank, EndToEnd or Supervised, on ``device``.
        wrapped: The same in DistributedDataParallel, or the model itself in one process.
        optimizer: SGD; its lr is set in each iteration.
        scaler: Loss scaling for fp16, disabled otherwise.
        device: Where the model is.
        amp_dtype: Autocast type, None for fp32.
        channels_last: Memory format of the images.
        lr_at: Iteration, 0-based -> effective learning rate.
        iterations_per_epoch: Iterations in an epoch.
        max_iterations: Length of the run.
        accumulate: Micro-batches per step.
        batch_size_total: Images per step over all processes.
        pixel_mean, pixel_std: RGB, 0-255.
        seed: The run's seed.
        header: What every checkpoint says about itself: format, mechanism, arch, pixels, config.
        num_images: Images in the folder; the share of unreadable ones is taken of it.
        max_unreadable: Share beyond which the run stops.
        iteration: Iterations finished.
        unreadable: Paths that could not be decoded so far, by any process as far as this one has
            heard; see ``unreadable.py``.
        unreadable_unshared: Those of them that only this process knows of.
        period: The log period that the checkpoint was saved in, as ``Meter.state`` returns it; of a
            resumed run alone.
        monitored: Iteration after which the monitor last looked, or found nothing due.
        num_workers: Data workers of this process, for advice.
        pipeline: DATA.PIPELINE, for advice.
        decoded: Whether the images come as bare pixels, for advice.
        watch: Says in words when features collapse or the loss stays at chance; None for
            ``supervised``.
        monitor: Called after each finished epoch and at the end of the run, with the run and what
            may end the call (``Stopped``); returns what to write into metrics.json, nothing when
            nothing is due.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    amp_dtype: torch.dtype | None
    channels_last: bool
    lr_at: Callable[[int], float]
    iterations_per_epoch: int
    max_iterations: int
    accumulate: int
    batch_size_total: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    seed: int
    header: dict[str, Any]
    num_images: int
    max_unreadable: float
    iteration: int = 0
    unreadable: set[str] = field(default_factory=set)
    unreadable_unshared: list[str] = field(default_factory=list)
    period: dict[str, Any] = field(default_factory=dict)
    monitored: int = 0
    num_workers: int = 0
    pipeline: str = "fast"
    decoded: bool = False
    watch: Watch | None = None
    monitor: Callable[[Pretraining, StopRequest], dict[str, float]] | None = None

    @property
    def epochs(self) -> int:
        """Epochs begun by the end of the run."""
        return math.ceil(self.max_iterations / self.iterations_per_epoch)

    @property
    def negatives(self) -> int:
        """Negatives K of the pretext task; 0 for ``supervised``."""
        return getattr(self.model, "num_negatives", 0)

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
        batches: As ``data.view_batch.ViewBatch.finished`` returns them, one per remaining
            iteration.
        checkpoints: Where rank 0 saves.
        metrics: Where rank 0 writes its measurements, None on the other processes.
        log_period: Iterations per log line.
        checkpoint_period_epochs: Epochs per checkpoint; the last epoch always has one.
        checkpoint_period_iters: Iterations per additional checkpoint; 0 for none.

    Returns:
        True when the run is complete, False when it was told to stop (SIGTERM) and has saved.

    Raises:
        FloatingPointError: If the loss is not finite; names the iteration and the last checkpoint.
        InputError: If more images are unreadable than allowed. Several processes compare what
            they found at each log line and checkpoint.
    """
    run.wrapped.train()
    meter = Meter(run)
    meter.go_on(run.period)
    batch_iterator = iter(to_device(batches, run.device))
    bar = tqdm(
        total=run.max_iterations,
        initial=run.iteration,
        desc="pre-training",
        unit="it",
        disable=None if is_main_process() else True,
    )
    saved = -1  # iteration of the newest checkpoint of this process
    with StopRequest() as stop:
        while _monitored(run, metrics, meter, stop):
            if run.iteration >= run.max_iterations:
                bar.close()
                return True
            waited_since = time.perf_counter()
            batch = stop.next_of(batch_iterator)
            meter.waited_sec += time.perf_counter() - waited_since
            # Asked before the step, not after it: a process that waits for images in vain has
            # none to take the step with.
            if stop.agreed(run.device):
                break
            note_unreadable(run, batch)
            seed_everything(run.seed, "iteration", run.iteration)
            for group in run.optimizer.param_groups:
                group["lr"] = run.lr_at(run.iteration)

            measured = step(run, batch)
            run.iteration += 1
            meter.add(measured, len(batch["label"]))
            if run.iteration % log_period == 0 or run.iteration == run.max_iterations:
                share_unreadable(run)
                meter.report(metrics, checkpoints, bar)
            bar.update()
            if _is_due(run, checkpoint_period_epochs, checkpoint_period_iters):
                save(run, checkpoints, meter)
                saved = run.iteration
        if saved != run.iteration:
            save(run, checkpoints, meter)
    bar.close()
    logger.warning(
        "Told to stop (SIGTERM): saved after iteration %d. Continue with --resume.", run.iteration
    )
    return False


def check_micro_batches(images: int, accumulate: int) -> None:
    """Refuse a process's images that do not divide into micro-batches of one size: BN would see
    groups of another size, down to one image.

    Args:
        images: Images per step on one process.
        accumulate: Micro-batches per step.

    Raises:
        InputError: If there is a remainder.
    """
    if images % accumulate:
        fitting = ", ".join(str(count) for count in range(1, images + 1) if images % count == 0)
        raise InputError(
            f"SOLVER.ACCUMULATE {accumulate} does not divide the {images} images of a step on one"
            f" process into micro-batches of one size. Use one of {fitting}, or another"
            " DATA.BATCH_SIZE_TOTAL."
        )


def step(run: Pretraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Take one optimiser step on a batch; returns what is worth logging. Collective."""
    run.optimizer.zero_grad(set_to_none=True)
    measured = _forward_backward(run, batch)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return measured


def _forward_backward(run: Pretraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Leave the step's gradients, and return what is worth logging, all on the device so that the
    host need not wait.
    """
    views = batch["views"].to(run.device, non_blocking=True)
    pairs = list(zip(views, batch.get("colours", [None] * len(views)), strict=True))
    targets = batch["index" if isinstance(run.model, MemoryBank) else "label"].to(
        run.device, non_blocking=True
    )
    size = -(-len(targets) // run.accumulate)
    parts = [
        slice(start, min(start + size, len(targets))) for start in range(0, len(targets), size)
    ]
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        images = [
            finish(
                view[part], None if colour is None else colour[part], run.pixel_mean, run.pixel_std
            )
            for view, colour in pairs
        ]
        if run.channels_last:
            images = [image.to(memory_format=torch.channels_last) for image in images]
        # DistributedDataParallel averages gradients over processes once, in the last backward of
        # the step.
        waits = number < len(parts) - 1 and get_world_size() > 1
        with run.wrapped.no_sync() if waits else contextlib.nullcontext():
            loss, measured = _loss(run, images, targets[part], number, len(parts), targets)
            share = (part.stop - part.start) / len(targets)
            run.scaler.scale(loss * share).backward()
        for name, value in ({"loss": loss.detach()} | measured).items():
            sums[name] = sums.get(name, 0) + value * share
    return sums


def _loss(
    run: Pretraining,
    images: list[Tensor],
    targets: Tensor,
    number: int,
    total: int,
    step_targets: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of one micro-batch and its measures; ``step_targets`` are the targets of all
    of the step.
    """
    micro_batch = (number, total) if total > 1 else ()
    with torch.autocast(run.device.type, dtype=run.amp_dtype, enabled=run.amp_dtype is not None):
        if isinstance(run.model, Supervised):
            logits = run.wrapped(images[0])
        elif isinstance(run.model, MemoryBank):
            logits, _ = run.wrapped(images[0], targets, *micro_batch, step_index=step_targets)
        else:
            logits, _ = run.wrapped(*images, *micro_batch)
    if isinstance(run.model, Supervised):
        return F.cross_entropy(logits, targets), {
            "acc1": (logits.detach().argmax(1) == targets).float().mean() * 100
        }
    return info_nce(logits) * run.model.loss_scale, run.model.measured


def _monitored(
    run: Pretraining, metrics: MetricsFile | None, meter: Meter, stop: StopRequest
) -> bool:
    """Let the monitor look at a finished epoch, unless it has; its time does not count as training
    time. Collective.

    Returns:
        False if the run was told to stop before the monitor had done.
    """
    ended = run.iteration % run.iterations_per_epoch == 0 or run.iteration == run.max_iterations
    if run.monitor is None or not ended or run.monitored == run.iteration:
        return True
    since = time.perf_counter()
    try:
        row = run.monitor(run, stop)
    except Stopped:
        return False
    run.monitored = run.iteration
    if row and metrics is not None:
        metrics.write(
            run.iteration, {"epoch": (run.iteration - 1) // run.iterations_per_epoch} | row
        )
    meter.since += time.perf_counter() - since
    return True


def _is_due(run: Pretraining, period_epochs: int, period_iters: int) -> bool:
    epoch, step = divmod(run.iteration, run.iterations_per_epoch)
    if run.iteration == run.max_iterations or (step == 0 and epoch % period_epochs == 0):
        return True
    return period_iters > 0 and run.iteration % period_iters == 0


def save(run: Pretraining, checkpoints: CheckpointFolder, meter: Meter) -> None:
    """Average the BN statistics over the processes and write a checkpoint on rank 0. Collective.

    Args:
        run: What is saved.
        checkpoints: Where to.
        meter: Of the log period that has begun.

    Raises:
        FloatingPointError: If the loss is not finite: such a model is not worth saving.
        InputError: If more images are unreadable than allowed.
        RuntimeError: If the processes' queues or banks have come apart.
    """
    if meter.count:
        meter.means(checkpoints)
    share_unreadable(run)
    for name in ("queue", "bank"):
        if hasattr(run.model, name) and get_world_size() > 1:
            fingerprints = all_gather_rows(getattr(run.model, name).double().sum().reshape(1))
            if not torch.equal(fingerprints, fingerprints[:1].expand_as(fingerprints)):
                raise RuntimeError(
                    f"The {name} differs between processes at iteration {run.iteration}, sums"
                    f" {fingerprints.tolist()}: a bug."
                )
    average_bn_statistics(run.model)
    period = meter.state()
    if is_main_process():
        epoch, step = divmod(run.iteration, run.iterations_per_epoch)
        state = run.state() | {"period": period}
        path = checkpoints.save(
            state, f"{epoch:04d}" + (f"_iter{run.iteration:08d}" if step else "")
        )
        logger.info("saved %s (%d of %d epochs)", path, epoch, run.epochs)
