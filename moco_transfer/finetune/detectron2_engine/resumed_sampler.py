"""Detectron2's stream of training images, continued where an interrupted run left it.

Detectron2's own loader begins its stream again when a run is resumed. The stream is a function of
the seed, and which of it was used a function of the iterations finished; so the loader is given the
rest, and every batch holds the images that it would have held, augmented with new draws.

Source:
    Order of detectron2@02b5c4e data/common.py (ToIterableDataset, AspectRatioGroupedDataset).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler


@dataclass(eq=False)
class ResumedSampler(Sampler):
    """The rest of a sampler's stream, begun with the images that wait for others of their shape."""

    sampler: Sampler  # an endless stream of indices, the same each time it is iterated
    is_wide: Sequence[bool] | None  # of each image; None without grouping by aspect ratio
    batch_size: int  # images of this process in a batch
    num_workers: int  # with several, images arrive in another order than they are drawn
    batches_used: int  # that were trained on

    def __iter__(self) -> Iterator[int]:
        """Yield indices of images without end."""
        drawn, size, workers = iter(self.sampler), self.batch_size, self.num_workers
        if self.is_wide is None:  # whole batches arrive in the order in which they are drawn
            return itertools.islice(drawn, self.batches_used * size, None)
        # Each worker gets a batch's images in turn and gives one in turn.
        arriving = _transposed(drawn, workers, size)
        waiting = self._waiting_after(arriving, self.is_wide)
        return _transposed(itertools.chain(waiting, arriving), size, workers)

    def _waiting_after(self, arriving: Iterator[int], is_wide: Sequence[bool]) -> list[int]:
        """Take what the batches used; return what arrived and is in none of them, in its order."""
        buckets: tuple[list[int], list[int]] = ([], [])
        waiting: list[int] = []
        left = self.batches_used
        while left:
            index = next(arriving)
            bucket = buckets[not is_wide[index]]
            bucket.append(index)
            waiting.append(index)
            if len(bucket) == self.batch_size:
                for used in bucket:
                    waiting.remove(used)
                bucket.clear()
                left -= 1
        return waiting


def _transposed(stream: Iterator[int], rows: int, columns: int) -> Iterator[int]:
    """Yield each block of ``rows * columns`` items column by column; as they come for one row or
    column, which is a loader with fewer than two workers.
    """
    if min(rows, columns) < 2:
        yield from stream
        return
    while True:
        block = list(itertools.islice(stream, rows * columns))
        for column in range(columns):
            yield from block[column::columns]
