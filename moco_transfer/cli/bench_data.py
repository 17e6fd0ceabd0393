"""Measure what reading a folder costs and how many data workers feed a GPU.

Measured are one worker by itself and the config's data workers together. Nothing is written. A run
logs its images/s, and how long it waits for images; give the images/s of a run that does not wait
as --gpu-images-per-sec.
"""

from __future__ import annotations

import argparse

EPILOG = """examples:
  How many workers feed a GPU that trains on 1,500 images/s:
    moco-transfer bench-data --config-file moco_v2_R_50_200ep --gpu-images-per-sec 1500 \\
        DATA.ROOT /data/imagenet/train
  Is a raw cache worth it?
    moco-transfer pack /data/imagenet/train /fast/raw --as raw
    moco-transfer bench-data --config-file moco_v2_R_50_200ep DATA.ROOT /fast/raw
"""

_SPARE = 1.2  # workers are not equally fast, and the training process needs a core


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench-data``."""
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a pre-training config; its DATA section is measured",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="how long to measure (default 20)"
    )
    parser.add_argument(
        "--gpu-images-per-sec",
        type=float,
        default=0.0,
        metavar="N",
        help="images/s of the training step, to print how many workers it needs",
    )
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change, e.g. DATA.NUM_WORKERS 16",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 0.

    Raises:
        InputError: If the config or the images cannot be used.
    """
    import os
    import time

    from ..config import load_pretrain_config
    from ..data.images.shard_stream import ShardStream
    from ..data.views.loading import Loader, plan_batches
    from ..data.views.view_batch import Views
    from ..pretrain.plan import open_images, view_maker
    from ..runtime.errors import InputError

    if args.seconds <= 0 or args.gpu_images_per_sec < 0:
        raise InputError("--seconds must be greater than 0 and --gpu-images-per-sec at least 0.")
    cfg = load_pretrain_config(args.config_file, args.overrides)
    source, make_views, workers = open_images(cfg), view_maker(cfg), cfg.DATA.NUM_WORKERS
    if isinstance(source, ShardStream):
        raise InputError(f"{cfg.DATA.ROOT} is a stream of shards; measure on local ones.")
    print(source.describe())
    views, count, since = Views(source, make_views, seed=0), 0, time.perf_counter()
    while time.perf_counter() - since < args.seconds / 2:
        views[[(0, count % len(source))]]
        count += 1
    one = (time.perf_counter() - since) / count
    print(f"one worker by itself: {1000 * one:.3f} ms per image, {1 / one:.0f} images/s")
    batch_size = min(cfg.DATA.BATCH_SIZE_TOTAL, len(source))
    batches = plan_batches(
        source,
        batch_size_total=batch_size,
        epochs=10**6,
        seed=0,
        num_workers=workers,
        shuffle_buffer=1,
        start_iteration=0,
    )
    loader = iter(Loader(source, batches, make_views, num_workers=workers, pin_memory=False))
    for _ in range(max(1, workers)):  # the workers start
        next(loader)
    since, taken = time.perf_counter(), 0
    while time.perf_counter() - since < args.seconds / 2:
        next(loader)
        taken += batch_size
    fed, cores = taken / (time.perf_counter() - since), os.cpu_count() or 1
    print(f"DATA.NUM_WORKERS {workers} feed {fed:.0f} images/s together, on {cores} cores")
    if args.gpu_images_per_sec:
        print(advice(args.gpu_images_per_sec, min(1 / one, fed / max(1, workers)), cores))
    return 0


def advice(wanted: float, each: float, cores: int) -> str:
    """Return how many workers are needed for ``wanted`` images/s, of ``each`` images/s a worker."""
    needed = int(-(-_SPARE * wanted // each))
    if needed <= cores:
        return f"for {wanted:.0f} images/s set DATA.NUM_WORKERS {needed}"
    return (
        f"{wanted:.0f} images/s need {needed} workers, and {cores} cores feed"
        f" {each * cores / _SPARE:.0f}; pack the images (moco-transfer pack --as raw)"
    )
