"""The views of images in a stream of tar shards; ``view_batch.Views`` is for images that can be
read in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ...runtime.errors import InputError
from ...runtime.seed import generator_at
from ..images.decode import UNREADABLE
from .shard_order import Block, ShardBatches, ShardImage
from .view_batch import ATTEMPTS, ViewBatch, ViewMaker


class ShardViews(IterableDataset):
    """This worker's batches of a run, each as ``ViewBatch.finished`` returns it.

    Views are a function of (seed, epoch, image's number), and of how often the epoch has come to
    the image. An image that cannot be decoded is replaced by the next of its block that can be.

    A problem with a shard arrives as a batch {"error": sentence}: an exception would reach the main
    process with a traceback in it.
    """

    def __init__(self, batches: ShardBatches, make_views: ViewMaker) -> None:
        self.batches, self.make_views = batches, make_views

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first = self.batches.start_iteration + (worker.id if worker else 0)
        stream = first % self.batches.num_streams
        try:
            candidates, buffer = self._candidates(stream, first), self.make_views.new_buffer()
            for _ in self.batches.iterations_of(stream, first, self.batches.max_iterations):
                batch = ViewBatch(self.make_views, self.batches.batch_size_per_rank)
                for place in range(batch.count):
                    self._fill(batch, place, *next(candidates), buffer)
                yield batch.finished()
        except InputError as error:
            yield {"error": str(error)}

    def _candidates(self, stream: int, start: int) -> Iterator[tuple[int, Iterator[ShardImage]]]:
        """Yield, for each place of the run from ``start`` on, the epoch and the image to use,
        followed by what replaces it.
        """
        waiting = _blocks(self.batches, stream, start)
        block = next(waiting, None)
        while block is not None:
            block.fill(1.0)
            following = next(waiting, None)
            order = self.batches.order_in(block.block, stream)
            for turn, place in enumerate(order):
                if following is not None:  # read ahead, so that nothing waits for the next block
                    following.fill((turn + 1) / len(order))
                if turn >= block.used:
                    rest = (block.images[i] for i in order[turn:])
                    yield block.block.epoch, chain(rest, following.images if following else ())
                block.images[place] = None
            block = following

    def _fill(
        self, batch: ViewBatch, place: int, epoch: int, images: Iterator[ShardImage], buffer: Any
    ) -> None:
        """Write the views of the first image that can be decoded."""
        rng = None
        for candidate in islice(images, ATTEMPTS):
            if rng is None:
                again = [candidate.again] if candidate.again else []
                rng = generator_at(self.batches.seed, "views", epoch, candidate.number, *again)
            try:
                image = self.make_views.decode(candidate.data, buffer)
            except UNREADABLE:
                batch.unreadable.append(candidate.name)
                continue
            batch.fill(place, image, rng, candidate.label, candidate.number)
            return
        batch.given_up += 1


@dataclass
class _FilledBlock:
    block: Block
    used: int  # images of it that are used up
    reader: Iterator[ShardImage]
    images: list[Any] = field(default_factory=list)  # those that have been read

    def fill(self, share: float) -> None:
        while len(self.images) < share * self.block.size:
            self.images.append(next(self.reader))


def _blocks(batches: ShardBatches, stream: int, start: int) -> Iterator[_FilledBlock]:
    epoch = -1
    reader: Iterator[ShardImage] = iter(())
    for block, used in batches.blocks(stream, start):
        if block.epoch != epoch:
            epoch, reader = block.epoch, batches.read(stream, block.epoch, skip=block.start)
        yield _FilledBlock(block, used, reader)
