"""The pre-training loop, in one visible function, and what it saves.

Distributed:
    ``train`` is collective. BN running statistics differ between processes during an epoch, because nothing in training
    reads them; they are averaged before each checkpoint, so that every process ends with the same state.
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

from ..data.prefetch import to_device
from ..data.view_batch import finish
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import all_gather_rows, average_bn_statistics, get_world_size, is_main_process
from ..runtime.errors import InputError
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import StopRequest
from ..runtime.seed import seed_everything
from .info_nce import info_nce
from .measures import Watch
from .memory_bank import MemoryBank
from .meter import Meter
from .supervised import Supervised

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
        num_images: Pictures in the folder; the share of unreadable ones is taken of it.
        max_unreadable: Share beyond which the run stops.
        iteration: Iterations finished.
        unreadable: Paths that could not be decoded so far.
        num_workers: Data workers of this process, for advice.
        pipeline: DATA.PIPELINE, for advice.
        decoded: Whether the pictures come as bare pixels, for advice.
        watch: Says in words when features collapse or the loss stays at chance; None for ``supervised``.
        monitor: Called after each finished epoch and at the end of the run; returns what to write into metrics.json, nothing when nothing is due.
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
    num_workers: int = 0
    pipeline: str = "fast"
    decoded: bool = False
    watch: Watch | None = None
    monitor: Callable[[Pretraining], dict[str, float]] | None = None

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
        batches: As ``data.view_batch.ViewBatch.finished`` returns them, one per remaining iteration.
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
    meter = Meter(run)
    batch_iterator = iter(to_device(batches, run.device))
    bar = tqdm(total=run.max_iterations, initial=run.iteration, desc="pre-training", unit="it", disable=None if is_main_process() else True)
    with StopRequest() as stop:
        while run.iteration < run.max_iterations:
            waited_since = time.perf_counter()
            batch = next(batch_iterator)
            meter.waited_sec += time.perf_counter() - waited_since
            _count_unreadable(run, batch)
            seed_everything(run.seed, "iteration", run.iteration)
            for group in run.optimizer.param_groups:
                group["lr"] = run.lr_at(run.iteration)

            measured = step(run, batch)
            run.iteration += 1
            meter.add(measured, len(batch["label"]))
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
            if run.iteration % run.iterations_per_epoch == 0 or run.iteration == run.max_iterations:
                _monitor(run, metrics, meter)
    bar.close()
    return True


def step(run: Pretraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Take one optimiser step on a batch; returns what is worth logging. Collective."""
    run.optimizer.zero_grad(set_to_none=True)
    measured = _forward_backward(run, batch)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return measured


def _forward_backward(run: Pretraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Leave the step's gradients, and return what is worth logging, all on the device so that the host need not wait."""
    views = batch["views"].to(run.device, non_blocking=True)
    pairs = list(zip(views, batch.get("colours", [None] * len(views)), strict=True))
    targets = batch["index" if isinstance(run.model, MemoryBank) else "label"].to(run.device, non_blocking=True)
    size = -(-len(targets) // run.accumulate)
    parts = [slice(start, min(start + size, len(targets))) for start in range(0, len(targets), size)]
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        images = [finish(view[part], None if colour is None else colour[part], run.pixel_mean, run.pixel_std) for view, colour in pairs]
        if run.channels_last:
            images = [image.to(memory_format=torch.channels_last) for image in images]
        # DistributedDataParallel averages gradients over processes once, in the last backward of the step.
        waits = number < len(parts) - 1 and get_world_size() > 1
        with run.wrapped.no_sync() if waits else contextlib.nullcontext():
            loss, measured = _loss(run, images, targets[part], number, len(parts))
            share = (part.stop - part.start) / len(targets)
            run.scaler.scale(loss * share).backward()
        for name, value in ({"loss": loss.detach()} | measured).items():
            sums[name] = sums.get(name, 0) + value * share
    return sums


def _loss(run: Pretraining, images: list[Tensor], targets: Tensor, number: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of one micro-batch and its measures."""
    micro_batch = (number, total) if total > 1 else ()
    with torch.autocast(run.device.type, dtype=run.amp_dtype, enabled=run.amp_dtype is not None):
        if isinstance(run.model, Supervised):
            logits = run.wrapped(images[0])
        elif isinstance(run.model, MemoryBank):
            logits, _ = run.wrapped(images[0], targets, *micro_batch)
        else:
            logits, _ = run.wrapped(*images, *micro_batch)
    if isinstance(run.model, Supervised):
        return F.cross_entropy(logits, targets), {"acc1": (logits.detach().argmax(1) == targets).float().mean() * 100}
    return info_nce(logits) * run.model.loss_scale, run.model.measured


def _monitor(run: Pretraining, metrics: MetricsFile | None, meter: Meter) -> None:
    """Let the monitor look at the finished epoch; its time does not count as training time. Collective."""
    since = time.perf_counter()
    row = run.monitor(run) if run.monitor is not None else {}
    if row and metrics is not None:
        metrics.write(run.iteration, {"epoch": (run.iteration - 1) // run.iterations_per_epoch} | row)
    meter.since += time.perf_counter() - since


def _is_due(run: Pretraining, period_epochs: int, period_iters: int) -> bool:
    epoch, step = divmod(run.iteration, run.iterations_per_epoch)
    if run.iteration == run.max_iterations or (step == 0 and epoch % period_epochs == 0):
        return True
    return period_iters > 0 and run.iteration % period_iters == 0


def save(run: Pretraining, checkpoints: CheckpointFolder) -> None:
    """Average the BN statistics over the processes and write a checkpoint on rank 0. Collective.

    Raises:
        RuntimeError: If the processes' queues or banks have come apart.
    """
    for name in ("queue", "bank"):
        if hasattr(run.model, name):
            fingerprints = all_gather_rows(getattr(run.model, name).double().sum().reshape(1))
            if not torch.equal(fingerprints, fingerprints[:1].expand_as(fingerprints)):
                raise RuntimeError(f"The {name} differs between processes at iteration {run.iteration}, sums {fingerprints.tolist()}: a bug.")
    average_bn_statistics(run.model)
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
