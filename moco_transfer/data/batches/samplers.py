"""The order of a pre-training run, as a function of the seed and the iteration.

Epoch e visits the images in a permutation drawn from (seed, e). Iteration i takes the i-th slice
of BATCH_SIZE_TOTAL of it, and each process its part: the images do not depend on the number of
processes. The last, partial batch of an epoch is left out (as in the official code).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...runtime.errors import InputError
from ...runtime.seed import generator_at


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
