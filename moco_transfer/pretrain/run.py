"""From a plan to a finished pre-training run: the training loop, and what it logs and saves.

``pretrain`` and ``train`` are collective. BN's running statistics differ between processes during
an epoch, because training does not read them; they are averaged before a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.views.loading import Loader, to_device
from ..data.views.view_colours import finish_views
from ..runtime.checkpoint import CheckpointFolder
from ..runtime.device import FP32, keep_freed_memory, operators_of_a_run, peak_memory, wants_pinned
from ..runtime.distributed import (
    all_gather_object,
    average_bn_statistics,
    broadcast_module_state,
    broadcast_object,
    get_world_size,
    in_parallel,
    is_main_process,
)
from ..runtime.errors import NotFiniteError
from ..runtime.health.heartbeat import Heartbeat
from ..runtime.health.loader_watch import LoaderWatch
from ..runtime.health.replay import Rewind, Step, outcome, read_saved, replay, save_fault, told
from ..runtime.metrics import MetricsFile, read_metrics
from ..runtime.progress import Meter, eta, logged, progress
from ..runtime.run_folder import record_settings
from ..runtime.seed import check_equal_draws, seed_everything
from ..runtime.stop import StopRequest
from .describe import describe, warnings
from .encoder_file import start_from
from .features import FeaturesStopped
from .plan import Mechanism, PretrainPlan
from .resume import restore
from .watch import UnreadableImages, Watch

logger = logging.getLogger(__name__)


@dataclass
class Pretraining:
    """The state of a run."""

    plan: PretrainPlan
    model: Mechanism
    loss: Any  # model.loss, in DistributedDataParallel where there are several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of fp16, disabled otherwise
    meter: Meter
    unreadable: UnreadableImages
    watch: Watch
    iteration: int = 0  # finished
    monitored: int = 0  # iteration after which kNN was last measured

    def __post_init__(self) -> None:
        self.rewind = Rewind(self.model, self.plan.device, self.weights)

    def weights(self) -> dict[str, Any]:
        """Return what :func:`restore` takes. Not collective."""
        parts: dict[str, Any] = {"state_dict": self.model, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in (parts | {"scaler": self.scaler}).items()}


class LossModule(nn.Sequential):
    """A mechanism whose ``forward`` is its loss, for DistributedDataParallel."""

    def forward(self, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its measures."""
        mechanism: Any = self[0]
        return mechanism.loss(*batch)


def pretrain(plan: PretrainPlan) -> Pretraining | None:
    """Carry out a plan; return the finished run, or None when it was told to stop and has saved."""
    if plan.device.type == "cpu":
        keep_freed_memory()
    run = build_run(plan)
    for line in describe(plan):
        logger.info("%s", line)
    for line in warnings(plan):
        logger.warning("%s", line)
    file, start = plan.output_dir / "metrics.json", run.iteration
    # Whether kNN was measured is not in the checkpoint: that is saved before, and it takes minutes.
    rows = read_metrics(file) if is_main_process() and file.exists() else []
    written = any(row["iteration"] == start and "knn_top1" in row for row in rows)
    run.monitored = start if broadcast_object(written) or not start else -1
    record_settings(plan.output_dir, plan.config_text)
    loader, metrics = build_loader(plan), None
    if is_main_process():
        how: dict[str, Any] = {"loggers": plan.loggers, "settings": plan.config}
        metrics = MetricsFile(file, start_iteration=start, **how)
    try:
        with (
            operators_of_a_run(plan.device, deterministic=plan.deterministic),
            Heartbeat(
                plan.output_dir, LoaderWatch(run.meter, plan.num_workers, "DATA.NUM_WORKERS")
            ),
        ):
            complete = train(run, loader, metrics)
        if metrics is not None and complete:
            metrics.finish([plan.output_dir / "config.yaml", plan.output_dir / "env.txt"])
    finally:
        if metrics is not None:
            metrics.close()
        # DistributedDataParallel would keep the process group alive beyond its end, and gloo's
        # destructor may then hang.
        run.loss = run.model.loss
    return run if complete else None


def build_run(plan: PretrainPlan) -> Pretraining:
    """Build model and optimiser, at the beginning or at the checkpoint to resume. Collective."""
    seed_everything(plan.seed, "weights")
    model = plan.build_mechanism()
    if plan.init is not None:
        start_from(model, plan.init)
    model = model.to(plan.device)
    if plan.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    broadcast_module_state([*model.parameters(), *model.buffers()])
    if plan.compile:
        for part in model.children():
            part.compile()  # in place: state-dict keys stay as they are
    loss: Any = model.loss
    if get_world_size() > 1:
        # No broadcast of buffers: the queue is equal by construction, BN is averaged when saved.
        loss = in_parallel(LossModule(model), plan.device)
    # fused: one pass over the parameters on a CPU. Not under loss scaling: where the scaler skips
    # the first step, torch 2.11's fused SGD reads a momentum that nothing has written yet.
    scales = plan.compute.precision.name == "fp16"
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=plan.lr_at.lr,
        momentum=plan.sgd_momentum,
        weight_decay=plan.weight_decay,
        fused=True if plan.device.type == "cpu" and not scales else None,
    )
    scaler = torch.amp.GradScaler(plan.device.type, enabled=scales)
    meter, known = Meter(plan.device), list[str]()
    if plan.resume is not None:
        restore(plan.resume.state, model, optimizer, scaler)
        CheckpointFolder(plan.output_dir).resume_from(plan.resume.path)
        meter.resume(plan.resume.state["period"])
        known = plan.resume.state["unreadable"]
    watch = Watch(plan.num_negatives, plan.patience_iterations)
    unreadable = UnreadableImages(len(plan.source), plan.max_unreadable, known)
    start = plan.resume.iteration if plan.resume is not None else 0
    return Pretraining(plan, model, loss, optimizer, scaler, meter, unreadable, watch, start)


def build_loader(plan: PretrainPlan) -> Loader:
    """Return the batches of the run, from the first iteration to run on."""
    pin_memory = wants_pinned(plan.device)
    source = plan.source, plan.batches, plan.view_maker
    return Loader(*source, num_workers=plan.num_workers, pin_memory=pin_memory)


def train(run: Pretraining, batches: Iterable[dict[str, Any]], metrics: MetricsFile | None) -> bool:
    """Train to the end, from wherever ``run.iteration`` stands.

    ``batches``: as ``ViewBatch.finished`` returns them, one for each remaining iteration.
    ``metrics``: None but on process 0.

    Returns:
        True when the run is complete, False when it was told to stop (by a signal) and has saved.

    Raises:
        FloatingPointError: If the loss is not finite; names the iteration and the last checkpoint.
    """
    plan = run.plan
    run.model.train()
    total = plan.max_iterations
    bar = progress(None, "pre-training", total=total, initial=run.iteration)
    remedy = "Lower SOLVER.BASE_LR, or use TRAIN.PRECISION bf16 or fp32."
    advising = CheckpointFolder(plan.output_dir).advising(remedy)
    with StopRequest() as stop, bar, advising, saved_for_replay(run):
        run.rewind.keep(run.iteration)
        source = iter(to_device(batches, plan.device))
        measured = measure_knn(run, metrics, stop)  # a resumed run may owe one
        while measured and run.iteration < total and not stop.agreed():
            with run.meter.waiting():
                batch = next(source)
            run.unreadable.note(batch)
            begin_iteration(run)
            measures = step(run, batch)
            run.iteration += 1
            run.meter.add(measures, run.iteration)
            if run.iteration % plan.log_period == 0 or run.iteration == total:
                run.unreadable.share()
                report(run, metrics, bar)
                run.rewind.keep(run.iteration)
                logged(bar)
            bar.update()
            periods = plan.checkpoint_periods
            if run.iteration == total or any(run.iteration % period == 0 for period in periods):
                save(run, metrics)
            measured = measure_knn(run, metrics, stop)
        if measured and run.iteration == total:
            return True
        save(run, metrics)
    text = "Told to stop (%s): saved after iteration %d. Continue with --resume."
    logger.warning(text, stop.name, run.iteration)
    return False


def begin_iteration(run: Pretraining) -> None:
    """Set random numbers and learning rate for the iteration after ``run.iteration``."""
    seed_everything(run.plan.seed, "iteration", run.iteration)
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.lr_at(run.iteration)


@contextlib.contextmanager
def saved_for_replay(run: Pretraining) -> Iterator[None]:
    """Repeat what led to a loss that is not finite, and save its iteration. Collective."""
    try:
        yield
    except NotFiniteError as error:
        plan, rewind = run.plan, run.rewind
        where: dict[str, Any] = {"folder": plan.output_dir, "header": plan.header}
        last, steps = error.iteration, _steps_since(run, rewind)
        file = save_fault(steps, rewind, model=run.model, last=last, **where)
        config = plan.output_dir / "config.yaml"
        command = f"moco-transfer pretrain --config-file {config} --replay {file}"
        raise FloatingPointError(f"{error} {outcome(file, command)}") from error


def replay_iteration(plan: PretrainPlan, path: str | Path) -> list[str]:
    """Return in lines where the iteration that :func:`saved_for_replay` wrote goes wrong, as it was
    and in fp32. Collective; nothing is compiled and nothing written.
    """
    saved, batch = read_saved(path)
    tried = []
    for precision in {p.name: p for p in (plan.compute.precision, FP32)}.values():
        how: dict[str, Any] = {"resume": None, "init": None, "compile": False}
        how["compute"] = dataclasses.replace(plan.compute, precision=precision)
        run = build_run(dataclasses.replace(plan, **how))
        restore(saved["state"], run.model, run.optimizer, run.scaler)
        run.iteration = saved["iteration"] - 1
        run.model.train()
        own = next(to_device([batch], plan.device))
        begin_iteration(run)
        tried.append(replay(functools.partial(step, run, own), run.model, precision.name))
        run.loss = run.model.loss  # as in pretrain()
    return told(saved, tried)


def _steps_since(run: Pretraining, rewind: Rewind) -> Iterator[Step]:
    """Take the run back to the copy of its state; yield the iterations from there on."""
    plan = run.plan
    restore(rewind.kept, run.model, run.optimizer, run.scaler)
    batches = dataclasses.replace(plan.batches, start_iteration=rewind.iteration)
    loader = build_loader(dataclasses.replace(plan, batches=batches))
    for number, batch in enumerate(to_device(loader, plan.device), rewind.iteration):
        run.iteration = number
        begin_iteration(run)
        yield number + 1, batch, functools.partial(step, run, batch)


def step(run: Pretraining, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Take an optimiser step on a batch; return its measures, on the device. Collective."""
    plan, device = run.plan, run.plan.device
    views = batch["views"].to(device, non_blocking=True)  # uint8 (V, N, 3, H, W)
    labels, index = (batch[name].to(device, non_blocking=True) for name in ("label", "index"))
    colours = batch.get("colours")  # (V, N, ROW), on the CPU
    size = len(index) // plan.accumulate
    micro_batches = [slice(start, start + size) for start in range(0, len(index), size)]
    share = 1 / len(micro_batches)

    run.optimizer.zero_grad(set_to_none=True)
    run.model.begin_step(index)
    sums: dict[str, Tensor] = {}
    for part in micro_batches:
        is_last = part.stop == len(index)
        # Both views in one call: (V * n, 3, H, W).
        colour = None if colours is None else colours[:, part].flatten(0, 1)
        finished = finish_views(views[:, part].flatten(0, 1), colour, *plan.pixels)
        layout = torch.channels_last if plan.channels_last else torch.contiguous_format
        images = [
            view.contiguous(memory_format=layout)
            for view in finished.unflatten(0, (len(views), size))
        ]
        # Gradients are averaged over the processes once, in the last backward pass of the step.
        waits = get_world_size() > 1 and not is_last
        with run.loss.no_sync() if waits else contextlib.nullcontext():
            with plan.compute.autocast():
                loss, measured = run.loss(images, labels[part], index[part])
            if is_last:
                run.model.end_step()
            run.scaler.scale(loss * share).backward()
        for name, value in ({"loss": loss.detach()} | measured).items():
            sums[name] = sums.get(name, 0) + value * share
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return sums


def measure_knn(run: Pretraining, metrics: MetricsFile | None, stop: StopRequest) -> bool:
    """Measure kNN where it is due; return False if told to stop before it was done. Collective."""
    plan, iteration = run.plan, run.iteration
    if plan.knn is None or run.monitored == iteration:
        return True
    period = plan.iterations_per_epoch * plan.knn.period_epochs
    if iteration % period and iteration != plan.max_iterations:
        return True
    with run.meter.paused():
        try:
            row = plan.knn.measure(run.model.encoder_q, plan.compute, stop)
        except FeaturesStopped:
            return False
        run.monitored = iteration
        epoch = (iteration - 1) // plan.iterations_per_epoch
        if metrics is not None:
            metrics.write(iteration, {"epoch": epoch} | row)
        logger.info("epoch %d/%d kNN top-1 %.2f %%", epoch + 1, plan.epochs, row["knn_top1"])
    return True


def report(run: Pretraining, metrics: MetricsFile | None, bar: tqdm) -> None:
    """Log the means of the period and start a new one. Collective."""
    plan, model, iteration = run.plan, run.model, run.iteration
    means, timing = run.meter.means(), run.meter.timing()
    epoch = (iteration - 1) // plan.iterations_per_epoch
    row = {"epoch": epoch, **means, "lr": run.optimizer.param_groups[0]["lr"]}
    if plan.num_negatives:
        row["chance"] = model.loss_scale * math.log(plan.num_negatives + 1)
    if plan.mechanism == "moco":
        enqueued = iteration * plan.batch_size_total * model.loss_scale
        row["queue_filled"] = min(1.0, enqueued / plan.queue_size)
    # The slowest to get its images: the others wait for it in the step.
    waited = max(all_gather_object(min(1.0, timing["data_time"] / timing["time"])))
    row["images_per_sec"] = plan.batch_size_total / timing["time"]
    row |= {"data_wait_share": waited, "time": timing["time"]}
    if metrics is not None:
        metrics.write(iteration, row)
        text = _in_words(run, row)
        bar.set_postfix_str(text, refresh=False)
        per_epoch, left = plan.iterations_per_epoch, plan.max_iterations - iteration
        place = f"epoch {epoch + 1}/{plan.epochs} iter {(iteration - 1) % per_epoch + 1}"
        logger.info("%s/%d %s eta %s", place, per_epoch, text, eta(left, row["time"]))
        run.watch.look(iteration, row)
    run.meter.reset()


def _in_words(run: Pretraining, row: dict[str, Any]) -> str:
    text = f"loss {row['loss']:.3f}"
    if "chance" in row:
        text += f" (chance {row['chance']:.3f})"
    acc1 = "contrast_acc1" if "contrast_acc1" in row else "acc1"
    text += f" {acc1} {row[acc1]:.1f}"
    if row.get("queue_filled", 1.0) < 1:
        text += f" queue {100 * row['queue_filled']:.0f}% filled"
    text += f" lr {row['lr']:.5f} {row['images_per_sec']:.0f} images/s"
    text += f" data {100 * row['data_wait_share']:.0f}%"
    if (peak := peak_memory(run.plan.device)) is not None:
        text += f" mem {peak / 2**20:.0f}MB"
    return text


def save(run: Pretraining, metrics: MetricsFile | None) -> None:
    """Average the BN statistics over the processes and write a checkpoint on rank 0. Collective."""
    plan, per_epoch = run.plan, run.plan.iterations_per_epoch
    check_equal_draws()
    if run.meter.count:
        run.meter.means()  # fails if the loss is not finite: such a model is not worth saving
    run.unreadable.share()
    average_bn_statistics(run.model)
    epoch, within = divmod(run.iteration, per_epoch)
    state = plan.header | {  # loads with weights_only=True
        **run.weights(),
        "epoch": epoch,
        "iteration": run.iteration,
        "iterations_per_epoch": per_epoch,
        "unreadable": sorted(run.unreadable.known),
        "world_size": get_world_size(),
        "period": run.meter.state(),
    }
    if metrics is not None:
        metrics.sync()
    if is_main_process():
        name = f"{epoch:04d}" + (f"_iter{run.iteration:08d}" if within else "")
        path = CheckpointFolder(plan.output_dir, keep=plan.keep_checkpoints).save(state, name)
        logger.info("saved %s (%d of %d epochs)", path, epoch, plan.epochs)
