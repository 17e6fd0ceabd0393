"""The order of a pre-training run, as a function of the seed and the iteration.

Epoch e visits the images in a permutation drawn from (seed, e). Iteration i takes the i-th slice
of BATCH_SIZE_TOTAL of it, and each process its part: the images do not depend on the number of
processes. The last, partial batch of an epoch is left out (as in the official code).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from ...runtime.errors import InputError
from ...runtime.seed import generator_at


def check_batch_size(batch_size_total: int, *, num_images: int, world_size: int) -> None:
    """Raise InputError for a batch that the processes cannot share or the data cannot fill."""
    if batch_size_total % world_size:
        lower = batch_size_total // world_size * world_size
        raise InputError(
            f"DATA.BATCH_SIZE_TOTAL {batch_size_total} does not divide among {world_size}"
            f" processes. Use {lower or world_size} or {lower + world_size}."
        )
    if num_images < batch_size_total:
        raise InputError(
            f"DATA.ROOT holds {num_images} images, less than one batch of {batch_size_total}. Set"
            f" DATA.BATCH_SIZE_TOTAL to at most {num_images}, or add images."
        )


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """All batches of a run from ``start_iteration`` on, as lists of (epoch, index).

    ``batch_size_total`` counts the images of all processes; ``max_iterations`` is the length of the
    whole run.

    Raises:
        InputError: See :func:`check_batch_size`.
    """

    order: dict[str, int] = {}  # what the order depends on besides the seed and the batch: nothing

    def __init__(
        self,
        num_images: int,
        *,
        batch_size_total: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_iteration: int = 0,
    ) -> None:
        check_batch_size(batch_size_total, num_images=num_images, world_size=world_size)
        self.num_images, self.seed, self.rank = num_images, seed, rank
        self.batch_size_total = batch_size_total
        self.batch_size_per_rank = batch_size_total // world_size
        self.iterations_per_epoch = num_images // batch_size_total
        self.max_iterations = epochs * self.iterations_per_epoch
        self.start_iteration = start_iteration

    def __len__(self) -> int:
        return max(0, self.max_iterations - self.start_iteration)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration = self.start_iteration
        while iteration < self.max_iterations:
            epoch, step = divmod(iteration, self.iterations_per_epoch)
            order = generator_at(self.seed, "order", epoch).permutation(self.num_images)
            for step_in_epoch in range(step, self.iterations_per_epoch):
                start = step_in_epoch * self.batch_size_total + self.rank * self.batch_size_per_rank
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size_per_rank]]
                iteration += 1
