"""The order of a pre-training run, as a function of the seed and the iteration.

Images in any order: epoch e visits them in a permutation drawn from (seed, e). Iteration i takes
the i-th slice of BATCH_SIZE_TOTAL of it, and each process its part: the images do not depend on the
number of processes. The last, partial batch of an epoch is left out (as in the official code).

A stream of tar shards: every data worker of every process is a stream of its own. In each epoch the
shards are dealt out to all streams in an order drawn from (seed, epoch). So the images of an
iteration depend on the number of processes and of workers; the number of iterations does not. A
stream whose shards hold fewer images than its part reads them again in another order; one whose
shards hold more leaves the rest out. Images are shuffled in blocks of ``shuffle_buffer``. The place
in the run tells which block is next, so a run resumes in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...runtime.errors import InputError
from ...runtime.seed import generator_at
from ..images.tar_shards import ShardStream, read_shard


@dataclass(kw_only=True)
class Batches:
    """All batches of a run from ``start_iteration`` on: what one process reads in each.

    InputError for a batch that the processes cannot share or the images cannot fill.
    """

    num_images: int = field(init=False)
    batch_size_total: int  # images per iteration over all processes
    epochs: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_iteration: int = 0  # iterations already finished

    def __post_init__(self) -> None:
        batch, processes = self.batch_size_total, self.world_size
        if batch % processes:
            lower = batch // processes * processes
            raise InputError(
                f"DATA.BATCH_SIZE_TOTAL {batch} does not divide among {processes} processes. Use"
                f" {lower or processes} or {lower + processes}."
            )
        if self.num_images < batch:
            raise InputError(
                f"DATA.ROOT holds {self.num_images} images, less than one batch of {batch}. Set"
                f" DATA.BATCH_SIZE_TOTAL to at most {self.num_images}, or add images."
            )

    @property
    def order(self) -> dict[str, int]:
        """What the order depends on besides the seed and the batch."""
        return {}

    @property
    def batch_size_per_rank(self) -> int:
        """Images per iteration on this process."""
        return self.batch_size_total // self.world_size

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations in an epoch; the last, partial batch is left out."""
        return self.num_images // self.batch_size_total

    @property
    def max_iterations(self) -> int:
        """Iterations of the whole run, the finished ones included."""
        return self.epochs * self.iterations_per_epoch

    def __len__(self) -> int:
        return max(0, self.max_iterations - self.start_iteration)


@dataclass
class EpochBatches(Batches):
    """Batches of images that can be read in any order, as lists of (epoch, index)."""

    num_images: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration = self.start_iteration
        while iteration < self.max_iterations:
            epoch, step = divmod(iteration, self.iterations_per_epoch)
            order = generator_at(self.seed, "order", epoch).permutation(self.num_images)
            for step_in_epoch in range(step, self.iterations_per_epoch):
                start = step_in_epoch * self.batch_size_total + self.rank * self.batch_size_per_rank
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size_per_rank]]
                iteration += 1


class ShardImage(NamedTuple):
    """An encoded image of a shard."""

    number: int  # see ShardStream.number_of
    again: int  # how often the stream has read its shards in this epoch already
    name: str
    data: bytes
    label: int  # -1 without


@dataclass
class Block:
    """Images that are shuffled among themselves."""

    epoch: int
    order: np.ndarray  # int64 (size,), in which they are used
    used: int  # of them that an earlier run has used
    reader: Iterator[ShardImage]
    images: list[Any] = field(default_factory=list)  # those read so far, None once used

    def fill(self, share: float) -> None:
        """Read until a share of the images, 0-1, is there."""
        while len(self.images) < share * len(self.order):
            self.images.append(next(self.reader))


@dataclass
class ShardBatches(Batches):
    """Batches of images that are read as a stream.

    Iteration t is made by the process's worker t mod ``num_streams``; its stream in the whole run
    is ``rank * num_streams`` + that. InputError if the shards cannot be divided so.
    """

    shards: ShardStream
    num_workers: int = field(kw_only=True)  # per process; 0 reads in the training process
    shuffle_buffer: int = field(kw_only=True)  # images in a block; 1 keeps the order of the shards

    def __post_init__(self) -> None:
        self.num_images = len(self.shards)
        super().__post_init__()
        streams, shards = self.world_size * self.num_streams, len(self.shards.urls)
        if shards < streams:
            raise InputError(
                f"{self.shards.root} has {shards} shards, fewer than the {streams} data workers"
                f" ({self.world_size} processes x {self.num_streams}). Set DATA.NUM_WORKERS to at"
                f" most {shards // self.world_size}, or start at most {shards} processes."
            )

    @property
    def num_streams(self) -> int:
        """Streams of this process."""
        return max(1, self.num_workers)

    @property
    def order(self) -> dict[str, int]:
        """What the order depends on besides the seed and the batch."""
        return {
            "processes": self.world_size,
            "data workers per process": self.num_streams,
            "DATA.SHUFFLE_BUFFER": self.shuffle_buffer,
            "shards": len(self.shards.urls),
            # Without counts an image has another number, and so other views.
            **({} if self.shards.is_counted else {"DATA.NUM_IMAGES": self.num_images}),
        }

    def describe(self) -> str:
        """Return in words how the shards are dealt out, and what depends on it."""
        numbers = ", ".join(f"{name}: {number}" for name, number in self.order.items())
        return f"which images meet in a batch depends on {numbers}"

    def uneven(self) -> float:
        """Return the share of the images of the first epoch that are left out while others are
        seen twice, 0-1; NaN if not counted.
        """
        if not self.shards.is_counted:
            return float("nan")
        order, streams = self._order(0), self.world_size * self.num_streams
        needed = self.iterations_per_epoch * self.batch_size_total / streams
        held = [self.shards.counts[order[i::streams]].sum() for i in range(streams)]
        return float(sum(max(0.0, needed - count) for count in held) / len(self.shards))

    def iterations_of(self, stream: int, start: int, stop: int) -> range:
        """Return the iterations from ``start`` up to ``stop`` that a stream makes."""
        return range(start + (stream - start) % self.num_streams, stop, self.num_streams)

    def blocks(self, stream: int, start: int) -> Iterator[Block]:
        """Yield a stream's blocks from iteration ``start`` on."""
        per_epoch, size = self.iterations_per_epoch, self.shuffle_buffer
        for epoch in range(start // per_epoch, self.epochs):
            begin = epoch * per_epoch
            quota, used = (
                len(self.iterations_of(stream, begin, stop)) * self.batch_size_per_rank
                for stop in (begin + per_epoch, max(start, begin))
            )
            reader = self._read(stream, epoch, skip=used // size * size)
            for number in range(used // size, -(-quota // size)):
                order = np.arange(min(size, quota - number * size))
                if size > 1:
                    place = (epoch, self.rank, stream, number)
                    order = generator_at(self.seed, "block", *place).permutation(order)
                yield Block(epoch, order, max(0, used - number * size), reader)

    def _shards_of(self, stream: int, epoch: int, again: int) -> np.ndarray:
        """Return the shards of a stream in their order; ``again``: how often it has read them."""
        streams = self.world_size * self.num_streams
        own = self._order(epoch)[self.rank * self.num_streams + stream :: streams]
        if not again:
            return own
        return generator_at(self.seed, "again", epoch, self.rank, stream, again).permutation(own)

    def _order(self, epoch: int) -> np.ndarray:
        return generator_at(self.seed, "shards", epoch).permutation(len(self.shards.urls))

    def _read(self, stream: int, epoch: int, skip: int) -> Iterator[ShardImage]:
        """Yield the images of a stream's shards in an epoch, over and over, without the first
        ``skip``; shards that lie wholly in what is skipped are not opened.
        """
        again = 0
        while True:
            found = 0
            for shard in map(int, self._shards_of(stream, epoch, again)):
                if self.shards.is_counted and skip >= self.shards.counts[shard]:
                    skip -= int(self.shards.counts[shard])
                    found += int(self.shards.counts[shard])
                    continue
                for position, (name, data, label) in enumerate(self._counted(shard)):
                    found += 1
                    if skip:
                        skip -= 1
                        continue
                    number = self.shards.number_of(shard, position)
                    yield ShardImage(number, again, name, data, label)
            if not found:
                first = self.shards.urls[self._shards_of(stream, epoch, 0)[0]]
                raise InputError(f"The shards {first} … hold no image, such as 000017.jpg.")
            again += 1

    def _counted(self, shard: int) -> Iterator[tuple[str, bytes, int]]:
        url, read = self.shards.urls[shard], 0
        expected = int(self.shards.counts[shard]) if self.shards.is_counted else None
        for image in read_shard(url):
            read += 1
            if expected is not None and read > expected:
                break
            yield image
        if expected is not None and read != expected:
            raise InputError(
                f"Shard {url} holds {'more' if read > expected else read} images, the index says"
                f" {expected}. Make its index again, and start a new run."
            )
