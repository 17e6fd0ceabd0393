"""From images to the batches of a run: the order, the workers, the loader, and the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...runtime.device import copied
from ...runtime.distributed import get_rank, get_world_size
from ...runtime.errors import InputError
from ...runtime.stop import prepare_worker, sigterm_held
from ..images.image_source import ImageSource, IndexedSource
from ..images.tar_shards import ShardStream
from .order import Batches, EpochBatches, ShardBatches
from .view_batch import ShardViews, ViewMaker, Views

PREFETCHED = 4  # batches that each data worker prepares ahead


def plan_batches(
    source: ImageSource, *, num_workers: int, shuffle_buffer: int, **order: int
) -> Batches:
    """Decide which images this process reads in each iteration; ``order`` holds the fields of
    :class:`Batches` but the processes. The order of a stream of shards depends on ``num_workers``
    and ``shuffle_buffer`` too. InputError if the images cannot be divided so.
    """
    order |= {"rank": get_rank(), "world_size": get_world_size()}
    if isinstance(source, ShardStream):
        streams = {"num_workers": num_workers, "shuffle_buffer": shuffle_buffer}
        return ShardBatches(source, **order, **streams)
    return EpochBatches(len(source), **order)


class Loader:
    """The batches of a run from its ``start_iteration`` on, each as ``ViewBatch.finished`` returns
    it. One pass is the whole run, so workers never restart at an epoch's end.
    """

    def __init__(
        self,
        source: ImageSource,
        batches: Batches,
        make_views: ViewMaker,
        *,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        views: ShardViews | Views
        if isinstance(batches, EpochBatches):
            views = Views(cast(IndexedSource, source), make_views, seed=batches.seed)
        else:
            views = ShardViews(cast(ShardBatches, batches), make_views)
        self._loader = DataLoader(
            views,
            sampler=batches if isinstance(batches, EpochBatches) else None,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=PREFETCHED if num_workers else None,
            worker_init_fn=prepare_worker if num_workers else None,
        )
        self._batches = batches
        self._iterator: Iterator[dict[str, Any]] = iter(())

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Held here, not in this generator's frame: when a pass is interrupted, torch waits seconds
        # for busy workers as soon as nobody holds their iterator, and a run that is told to stop
        # has to save first.
        with sigterm_held():
            self._iterator = iter(self._loader)
        for batch in self._iterator:
            if "error" in batch:
                raise InputError(batch["error"])
            yield batch
        self._iterator = iter(())


def to_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield each batch as it comes; for a GPU with its tensors there, but the colours, which the
    CPU reads.
    """
    for batch in batches:
        tensors = {n: t for n, t in batch.items() if isinstance(t, Tensor) and n != "colours"}
        yield batch | copied(tensors, device)
