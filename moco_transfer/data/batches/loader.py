"""Loaders of detection records: a batch is a function of (seed, world size, rank, iteration) only.

A resumed run therefore gets the images and the augmentation that it would have had, without a saved
state of the loader and for any number of workers.

Terms:
    repeat factor: how often an image comes in a round of the data, on average; at least 1
    draw number: position in the endless shuffled stream that all ranks share; rank r takes r, r +
        W, r + 2 W, ...
Source:
    detectron2/data/samplers/distributed_sampler.py TrainingSampler and RepeatFactorTrainingSampler
    (the same streams for a seed) and InferenceSampler; data/common.py AspectRatioGroupedDataset.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...runtime.errors import InputError
from ...runtime.stop import prepare_worker, sigterm_held
from ..images.image_source import Table

Draw = tuple[int, int]  # (index of the record, draw number)


def training_batches(
    records: list[dict],
    *,
    batch_size_per_rank: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    aspect_ratio_grouping: bool = True,
    repeat_factors: Tensor | None = None,
    start_iteration: int = 0,
) -> Iterator[list[Draw]]:
    """Yield this rank's batches without end, from ``start_iteration`` on.

    ``seed`` is the same on every rank. With ``aspect_ratio_grouping`` a batch holds only wide (w >
    h) or only other images, which saves padding. ``repeat_factors`` are those of
    :func:`category_repeat_factors`; None draws each image once a round.
    InputError if there is no record, or the batch size or the seed is out of its range.
    """
    if not records:
        raise InputError("There is no image to train on: the data set is empty or all left out.")
    if batch_size_per_rank < 1 or seed < 0:
        raise InputError(f"Illegal batch size per rank {batch_size_per_rank} or seed {seed}.")
    group_of = [int(not r["width"] > r["height"]) if aspect_ratio_grouping else 0 for r in records]
    stream = _endless_draws(len(records), seed, repeat_factors)
    draws = itertools.islice(stream, rank, None, world_size)
    return itertools.islice(_group(draws, group_of, batch_size_per_rank), start_iteration, None)


def category_repeat_factors(records: list[dict], threshold: float, *, sqrt: bool) -> Tensor:
    """Return each record's repeat factor (N,), float32: that of the rarest class in it.

    A class in a share f of the records has the factor threshold / f, or its square root (``sqrt``),
    but at least 1. Source: Gupta et al., LVIS, arXiv:1908.03195v2 App. B.2.
    """
    if any("sem_seg_file_name" in record for record in records):
        raise InputError(
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler counts objects, and label images"
            " have none. Use TrainingSampler."
        )
    classes = [{a["category_id"] for a in record["annotations"]} for record in records]
    counts = Counter(itertools.chain.from_iterable(classes))
    ratio = {c: threshold / (count / len(records)) for c, count in counts.items()}
    factors = {c: max(1.0, math.sqrt(r) if sqrt else r) for c, r in ratio.items()}
    return torch.tensor([max((factors[c] for c in held), default=1.0) for held in classes])


def _endless_draws(
    num_records: int, seed: int, repeat_factors: Tensor | None = None
) -> Iterator[Draw]:
    generator = torch.Generator().manual_seed(seed)
    numbers = itertools.count()
    indices = torch.arange(num_records)
    while True:
        order = indices
        if repeat_factors is not None:  # the fraction is rounded by chance, again in each round
            whole = repeat_factors.trunc()
            more = torch.rand(num_records, generator=generator) < repeat_factors - whole
            order = indices.repeat_interleave(whole.long() + more)
        order = order[torch.randperm(len(order), generator=generator)]
        yield from zip(order.tolist(), numbers, strict=False)


def _group(draws: Iterator[Draw], group_of: list[int], batch_size: int) -> Iterator[list[Draw]]:
    buckets: tuple[list[Draw], list[Draw]] = ([], [])
    for draw in draws:
        bucket = buckets[group_of[draw[0]]]
        bucket.append(draw)
        if len(bucket) == batch_size:
            yield bucket[:]
            bucket.clear()


class _Items(Dataset):
    """Mapped records; a key is an index and, for training, the draw that seeds the generator."""

    def __init__(self, records: list[dict], mapper: Callable[..., dict], seed: int = 0) -> None:
        self._records = Table(map(pickle.dumps, records), pickle.loads)
        self._mapper, self._seed = mapper, seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: int | Draw) -> dict | InputError:
        # DataLoader would wrap a worker's exception in its traceback; a value passes unchanged.
        try:
            if isinstance(key, int):
                return self._mapper(self._records[key])
            index, draw_number = key
            rng = np.random.default_rng(np.random.SeedSequence([self._seed, draw_number]))
            return self._mapper(self._records[index], rng)
        except InputError as problem:
            return problem


class _Loader(DataLoader):
    """A DataLoader that raises the problems which its workers passed on."""

    def __init__(
        self, items: Dataset, batches: Iterable[list], num_workers: int, pin_memory: bool
    ) -> None:
        # The default generator is the global one, which a resumed run would then shift.
        own: dict[str, Any] = {"generator": torch.Generator().manual_seed(0)}
        own |= {"collate_fn": list, "worker_init_fn": prepare_worker, "pin_memory": pin_memory}
        super().__init__(items, batch_sampler=batches, num_workers=num_workers, **own)

    def __iter__(self) -> Iterator[list[dict]]:  # type: ignore[override]
        with sigterm_held():
            batches = super().__iter__()
        for items in batches:
            for item in items:
                if isinstance(item, InputError):
                    raise item
            yield items


def train_loader(
    records: list[dict],
    mapper: Callable[[dict, np.random.Generator], dict],
    *,
    seed: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    **settings: Any,
) -> DataLoader:
    """Return an endless loader of this rank's training batches, lists of the mapper's items.

    It can be iterated once. The mapper gets a record and a generator that is seeded by (seed, draw
    number), so that augmentation is the same for any number of workers. ``settings`` and errors are
    those of :func:`training_batches`.
    """
    batches = training_batches(records, seed=seed, **settings)
    return _Loader(_Items(records, mapper, seed), batches, num_workers, pin_memory)


def shard_of(num_records: int, *, rank: int, world_size: int) -> range:
    """Return this rank's consecutive share of a test set; sizes differ by one at most."""
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
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of this rank's share of a test set, in order; each image comes once."""
    shard = shard_of(len(records), rank=rank, world_size=world_size)
    batches = [list(shard[i : i + batch_size]) for i in range(0, len(shard), batch_size)]
    return _Loader(_Items(records, mapper), batches, num_workers, pin_memory)


test_loader.__test__ = False  # type: ignore[attr-defined]  # pytest would collect the name
