"""The fine-tuning loop and the evaluation pass, two visible functions that both engines run
through.

Distributed:
    Both are collective.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import (
    average_bn_statistics,
    broadcast_object,
    gather_object,
    is_main_process,
    mean_over_processes,
)
from ..runtime.metrics import MetricsFile
from ..runtime.run_folder import StopRequest

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations per log line, as Detectron2's writers have it
CHECKPOINT_FORMAT = "moco_transfer.finetune/1"


@dataclass
class FineTuning:
    """Everything a run consists of; the engine makes its parts from a config.

    Attributes:
        model: The detector on ``device``.
        wrapped: The same in DistributedDataParallel, or the model itself in one process.
        optimizer: Its learning rate is set by ``begin_iteration``.
        scaler: Loss scaling for fp16 on CUDA, disabled otherwise.
        device: Where the model is.
        amp_dtype: Autocast type, None for fp32.
        max_iter: Length of the run.
        header: What every checkpoint says about itself.
        begin_iteration: Called with the iterations finished before each one, after its images are
            there: sets the learning rate, and the random generators where the engine wants them
                set.
        clip: Limits the gradients in place, None for no clipping.
        engine_state: Returns what a checkpoint of this engine holds beside the rest. Collective.
        iteration: Iterations finished.
        last_losses: Means of the last log period.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    amp_dtype: torch.dtype | None
    max_iter: int
    header: dict[str, Any]
    begin_iteration: Callable[[int], None]
    clip: Callable[[], None] | None = None
    engine_state: Callable[[], dict[str, Any]] = field(default=dict)
    iteration: int = 0
    last_losses: dict[str, float] | None = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds; ``model`` has Detectron2's keys, so its own loader takes
        the file. Collective.
        """
        return self.header | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.iteration,
            "last_losses": self.last_losses,
            **self.engine_state(),
        }


def train(
    run: FineTuning,
    batches: Iterable[list[dict]],
    *,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
    checkpoint_period: int,
    evaluate_at: Callable[[int], bool],
    evaluation: Callable[[], dict[str, dict[str, float]]],
    before_evaluation: Callable[[], None],
) -> bool:
    """Train to the end, from wherever ``run.iteration`` stands.

    Args:
        run: Its ``iteration`` moves.
        batches: This process's batches from ``run.iteration`` on, without end.
        checkpoints: Where rank 0 saves.
        metrics: Where rank 0 writes, None on other processes.
        checkpoint_period: Iterations per checkpoint; the last iteration always has one.
        evaluate_at: Whether to evaluate after so many finished iterations; the end of the run is
            the caller's.
        evaluation: Returns metrics by task on rank 0.
        before_evaluation: PreciseBN; also called after the last iteration, before the last
            checkpoint is written.

    Returns:
        True when the run is complete, False when it was told to stop (SIGTERM) and has saved.

    Raises:
        FloatingPointError: If loss or predictions are not finite; names the iteration and the last
            checkpoint. A loss is looked at when it is logged, so that a GPU need not wait for it in
            every iteration.
    """
    run.wrapped.train()
    bar = tqdm(
        total=run.max_iter,
        initial=run.iteration,
        desc="fine-tuning",
        unit="it",
        disable=None if is_main_process() else True,
    )
    meter = _Meter(run)
    batch_iterator = iter(batches)
    with StopRequest() as stop:
        while run.iteration < run.max_iter:
            waited_since = time.perf_counter()
            batch = next(batch_iterator)
            meter.waited_sec += time.perf_counter() - waited_since
            run.begin_iteration(run.iteration)
            run.iteration += 1
            try:
                losses = step(run, batch)
            except (
                FloatingPointError
            ) as problem:  # predictions, which are looked at at once, unlike the loss
                raise meter.diverged(str(problem), checkpoints) from problem
            meter.add(losses)
            if run.iteration % LOG_PERIOD == 0 or run.iteration == run.max_iter:
                meter.report(metrics, checkpoints, bar)
            bar.update()
            stopping = stop.agreed(run.device)
            is_last = run.iteration == run.max_iter
            evaluating = evaluate_at(run.iteration) and not is_last
            saving = is_last or stopping or run.iteration % checkpoint_period == 0
            if meter.count and (evaluating or saving):
                meter.means(
                    checkpoints
                )  # raises rather than evaluate or save a model whose loss is not finite
            if is_last or evaluating:
                before_evaluation()
            if saving:
                save(run, checkpoints)
            if evaluating:
                results = evaluation()
                run.wrapped.train()
                if metrics is not None:
                    metrics.write(run.iteration, flatten(results))
            if stopping and not is_last:
                bar.close()
                logger.warning(
                    "Told to stop (SIGTERM): saved after iteration %d. Continue with --resume.",
                    run.iteration,
                )
                return False
    bar.close()
    return True


def step(run: FineTuning, batch: list[dict]) -> dict[str, Tensor]:
    """Do one iteration: forward, backward, clip, update.

    Returns the losses, detached, on the device.
    """
    with torch.autocast(run.device.type, dtype=run.amp_dtype, enabled=run.amp_dtype is not None):
        losses = run.wrapped(batch)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(sum(losses.values())).backward()
    if run.clip is not None:
        run.scaler.unscale_(run.optimizer)
        run.clip()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return {name: loss.detach() for name, loss in losses.items()}


def save(run: FineTuning, checkpoints: CheckpointFolder) -> None:
    """Average the BN statistics over the processes and write a checkpoint on rank 0. Collective."""
    average_bn_statistics(run.model)
    state = run.state()
    if is_main_process():
        path = checkpoints.save(state, f"{run.iteration:07d}")
        logger.info("saved %s", path)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[list[dict]],
    *,
    detect: Callable[[list[dict]], list[dict[str, Tensor]]],
    evaluator: Any,
    description: str,
    total: int | None = None,
) -> dict[str, dict[str, float]]:
    """Run the detector over this process's share of a test set, in float32 as Detectron2 does, also
    after training under autocast. Collective.

    Args:
        model: The detector; left in evaluation mode.
        batches: This process's share of the test set.
        detect: The model's detections in the evaluators' terms: ``boxes``, ``scores``,
            ``classes``[, ``masks``, ``keypoints``].
        evaluator: ``process(batch, outputs)`` and ``evaluate()``.
        description: Shown beside the progress bar.
        total: Number of batches, for the bar.

    Returns:
        Metrics by task on rank 0, ``{}`` elsewhere.
    """
    model.eval()
    evaluator.reset()
    for batch in tqdm(
        batches,
        desc=description,
        total=total,
        unit="batch",
        disable=None if is_main_process() else True,
    ):
        evaluator.process(batch, detect(batch))
    return evaluator.evaluate()


def flatten(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return ``{"bbox": {"AP": 1.0}}`` as ``{"bbox/AP": 1.0}``, Detectron2's names in metrics.json."""
    return {
        f"{task}/{name}": value
        for task, metrics in results.items()
        for name, value in metrics.items()
    }


class _Meter:
    """Sums of one log period."""

    def __init__(self, run: FineTuning) -> None:
        self.run = run
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.first_bad = torch.tensor(-1)
        self.waited_sec = 0.0
        self.since = time.perf_counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        # Noted on the device, without waiting for it.
        is_bad = ~sum(losses.values()).isfinite() & (self.first_bad.to(self.run.device) < 0)
        self.first_bad = torch.where(is_bad, self.run.iteration, self.first_bad.to(self.run.device))

    def means(self, checkpoints: CheckpointFolder) -> dict[str, float]:
        """Return each loss's mean since the last report, over all processes. Collective.

        Raises:
            FloatingPointError: If one is not finite.
        """
        means = mean_over_processes(
            {name: float(total) / self.count for name, total in self.sums.items()}, self.run.device
        )
        if not math.isfinite(sum(means.values())):  # on all processes alike: the means are
            bad = [
                iteration
                for iteration in broadcast_object(gather_object(int(self.first_bad)))
                if iteration >= 0
            ]
            raise _diverged(
                min(bad, default=self.run.iteration),
                f"The loss is not finite: {means}.",
                checkpoints,
            )
        return means

    def diverged(self, what: str, checkpoints: CheckpointFolder) -> FloatingPointError:
        """Return the error for predictions that are not finite in the step that was begun, which
        names the iteration that was the first to go wrong.

        The loss is only looked at when it is logged, so a step on weights that an earlier one has
        spoilt may be the first to complain. Not
        collective: another process may have nothing to complain of.
        """
        bad, iteration = int(self.first_bad), self.run.iteration
        if bad >= 0:
            means = {name: float(total) / self.count for name, total in self.sums.items()}
            return _diverged(bad, f"The loss is not finite: {means}.", checkpoints)
        if iteration > 1 and not all(
            bool(parameter.isfinite().all()) for parameter in self.run.model.parameters()
        ):
            # This process's own loss was finite: another one's gradients have come in with the
            # update before.
            return _diverged(
                iteration - 1, "The update has left weights that are not finite.", checkpoints
            )
        return _diverged(iteration, what, checkpoints)

    def report(self, metrics: MetricsFile | None, checkpoints: CheckpointFolder, bar: tqdm) -> None:
        """Log the means of the period and start a new one. Collective."""
        run = self.run
        means = run.last_losses = self.means(checkpoints)
        elapsed = time.perf_counter() - self.since
        total = sum(means.values())
        row = {
            "total_loss": total,
            **means,
            "lr": run.optimizer.param_groups[0]["lr"],
            "time": elapsed / self.count,
        }
        row["data_time"] = self.waited_sec / self.count
        if metrics is not None:
            metrics.write(run.iteration, row)
        left = time.strftime("%H:%M:%S", time.gmtime((run.max_iter - run.iteration) * row["time"]))
        parts = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        logger.info(
            f"iter {run.iteration}/{run.max_iter} total_loss {total:.3f} {parts} lr {row['lr']:.5f}"
            f" time {row['time']:.3f}s data {row['data_time']:.3f}s eta {left}"
        )
        bar.set_postfix_str(f"total_loss {total:.3f}")
        self._reset()


def _diverged(iteration: int, what: str, checkpoints: CheckpointFolder) -> FloatingPointError:
    return FloatingPointError(
        f"Iteration {iteration}: {what} Last checkpoint: {checkpoints.last() or 'none yet'}. Lower"
        " SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or check that the weights' statistics are"
        " the config's."
    )
