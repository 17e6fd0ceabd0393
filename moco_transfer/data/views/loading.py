"""From images to the batches of a run: the order, the workers, and the loader over both."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader

from ...runtime.distributed import get_rank, get_world_size
from ...runtime.errors import InputError
from ..batches.samplers import EpochBatches
from ..images.shard_index import ShardSet
from ..images.shard_order import ShardBatches
from ..images.sources import Images
from .device_decode import DeviceDecoder, EncodedViews
from .shard_views import ShardViews
from .two_views import Views
from .view_batch import ViewMaker

logger = logging.getLogger(__name__)

Batches: TypeAlias = EpochBatches | ShardBatches
"""The order of a run: ``iterations_per_epoch``, ``max_iterations``, and what each process reads in
each iteration.
"""

_UNEVEN = 0.01  # share of an epoch's images seen twice beyond which it is worth a warning


def plan_batches(
    source: Images,
    *,
    batch_size_total: int,
    epochs: int,
    seed: int,
    num_workers: int,
    shuffle_buffer: int,
    start_iteration: int,
) -> Batches:
    """Lay down which images this process reads in each iteration.

    Args:
        source: The images.
        batch_size_total: Images per iteration over all processes.
        epochs: Length of the run.
        seed: The run's seed.
        num_workers: Data workers per process; the order depends on it for shards alone.
        shuffle_buffer: Images of a stream that are shuffled among themselves, for shards alone.
        start_iteration: Iterations already finished.

    Raises:
        InputError: If a batch does not divide among the processes, there are fewer images than
            one batch, or fewer shards than workers.
    """
    place = {"rank": get_rank(), "world_size": get_world_size(), "start_iteration": start_iteration}
    if isinstance(source, ShardSet):
        return ShardBatches(
            source, batch_size_total, epochs, seed, num_workers, shuffle_buffer, **place
        )
    return EpochBatches(
        len(source), batch_size_total=batch_size_total, epochs=epochs, seed=seed, **place
    )


class Loader:
    """The batches of a run from its plan's ``start_iteration`` on, each as ``ViewBatch.finished``
    returns it.

    One pass is the whole run, so workers never restart at an epoch's end.

    Args:
        source: The images.
        batches: Their order, from :func:`plan_batches`.
        make_views: From an image to its views.
        num_workers: Data workers; 0 loads in this process.
        pin_memory: Put batches where a GPU can fetch them itself.
        decode_on: Device that decodes JPEGs in place of the workers, and gets the views
            (``device_decode.py``); None: the workers decode, as they always do for shards.
    """

    def __init__(
        self,
        source: Images,
        batches: Batches,
        make_views: ViewMaker,
        *,
        num_workers: int,
        pin_memory: bool,
        decode_on: torch.device | None = None,
    ) -> None:
        settings: dict[str, Any] = {
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "prefetch_factor": 4 if num_workers else None,
        }
        settings["worker_init_fn"] = end_quietly_when_told if num_workers else None
        self._decoder: DeviceDecoder | None = None
        if isinstance(batches, ShardBatches):
            self._loader = DataLoader(
                ShardViews(batches, make_views), batch_size=None, collate_fn=as_it_is, **settings
            )
        else:
            settings_of_views = {
                "recipe": make_views.recipe,
                "size": make_views.size,
                "crop_scale": make_views.crop_scale,
                "seed": batches.seed,
                "num_views": make_views.num_views,
                "pipeline": make_views.pipeline,
            }
            views = Views(source, **settings_of_views)
            if decode_on is not None:
                self._decoder = DeviceDecoder(views, decode_on)
                views = EncodedViews(source, **settings_of_views)
            self._loader = DataLoader(views, batch_sampler=batches, collate_fn=as_it_is, **settings)
        self._length = len(batches)
        self._iterator: Iterator[dict[str, Any]] = iter(())

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Held here, not in this generator's frame: where a pass is interrupted, torch waits seconds
        # for busy workers as soon as nobody holds their iterator, and a run that is told to stop
        # has to save first.
        self._iterator = iter(self._loader)
        for batch in self._iterator:
            if "error" in batch:
                raise InputError(batch["error"])
            yield batch if self._decoder is None else self._decoder(batch)
        self._iterator = iter(())


def end_quietly_when_told(worker: int) -> None:
    """Let SIGTERM end a data worker without a word; for ``worker_init_fn`` of every loader whose
    process saves when it is told to stop.

    Schedulers send SIGTERM to all processes of a job. The training process then saves, and no
    longer waits for images (``StopRequest.next_of``); torch would interrupt that with an
    exception for each worker that died of the signal, but not for one that ended by itself. A
    worker that went on instead would outlive a training process that cannot wait for it.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def as_it_is(item: Any) -> Any:
    """Return what a data worker has made, for a loader whose items are whole already."""
    return item


def warn_of_another_order(saved: dict[str, int], now: dict[str, int]) -> None:
    """Log what differs between the order a run was saved with and the one it goes on with
    (``batches.order``).
    """
    differing = [
        f"{name} {saved.get(name)} -> {now.get(name)}"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if differing:
        logger.warning(
            "The order of images in shards differs from here on (%s): in the epoch that is"
            " resumed some images may come again and others not at all, and the run does not"
            " equal one that was not interrupted.",
            ", ".join(differing),
        )


def describe_batches(source: Images, batches: Batches) -> None:
    """Log what is read and, for shards, how it is dealt out."""
    logger.info("%s", source.describe())
    if not isinstance(batches, ShardBatches):
        return
    logger.info("%s", batches.describe())
    uneven = batches.uneven()
    if math.isnan(uneven):
        logger.info(
            "the shards are not counted one by one: to resume in the middle of an epoch, a worker"
            " reads again what it had read of it"
        )
    elif uneven > _UNEVEN:
        logger.warning(
            "The shards do not divide evenly among the streams: %.0f%% of an epoch's images are"
            " seen twice in it, and as many not at all. Choose DATA.NUM_WORKERS so that processes x"
            " workers divides the number of shards, %d.",
            100 * uneven,
            len(batches.shards.urls),
        )
