#!/usr/bin/env python
"""What grows with images and processes: docs/scaling.md has its numbers.

    python tools/bench_scaling.py [--images 200000] [--processes 1 2 4 8]

Images: so many empty files in class folders are listed, and so many members of a tar file indexed;
an epoch's order is drawn for ten and fifty times as many. Printed are seconds and bytes an image.
Processes: gloo on this machine, MoCo with a ResNet-18 on 16 images of 32 px a process, K = 65536;
a step, the all-gather of its keys, and the memory of a process. They share the cores that they are
given. The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import resource
import socket
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

import torch
import torch.distributed as dist
from torch import multiprocessing

from moco_transfer.data.images.folder import find_images
from moco_transfer.data.images.tar_shards import index_shard
from moco_transfer.models import build_encoder
from moco_transfer.pretrain import MoCo
from moco_transfer.runtime.distributed import all_gather_rows, in_parallel
from moco_transfer.runtime.seed import generator_at

PER_CLASS, BATCH, SIDE, STEPS = 1300, 16, 32, 3


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that ``work`` takes, and what it returns."""
    since = time.perf_counter()
    found = work()
    return time.perf_counter() - since, found


def peak_mb() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def of_images(count: int, folder: Path) -> dict[str, float]:
    """Return seconds and bytes per million images: listed, indexed, drawn."""
    per_million = 1e6 / count
    for number in range(count):
        place = folder / "images" / f"n{number // PER_CLASS:08d}"
        if number % PER_CLASS == 0:
            place.mkdir(parents=True)
        (place / f"n{number // PER_CLASS:08d}_{number:08d}.JPEG").touch()
    before = peak_mb()
    seconds, images = timed(lambda: find_images(folder / "images"))
    peak = (peak_mb() - before) * per_million
    size = images.names.data.nbytes + images.names.ends.nbytes + images.labels.nbytes
    found = {"list_sec": seconds * per_million, "list_peak_mb": peak}
    found["names_mb"] = size * per_million / 1e6

    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    seconds, shard = timed(lambda: index_shard(folder / "shard.tar"))
    arrays = shard.offsets, shard.sizes, shard.labels, shard.names.data, shard.names.ends
    size = sum(array.nbytes for array in arrays)
    found |= {"index_sec": seconds * per_million, "index_mb": size * per_million / 1e6}

    for times in (10, 50):
        draw = functools.partial(generator_at(0, "order", 0).permutation, times * count)
        seconds, order = timed(draw)
        found[f"order_sec_{times * count}"] = seconds * 1e6 / len(order)
    return found | {"order_mb": order.nbytes / len(order)}


def of_a_process(rank: int, world_size: int, port: int, results: Any) -> None:
    """Put what process 0 measures into ``results``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    torch.manual_seed(0)
    model = MoCo(functools.partial(build_encoder, "resnet18"), mlp=True)
    trained = in_parallel(model, torch.device("cpu")) if world_size > 1 else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.03, 0.9)
    images, keys = torch.randn(2, BATCH, 3, SIDE, SIDE), torch.randn(BATCH, 128)

    def step() -> None:
        logits, target = trained(images[0], images[1])
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    steps = [timed(step)[0] for _ in range(STEPS)]
    gathers = [timed(lambda: all_gather_rows(keys))[0] for _ in range(20)]
    if rank == 0:
        results.put(
            {
                "step_sec": statistics.median(steps),
                "images_per_sec": world_size * BATCH / statistics.median(steps),
                "gather_ms": 1000 * statistics.median(gathers),
                "memory_mb": peak_mb(),
            }
        )
    dist.barrier()
    dist.destroy_process_group()


def of_processes(world_size: int) -> dict[str, float]:
    """Start so many processes; return what the first has measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(of_a_process, (world_size, port, results), world_size)
    return results.get()


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4, 8])
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"per_million_images": of_images(args.images, Path(folder))}
    for count in args.processes:
        found[f"{count}_processes"] = of_processes(count)
    for name, values in found.items():
        print(name, *(f"{key} {value:.4g}" for key, value in values.items()), sep="\n  ")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(json.dumps({"cores": cores, "images": args.images, **found}))


if __name__ == "__main__":
    main()
