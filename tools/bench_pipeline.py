#!/usr/bin/env python
"""Measure the two-view input pipeline on one core, compared with the published chain.

    python tools/bench_pipeline.py --data FOLDER

The published chain (tools/bench_published.py) is the official code's for MoCo v2: PIL decodes once,
two torchvision transforms make normalised float tensors. Ours, with the same recipe:
    cpu     files to two normalised float tensors on the CPU
    worker  files to two uint8 crops in the batch: what a data worker does, and what feeds a GPU
    cache   the same from raw shards (shorter side 256, `moco-transfer pack --as raw`), which are
            written to a temporary folder first
Both alternate; each number is the median over --repeats passes over --images images. The last line
is JSON: ms per image, and how many times faster than the published chain each is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_published import MEAN, STD, published_chain  # noqa: E402

from moco_transfer.data.images.folder import ImageFolder, find_images  # noqa: E402
from moco_transfer.data.images.pack import PackSettings, pack  # noqa: E402
from moco_transfer.data.images.sources import open_indexed  # noqa: E402
from moco_transfer.data.views import native  # noqa: E402
from moco_transfer.data.views.view_batch import ViewMaker, Views  # noqa: E402
from moco_transfer.data.views.view_colours import finish_views  # noqa: E402

BATCH = 32


def run_reference(folder: ImageFolder, places: list[int], chain) -> None:
    """Make all images' views, batch by batch."""
    for start in range(0, len(places), BATCH):
        pairs = []
        for index in places[start : start + BATCH]:
            with open(folder.path(index), "rb") as file:
                image = Image.open(file).convert("RGB")
            pairs.append((chain(image), chain(image)))
        torch.stack([q for q, _ in pairs]), torch.stack([k for _, k in pairs])


def run_ours(views: Views, places: list[int], epoch: int, *, to_float: bool) -> None:
    """Make all images' views, batch by batch; to uint8, or to normalised floats."""
    mean, std = tuple(255 * v for v in MEAN), tuple(255 * v for v in STD)
    for start in range(0, len(places), BATCH):
        batch = views[[(epoch, index) for index in places[start : start + BATCH]]]
        if to_float:
            for view, colours in zip(batch["views"], batch["colours"], strict=True):
                finish_views(view, colours, mean, std)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="images; the first ones are used"
    )
    parser.add_argument(
        "--images", type=int, default=200, help="images in a pass (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="passes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of a view, px")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = find_images(args.data)
    places = [i % len(folder) for i in range(args.images)]
    chain = published_chain(args.size)
    make_views = ViewMaker("v2", args.size, (0.2, 1.0), 2, "fast")
    with tempfile.TemporaryDirectory() as temporary:
        pack(folder, temporary, PackSettings("raw"))
        from_files, from_cache = (
            Views(source, make_views, seed=0) for source in (folder, open_indexed(temporary))
        )
        ways = {
            "reference": lambda _: run_reference(folder, places, chain),
            "cpu": lambda epoch: run_ours(from_files, places, epoch, to_float=True),
            "worker": lambda epoch: run_ours(from_files, places, epoch, to_float=False),
            "cache": lambda epoch: run_ours(from_cache, places, epoch, to_float=False),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(0)
        for repeat in range(args.repeats):
            for name, way in ways.items():
                since = time.perf_counter()
                way(repeat)
                taken[name].append(1000 * (time.perf_counter() - since) / len(places))
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(
        f"{len(set(places))} images of {folder.root}, {args.size} px, one core, medians of"
        f" {args.repeats}, compiled loops: {native.available()}"
    )
    print("               ms/image   images/s   lowest  highest   times the reference")
    for name, value in median.items():
        low, high = min(taken[name]), max(taken[name])
        print(
            f"{name:12} {value:12.3f} {1000 / value:12.0f} {low:8.3f} {high:8.3f}"
            f" {median['reference'] / value:12.2f}"
        )
    row = {f"ms_{name}": round(value, 4) for name, value in median.items()}
    row |= {
        f"ratio_{name}": round(median["reference"] / median[name], 3)
        for name in ("cpu", "worker", "cache")
    }
    print(
        json.dumps(
            row | {"native": native.available(), "images": len(places), "repeats": args.repeats}
        )
    )


if __name__ == "__main__":
    main()
