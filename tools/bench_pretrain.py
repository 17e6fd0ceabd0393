#!/usr/bin/env python
"""Pre-training end to end, pictures included, beside the published chain and step: python tools/bench_pretrain.py --data FOLDER.

ResNet-18, 96 px, batch 64, K = 256 (configs/pretrain/moco_v2_R_18_96px.yaml), bf16, one data worker, on two cores. The published way is
tools/bench_published.py: torchvision's transforms on PIL pictures in one data worker, the paper's algorithm in float32. They alternate; a
turn is an epoch with fresh workers, and the medians are over --repeats turns. The last line is JSON: seconds a turn and the ratio.
On a CUDA GPU: --arch resnet50 --size 224 --batch 256 --queue-size 65536 --device cuda --workers 16; --what ours leaves the published way out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_published import PublishedStep, published_chain  # noqa: E402

from moco_transfer.config import load_pretrain_config  # noqa: E402
from moco_transfer.data.images import ImageFolder, find_images, read_rgb  # noqa: E402
from moco_transfer.data.prefetch import to_device  # noqa: E402
from moco_transfer.pretrain.build import build_run  # noqa: E402
from moco_transfer.pretrain.build_data import build_loader, open_pictures, plan_run  # noqa: E402
from moco_transfer.pretrain.trainer import step  # noqa: E402


class TwoCrops(Dataset):
    """Two float views of each picture."""

    def __init__(self, folder: ImageFolder, size: int) -> None:
        self.folder, self.chain = folder, published_chain(size)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_rgb(self.folder.path(index))
        return self.chain(image), self.chain(image)


def published_turns(args: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Yield, for each turn, its seconds and the seconds that it waited for pictures."""
    step_of = PublishedStep(args.arch, queue_size=args.queue_size, device=args.device)
    cuda = args.device != "cpu"
    views = TwoCrops(find_images(args.data), args.size)
    loader = DataLoader(views, args.batch, shuffle=True, num_workers=args.workers, drop_last=True, pin_memory=cuda)
    while True:
        since, waited = time.perf_counter(), 0.0
        batches = islice(loader, args.iterations or len(loader))
        while True:
            asked = time.perf_counter()
            images = next(batches, None)
            waited += time.perf_counter() - asked
            if images is None:
                break
            step_of(*(image.to(args.device, non_blocking=True) for image in images))
        yield time.perf_counter() - since, waited


def our_turns(args: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Yield the same of ours."""
    words = ["DATA.ROOT", args.data, "MODEL.ARCH", args.arch, "DATA.IMAGE_SIZE", args.size, "DATA.BATCH_SIZE_TOTAL", args.batch]
    words += ["MOCO.QUEUE_SIZE", args.queue_size, "DATA.NUM_WORKERS", args.our_workers, "TRAIN.DEVICE", args.device, *args.overrides]
    cfg = load_pretrain_config("moco_v2_R_18_96px", list(map(str, words)))
    folder, device = open_pictures(cfg), torch.device(args.device)
    batches = plan_run(cfg, folder, start_iteration=0)
    run = build_run(cfg, folder, batches, device)
    run.wrapped.train()
    loader = iter(to_device(build_loader(cfg, folder, batches, device), device))
    while True:
        for _ in range(4 * args.our_workers + 1 if args.our_workers else 0):  # what was prepared while the published way had its turn
            next(loader)
        since, waited = time.perf_counter(), 0.0
        for _ in range(args.iterations or batches.iterations_per_epoch):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            step(run, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - since, waited


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queue-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--our-workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iterations", type=int, default=0, help="of a turn; 0 for an epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--what", default="both", choices=["both", "ours", "published"])
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to change in ours")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    iterations = args.iterations or len(find_images(args.data)) // args.batch
    ways = {"published": published_turns, "ours": our_turns}
    turns = {name: way(args) for name, way in ways.items() if args.what in ("both", name)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for repeat in range(args.repeats + 1):  # the first warms up
        for name, turn in turns.items():
            measured = next(turn)
            if repeat:
                taken[name].append(measured)
    median = {name: statistics.median(seconds for seconds, _ in values) for name, values in taken.items()}
    print(f"{args.arch} {args.size} px batch {args.batch} K {args.queue_size}, {args.device}, {args.threads} threads, {args.workers} data workers")
    for name, value in median.items():
        low, high = min(taken[name])[0], max(taken[name])[0]
        waits = statistics.median(waited / seconds for seconds, waited in taken[name])
        speed = iterations * args.batch / value
        print(f"  {name:10} {value:7.2f} s a turn ({low:.2f} to {high:.2f})  {speed:8.1f} images/s  waiting for pictures {100 * waits:.0f} %")
    row = {f"sec_{name}": round(value, 3) for name, value in median.items()}
    row |= {f"images_per_sec_{name}": round(iterations * args.batch / value, 1) for name, value in median.items()}
    print(json.dumps(row | ({"ratio": round(median["published"] / median["ours"], 3)} if len(median) == 2 else {})))


if __name__ == "__main__":
    main()
