"""What reading images costs: each stage alone, and what the workers feed together."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import numpy as np
import torch

from ..runtime.errors import InputError
from ..runtime.seed import generator_at
from .images.decode import UNREADABLE
from .images.sources import IndexedImages
from .views.loading import Loader, plan_batches
from .views.view_batch import ViewBatch, ViewMaker, finish

_SPARE = 1.2  # workers are not equally fast, and the training process needs a core


@dataclass(frozen=True)
class StageCosts:
    """Milliseconds per image on one core; 0.0 where a stage does not exist.

    Attributes:
        read: Bytes from the file.
        decode: Bytes to pixels.
        views: Crops of both views, and in the reference pipeline everything else.
        finish: Colours and normalisation on the device.
        images: How many were measured.
    """

    read: float
    decode: float
    views: float
    finish: float
    images: int

    @property
    def worker(self) -> float:
        """What a data worker spends on an image, ms."""
        return self.read + self.decode + self.views


def measure_stages(
    source: IndexedImages,
    make_views: ViewMaker,
    *,
    device: torch.device,
    seconds: float,
    batch_size: int,
) -> StageCosts:
    """Measure images from all over the source, one after the other, and the finishing of batches
    of them.

    Args:
        source: The images.
        make_views: The views.
        device: Where views are finished.
        seconds: How long to measure.
        batch_size: Views that are finished together.

    Raises:
        InputError: If no image could be read in this time.
    """
    spent, count, rng = np.zeros(3), 0, generator_at(0, "bench-data")
    batch, finishing = ViewBatch(make_views, batch_size), []
    buffer = make_views.new_buffer()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or not count:
        if time.perf_counter() > until + 10 * seconds:
            raise InputError(
                f"No image could be read in {11 * seconds:.0f} s: {source.describe()}."
            )
        index = int(rng.integers(len(source)))
        marks = [time.perf_counter()]
        try:
            data = source.encoded(index) if hasattr(source, "encoded") else b""
            marks.append(time.perf_counter())
            drawn = (
                make_views.decode(data, rng, buffer)
                if data
                else make_views.read(source, index, rng, buffer)
            )
        except UNREADABLE:
            continue
        marks.append(time.perf_counter())
        place = count % batch_size
        batch.fill(place, drawn, label=0, index=index)
        marks.append(time.perf_counter())
        if place == batch_size - 1:
            finishing.append(_finish(batch, device))
        if count or len(source) == 1 or time.perf_counter() > until:
            spent += np.diff(marks)
        count += 1
    if len(finishing) < 2:  # the first one does not count: libraries set themselves up
        finishing += [_finish(batch, device), _finish(batch, device)]
    return StageCosts(
        *(1000 * spent / max(1, count - 1)).tolist(),
        1000 * float(np.median(finishing[1:])) / batch_size,
        images=count,
    )


def _finish(batch: ViewBatch, device: torch.device) -> float:
    """Finish a batch's views on the device; return the seconds that it took, without the copy to
    the device.
    """
    made = batch.finished()
    views = made["views"].to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    since = time.perf_counter()
    for view, colours in zip(views, made.get("colours", [None] * len(views)), strict=True):
        finish(view, colours, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - since


def measure_workers(
    source: IndexedImages,
    make_views: ViewMaker,
    *,
    batch_size: int,
    num_workers: int,
    seconds: float,
    decode_on: torch.device | None = None,
) -> float:
    """Return the images/s that the data workers feed into a process that does nothing but take
    batches, and decode them if that is its part.
    """
    batch_size = min(batch_size, len(source))
    settings = {
        "epochs": 10**6,
        "seed": 0,
        "num_workers": num_workers,
        "shuffle_buffer": 1,
        "start_iteration": 0,
    }
    batches = plan_batches(source, batch_size_total=batch_size, **settings)
    loader = iter(
        Loader(
            source,
            batches,
            make_views,
            num_workers=num_workers,
            pin_memory=False,
            decode_on=decode_on,
        )
    )
    for _ in range(max(1, num_workers)):  # the workers start
        next(loader)
    since, taken = time.perf_counter(), 0
    while time.perf_counter() - since < seconds:
        next(loader)
        taken += batch_size
    # What had been prepared before the clock started is at most a queue of 4 batches for each
    # worker.
    return taken / (time.perf_counter() - since)


def describe_measurement(
    costs: StageCosts, fed: float, *, num_workers: int, wanted: float
) -> list[str]:
    """Return the measurement and what follows from it, a line each.

    Args:
        costs: The stages.
        fed: Images/s of all workers together.
        num_workers: How many there were.
        wanted: Images/s that the training step takes.
    """
    lines, cores, one = (
        _describe_stages(costs, fed, num_workers),
        os.cpu_count() or 1,
        1000 / costs.worker,
    )
    each = min(one, fed / max(1, num_workers)) if num_workers <= cores else one
    needed = math.ceil(_SPARE * wanted / each)
    if fed >= _SPARE * wanted:
        lines.append(f"enough for {wanted:.0f} images/s; {needed} would do")
    elif needed <= cores:
        lines.append(f"too little for {wanted:.0f} images/s: set DATA.NUM_WORKERS {needed}")
    else:
        most, advice = each * cores / _SPARE, "use DATA.PIPELINE fast, or a smaller DATA.IMAGE_SIZE"
        if costs.decode > costs.views:
            advice = "pack the images (moco-transfer pack --as raw)"
        lines.append(
            f"too little for {wanted:.0f} images/s: {needed} workers are needed, and {cores} cores"
            f" feed {most:.0f}; {advice}"
        )
    return lines


def describe_cpu(
    costs: StageCosts, fed: float, *, num_workers: int, step: float, said: str
) -> list[str]:
    """Return the measurement and what follows from it where the same cores train and prepare
    images.

    Args:
        costs: The stages.
        fed: Images/s of all workers together.
        num_workers: How many there were.
        step: Images/s of the training step alone.
        said: The line about the step.
    """
    together = 1 / (1 / step + costs.worker / 1000)
    lines = [*_describe_stages(costs, fed, num_workers), said]
    return [
        *lines,
        (
            f"the same cores do both: about {together:.1f} images/s with DATA.NUM_WORKERS 0, which"
            " is the faster choice on a CPU"
        ),
    ]


def _describe_stages(costs: StageCosts, fed: float, num_workers: int) -> list[str]:
    stages = {
        "read": costs.read,
        "decode": costs.decode,
        "views": costs.views,
        "finish on the device": costs.finish,
    }
    lines = [f"{name:22} {value:7.3f} ms per image" for name, value in stages.items() if value > 0]
    lines.append(
        f"one worker by itself feeds {1000 / costs.worker:.0f} images/s ({costs.images} images"
        " measured)"
    )
    return [
        *lines,
        (
            f"DATA.NUM_WORKERS {num_workers} feed {fed:.0f} images/s together, on"
            f" {os.cpu_count() or 1} cores"
        ),
    ]
