"""Measurements of a pre-training run: means over a log period, for metrics.json, the log, the bar,
and the watch.
"""

from __future__ import annotations

import datetime
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..runtime.checkpoint import CheckpointFolder
from ..runtime.distributed import (
    gather_object,
    get_rank,
    get_world_size,
    max_over_processes,
    mean_over_processes,
)
from ..runtime.metrics import MetricsFile
from .measures import chance_formula

if TYPE_CHECKING:  # trainer imports this module
    from .trainer import Pretraining

logger = logging.getLogger(__name__)


STARVED = 0.2  # share of the time spent waiting for images
IN_A_ROW = 3  # log periods; one alone may be the workers' start or an epoch's checkpoint


def advice_when_starved(
    waited: list[float],
    *,
    num_workers: int,
    pipeline: str,
    on_cpu: bool = False,
    decoded: bool = False,
) -> str | None:
    """Return a sentence when the last log periods each waited for images longer than
    :data:`STARVED`.

    Args:
        waited: Shares of the log periods so far, [0, 1], the newest last; of several processes the
            one's that waits longest.
        num_workers: Data workers of this process.
        pipeline: DATA.PIPELINE.
        on_cpu: Whether the cores that prepare images train too: data workers then only take turns
            with the step.
        decoded: Whether the images are bare pixels already, in a raw pack or in memory.
    """
    last = waited[-IN_A_ROW:]
    if len(last) < IN_A_ROW or min(last) <= STARVED:
        return None
    advice = ["DATA.PIPELINE fast"] if pipeline != "fast" else []
    if not on_cpu:
        advice.insert(0, f"a higher DATA.NUM_WORKERS (now {num_workers}, {os.cpu_count()} cores)")
    elif num_workers:
        advice.insert(
            0, f"DATA.NUM_WORKERS 0 (now {num_workers}: on a CPU they take the cores from the step)"
        )
    if not decoded:
        advice.append("images packed with moco-transfer pack --as raw")
    share = f"{100 * sum(last) / len(last):.0f}% of the time goes into waiting for images"
    if not advice:
        return (
            f"{share}; on these cores nothing but a smaller DATA.IMAGE_SIZE or a weaker"
            " DATA.AUGMENTATION makes them faster."
        )
    return (
        f"{share}. Try, in this order: {', '.join(advice)}; moco-transfer bench-data says what each"
        " stage costs and what the workers feed."
    )


class Meter:
    """Sums of one log period.

    Args:
        run: Whose model, iteration and optimiser are read.

    Attributes:
        sums: Of each measure over ``count`` iterations of the period, on this process, on the
            device.
        steps, images: Iterations and images since ``since``, which of a resumed period are only
            those after the resume.
        waited_sec: Time spent waiting for images since ``since``.
    """

    def __init__(self, run: Pretraining) -> None:
        self.run = run
        self._waited: list[float] = []
        self._reset()

    def _reset(self) -> None:
        self.waited_sec = 0.0
        self.images = 0
        self.steps = 0
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.since = time.perf_counter()

    def add(self, measured: dict[str, Tensor], images: int) -> None:
        """Add one iteration's measures (scalars on the device) and its number of images on this
        process.
        """
        for name, value in measured.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.images += images
        self.steps += 1
        self.count += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the period that has begun, on process 0. Collective."""
        sums = gather_object({name: value.cpu() for name, value in self.sums.items()})
        return {"count": self.count, "sums": sums} if self.count else {}

    def go_on(self, period: dict[str, Any]) -> None:
        """Go on with the period that a checkpoint was saved in, as :meth:`state` returned it; empty
        when a new one begins.
        """
        if not period:
            return
        sums = period["sums"]
        if (
            len(sums) == get_world_size()
        ):  # to the last bit; after a change of the number of processes, as far as mathematics goes
            self.sums = dict(sums[get_rank()])
        else:
            self.sums = {name: sum(part[name] for part in sums) / len(sums) for name in sums[0]}
        self.sums = {name: value.to(self.run.device) for name, value in self.sums.items()}
        self.count = period["count"]

    def means(self, checkpoints: CheckpointFolder) -> dict[str, float]:
        """Return the means since the last report, over all processes. Collective.

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        means = mean_over_processes(
            {name: float(total) / self.count for name, total in self.sums.items()}, self.run.device
        )
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"The loss is {means['loss']} at iteration {self.run.iteration} ({means}). Last"
                f" checkpoint: {checkpoints.last() or 'none yet'}. Lower SOLVER.BASE_LR, or use"
                " TRAIN.PRECISION bf16 or fp32."
            )
        return means

    def report(self, metrics: MetricsFile | None, checkpoints: CheckpointFolder, bar: tqdm) -> None:
        """Log the means of the period and start a new one. Collective."""
        run = self.run
        means = self.means(checkpoints)
        elapsed = time.perf_counter() - self.since
        epoch = (run.iteration - 1) // run.iterations_per_epoch
        row = {"epoch": epoch, **means, "lr": run.optimizer.param_groups[0]["lr"]}
        if run.negatives:
            row["chance"] = run.model.loss_scale * math.log(run.negatives + 1)
        if hasattr(run.model, "queue"):
            enqueued = run.iteration * run.batch_size_total * run.model.loss_scale
            row["queue_filled"] = min(1.0, enqueued / run.negatives)
        row |= {
            "images_per_sec": self.images * get_world_size() / elapsed,
            # The slowest to get its images: the others wait for it in the step, which does not
            # count as waiting for theirs.
            "data_wait_share": max_over_processes(min(1.0, self.waited_sec / elapsed)),
            "time": elapsed / self.steps,
        }
        if metrics is not None:
            metrics.write(run.iteration, row)
            self._log(row, epoch, bar)
            if run.watch is not None:
                run.watch.look(run.iteration, row)
            self._advise(row["data_wait_share"])
        self._reset()

    def _advise(self, waited: float) -> None:
        """Say once, when it stays so, what to do about waiting for images."""
        said = len(self._waited) > IN_A_ROW  # nothing is noted any more after the sentence
        self._waited = self._waited if said else [*self._waited[-IN_A_ROW + 1 :], waited]
        run = self.run
        settings = {
            "num_workers": run.num_workers,
            "pipeline": run.pipeline,
            "on_cpu": run.device.type == "cpu",
            "decoded": run.decoded,
        }
        sentence = None if said else advice_when_starved(self._waited, **settings)
        if sentence is not None:
            logger.warning("%s", sentence)
            self._waited = [waited] * (IN_A_ROW + 1)

    def _log(self, row: dict[str, float], epoch: int, bar: tqdm) -> None:
        run = self.run
        step = (run.iteration - 1) % run.iterations_per_epoch + 1
        chance = (
            f" (chance {chance_formula(run.model.loss_scale)} {row['chance']:.3f})"
            if "chance" in row
            else ""
        )
        filling = (
            f" queue {100 * row['queue_filled']:.0f}% filled"
            if row.get("queue_filled", 1.0) < 1
            else ""
        )
        name = "contrast_acc1" if "contrast_acc1" in row else "acc1"
        left = datetime.timedelta(seconds=round((run.max_iterations - run.iteration) * row["time"]))
        memory = (
            f" mem {torch.cuda.max_memory_allocated() / 2**20:.0f}MB"
            if run.device.type == "cuda"
            else ""
        )
        logger.info(
            f"epoch {epoch + 1}/{run.epochs} iter {step}/{run.iterations_per_epoch} loss"
            f" {row['loss']:.3f}{chance} {name} {row[name]:.1f}{filling} lr {row['lr']:.5f}"
            f" {row['images_per_sec']:.0f} images/s data"
            f" {100 * row['data_wait_share']:.0f}%{memory} eta {left}"
        )
        bar.set_postfix_str(
            f"loss {row['loss']:.3f}{chance}, {name} {row[name]:.1f}, {row['images_per_sec']:.0f}"
            " images/s"
        )
