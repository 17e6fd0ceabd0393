"""The fine-tuning loop and the evaluation pass of both engines; all of it is collective."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import FP32, Precision
from ..runtime.distributed import (
    average_bn_statistics,
    broadcast_module_state,
    get_world_size,
    in_parallel,
    is_main_process,
)
from ..runtime.errors import NotFiniteError
from ..runtime.health.replay import Rewind, Step, outcome, save_fault
from ..runtime.metrics import MetricsFile
from ..runtime.progress import Meter, eta, logged, progress
from ..runtime.stop import StopRequest
from .engine import Engine
from .schedule import BEST_FILE, Best, Schedule

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations per log line, as Detectron2's writers have it
_REMEDY = (
    "Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or check that the weights' statistics are"
    " the config's."
)

Results = dict[str, dict[str, float]]  # metrics by task; by data set and task where there are many


class FineTuning:
    """The state of a run, at first of iteration 0, with equal weights on all processes.

    Attributes:
        wrapped: The model, in DistributedDataParallel where there are several processes.
        precision: That of the iterations; evaluation is in float32.
        header: What every checkpoint says about the run.
        best: What TEST.KEEP_BEST asks for, None for a fixed schedule.
        batches_from: Gives the batches after so many iterations again; None where other ones would
            come, as with Detectron2's augmentation.
        command: What the run was started by.
        begin_iteration: Sets the learning rate after a number of iterations.
        iteration: Iterations finished.
        meter: Of the log period.
        last_losses: Means of the last log period.
    """

    def __init__(
        self,
        engine: Engine,
        model: nn.Module,
        header: dict[str, Any],
        *,
        precision: Precision = FP32,
        best: Best | None = None,
        batches_from: Callable[[int], Iterable[list[dict]]] | None = None,
        command: str = "moco-transfer train",
    ) -> None:
        device, self.best = engine.device, best
        self.engine, self.header, self.precision = engine, header, precision
        self.model = model.to(device)
        self.wrapped: nn.Module = model
        broadcast_module_state([*model.parameters(), *model.buffers()])
        if get_world_size() > 1:
            self.wrapped = in_parallel(model, device)
        self.optimizer = engine.build_optimizer(model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        self.begin_iteration = engine.iteration_starter(self.optimizer)
        self.iteration, self.meter = 0, Meter(device)
        self.last_losses: dict[str, float] | None = None
        self.batches_from, self.command = batches_from, command
        self.rewind = Rewind(model, device, self.weights)

    def weights(self) -> dict[str, Any]:
        """Return what :meth:`load_weights` takes. Not collective."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in (parts | {"scaler": self.scaler}).items()}

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take up model, optimizer and scaler."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty, which torch does not load, where the run scaled no losses
            self.scaler.load_state_dict(state["scaler"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds; Detectron2's own loader takes it. Collective."""
        return self.header | {
            **self.weights(),
            "iteration": self.iteration,
            "last_losses": self.last_losses,
            "period": self.meter.state(),
            **({"best": asdict(self.best)} if self.best else {}),
            **self.engine.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.load_weights(state)
        self.iteration, self.last_losses = state["iteration"], state["last_losses"]
        self.meter.resume(state.get("period", {}))
        self.best = replace(self.best, **state["best"]) if self.best else None
        self.engine.restore(state)


def train(
    run: FineTuning,
    batches: Iterable[list[dict]],
    schedule: Schedule,
    *,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
    stop: StopRequest,
    precise_bn: Callable[[], None],
    evaluation: Callable[[], Results | None],
) -> bool:
    """Train from ``run.iteration`` to the end; False when the run was told to stop and has saved.

    The losses are read when they are logged, so that a GPU need not wait for them in every
    iteration, and before anything is evaluated or saved. The last iteration has a checkpoint;
    ``precise_bn`` is called before it and before an evaluation. ``evaluation`` returns None when it
    was stopped; the one at the end of the run is the caller's.

    Raises:
        FloatingPointError: If loss or predictions are not finite.
    """
    run.wrapped.train()
    meter, batch_iterator = run.meter, iter(batches)
    length = schedule.iterations
    bar = progress(None, "fine-tuning", total=length, initial=run.iteration)
    measure = functools.partial(_measure, run, schedule, checkpoints, metrics, evaluation)
    with bar, checkpoints.advising(_REMEDY), _saved_for_replay(run, checkpoints.folder):
        _keep(run)
        # A resumed run may owe the evaluation that its checkpoint was saved before.
        if run.best and run.best.seen < run.iteration and not measure():
            return False
        while run.iteration < length and not (run.best and run.best.is_over):
            with meter.waiting():
                batch = next(batch_iterator)
            run.begin_iteration(run.iteration)
            run.iteration += 1
            try:
                losses = step(run, batch)
            except FloatingPointError as problem:  # of predictions, which are looked at at once
                fault = _first_fault(run, meter, problem)
                if get_world_size() > 1:  # the others do not know of it, and will be ended
                    raise FloatingPointError(str(fault)) from problem
                raise fault from problem
            meter.add(losses, run.iteration)
            is_last, stopping = run.iteration == length, stop.agreed()
            if run.iteration % LOG_PERIOD == 0 or is_last:
                _log(run, meter, metrics, length)
                _keep(run)
                logged(bar)
            evaluating = _is_due(run, schedule)
            saving = is_last or stopping or run.iteration % schedule.checkpoint_period == 0
            if meter.count and (evaluating or saving):
                meter.means()
            if is_last or evaluating:
                precise_bn()
            if saving:
                save(run, checkpoints, metrics)
            bar.update()
            if stopping and not is_last:
                return False
            if evaluating and not measure():
                return False
    return True


def _is_due(run: FineTuning, schedule: Schedule) -> bool:
    """Whether the run is evaluated here: at the end only to compare it with the best."""
    if schedule.eval_period <= 0 or run.iteration == 0:
        return False
    if run.iteration == schedule.iterations:
        return run.best is not None
    return run.iteration % schedule.eval_period == 0


def _measure(
    run: FineTuning,
    schedule: Schedule,
    checkpoints: CheckpointFolder,
    metrics: MetricsFile | None,
    evaluation: Callable[[], Results | None],
) -> bool:
    """Evaluate where it is due, and keep the best; return False if told to stop and saved."""
    if not _is_due(run, schedule):
        return True
    results = evaluation()
    if results is None:
        save(run, checkpoints, metrics)
        return False
    run.wrapped.train()
    row = metric_row(results)
    if metrics is not None:
        metrics.write(run.iteration, row)
    if run.best is not None and run.best.take(run.iteration, row):
        average_bn_statistics(run.model)
        state = run.state()
        if is_main_process():
            path = checkpoints.write(state, BEST_FILE)
            logger.info("best so far: %s %.2f, %s", run.best.metric, run.best.value, path)
    if run.best is not None and run.best.is_over:
        save(run, checkpoints, metrics)
        text = "TEST.PATIENCE %d: no better %s since iteration %d; the run ends."
        logger.info(text, run.best.patience, run.best.metric, run.best.iteration)
    return True


def metric_row(results: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics by ``task/name``, or ``set/task/name`` where there are several test sets."""
    row: dict[str, float] = {}
    for key, value in results.items():
        inner = metric_row(value) if isinstance(value, Mapping) else None
        row |= {key: value} if inner is None else {f"{key}/{k}": v for k, v in inner.items()}
    return row


def step(run: FineTuning, batch: list[dict]) -> dict[str, Tensor]:
    """Do one iteration and return the losses, detached, on the device."""
    device, dtype = run.engine.device.type, run.precision.dtype
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        losses = run.wrapped(batch)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(sum(losses.values())).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return {name: loss.detach() for name, loss in losses.items()}


def _log(run: FineTuning, meter: Meter, metrics: MetricsFile | None, iterations: int) -> None:
    means = run.last_losses = meter.means()
    total, timing = sum(means.values()), meter.timing()
    row = {"total_loss": total, **means, "lr": run.optimizer.param_groups[0]["lr"], **timing}
    if metrics is not None:
        metrics.write(run.iteration, row)
    parts = " ".join(f"{name} {value:.3f}" for name, value in means.items())
    logger.info(
        f"iter {run.iteration}/{iterations} total_loss {total:.3f} {parts} lr {row['lr']:.5f}"
        f" time {timing['time']:.3f}s data {timing['data_time']:.3f}s"
        f" eta {eta(iterations - run.iteration, timing['time'])}"
    )
    meter.reset()


def _keep(run: FineTuning) -> None:
    if run.batches_from is not None:
        run.rewind.keep(run.iteration)


@contextlib.contextmanager
def _saved_for_replay(run: FineTuning, folder: Path) -> Iterator[None]:
    """Repeat what led to a loss that is not finite, and save its iteration. Collective."""
    try:
        yield
    except NotFiniteError as error:
        if run.batches_from is None:
            raise
        where: dict[str, Any] = {"folder": folder, "header": run.header}
        last, steps = error.iteration, _steps_since(run, run.batches_from)
        file = save_fault(steps, run.rewind, model=run.model, last=last, **where)
        command = run.command.replace("train", f"train --replay {file}", 1)
        raise FloatingPointError(f"{error} {outcome(file, command)}") from error


def _steps_since(
    run: FineTuning, batches_from: Callable[[int], Iterable[list[dict]]]
) -> Iterator[Step]:
    """Take the run back to the copy of its state; yield the iterations from there on."""
    start = run.rewind.iteration
    run.load_weights(run.rewind.kept)
    run.wrapped.train()
    for number, batch in enumerate(batches_from(start), start):
        run.begin_iteration(number)
        yield number + 1, batch, functools.partial(step, run, batch)


def _first_fault(run: FineTuning, meter: Meter, problem: FloatingPointError) -> NotFiniteError:
    """Return which iteration was the first to go wrong: an earlier one than that which finds its
    predictions not finite may have spoilt the weights. Not collective.
    """
    if meter.first_bad() >= 0:
        means = meter.local_means()
        text = f"Iteration {meter.first_bad()}: the loss is not finite ({means})."
        return NotFiniteError(text, meter.first_bad())
    # Gradients of another process may have come in with the update before.
    if run.iteration > 1 and not all(bool(p.isfinite().all()) for p in run.model.parameters()):
        text = f"Iteration {run.iteration - 1}: the update left weights that are not finite."
        return NotFiniteError(text, run.iteration - 1)
    return NotFiniteError(f"Iteration {run.iteration}: {problem}", run.iteration)


def save(run: FineTuning, checkpoints: CheckpointFolder, metrics: MetricsFile | None) -> None:
    """Average the BN statistics over the processes and write a checkpoint."""
    average_bn_statistics(run.model)
    state = run.state()
    if metrics is not None:
        metrics.sync()
    if is_main_process():
        logger.info("saved %s", checkpoints.save(state, f"{run.iteration:07d}"))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[list[dict]],
    *,
    detect: Callable[[list[dict]], list[dict[str, Tensor]]],
    evaluator: Any,
    stop: StopRequest,
    num_images: int,
) -> Results | None:
    """Run the detector over this process's share of a test set of ``num_images``, one a batch, in
    float32 as Detectron2 does, also after training under autocast.

    Returns:
        Metrics by task on process 0, ``{}`` elsewhere; None when it was told to stop.
    """
    model.eval()
    evaluator.reset()
    world_size = get_world_size()
    bar = progress(batches, "evaluating", total=-(-num_images // world_size), unit="images")
    for number, batch in enumerate(bar):
        # All processes have this many batches, and must ask equally often.
        if number < num_images // world_size and stop.agreed():
            bar.close()
            return None
        evaluator.process(batch, detect(batch))
    return evaluator.evaluate()
