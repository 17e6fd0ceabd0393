#!/usr/bin/env python
"""Measure the peak memory of MoCo's step beyond its encoder, in copies of the (N, 1 + K) logits.

    python tools/bench_contrast_memory.py [--batch 256] [--queue-size 65536]

Ours is compared with the published step (tools/bench_published.py). The encoder is one linear
layer, so the contrast is measured: logits, softmax, gradients and copies of the queue. On Linux the
peak is the kernel's own (VmHWM, reset before each measurement). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moco_transfer.pretrain.moco import MoCo  # noqa: E402

MB = 2**20


class LinearEncoder(nn.Module):
    """A head alone: (N, 16) -> (N, C)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, C)."""
        return self.fc(x)


def our_step(model: MoCo, x: torch.Tensor) -> None:
    """Take the step of moco_transfer.pretrain."""
    index = torch.arange(len(x))
    model.begin_step(index)
    loss, _ = model.loss([x, x], index, index)
    model.end_step()
    loss.backward()


def plain_step(model: MoCo, x: torch.Tensor) -> None:
    """Take the step as the paper's Algorithm 1 reads, with autograd's own operators."""
    q = F.normalize(model.encoder_q(x), dim=1)
    with torch.no_grad():
        k = F.normalize(model.encoder_k(x), dim=1)
    l_pos = (q * k).sum(1, keepdim=True)
    l_neg = q @ model.queue.clone()
    logits = torch.cat([l_pos, l_neg], dim=1) / model.temperature
    F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64)).backward()
    model.queue[:, : len(x)] = k.T


def resident(field: str) -> float:
    """Return VmRSS or VmHWM of this process, MB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak_of(step, model: MoCo, x: torch.Tensor) -> float:
    """Return by how many MB the process grew at most during the second of two steps."""
    for _ in range(2):
        model.zero_grad()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step(model, x)
    return resident("VmHWM") - before


def main() -> None:
    """Measure both, print a table and a JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=256,
        metavar="N",
        help="images in a batch (default: %(default)s)",
    )
    parser.add_argument(
        "--queue-size",
        type=int,
        default=65536,
        metavar="K",
        help="negatives (default: %(default)s)",
    )
    args = parser.parse_args()
    model = MoCo(LinearEncoder, queue_size=args.queue_size)
    x = torch.randn(args.batch, 16)
    logits_mb = args.batch * (1 + args.queue_size) * 4 / MB
    print(
        f"one copy of the logits ({args.batch}, 1 + {args.queue_size}) in float32:"
        f" {logits_mb:.1f} MB"
    )
    row = {"logits_mb": round(logits_mb, 1)}
    for name, step in (("ours", our_step), ("plain", plain_step)):
        peak = peak_of(step, model, x)
        row |= {f"{name}_mb": round(peak, 1), f"{name}_copies": round(peak / logits_mb, 2)}
        print(f"{name:6} peak beyond the encoder {peak:7.1f} MB = {peak / logits_mb:.2f} copies")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
