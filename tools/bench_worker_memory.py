"""Memory of a data worker by the number of pictures: python tools/bench_worker_memory.py [--pictures 1300000].

A worker that loads from a list of many names must not copy it, page by page, as it reads. This makes a source with so many generated
names (each of one of a few real files), lets workers load from all over it, and prints what each worker has of its own
(Private_Dirty in /proc/PID/smaps_rollup; Linux alone) beside a source with a thousand names. Ends with status 1 if the difference is
5 MB or more.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.data.images import ImageFolder, PathList  # noqa: E402
from moco_transfer.data.samplers import EpochBatches  # noqa: E402
from moco_transfer.data.two_views import Views  # noqa: E402

_LIMIT_MB = 5  # a plain list of names takes 17 more after 40 batches, and grows


class Measured(Dataset):
    """Views, and what the worker that made one has of its own, MB."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, float]:
        """Load a picture; returns (process id, MB)."""
        self.views[place]
        return os.getpid(), private_mb() if place[1] % 100 == 0 else 0.0  # asking takes the kernel milliseconds


def private_mb() -> float:
    """Return the memory of this process that it shares with no other, MB."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty")) / 1024


def names(count: int) -> Iterator[str]:
    """Yield names as long as ImageNet's, of ten files that are there."""
    for i in range(count):
        yield f"n{i // 1300:08d}/../n{i // 1300:08d}/../{i % 10}.png"


def measure(folder: Path, count: int, *, num_workers: int, batches: int, context: str, pipeline: str) -> dict[int, float]:
    """Return the most that each worker had of its own while it loaded its share of the batches, MB, by process id."""
    for i in range((count + 1299) // 1300):
        (folder / f"n{i:08d}").mkdir(exist_ok=True)
    source = ImageFolder(folder, PathList(list(names(count))), np.arange(count, dtype=np.int64) % 1000, tuple(map(str, range(1000))))
    views = Views(source, recipe="supervised", size=8, crop_scale=(0.2, 1.0), seed=0, num_views=1, pipeline=pipeline)
    order = EpochBatches(count, batch_size_total=min(count, 256), epochs=1000, seed=0)
    loader = DataLoader(Measured(views), batch_sampler=order, num_workers=num_workers, collate_fn=list, multiprocessing_context=context)
    last: dict[int, float] = {}
    for _, batch in zip(range(batches), loader, strict=False):
        for pid, memory in batch:
            last[pid] = max(memory, last.get(pid, 0.0))
    return last


def main() -> int:
    """Measure, print, and compare with the limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1_300_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=80, help="of 256 pictures")
    parser.add_argument("--context", default="fork", choices=["fork", "forkserver", "spawn"], help="how workers are started")
    parser.add_argument("--pipeline", default="fast", choices=["fast", "reference"])
    args = parser.parse_args()
    worst = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(10):
            Image.new("RGB", (8, 8), (i, i, i)).save(Path(folder) / f"{i}.png")
        for count in (1000, args.pictures):
            found = measure(Path(folder), count, num_workers=args.workers, batches=args.batches, context=args.context, pipeline=args.pipeline)
            worst[count] = max(found.values())
            print(f"{count} pictures, {args.context}: {', '.join(f'{v:.1f}' for v in found.values())} MB of its own in each worker", flush=True)
    more = worst[args.pictures] - worst[1000]
    print(f"{more:.1f} MB more for {args.pictures} pictures (limit {_LIMIT_MB})")
    return int(more >= _LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
