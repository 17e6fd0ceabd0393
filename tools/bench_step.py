#!/usr/bin/env python
"""Time of MoCo's step alone, beside the published step: python tools/bench_step.py [--only r50|small|losses].

The published step is tools/bench_published.py: the paper's algorithm in the plain way. Ours is the code that `moco-transfer pretrain`
runs (the config moco_v2_R_50_200ep, its encoders, queue, optimiser and trainer), in fp32 and in bf16:
    r50     ResNet-50, 224 px, batch 32, K = 65,536
    small   ResNet-18, 96 px, batch 64, K = 65,536
    losses  50 steps of the small one on the same views in fp32 and bf16: their losses side by side
Random images. Ours and the published alternate; each number is the median over --repeats. The last line is JSON: seconds, and how many times
faster than the published step each is. On a CUDA GPU: --device cuda --batch 256.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_published import PublishedStep  # noqa: E402

from moco_transfer.config import load_pretrain_config  # noqa: E402
from moco_transfer.pretrain.build import build_run  # noqa: E402
from moco_transfer.pretrain.build_data import plan_run  # noqa: E402
from moco_transfer.pretrain.trainer import step  # noqa: E402


class NoPictures:
    """As many as ImageNet has, none of which is read."""

    class_names = ()

    def __len__(self) -> int:
        return 1_281_167


CASES = {"r50": ("resnet50", 224, 32), "small": ("resnet18", 96, 64)}


def our_step(arch: str, size: int, batch: int, precision: str, device: str, extra: list[str]):
    """Return a function that takes a step on a batch as a data worker makes it."""
    words = ["MODEL.ARCH", arch, "DATA.IMAGE_SIZE", str(size), "DATA.BATCH_SIZE_TOTAL", str(batch)]
    words += ["TRAIN.PRECISION", precision, "TRAIN.DEVICE", device]
    cfg = load_pretrain_config("moco_v2_R_50_200ep", words + extra)
    run = build_run(cfg, NoPictures(), plan_run(cfg, NoPictures(), start_iteration=0), torch.device(device))
    run.wrapped.train()
    return lambda data: step(run, data)["loss"].item()


def batch_of(size: int, batch: int, seed: int) -> dict:
    """Return two views as they come out of the reference pipeline: smooth random pictures, the second a flipped first."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 8, 8, generator=generator) * 255
    views = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 255)
    views = views.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    label = torch.zeros(batch, dtype=torch.int64)
    return {"views": torch.stack([views, views.flip(3)]), "label": label, "index": label}


def measure(arch: str, size: int, batch: int, *, precisions: list[str], repeats: int, device: str, extra: list[str]) -> dict[str, list[float]]:
    """Return the seconds of each repeat, by way; the ways take turns."""
    published = PublishedStep(arch, queue_size=65536, device=device)
    images = [torch.randn(batch, 3, size, size, device=device) for _ in range(2)]
    data = batch_of(size, batch, 0)
    ways = {"published": lambda: published(*images)}
    for precision in precisions:
        ways[precision] = functools.partial(our_step(arch, size, batch, precision, device, extra), data)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first warms up
        for name, way in ways.items():
            since = time.perf_counter()
            way()
            if repeat:
                taken[name].append(time.perf_counter() - since)
    return taken


def report(title: str, batch: int, taken: dict[str, list[float]]) -> dict[str, float]:
    """Print a table; return the ratios to the published step by precision."""
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(title)
    for name, value in median.items():
        spread, times = f"({min(taken[name]):.3f} to {max(taken[name]):.3f})", median["published"] / value
        print(f"  {name:10} {value:8.3f} s  {spread}  {batch / value:8.1f} images/s  {times:5.2f} x", flush=True)
    return {name: round(median["published"] / value, 3) for name, value in median.items() if name != "published"}


def compare_losses(steps: int, device: str) -> dict[str, float]:
    """Take the same steps in fp32 and bf16; return how far the losses are apart at most and on the average, and the last of each."""
    arch, size, batch = CASES["small"]
    curves = {}
    for precision in ("fp32", "bf16"):
        take = our_step(arch, size, batch, precision, device, ["MOCO.QUEUE_SIZE", "1024"])
        curves[precision] = [take(batch_of(size, batch, i)) for i in range(steps)]
    apart = [abs(a - b) for a, b in zip(*curves.values(), strict=True)]
    print(f"losses over {steps} steps, {arch} {size} px batch {batch}, K = 1,024: at most {max(apart):.4f} apart, mean {sum(apart) / steps:.4f}")
    for i in [*range(0, steps, max(1, steps // 10)), steps - 1]:
        print(f"  step {i + 1:3}  fp32 {curves['fp32'][i]:.4f}  bf16 {curves['bf16'][i]:.4f}")
    return {"losses_max_apart": round(max(apart), 4), "losses_mean_apart": round(sum(apart) / steps, 4)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["r50", "small", "losses"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="for the losses")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=0, help="another batch for r50")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to change in ours")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row: dict[str, float] = {}
    for case, (arch, size, usual) in CASES.items():
        if args.only not in (None, case):
            continue
        batch = args.batch or usual if case == "r50" else usual
        precisions = ["fp32", "bf16"] if case == "r50" else ["bf16"]
        taken = measure(arch, size, batch, precisions=precisions, repeats=args.repeats, device=args.device, extra=args.overrides)
        ratios = report(f"{arch} {size} px batch {batch} K 65,536, {args.device}, {args.threads} threads, medians of {args.repeats}", batch, taken)
        row |= {f"ratio_{p}": r for p, r in ratios.items()} if case == "r50" else {"ratio_small": ratios["bf16"]}
        row |= {f"sec_{case}_{name}": round(statistics.median(values), 4) for name, values in taken.items()}
    if args.only in (None, "losses"):
        row |= compare_losses(args.steps, args.device)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
