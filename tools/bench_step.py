#!/usr/bin/env python
"""Measure MoCo's step alone, compared with the published step.

    python tools/bench_step.py [--only r50|small|losses]

The published step is tools/bench_published.py. Ours is the code that `moco-transfer pretrain` runs
(the config moco_v2_R_50_200ep, its encoders, queue, optimiser and loop), in fp32 and in bf16:
    r50     ResNet-50, 224 px, batch 32, K = 65,536
    small   ResNet-18, 96 px, batch 64, K = 65,536
    losses  50 steps of the small one on the same views: the losses in fp32 and bf16, and as a
            control those of fp32 from weights that differ by 2^-9 of each, what bf16 rounds off
--compile measures ours once more with TRAIN.COMPILE; compiling is not counted.

Images are random and on the device already: normalised for the published step, bytes for ours. Both
alternate, in processes of their own; each number is the median over --repeats. The last line is
JSON: seconds, and how many times faster than the published step each is. On a CUDA GPU:
--device cuda --batch 256.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_published import OwnProcess, PublishedStep  # noqa: E402

from moco_transfer.config import load_pretrain_config  # noqa: E402
from moco_transfer.pretrain.plan import plan_pretrain  # noqa: E402
from moco_transfer.pretrain.run import build_run, step  # noqa: E402
from moco_transfer.runtime.device import keep_freed_memory  # noqa: E402


class NoImages:
    """As many as ImageNet has, none of which is read."""

    class_names = ()
    pixel_change = ""

    def __len__(self) -> int:
        return 1_281_167


CASES = {"r50": ("resnet50", 224, 32), "small": ("resnet18", 96, 64)}


def our_step(
    arch: str,
    size: int,
    batch: int,
    precision: str,
    device: str,
    extra: list[str],
    *,
    perturbed: float = 0.0,
):
    """Return a function that takes a step on a batch as a data worker makes it; ``perturbed`` is
    the weights' relative change before the first.
    """
    words = ["MODEL.ARCH", arch, "DATA.IMAGE_SIZE", str(size), "DATA.BATCH_SIZE_TOTAL", str(batch)]
    words += ["TRAIN.PRECISION", precision, "TRAIN.DEVICE", device]
    cfg = load_pretrain_config("moco_v2_R_50_200ep", words + extra)
    run = build_run(plan_pretrain(cfg, source=NoImages()))
    run.model.train()
    if perturbed:
        perturb(run.model, perturbed)
    return lambda data: step(run, data)["loss"].item()


@torch.no_grad()
def perturb(model: torch.nn.Module, share: float) -> None:
    """Make each weight of both encoders larger or smaller by this share of it, the same in both."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.encoder_q.parameters():
        signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
        weight.mul_(1 + share * signs.to(weight.device))
    model.encoder_k.load_state_dict(model.encoder_q.state_dict())


def batch_of(size: int, batch: int, seed: int) -> dict:
    """Return two views as they come out of the reference pipeline: smooth random images, the
    second a flipped first.
    """
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 8, 8, generator=generator) * 255
    views = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 255)
    views = views.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    label = torch.zeros(batch, dtype=torch.int64)
    return {"views": torch.stack([views, views.flip(3)]), "label": label, "index": label}


def published_way(arch: str, size: int, batch: int, device: str) -> Callable[[], float]:
    """Return a function that takes the published step and returns its seconds."""
    published = PublishedStep(arch, queue_size=65536, device=device)
    images = [torch.randn(batch, 3, size, size, device=device) for _ in range(2)]
    return functools.partial(seconds_of, published, *images)


def our_way(
    arch: str, size: int, batch: int, device: str, precision: str, extra: list[str]
) -> Callable[[], float]:
    """Return a function that takes our step and returns its seconds."""
    if device == "cpu":
        keep_freed_memory()  # as pretrain.run.pretrain does
    data = {
        name: value.to(device) for name, value in batch_of(size, batch, 0).items()
    }  # as the published step's: copying is not the step
    return functools.partial(
        seconds_of, our_step(arch, size, batch, precision, device, extra), data
    )


def seconds_of(function: Callable, *args: Any) -> float:
    """Return how long a call takes; its result is a number of Python's, so that a GPU has done."""
    since = time.perf_counter()
    function(*args)
    return time.perf_counter() - since


def measure(
    arch: str,
    size: int,
    batch: int,
    *,
    precisions: list[str],
    repeats: int,
    device: str,
    threads: int,
    extra: list[str],
    compiled: bool,
) -> dict[str, list[float]]:
    """Return the seconds of each repeat, by way; the ways take turns."""
    case = arch, size, batch, device
    makers: dict[str, tuple] = {"published": (published_way,)} | {
        precision: (our_way, precision, extra) for precision in precisions
    }
    if compiled:
        makers[f"{precisions[-1]}, compiled"] = (
            our_way,
            precisions[-1],
            [*extra, "TRAIN.COMPILE", "True"],
        )
    taken: dict[str, list[float]] = {name: [] for name in makers}
    with contextlib.ExitStack() as ends:
        ways = {
            name: ends.enter_context(OwnProcess(make, *case, *rest, threads=threads))
            for name, (make, *rest) in makers.items()
        }
        for way in ways.values():  # warms up, and compiles
            way()
            way()
        for _ in range(repeats):
            for name, way in ways.items():
                taken[name].append(way())
    return taken


def report(title: str, batch: int, taken: dict[str, list[float]]) -> dict[str, float]:
    """Print a table; return the ratios to the published step by precision."""
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(title)
    for name, value in median.items():
        spread, times = (
            f"({min(taken[name]):.3f} to {max(taken[name]):.3f})",
            median["published"] / value,
        )
        print(
            f"  {name:10} {value:8.3f} s  {spread}  {batch / value:8.1f} images/s  {times:5.2f} x",
            flush=True,
        )
    return {
        name: round(median["published"] / value, 3)
        for name, value in median.items()
        if name != "published"
    }


def compare_losses(steps: int, device: str) -> dict[str, float]:
    """Take the same steps in fp32, in bf16, and in fp32 from weights changed by as much as bf16
    rounds; return how far losses are from fp32's.
    """
    arch, size, batch = CASES["small"]
    curves = {}
    for name, precision, perturbed in (
        ("fp32", "fp32", 0.0),
        ("bf16", "bf16", 0.0),
        ("perturbed", "fp32", 2.0**-9),
    ):
        take = our_step(
            arch, size, batch, precision, device, ["MOCO.QUEUE_SIZE", "1024"], perturbed=perturbed
        )
        curves[name] = [take(batch_of(size, batch, i)) for i in range(steps)]
    print(
        f"losses over {steps} steps, {arch} {size} px batch {batch}, K = 1,024; perturbed: fp32"
        " from weights changed by 2^-9 of each"
    )
    row = {}
    for name, key in (("bf16", "losses"), ("perturbed", "losses_perturbed")):
        apart = [abs(a - b) for a, b in zip(curves["fp32"], curves[name], strict=True)]
        print(f"  {name:10} at most {max(apart):.4f} from fp32, mean {sum(apart) / steps:.4f}")
        row |= {
            f"{key}_max_apart": round(max(apart), 4),
            f"{key}_mean_apart": round(sum(apart) / steps, 4),
        }
    for i in [*range(0, steps, max(1, steps // 10)), steps - 1]:
        print(
            f"  step {i + 1:3}  "
            + "  ".join(f"{name} {curve[i]:.4f}" for name, curve in curves.items())
        )
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=["r50", "small", "losses"], help="one of the three (default: all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="steps of each that count (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=50, help="for the losses")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of each (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=0, help="another batch for r50")
    parser.add_argument(
        "--compile", action="store_true", help="also measure TRAIN.COMPILE, in bf16"
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change in ours",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # as the official script has it, and our trainer
    row: dict[str, float] = {}
    for case, (arch, size, usual) in CASES.items():
        if args.only not in (None, case):
            continue
        batch = args.batch or usual if case == "r50" else usual
        precisions = ["fp32", "bf16"] if case == "r50" else ["bf16"]
        settings = {
            "repeats": args.repeats,
            "device": args.device,
            "threads": args.threads,
            "extra": args.overrides,
            "compiled": args.compile,
        }
        taken = measure(arch, size, batch, precisions=precisions, **settings)
        ratios = report(
            f"{arch} {size} px batch {batch} K 65,536, {args.device}, {args.threads} threads,"
            f" medians of {args.repeats}",
            batch,
            taken,
        )
        row |= (
            {f"ratio_{p}": ratios[p] for p in precisions}
            if case == "r50"
            else {"ratio_small": ratios["bf16"]}
        )
        row |= {f"ratio_{case}_compiled": ratios["bf16, compiled"]} if args.compile else {}
        row |= {
            f"sec_{case}_{name.replace(', ', '_')}": round(statistics.median(values), 4)
            for name, values in taken.items()
        }
    if args.only in (None, "losses"):
        row |= compare_losses(args.steps, args.device)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
