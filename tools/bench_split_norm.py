#!/usr/bin/env python
"""Compare SplitBN's operator with torch's batch norm of one group after the other.

    python tools/bench_split_norm.py [--device cuda --batch 256 --size 224 --dtype bf16]

A forward and a backward pass of each size of ResNet-50's layers, 8 groups. The two alternate; each
number is the median over --repeats, ms. The last line is JSON: the loop's time over the operator's,
of the sum over the sizes, for channels-last and for contiguous memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.pretrain.shuffle import SplitBatchNorm2d  # noqa: E402

GROUPS = 8
LAYERS = ((64, 2), (64, 4), (256, 4), (128, 8), (512, 8), (256, 16), (1024, 16), (512, 32))
"""Channels, and the stride of the network so far."""


class Loop(SplitBatchNorm2d):
    """Batch norm of each group, concatenated; the form before the operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        parts = x.split(self.group_size)
        means = [self.running_mean.clone() for _ in parts]
        variances = [self.running_var.clone() for _ in parts]
        out = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(parts, means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.copy_(torch.stack(means).mean(0))
            self.running_var.copy_(torch.stack(variances).mean(0))
            self.num_batches_tracked += 1
        return torch.cat(out)


def milliseconds(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> float:
    """Return how long a forward and a backward pass take."""
    if not x.is_cuda:  # the processor's time, which other processes hardly disturb
        since = time.process_time()
        layer(x).backward(dy)
        return 1000 * (time.process_time() - since)
    torch.cuda.synchronize()
    since = time.perf_counter()
    layer(x).backward(dy)
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - since)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="side of the images, px")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    row = {}
    for name in ("channels_last", "contiguous_format"):
        sums = {"loop": 0.0, "operator": 0.0}
        for channels, stride in LAYERS:
            side = max(1, args.size // stride)
            x, dy = torch.randn(
                2, args.batch, channels, side, side, device=args.device, dtype=dtype
            )
            x, dy = (t.contiguous(memory_format=getattr(torch, name)) for t in (x, dy))
            x.requires_grad_()
            kinds = {"loop": Loop, "operator": SplitBatchNorm2d}
            layers = {
                n: kind(channels, group_size=args.batch // GROUPS).to(args.device)
                for n, kind in kinds.items()
            }
            taken: dict[str, list[float]] = {n: [] for n in layers}
            for _ in range(args.repeats + 3):  # the first three warm up
                for n, layer in layers.items():
                    taken[n].append(milliseconds(layer, x, dy))
            found = {n: statistics.median(times[3:]) for n, times in taken.items()}
            times = "  ".join(f"{n} {v:.2f} ms" for n, v in found.items())
            print(f"{name:18} {channels:5} x {side:3}  {times}", flush=True)
            sums = {n: sums[n] + v for n, v in found.items()}
        row[name.removesuffix("_format")] = round(sums["loop"] / sums["operator"], 3)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
