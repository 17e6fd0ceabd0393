"""Batches of detection records: which image comes when is a function of (seed, world size, rank,
iteration) alone.

So a run that was killed goes on with exactly the images, and exactly the augmentation, that it
    would have had: nothing of
the loader has to be saved, and neither the number of workers nor how far they had read ahead
matters.

Terms:
    draw number: position in the endless shuffled stream that all ranks share; rank r takes r, r +
        W, r + 2 W, ...
Source:
    The stream equals detectron2/data/samplers/distributed_sampler.py TrainingSampler with the same
    seed; grouping by aspect ratio follows data/common.py AspectRatioGroupedDataset, on indices
    instead of loaded images; shards of the test set follow InferenceSampler.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...runtime.errors import InputError

Draw = tuple[int, int]  # (index of the record, draw number)


def training_batches(
    records: list[dict],
    *,
    batch_size_per_rank: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    aspect_ratio_grouping: bool = True,
    start_iteration: int = 0,
) -> Iterator[list[Draw]]:
    """Yield this rank's batches without end.

    Args:
        records: Detection records; only their width and height are looked at.
        batch_size_per_rank: Images in a batch.
        seed: Seed of the shuffle, the same on every rank, >= 0.
        rank: This process.
        world_size: Number of processes.
        aspect_ratio_grouping: Whether a batch holds only wide (w > h) or only other images, which
            saves padding.
        start_iteration: Number of batches that were used already; they are replayed, at a
            microsecond an image.

    Yields:
        Lists of ``batch_size_per_rank`` pairs (index into ``records``, draw number).

    Raises:
        InputError: If there is no record or an argument is out of its range.
    """
    if not records:
        raise InputError(
            "There is no image to train on: every one was left out or the data set is empty."
        )
    if batch_size_per_rank < 1 or seed < 0 or not 0 <= rank < world_size or start_iteration < 0:
        raise InputError(
            f"Illegal loader settings: batch_size_per_rank {batch_size_per_rank} (>= 1), seed"
            f" {seed} (>= 0), rank {rank} of {world_size}, start_iteration {start_iteration}"
            " (>= 0)."
        )
    group_of = [int(not r["width"] > r["height"]) if aspect_ratio_grouping else 0 for r in records]
    draws = itertools.islice(_endless_draws(len(records), seed), rank, None, world_size)
    return itertools.islice(_group(draws, group_of, batch_size_per_rank), start_iteration, None)


def _endless_draws(num_records: int, seed: int) -> Iterator[Draw]:
    """Yield (index, draw number) over shuffle after shuffle of all records; every rank walks the
    same stream.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = itertools.count()
    while True:
        yield from zip(
            torch.randperm(num_records, generator=generator).tolist(), numbers, strict=False
        )


def _group(draws: Iterator[Draw], group_of: list[int], batch_size: int) -> Iterator[list[Draw]]:
    buckets: tuple[list[Draw], list[Draw]] = ([], [])
    for draw in draws:
        bucket = buckets[group_of[draw[0]]]
        bucket.append(draw)
        if len(bucket) == batch_size:
            yield bucket[:]
            bucket.clear()


class PackedRecords:
    """A list of records as one block of bytes.

    Python objects are written to when they are read (reference counts), so forked workers would
    soon hold a copy of the whole list each; a numpy array they share. Items come out as fresh
    copies.
    """

    def __init__(self, records: list[dict]) -> None:
        pickled = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([len(p) for p in pickled], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._ends)

    def __getitem__(self, index: int) -> dict:
        """Return a copy of the record at ``index``."""
        start = 0 if index == 0 else int(self._ends[index - 1])
        return pickle.loads(self._bytes[start : int(self._ends[index])].data)


class _TrainItems(Dataset):
    def __init__(
        self, records: list[dict], mapper: Callable[[dict, np.random.Generator], dict], seed: int
    ) -> None:
        self._records, self._mapper, self._seed = PackedRecords(records), mapper, seed

    def __getitem__(self, draw: Draw) -> dict:
        index, draw_number = draw
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, draw_number]))
        return _item_or_problem(self._mapper, self._records[index], rng)


class _TestItems(Dataset):
    def __init__(self, records: list[dict], mapper: Callable[[dict], dict]) -> None:
        self._records, self._mapper = PackedRecords(records), mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return _item_or_problem(self._mapper, self._records[index])


def _item_or_problem(mapper: Callable[..., dict], *arguments) -> dict | InputError:
    # DataLoader would wrap an exception of a worker in the text of its traceback; as a value it
    # arrives as it is.
    try:
        return mapper(*arguments)
    except InputError as problem:
        return problem


class _Loader(DataLoader):
    """A DataLoader that raises the problems which its workers passed on."""

    def __iter__(self) -> Iterator[list[dict]]:
        for items in super().__iter__():
            for item in items:
                if isinstance(item, InputError):
                    raise item
            yield items


class _Batches:
    """What DataLoader takes as a batch sampler: an object that can be iterated again."""

    def __init__(self, make: Callable[[], Iterator[list]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list]:
        return self._make()


def as_list(items: list[dict]) -> list[dict]:
    """Collate a batch of images of different sizes: not at all.

    Named, because workers have to pickle it.
    """
    return items


def train_loader(
    records: list[dict],
    mapper: Callable[[dict, np.random.Generator], dict],
    *,
    batch_size_per_rank: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    aspect_ratio_grouping: bool = True,
    start_iteration: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Return an endless loader of this rank's training batches, lists of the mapper's items.

    Args:
        records: Records to train on, empty ones left out already where that is wished.
        mapper: Called with a record and a numpy Generator that is seeded by (seed, draw number), so
            that augmentation is the same for any number of workers and on any rank that gets the
            draw.
        batch_size_per_rank: See :func:`training_batches`, as for the following.
        seed: Seed of shuffle and augmentation.
        rank: This process.
        world_size: Number of processes.
        aspect_ratio_grouping: DATALOADER.ASPECT_RATIO_GROUPING.
        start_iteration: Number of iterations that are done already.
        num_workers: Processes that load ahead, 0 for none.

    Raises:
        InputError: As :func:`training_batches`.
    """

    def batches() -> Iterator[list[Draw]]:
        return training_batches(
            records_shape,
            batch_size_per_rank=batch_size_per_rank,
            seed=seed,
            rank=rank,
            world_size=world_size,
            aspect_ratio_grouping=aspect_ratio_grouping,
            start_iteration=start_iteration,
        )

    # The closure keeps only the sizes, not the records, which live packed in the data set.
    records_shape = [{"width": record["width"], "height": record["height"]} for record in records]
    batches()  # refuse bad arguments here and not in the middle of a loop
    items = _TrainItems(records, mapper, seed)
    return _loader(items, _Batches(batches), num_workers)


def shard_of(num_records: int, *, rank: int, world_size: int) -> range:
    """Return this rank's share of a test set: consecutive, without gaps or repetitions, sizes
    differing by one at most.
    """
    size, left = divmod(num_records, world_size)
    begin = rank * size + min(rank, left)
    return range(begin, begin + size + int(rank < left))


def test_loader(
    records: list[dict],
    mapper: Callable[[dict], dict],
    *,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Return a loader of this rank's share of a test set, in order; each image comes on exactly
    one rank, once.
    """
    shard = shard_of(len(records), rank=rank, world_size=world_size)
    batches = [list(shard[i : i + batch_size]) for i in range(0, len(shard), batch_size)]
    return _loader(_TestItems(records, mapper), batches, num_workers)


test_loader.__test__ = False  # its name would make pytest collect it where a test module imports it


def _loader(items: Dataset, batches, num_workers: int) -> DataLoader:
    return _Loader(
        items,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=as_list,
        # DataLoader draws its base seed from the global generator; an own one leaves the training's
        # untouched, so that making a loader again after a resume does not shift it.
        generator=torch.Generator().manual_seed(0),
    )
