"""The order of a pre-training run over tar shards, as a function of the seed, the numbers of
processes and workers, and the place in it.

Every data worker of every process is a stream of its own: in each epoch the shards are dealt out
    again to all streams, in an order drawn
from (seed, epoch), and a stream reads its shards one after the other. So the images of an
iteration depend on the number of processes and of workers, unlike those of a folder. The number of
    iterations does not: it is the number of images // BATCH_SIZE_TOTAL. A stream
whose shards hold fewer images than its part of that reads them again, in another order; one whose
shards hold more leaves the rest out.

Images are shuffled in blocks: of each ``shuffle_buffer`` images that a stream reads, all are
    used before the next block's. A place in
the run says which block that is, so a run resumes in the middle of an epoch without having kept
anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...runtime.errors import InputError
from ...runtime.seed import generator_at
from ..batches.samplers import check_batch_size
from .shard_index import ShardSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Images that are shuffled among themselves.

    Attributes:
        epoch: The epoch.
        number: Number in the epoch and the stream, from 0.
        start: Images of this stream in this epoch that are read before it.
        size: Number of images.
    """

    epoch: int
    number: int
    start: int
    size: int


@dataclass(frozen=True)
class ShardBatches:
    """All batches of a run from ``start_iteration`` on, on one process.

    Iteration t is made by the process's worker t mod ``num_streams``; its stream in the whole run
    is ``rank * num_streams`` + that.

    Attributes:
        shards: The shards.
        batch_size_total: Images per iteration over all processes.
        epochs: Length of the run.
        seed: The run's seed.
        num_workers: Data workers per process; 0 reads in the training process.
        shuffle_buffer: Images in a block; 1 does not shuffle within shards.
        rank: This process.
        world_size: Number of processes.
        start_iteration: Iterations already finished.

    Raises:
        InputError: If a batch does not divide among the processes, the shards hold less than one
            batch, or there are fewer shards than streams.
    """

    shards: ShardSet
    batch_size_total: int
    epochs: int
    seed: int
    num_workers: int
    shuffle_buffer: int
    rank: int = 0
    world_size: int = 1
    start_iteration: int = 0

    def __post_init__(self) -> None:
        check_batch_size(
            self.batch_size_total, num_images=len(self.shards), world_size=self.world_size
        )
        streams, shards = self.world_size * self.num_streams, len(self.shards.urls)
        if shards < streams:
            fitting = shards // self.world_size
            cure = (
                f"Set DATA.NUM_WORKERS to at most {fitting}"
                if fitting
                else f"Start at most {shards} processes"
            )
            raise InputError(
                f"{self.shards.root} has {shards} shards, fewer than the {streams} data workers"
                f" ({self.world_size} processes x {self.num_streams}), each of which reads its own."
                f" {cure}, or write the images into at least {streams} shards."
            )

    @property
    def num_streams(self) -> int:
        """Streams of this process."""
        return max(1, self.num_workers)

    @property
    def batch_size_per_rank(self) -> int:
        """Images per iteration on this process."""
        return self.batch_size_total // self.world_size

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations in an epoch; the last, partial batch is left out."""
        return len(self.shards) // self.batch_size_total

    @property
    def order(self) -> dict[str, int]:
        """What the order depends on beside the seed and the batch; a run that is resumed with other
        values goes on in another order.
        """
        return {
            "processes": self.world_size,
            "data workers per process": self.num_streams,
            "DATA.SHUFFLE_BUFFER": self.shuffle_buffer,
            "shards": len(self.shards.urls),
            # Without counts an image has another number, and so other views.
            **({} if self.shards.is_counted else {"DATA.NUM_IMAGES": len(self.shards)}),
        }

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole run, the finished ones included."""
        return self.epochs * self.iterations_per_epoch

    def __len__(self) -> int:
        return max(0, self.max_iterations - self.start_iteration)

    def iterations_of(self, stream: int, start: int, stop: int) -> range:
        """Return the iterations from ``start`` up to ``stop`` that a stream of this process (0 ..
        num_streams - 1) makes.
        """
        return range(start + (stream - start) % self.num_streams, stop, self.num_streams)

    def images_of(self, stream: int, start: int, stop: int) -> int:
        """Return how many images a stream of this process gives to the iterations from ``start``
        up to ``stop``.
        """
        return len(self.iterations_of(stream, start, stop)) * self.batch_size_per_rank

    def blocks(self, stream: int, start: int) -> Iterator[tuple[Block, int]]:
        """Yield a stream's blocks from the one on that iteration ``start`` needs, each with the
        number of its images that are used up.
        """
        first_epoch, per_epoch = start // self.iterations_per_epoch, self.iterations_per_epoch
        for epoch in range(first_epoch, self.epochs):
            begin = epoch * per_epoch
            quota = self.images_of(stream, begin, begin + per_epoch)
            used = self.images_of(stream, begin, max(start, begin))
            for number in range(used // self.shuffle_buffer, -(-quota // self.shuffle_buffer)):
                at = number * self.shuffle_buffer
                yield (
                    Block(epoch, number, at, min(self.shuffle_buffer, quota - at)),
                    max(0, used - at),
                )

    def order_in(self, block: Block, stream: int) -> np.ndarray:
        """Return the order in which a block's images are used, int64 (block.size,)."""
        generator = generator_at(self.seed, "block", block.epoch, self.rank, stream, block.number)
        return (
            generator.permutation(block.size) if self.shuffle_buffer > 1 else np.arange(block.size)
        )

    def shards_of(self, stream: int, epoch: int, again: int = 0) -> np.ndarray:
        """Return the numbers of the shards that a stream reads in an epoch, in order.

        Args:
            stream: Stream of this process.
            epoch: The epoch.
            again: How often the stream has read all of them in this epoch already.
        """
        own = self._order(epoch)[
            self.rank * self.num_streams + stream :: self.world_size * self.num_streams
        ]
        return (
            generator_at(self.seed, "again", epoch, self.rank, stream, again).permutation(own)
            if again
            else own
        )

    def describe(self) -> str:
        """Return in words how the shards are dealt out, and what depends on it."""
        streams = self.world_size * self.num_streams
        return (
            f"the shards are dealt out to {streams} streams ({self.world_size} processes x"
            f" {self.num_streams} data workers) again in each epoch, and images are shuffled in"
            f" blocks of {self.shuffle_buffer}: which images meet in a batch depends on both"
            " numbers and on DATA.SHUFFLE_BUFFER, how many iterations there are does not"
        )

    def uneven(self) -> float:
        """Return the share of the images of the first epoch that are left out while others are
        seen twice, 0-1; NaN if not counted.
        """
        if not self.shards.is_counted:
            return float("nan")
        order, streams = self._order(0), self.world_size * self.num_streams
        needed = self.iterations_per_epoch * self.batch_size_total / streams
        return sum(
            max(0.0, needed - self.shards.counts[order[i::streams]].sum()) for i in range(streams)
        ) / len(self.shards)

    def _order(self, epoch: int) -> np.ndarray:
        return generator_at(self.seed, "shards", epoch).permutation(len(self.shards.urls))
