"""Detectron2's stream of training images, taken up where an interrupted run left it.

Detectron2's own loader begins its stream again when a run is resumed, so that the first images of
an epoch are seen again and others not at all. The stream is a function of the seed, and which of it
was used a function of the iterations finished; so the rest can be given to the same loader, and
every batch holds the images that it would have held. How they are augmented is drawn again.

Source:
    Order of detectron2@02b5c4e data/common.py (ToIterableDataset, AspectRatioGroupedDataset),
    checked by running it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class ResumedSampler(Sampler):
    """The rest of a sampler's stream, begun with the images that wait for others of their shape.

    Args:
        sampler: An endless stream of indices, the same each time it is iterated.
        is_wide: For each image of the data set whether it is wider than high; None without
            grouping by aspect ratio.
        batch_size: Images of this process in a batch.
        num_workers: Workers of the loader; with several, images arrive in another order than they
            are drawn.
        batches_used: Batches that were trained on.
    """

    def __init__(
        self,
        sampler: Sampler,
        is_wide: Sequence[bool] | None,
        *,
        batch_size: int,
        num_workers: int,
        batches_used: int,
    ) -> None:
        self._sampler, self._is_wide, self._batches_used = sampler, is_wide, batches_used
        self._batch_size, self._num_workers = batch_size, num_workers

    def __iter__(self) -> Iterator[int]:
        """Yield indices of images without end."""
        if self._is_wide is None:  # whole batches arrive in the order in which they are drawn
            return itertools.islice(
                iter(self._sampler), self._batches_used * self._batch_size, None
            )
        arriving = _as_they_arrive(iter(self._sampler), self._batch_size, self._num_workers)
        waiting = self._waiting_after(arriving, self._is_wide)
        return _as_they_are_drawn(
            itertools.chain(waiting, arriving), self._batch_size, self._num_workers
        )

    def _waiting_after(self, arriving: Iterator[int], is_wide: Sequence[bool]) -> list[int]:
        """Take from the stream what the batches used up; return what had arrived and was in none of
        them, in its order.
        """
        waiting: tuple[list[int], list[int]] = ([], [])
        in_order: list[int] = []
        left = self._batches_used
        while left:
            index = next(arriving)
            bucket = waiting[not is_wide[index]]
            bucket.append(index)
            in_order.append(index)
            if len(bucket) == self._batch_size:
                for used in bucket:
                    in_order.remove(used)
                bucket.clear()
                left -= 1
        return in_order


def _as_they_arrive(drawn: Iterator[int], chunk: int, num_workers: int) -> Iterator[int]:
    """Yield in the order in which images leave the loader: each worker gets ``chunk`` of them in
    turn and gives one in turn.
    """
    if num_workers < 2:
        yield from drawn
        return
    while True:
        block = list(itertools.islice(drawn, chunk * num_workers))
        for position in range(chunk):
            for worker in range(num_workers):
                yield block[worker * chunk + position]


def _as_they_are_drawn(arriving: Iterator[int], chunk: int, num_workers: int) -> Iterator[int]:
    """Yield in the order in which images have to be drawn to leave the loader in the given one."""
    if num_workers < 2:
        yield from arriving
        return
    while True:
        block = list(itertools.islice(arriving, chunk * num_workers))
        for worker in range(num_workers):
            for position in range(chunk):
                yield block[position * num_workers + worker]
