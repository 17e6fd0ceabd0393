#!/usr/bin/env python
"""Measure pre-training end to end, images included, compared with the published chain and step.

    python tools/bench_pretrain.py --data FOLDER

ResNet-18, 96 px, batch 64, K = 256 (configs/pretrain/moco_v2_R_18_96px.yaml), bf16, on two cores.
Ours loads in the training process (--our-workers 0, the faster choice on a CPU). The published way
is tools/bench_published.py, in float32; it is tried with each number of workers in --workers, and
the fastest counts.

The ways take turns, each in a process of its own, because ours changes how its process keeps freed
memory (runtime/device.py). A turn takes --iterations iterations after two that are not counted, in
which workers start. At its end the workers have stopped, so nothing of one way runs during
another's turn. Numbers are medians over --repeats turns. An idle machine takes four minutes. The
last line is JSON: `ratio`, and for each way seconds of a turn, images/s, and CPU seconds, workers
included.

On a CUDA GPU: --arch resnet50 --size 224 --batch 256 --queue-size 65536 --device cuda --workers 16
--our-workers 16 --iterations 50. `--what ours` leaves the published way out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_published import OwnProcess, PublishedStep, published_chain  # noqa: E402

from moco_transfer.config import load_pretrain_config  # noqa: E402
from moco_transfer.data.images.decode import read_rgb  # noqa: E402
from moco_transfer.data.images.folder import ImageFolder, find_images  # noqa: E402
from moco_transfer.data.views.loading import to_device  # noqa: E402
from moco_transfer.pretrain.plan import plan_pretrain  # noqa: E402
from moco_transfer.pretrain.run import build_loader, build_run, step  # noqa: E402
from moco_transfer.runtime.device import keep_freed_memory  # noqa: E402

_UNCOUNTED = 2  # iterations at the start of a turn
# iterations of a turn in which the published way's numbers of workers are compared, three turns
# each
_TRIAL = 6


class Turn(NamedTuple):
    """What a turn took, seconds: by the clock, of it waiting for images, and of CPU time in this
    process and its data workers.
    """

    taken: float
    waited: float
    cpu: float


class TwoCrops(Dataset):
    """Two float views of each image."""

    def __init__(self, folder: ImageFolder, size: int) -> None:
        self.folder, self.chain = folder, published_chain(size)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_rgb(self.folder.path(index))
        return self.chain(image), self.chain(image)


def cpu_seconds(workers: list[Any]) -> float:
    """Return the CPU time that this process and these data workers have used, s; the workers' where
    /proc tells it.
    """
    total = time.process_time()
    for worker in workers:
        try:
            fields = (
                Path(f"/proc/{worker.pid}/stat")
                .read_text(encoding="utf-8")
                .rpartition(")")[2]
                .split()
            )
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def take_turn(
    batches: Iterator[Any],
    take_step: Callable[[Any], Any],
    workers: list[Any],
    *,
    iterations: int,
    device: torch.device,
) -> Turn:
    """Take a turn's iterations and return what they took."""
    for _ in range(_UNCOUNTED):
        take_step(next(batches))
    since, cpu, waited = time.perf_counter(), cpu_seconds(workers), 0.0
    for _ in range(iterations):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        take_step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Turn(time.perf_counter() - since, waited, cpu_seconds(workers) - cpu)


class Published:
    """The published way, one model and one loader for each number of workers.

    Args:
        args: The command line's.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.step_of = PublishedStep(args.arch, queue_size=args.queue_size, device=args.device)
        self.views = TwoCrops(find_images(args.data), args.size)

    def turn(self, num_workers: int, iterations: int) -> Turn:
        """Take a turn with so many data workers, which start before it and end with it."""
        cuda, batch = self.device.type == "cuda", self.args.batch
        order = RandomSampler(
            self.views, num_samples=batch * (iterations + _UNCOUNTED)
        )  # no image is prepared that no turn asks for
        loader = DataLoader(
            self.views,
            batch,
            sampler=order,
            num_workers=num_workers,
            drop_last=True,
            pin_memory=cuda,
        )
        iterator = iter(loader)
        try:
            return take_turn(
                iterator,
                self._take,
                getattr(iterator, "_workers", []),
                iterations=iterations,
                device=self.device,
            )
        finally:
            if num_workers:
                iterator._shutdown_workers()

    def _take(self, images: list[Tensor]) -> None:
        self.step_of(*(image.to(self.device, non_blocking=True) for image in images))


class Ours:
    """What `moco-transfer pretrain` does, but for checkpoints and log lines.

    Args:
        args: The command line's.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        words = [
            "DATA.ROOT",
            args.data,
            "MODEL.ARCH",
            args.arch,
            "DATA.IMAGE_SIZE",
            args.size,
            "DATA.BATCH_SIZE_TOTAL",
            args.batch,
        ]
        words += [
            "MOCO.QUEUE_SIZE",
            args.queue_size,
            "DATA.NUM_WORKERS",
            args.our_workers,
            "TRAIN.DEVICE",
            args.device,
            *args.overrides,
        ]
        if args.device == "cpu":
            keep_freed_memory()  # as pretrain.run.pretrain does
        self.plan = plan_pretrain(load_pretrain_config("moco_v2_R_18_96px", list(map(str, words))))
        self.device = self.plan.device
        self.run = build_run(self.plan)
        self.run.model.train()
        self.taken = 0

    def turn(self, num_workers: int, iterations: int) -> Turn:
        """Take a turn with a loader of its own, from where the last one ended."""
        rest = dataclasses.replace(self.plan.batches, start_iteration=self.taken)
        loader = build_loader(dataclasses.replace(self.plan, batches=rest))
        self.taken += iterations + _UNCOUNTED
        before = set(_children())
        batches = to_device(loader, self.device)
        try:
            first = next(batches)  # the workers start
            workers = [child for child in _children() if child not in before]
            settings = {"iterations": iterations, "device": self.device}
            return take_turn(
                itertools.chain([first], batches),
                lambda batch: step(self.run, batch),
                workers,
                **settings,
            )
        finally:
            batches.close()


def _children() -> list[Any]:
    return multiprocessing.active_children()


def turns_of(way: type, args: argparse.Namespace) -> Callable[[int, int], Turn]:
    """Return the function that takes a turn of this way."""
    return way(args).turn


def choose_workers(published: OwnProcess, counts: list[int], batch: int) -> int:
    """Return the number of workers with which the published way is fastest, and print what each
    took.
    """
    if len(counts) == 1:
        return counts[0]
    taken = {
        count: statistics.median(published(count, _TRIAL).taken for _ in range(3))
        for count in counts
    }
    for count, seconds in taken.items():
        print(f"  published, {count} workers: {_TRIAL * batch / seconds:.1f} images/s", flush=True)
    return min(taken, key=taken.__getitem__)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, as DATA.ROOT")
    parser.add_argument("--arch", default="resnet18", help="network (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=96, help="side of a view, px (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="images in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--queue-size", type=int, default=256, help="negatives (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 1],
        help="data workers of the published way; the fastest of these is taken",
    )
    parser.add_argument(
        "--our-workers", type=int, default=0, help="data workers of ours (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of each way (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=15, help="of a turn")
    parser.add_argument(
        "--repeats", type=int, default=5, help="turns of each way (default: %(default)s)"
    )
    parser.add_argument(
        "--what",
        default="both",
        choices=["both", "ours", "published"],
        help="which way to measure (default: %(default)s)",
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change in ours; last on the line",
    )
    args = parser.parse_args()
    print(
        f"{args.arch} {args.size} px batch {args.batch} K {args.queue_size}, {args.device},"
        f" {args.threads} threads",
        flush=True,
    )
    ways: dict[str, tuple[OwnProcess, int]] = {}
    taken: dict[str, list[Turn]] = {}
    with contextlib.ExitStack() as ends:
        if args.what != "ours":
            published = ends.enter_context(
                OwnProcess(turns_of, Published, args, threads=args.threads)
            )
            ways["published"] = published, choose_workers(published, args.workers, args.batch)
        if args.what != "published":
            ways["ours"] = (
                ends.enter_context(OwnProcess(turns_of, Ours, args, threads=args.threads)),
                args.our_workers,
            )
        for _ in range(args.repeats):
            for name, (way, workers) in ways.items():
                taken.setdefault(name, []).append(way(workers, args.iterations))
    row: dict[str, Any] = {}
    for name, turns in taken.items():
        seconds, cpu = (
            statistics.median(turn.taken for turn in turns),
            statistics.median(turn.cpu for turn in turns),
        )
        waits, workers = (
            statistics.median(turn.waited / turn.taken for turn in turns),
            ways[name][1],
        )
        low, high, speed = (
            min(turns).taken,
            max(turns).taken,
            args.iterations * args.batch / seconds,
        )
        print(
            f"  {name:10} {workers:2} workers {seconds:7.2f} s a turn ({low:.2f} to {high:.2f}),"
            f" CPU {cpu:.2f} s  {speed:8.1f} images/s  waiting for images {100 * waits:.0f} %"
        )
        row |= {
            f"sec_{name}": round(seconds, 3),
            f"images_per_sec_{name}": round(speed, 1),
            f"cpu_sec_{name}": round(cpu, 3),
        }
        row |= {f"workers_{name}": workers, f"waiting_{name}": round(waits, 3)}
    row |= {"iterations": args.iterations, "repeats": args.repeats}
    if len(taken) == 2:
        row |= {
            "ratio": round(row["sec_published"] / row["sec_ours"], 3),
            "ratio_cpu_sec": round(row["cpu_sec_published"] / row["cpu_sec_ours"], 3),
        }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
